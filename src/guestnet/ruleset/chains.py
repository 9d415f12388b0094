"""A policy's chains and sets: their names, and the transactions that make and delete them.

Their rules are `compile`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .names import EGRESS_DISPATCH, INGRESS_DISPATCH, RELAY_DISPATCH, TABLE

if TYPE_CHECKING:
    from ..policy import Policy

#: A chain's name and its rules in order.
Chain = tuple[str, tuple[str, ...]]

#: Pins of one rule in one family, of all guests; the gateway lets one have an eighth of it.
MAX_PINS = 65536
_PINS = "-pins"


def policy_id(policy: Policy) -> str:
    """The name that the chains of a policy share: the same for the same meaning in words."""
    return "policy-" + hashlib.sha256(str(policy).encode()).hexdigest()[:16]


def policy_of(chain: str) -> str:
    """The policy id that a chain's name begins with."""
    return "-".join(chain.split("-")[:2])


def members_set(policy: str, version: int) -> str:
    """The set of a policy's guests in one family."""
    return f"{policy}-members{version}"


def pins_chain(policy: str, rule: int) -> str:
    """The chain of a rule's pins: packets that the gateway vouched for meet its verdict there."""
    return f"{policy}{_PINS}{rule}"


def pins_set(policy: str, rule: int, version: int) -> str:
    """The set of a rule's pins in one family: pairs of guest and address, each for a time."""
    return f"{pins_chain(policy, rule)}-{version}"


def _pins_sets(chain: str) -> list[tuple[int, str]]:
    """The sets that a chain of pins reads; none for other chains."""
    return [(version, f"{chain}-{version}") for version in (4, 6) if _PINS in chain]


@dataclass(frozen=True, slots=True)
class PolicyChains:
    """The chains of one policy in table inet."""

    id: str
    chains: tuple[Chain, ...]

    @property
    def egress(self) -> str:
        """The chain a guest's own packets enter."""
        return f"{self.id}-egress"

    @property
    def ingress(self) -> str:
        """The chain packets to the guest enter."""
        return f"{self.id}-ingress"

    @property
    def relay(self) -> str | None:
        """The chain that hands flows to the gateway, of a policy with rules by name."""
        name = f"{self.id}-relay"
        return name if any(name == chain for chain, _rules in self.chains) else None

    def install_text(self) -> str:
        """One transaction that makes the chains and sends the policy's members there."""
        names = [name for name, _rules in self.chains]
        lines = [
            f"add set inet {TABLE} {members_set(self.id, version)} {{ type ipv{version}_addr; }}"
            for version in (4, 6)
        ]
        lines += [
            f"add set inet {TABLE} {pins} "
            f"{{ type ipv{v}_addr . ipv{v}_addr; size {MAX_PINS}; flags timeout; }}"
            for name in names
            for v, pins in _pins_sets(name)
        ]
        lines += [f"add chain inet {TABLE} {name}" for name in names]
        lines += [f"flush chain inet {TABLE} {name}" for name in names]
        lines += [
            f"add rule inet {TABLE} {name} {rule}" for name, rules in self.chains for rule in rules
        ]
        return "\n".join(lines) + "\n" + self.dispatch_text()

    def dispatch_text(self) -> str:
        """The rules that send members to the policy's chains."""
        low, high = members_set(self.id, 4), members_set(self.id, 6)
        relay = ""
        if self.relay is not None:
            relay = (
                f"add rule inet {TABLE} {RELAY_DISPATCH} ip saddr @{low} goto {self.relay}\n"
                f"add rule inet {TABLE} {RELAY_DISPATCH} ip6 saddr @{high} goto {self.relay}\n"
            )
        return relay + (
            f"add rule inet {TABLE} {EGRESS_DISPATCH} ip saddr @{low} goto {self.egress}\n"
            f"add rule inet {TABLE} {EGRESS_DISPATCH} ip6 saddr @{high} goto {self.egress}\n"
            f"add rule inet {TABLE} {INGRESS_DISPATCH} ip daddr @{low} goto {self.ingress}\n"
            f"add rule inet {TABLE} {INGRESS_DISPATCH} ip6 daddr @{high} goto {self.ingress}\n"
        )


def removal_text(gone: Iterable[str], kept: Iterable[PolicyChains]) -> str:
    """One transaction that deletes chains nobody uses, and the members' sets beside them.

    The dispatch is written anew, as a single rule of it could only be named by a handle.
    """
    chains = list(gone)
    policies = dict.fromkeys(policy_of(name) for name in chains)
    dispatch = (EGRESS_DISPATCH, INGRESS_DISPATCH, RELAY_DISPATCH)
    lines = [f"flush chain inet {TABLE} {name}" for name in dispatch]
    lines += [f"flush chain inet {TABLE} {name}" for name in chains]
    lines += [f"delete chain inet {TABLE} {name}" for name in chains]
    lines += [
        f"delete set inet {TABLE} {members_set(policy, version)}"
        for policy in policies
        for version in (4, 6)
    ]
    lines += [f"delete set inet {TABLE} {pins}" for name in chains for _v, pins in _pins_sets(name)]
    return "\n".join(lines) + "\n" + "".join(policy.dispatch_text() for policy in kept)
