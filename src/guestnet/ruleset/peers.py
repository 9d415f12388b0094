"""A rule's peers in nft's words: alternatives, of which each is a rule of its own.

An IPv4 address may also come embedded in an IPv6 one, and what is said of it holds for that too.
Teredo hides its clients' addresses by inverting them (RFC 4380 section 4), so they have sets and
ranges of their own.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network

from ..policy import (
    AnyTarget,
    Direction,
    DnsTarget,
    Group,
    GroupTarget,
    NetworkTarget,
    Target,
    embed_ranges,
)
from .base import set_word
from .sets import range6

Network = IPv4Network | IPv6Network

_TEREDO = "2001::/32"


class Peers:
    """Those of packets in one direction: where egress goes to, or ingress comes from."""

    def __init__(self, direction: Direction) -> None:
        self._are_destinations = direction is Direction.EGRESS
        self._side = "daddr" if self._are_destinations else "saddr"
        self._teredo_client = f"ip6 {self._side} {_TEREDO} ip6 {self._side} & ::ffff:ffff"

    def of_target(self, target: Target) -> list[str]:
        """What a rule's target stands for; an empty alternative is anybody."""
        if isinstance(target, AnyTarget):
            return [""]
        if isinstance(target, DnsTarget):
            # Who may be asked depends on the network, so the asker is part of the key.
            if not self._are_destinations:
                return []
            return ["ip saddr . ip daddr @resolver4", "ip6 saddr . ip6 daddr @resolver6"]
        if isinstance(target, NetworkTarget):
            return self.of_network(target.network)
        if isinstance(target, GroupTarget):
            return self.of_group(target.group)
        raise TypeError(f"no nftables words for {target!r}")

    def of_group(self, group: Group) -> list[str]:
        """The members of a group."""
        side = self._side
        if group is Group.HOST:
            return [
                f"fib {side} type local",
                f"ip6 {side} @host_embedded6",
                f"{self._teredo_client} @host_teredo",
            ]
        return self._in_sets(set_word(group))

    def unroutable(self) -> list[str]:
        """Addresses that can be routed nowhere."""
        return self._in_sets("unroutable")

    def of_network(self, network: Network) -> list[str]:
        """A network's addresses."""
        side = self._side
        if isinstance(network, IPv6Network):
            return [f"ip6 {side} {network}"]
        lo, hi = int(network.network_address), int(network.broadcast_address)
        embedded = ", ".join(range6(*part) for part in embed_ranges(lo, hi))
        client = range6(*_inverted(lo, hi))
        return [
            f"ip {side} {network}",
            f"ip6 {side} {{ {embedded} }}",
            f"{self._teredo_client} {client}",
        ]

    def _in_sets(self, word: str) -> list[str]:
        return [
            f"ip {self._side} @{word}4",
            f"ip6 {self._side} @{word}6",
            f"{self._teredo_client} @{word}_teredo",
        ]


def _inverted(lo: int, hi: int) -> tuple[int, int]:
    mask = int(IPv4Address("255.255.255.255"))
    return hi ^ mask, lo ^ mask
