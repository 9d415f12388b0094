"""Which group an address is in: total, disjoint, and expressible as ranges for a firewall.

The *static* groups are the same on every machine and come from `special`; `HOST` and `GUESTS` only
the machine knows, and it says so in `Places`. An IPv6 address that embeds IPv4 takes the group of
what it embeds.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TypeAlias

from .embed import (
    IPV4_MAX,
    IPV6_MAX,
    TEREDO_RANGE,
    embed_ranges,
    embedded_ipv4,
    teredo_low_bits,
)
from .special import IPV4, IPV6, IPV6_LAST, Group

__all__ = [
    "FLOOR",
    "UNROUTABLE",
    "Address",
    "Group",
    "Network",
    "Places",
    "Range",
    "classify",
    "embed_ranges",
    "embedded_ipv4",
    "groups_inside",
    "static_ranges",
    "teredo_low_bits",
    "teredo_ranges",
    "unroutable",
    "unroutable_groups",
    "without_scope",
]

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network
#: Inclusive integers, as a firewall's interval set takes them.
Range: TypeAlias = tuple[int, int]

#: Reached only by an allow rule that names the group (or `dns`, for port 53 of a resolver).
FLOOR = frozenset({Group.HOST, Group.METADATA, Group.GUESTS})
#: Never leave the guest's link, whatever a rule says; see `unroutable_groups` for IPv6.
UNROUTABLE = frozenset({Group.NONE, Group.LOOPBACK, Group.MULTICAST})


class _Map:
    """A whole address space cut into segments, each of one group (`None`: decided elsewhere)."""

    def __init__(self, top: int) -> None:
        self.top = top
        self.starts: list[int] = [0]
        self.groups: list[Group | None] = [None]

    def paint(self, lo: int, hi: int, group: Group | None) -> None:
        """Give `lo`..`hi` to `group`, over whatever was there."""
        if hi < self.top:
            self._cut(hi + 1)
        self._cut(lo)
        first, last = bisect_left(self.starts, lo), bisect_right(self.starts, hi)
        self.starts[first:last] = [lo]
        self.groups[first:last] = [group]

    def _cut(self, at: int) -> None:
        index = bisect_right(self.starts, at)
        if self.starts[index - 1] != at:
            self.starts.insert(index, at)
            self.groups.insert(index, self.groups[index - 1])

    def segments(self, lo: int, hi: int) -> Iterable[tuple[int, int, Group | None]]:
        """The parts of `lo`..`hi`, in order; neighbours may be of one group."""
        index = bisect_right(self.starts, lo) - 1
        while index < len(self.starts) and self.starts[index] <= hi:
            is_last = index + 1 == len(self.starts)
            end = self.top if is_last else self.starts[index + 1] - 1
            yield max(lo, self.starts[index]), min(hi, end), self.groups[index]
            index += 1

    def at(self, value: int) -> Group | None:
        """The group of one address."""
        return self.groups[bisect_right(self.starts, value) - 1]


def _paint(space: _Map, table: Iterable[tuple[str, Group]]) -> None:
    for text, group in table:
        network = ip_network(text)
        space.paint(int(network.network_address), int(network.broadcast_address), group)


def _ipv4_map() -> _Map:
    space = _Map(IPV4_MAX)
    _paint(space, IPV4)
    return space


def _ipv6_map(ipv4: _Map) -> _Map:
    space = _Map(IPV6_MAX)
    _paint(space, IPV6)
    for lo, hi, group in ipv4.segments(0, IPV4_MAX):
        for embedded in embed_ranges(lo, hi):
            space.paint(*embedded, group)
    space.paint(*TEREDO_RANGE, None)
    _paint(space, IPV6_LAST)
    return space


_IPV4 = _ipv4_map()
_IPV6 = _ipv6_map(_IPV4)


@cache
def static_ranges(group: Group, version: int) -> tuple[Range, ...]:
    """The addresses of a group that are the same on every machine: sorted, disjoint, merged.

    Over all groups they partition the space of `version` (4 or 6), but for Teredo's 2001::/32,
    which `teredo_ranges` covers. `HOST` and `GUESTS` have none.
    """
    space = _map(version)
    return _merged((lo, hi) for lo, hi, found in space.segments(0, space.top) if found is group)


@cache
def teredo_ranges(group: Group) -> tuple[Range, ...]:
    """The ranges of the low 32 bits of a 2001::/32 address, as sent, that put it in `group`."""
    return _merged(sorted(teredo_low_bits(lo, hi) for lo, hi in static_ranges(group, 4)))


def _merged(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Sorted, disjoint ranges with neighbours joined."""
    merged: list[Range] = []
    for lo, hi in ranges:
        if merged and merged[-1][1] + 1 == lo:
            merged[-1] = (merged[-1][0], hi)
        else:
            merged.append((lo, hi))
    return tuple(merged)


