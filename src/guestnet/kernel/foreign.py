"""Other tools' forward filters: an accept in our table does not overrule their drop.

Docker, ufw and firewalld drop or reject what they do not know at the end of their forward chain. As
the smallest remedy two rules go to the head of such a chain, for guests' devices only: what passes
there has already met the guest's policy in our own table. The rules bear our comment and are taken
away again with the last network; nothing else of a foreign table is touched.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import HostError
from ..ruleset.names import TABLE

if TYPE_CHECKING:
    from .nft import Nft

logger = logging.getLogger(__name__)

COMMENT = "guestnet"
_FAMILIES = ("ip", "ip6", "inet")
_FINAL = ("drop", "reject")


@dataclass(frozen=True, slots=True)
class ForeignChain:
    """A forward chain of another tool that lets nothing unknown pass."""

    family: str
    table: str
    name: str
    #: Our rules in it: (device pattern with its direction, handle).
    ours: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"


class ForeignFilters:
    """Finds such chains, and keeps our accepts in them.

    Thread-safe, by the lock of whoever else uses this `Nft`.
    """

    def __init__(self, nft: Nft, lock: threading.RLock) -> None:
        self._nft = nft
        self._lock = lock

    def find(self) -> list[ForeignChain]:
        """Forward chains of others whose end is a drop or reject."""
        with self._lock:
            listed = json.loads(self._nft.read("list chains", about="chains"))["nftables"]
            chains = [entry["chain"] for entry in listed if "chain" in entry]
            found = [self._refusing(each) for each in chains if _is_forward_filter(each)]
        return [each for each in found if each is not None]

    def _refusing(self, chain: dict[str, Any]) -> ForeignChain | None:
        """A chain as we see it, if it refuses or has rules of ours."""
        rules = self._rules(chain)
        ours = tuple(
            (_pattern(rule), rule["handle"]) for rule in rules if rule.get("comment") == COMMENT
        )
        if ours or chain.get("policy") == "drop" or _ends_in_refusal(rules):
            return ForeignChain(chain["family"], chain["table"], chain["name"], ours)
        return None

    def accept(self, devices: Iterable[str]) -> None:
        """Let `devices` (names or patterns as `gn*`) through every such chain.

        What was accepted there for other devices is taken away, so an empty list removes all.
        A chain that its tool locks against others is left alone and logged.
        """
        wanted = {f"{side} {device}" for device in devices for side in ("iifname", "oifname")}
        with self._lock:
            for chain in self.find():
                self._set(chain, wanted)

    def _set(self, chain: ForeignChain, wanted: set[str]) -> None:
        standing = dict(chain.ours)
        lines = [
            f"delete rule {chain} handle {handle}"
            for pattern, handle in chain.ours
            if pattern not in wanted
        ]
        for pattern in sorted(wanted - standing.keys()):
            side, device = pattern.split(" ", 1)
            lines.append(
                f'insert rule {chain} {side} "{device}" counter accept comment "{COMMENT}"'
            )
        if not lines:
            return
        try:
            self._nft.run("\n".join(lines), about=f"accept in {chain}")
        except HostError as error:
            logger.warning("cannot let guests through %s: %s", chain, error)

    def _rules(self, chain: dict[str, Any]) -> list[dict[str, Any]]:
        command = f"list chain {chain['family']} {chain['table']} {chain['name']}"
        try:
            listed = json.loads(self._nft.read(command, about=command))["nftables"]
        except HostError:
            return []  # gone meanwhile, or made by a tool whose expressions nft cannot show
        return [entry["rule"] for entry in listed if "rule" in entry]


def _is_forward_filter(chain: dict[str, Any]) -> bool:
    return (
        chain.get("hook") == "forward"
        and chain.get("type") == "filter"
        and chain.get("family") in _FAMILIES
        and chain.get("table") != TABLE
    )


def _ends_in_refusal(rules: list[dict[str, Any]]) -> bool:
    """Whether the last rule refuses everything (counters and logs aside)."""
    if not rules:
        return False
    words = [word for part in rules[-1].get("expr", []) for word in part]
    return any(w in _FINAL for w in words) and all(
        w in (*_FINAL, "counter", "log", "limit") for w in words
    )


def _pattern(rule: dict[str, Any]) -> str:
    """`iifname gn*` of a rule of ours."""
    for part in rule.get("expr", []):
        match = part.get("match")
        if match and "meta" in match.get("left", {}):
            return f"{match['left']['meta']['key']} {match['right']}"
    return ""
