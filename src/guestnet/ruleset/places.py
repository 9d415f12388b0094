"""What only this machine knows: pools, egress interfaces, resolvers and the host's own addresses.

These sets change when a network or the host's addressing does, never when a guest comes or goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
)
from typing import Any

from ..policy import embed_ranges
from .doors import Doors
from .knocking import knock_text
from .names import TABLE
from .relayed import Manner, manner_text
from .sets import range4, range6

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: Sets that `places_text` writes anew.
_SETS = (
    "guests4",
    "guests6",
    "guests_teredo",
    "host_embedded6",
    "host_teredo",
    "leave4",
    "leave6",
    "resolver4",
    "resolver6",
    "shared",
    "isolated",
    "synthetic4",
    "synthetic6",
    "doors",
    "resolver_door",
)
_MAPS = ("resolver_door",)
_IPV4_MASK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class NetworkPlaces:
    """One network's share."""

    #: Where its guests' addresses are: pools without the parts that other networks own.
    pools: tuple[Network, ...]
    egress: tuple[str, ...]
    dns: tuple[Address, ...]
    #: Bridge device of the network, or empty.
    bridge: str = ""
    #: Whether its guests are kept from each other there.
    isolated: bool = True
    #: Whether names have addresses of their own there.
    synthetic: bool = False
    #: What counts as guests, where it is not the pools: without the parts that the host uses
    #: itself, but with those guests who were there before the host came to use them.
    guests: tuple[Network, ...] | None = None

    @property
    def counted(self) -> tuple[Network, ...]:
        """What counts as guests."""
        return self.pools if self.guests is None else self.guests


def without(pools: Iterable[Network], skipped: Iterable[Network]) -> tuple[Network, ...]:
    """Pools less what is skipped, as networks."""
    left = list(pools)
    for hole in skipped:
        left = [part for pool in left for part in _less(pool, hole)]
    return tuple(left)


def _less(pool: Network, hole: Network) -> Iterator[Network]:
    # Written for Any, as the two families' methods take their own family only.
    one: Any = pool
    if pool.version != hole.version or not one.overlaps(hole):
        yield pool
    elif not one.subnet_of(hole):
        yield from one.address_exclude(hole)


def places_text(
    networks: Iterable[NetworkPlaces],
    host: Iterable[Address],
    doors: Doors | None = None,
    manner: Manner = Manner.FORWARDED,
    *,
    told: bool = False,
) -> str:
    """One transaction that makes the machine's sets say exactly this.

    In the relayed manner nothing leaves by an egress interface, whatever networks name, and the
    gateway is the only resolver; `told` has it refuse what is refused, as far as that is TCP, so
    that it tells of it.
    """
    host = list(host)
    members: dict[str, list[str]] = {name: [] for name in _SETS}
    for network in networks:
        _network_members(network, members)
        if network.bridge:
            way_back = f'"{network.bridge}" . "{network.bridge}"'
            members["isolated" if network.isolated else "shared"].append(way_back)
    for address in host:
        if isinstance(address, IPv4Address):
            _embedded(int(address), int(address), members["host_embedded6"], members["host_teredo"])
    if doors is not None:
        members["resolver_door"] = [f"udp : {doors.resolver_udp}", f"tcp : {doors.resolver_tcp}"]
        members["doors"] = [
            *(f"tcp . {port}" for port in doors.relay_tcp),
            f"udp . {doors.resolver_udp}",
            f"tcp . {doors.resolver_tcp}",
        ]
    if manner is Manner.RELAYED:
        for name in ("leave4", "leave6", "resolver4", "resolver6"):
            members[name] = []
    lines = []
    for name, listed in members.items():
        kind = "map" if name in _MAPS else "set"
        lines.append(f"flush {kind} inet {TABLE} {name}")
        if listed:
            joined = ", ".join(dict.fromkeys(listed))
            lines.append(f"add element inet {TABLE} {name} {{ {joined} }}")
    datagrams = doors.relay_udp if doors is not None else None
    manners = manner_text(manner, host, datagrams, told=told)
    return "\n".join(lines) + "\n" + knock_text(doors) + manners


def _network_members(network: NetworkPlaces, members: dict[str, list[str]]) -> None:
    for part in collapse_addresses(p for p in network.counted if isinstance(p, IPv4Network)):
        lo, hi = int(part.network_address), int(part.broadcast_address)
        members["guests4"].append(range4(lo, hi))
        _embedded(lo, hi, members["guests6"], members["guests_teredo"])
    for part6 in collapse_addresses(p for p in network.counted if isinstance(p, IPv6Network)):
        members["guests6"].append(range6(int(part6.network_address), int(part6.broadcast_address)))
    low = list(collapse_addresses(p for p in network.pools if isinstance(p, IPv4Network)))
    high = list(collapse_addresses(p for p in network.pools if isinstance(p, IPv6Network)))
    if network.synthetic:
        members["synthetic4"] += [str(pool) for pool in low]
        members["synthetic6"] += [str(pool) for pool in high]
    for pool in low:
        members["leave4"] += [f'{pool} . "{device}"' for device in network.egress]
        members["resolver4"] += [
            f"{pool} . {address}" for address in network.dns if isinstance(address, IPv4Address)
        ]
    for wide in high:
        members["leave6"] += [f'{wide} . "{device}"' for device in network.egress]
        members["resolver6"] += [
            f"{wide} . {address}" for address in network.dns if isinstance(address, IPv6Address)
        ]


def _embedded(lo: int, hi: int, wide: list[str], teredo: list[str]) -> None:
    """IPv6 forms of an IPv4 range (as `policy.embed_ranges`, and Teredo's inverted client)."""
    wide += [range6(*part) for part in embed_ranges(lo, hi)]
    teredo.append(range6(hi ^ _IPV4_MASK, lo ^ _IPV4_MASK))