def _map(version: int) -> _Map:
    if version not in (4, 6):
        raise ValueError(f"IP version is 4 or 6, not {version}")
    return _IPV4 if version == 4 else _IPV6


@lru_cache(maxsize=4096)
def groups_inside(network: Network) -> frozenset[Group]:
    """Every static group that has an address inside `network`."""
    lo, hi = int(network.network_address), int(network.broadcast_address)
    found = set()
    for start, end, group in _map(network.version).segments(lo, hi):
        if group is not None:
            found.add(group)
        elif start == end:
            found.add(_static_group(IPv6Address(start)))
        else:
            # A range of Teredo is any mixture of clients: say all, rather than look.
            found.update(known for known in Group if static_ranges(known, 4))
    return frozenset(found)


def _static_group(address: Address) -> Group:
    group = _map(address.version).at(int(address))
    if group is None:
        group = _IPV4.at(int(address) & IPV4_MAX ^ IPV4_MAX)
    if group is None:
        raise AssertionError(f"{address} is in no group: the tables in special.py have a hole")
    return group


def without_scope(address: Address) -> Address:
    """The address alone: `fe80::1%eth0` does not equal `fe80::1` in `ipaddress`."""
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return IPv6Address(int(address))
    return address


@dataclass(frozen=True)
class Places:
    """What only the machine knows about addresses."""

    host: frozenset[Address]
    """Every address of every interface of the host, its gateways towards guests included."""
    guests: tuple[Network, ...]
    """The pools of all networks of this host."""
    guests_except: tuple[Network, ...] = ()
    """Parts of the pools that are not given to guests, because the host's surroundings use them."""
    dns: tuple[Address, ...] = ()
    """The resolvers told to the guests, which the target `dns` stands for."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "host", frozenset(without_scope(a) for a in self.host))
        object.__setattr__(self, "dns", tuple(without_scope(a) for a in self.dns))

    def is_guest(self, address: Address) -> bool:
        """Whether `address` itself (not what it embeds) lies in the guests' pools."""
        if not any(address in pool for pool in self.guests):
            return False
        return not any(address in part for part in self.guests_except)


def classify(address: Address, places: Places) -> Group:
    """The one group of `address`; what an IPv6 address embeds counts as the address does."""
    address = without_scope(address)
    embedded = embedded_ipv4(address) if isinstance(address, IPv6Address) else None
    forms = (address,) if embedded is None else (address, embedded)
    static = _static_group(address)
    # The ladder; the firewall's sets are consulted in the same order.
    if static is Group.NONE:
        return Group.NONE
    if any(form in places.host for form in forms):
        return Group.HOST
    if static is Group.METADATA:
        return Group.METADATA
    if any(places.is_guest(form) for form in forms):
        return Group.GUESTS
    return static


def unroutable_groups(version: int) -> frozenset[Group]:
    """The groups that are always denied: `UNROUTABLE`, and for IPv6 also link-local.

    IPv6 link-local here is the whole group: fe80::/10 and whatever embeds 169.254.0.0/16.
    """
    return UNROUTABLE | {Group.LINK_LOCAL} if version == 6 else UNROUTABLE


def unroutable(address: Address, group: Group) -> bool:
    """Whether a peer at `address`, which is in `group`, is denied whatever the policy says."""
    return group in unroutable_groups(address.version)
