"""What the kernel counts of guests, beside the counters of their devices."""

from __future__ import annotations

import socket
import threading
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, ip_address

from ..ruleset.elements import Element, counting_elements
from ..ruleset.names import Family
from ..ruleset.telling import COUNTING, LOGGED, REFUSED, UNTOLD_FLOWS
from .nft import Nft

Address = IPv4Address | IPv6Address


class Counts:
    """Our counters and counting sets. Thread-safe, by the lock of whoever else uses this `Nft`."""

    def __init__(self, nft: Nft, lock: threading.RLock) -> None:
        self._nft = nft
        self._lock = lock

    def by_reason(self) -> dict[str, int]:
        """Packets counted by each named counter of ours, as `family/name`."""
        with self._lock:
            return self._nft.counters()

    def refused(self, addresses: Collection[Address]) -> int:
        """Packets refused to a guest with these addresses."""
        return self._counted(REFUSED, addresses)

    def left_out(self, addresses: Collection[Address]) -> int:
        """Flows and refusals of such a guest that were beyond its share of what is told."""
        # In this order: what happens meanwhile is not taken for left out.
        refused = self._counted(REFUSED, addresses)
        logged = self._counted(LOGGED, addresses)
        return max(0, refused - logged) + self._counted(UNTOLD_FLOWS, addresses)

    def left_out_so_far(self) -> dict[Address, int]:
        """The same of every address, as far as it is not 0."""
        found: dict[Address, int] = {}
        with self._lock:
            for word, sign in ((REFUSED, 1), (LOGGED, -1), (UNTOLD_FLOWS, 1)):
                for version in (4, 6):
                    for key, count in self._nft.counted(Family.INET, f"{word}{version}").items():
                        address = ip_address(key)
                        found[address] = found.get(address, 0) + sign * count
        return {address: count for address, count in found.items() if count > 0}

    def _counted(self, word: str, addresses: Collection[Address]) -> int:
        with self._lock:
            found = counting_elements(word, addresses)
            return sum(self._nft.counted_one(element) for element in found)

    def seen(self, guest: Address) -> list[tuple[Address, int, int]]:
        """What a guest in report mode sent beside TCP: (peer, IP protocol, port or 0)."""
        found: list[tuple[Address, int, int]] = []
        size = len(guest.packed)
        with self._lock:
            for word in ("seen", "seen_other"):
                for each in self._nft.elements(Family.INET, f"{word}{guest.version}"):
                    if each.key[:size] != guest.packed:
                        continue
                    peer = ip_address(each.key[size : 2 * size])
                    rest = each.key[2 * size :]
                    if word == "seen":
                        found.append((peer, socket.IPPROTO_UDP, int.from_bytes(rest[:2], "big")))
                    else:
                        found.append((peer, rest[0], 0))
        return found

    def forget(self, addresses: Collection[Address]) -> None:
        """Delete what was counted of guests with these addresses."""
        by_set: dict[str, list[Element]] = {}
        for word in COUNTING:
            for element in counting_elements(word, addresses):
                by_set.setdefault(element.set_name, []).append(element)
        with self._lock:
            for name, members in by_set.items():
                standing = self._nft.counted(Family.INET, name)
                self._nft.change(remove=[e for e in members if e.key in standing])
