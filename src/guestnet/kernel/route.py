"""Addresses, neighbours and routes as rtnetlink messages (linux/rtnetlink.h).

Builders return `Message`s and touch nothing; readers turn the kernel's answers into values.
"""

from __future__ import annotations

import errno
import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from socket import AF_INET, AF_INET6

from . import netlink as nl
from .link import NDA_LLADDR, RTM_NEWNEIGH, mac_bytes
from .netlink import Message, NetlinkSocket, attribute, read_u32, u32

RTM_NEWADDR, RTM_GETADDR = 20, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26

IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
IFA_F_NODAD, IFA_F_NOPREFIXROUTE = 0x02, 0x200
NDA_DST = 1
NUD_PERMANENT = 0x80
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_MULTIPATH, RTA_TABLE = 1, 4, 5, 9, 15
RT_TABLE_MAIN, RT_TABLE_LOCAL = 254, 255
RTM_F_FIB_MATCH = 0x2000
RTPROT_BOOT, RTN_UNICAST, RTN_LOCAL = 3, 1, 2
#: Says in `ip route` that a route is guestnet's; no daemon of the field uses the number.
RTPROT_GUESTNET = 0xE7

_ADDR = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGH = struct.Struct("=BxxxiHBB")
_NEXTHOP = struct.Struct("=HBBi")

Interface = IPv4Interface | IPv6Interface
Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def _family(address: Address) -> int:
    return AF_INET if address.version == 4 else AF_INET6


def add_address(name: str, index: int, interface: Interface) -> Message:
    """Give a device an address; an IPv6 one is usable at once (no DAD on a link of ours).

    A lone IPv6 address (/128) brings no prefix route: the kernel looks at every IPv6 route whenever
    any device changes (fib6_clean_all), so each one left out is felt with thousands of guests.
    """
    packed = interface.ip.packed
    body = _ADDR.pack(_family(interface.ip), interface.network.prefixlen, 0, 0, index)
    body += attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
    if interface.version == 6:
        alone = interface.network.prefixlen == interface.max_prefixlen
        body += u32(IFA_FLAGS, IFA_F_NODAD | (IFA_F_NOPREFIXROUTE if alone else 0))
    return Message(
        RTM_NEWADDR,
        nl.NLM_F_CREATE | nl.NLM_F_REPLACE,
        body,
        "RTM_NEWADDR",
        f"{interface} on {name}",
    )


def add_neighbour(name: str, index: int, address: Address, mac: str) -> Message:
    """A permanent neighbour: never asked for, never overwritten, not counted by the table's GC."""
    body = _NEIGH.pack(_family(address), index, NUD_PERMANENT, 0, 0)
    body += attribute(NDA_DST, address.packed) + attribute(NDA_LLADDR, mac_bytes(mac))
    return Message(
        RTM_NEWNEIGH,
        nl.NLM_F_CREATE | nl.NLM_F_REPLACE,
        body,
        "RTM_NEWNEIGH",
        f"{address} on {name}",
    )


def add_route(name: str, index: int, destination: Network) -> Message:
    """A route by the device itself."""
    flags = nl.NLM_F_CREATE | nl.NLM_F_REPLACE
    target = f"{destination} on {name}"
    return Message(RTM_NEWROUTE, flags, _device_route(index, destination), "RTM_NEWROUTE", target)


def delete_route(
    name: str, index: int, destination: Network, table: int = RT_TABLE_MAIN
) -> Message:
    """Take away a route by the device, whoever made it; its absence is no error."""
    body = _device_route(index, destination, table, protocol=0)
    target = f"{destination} on {name}"
    return Message(RTM_DELROUTE, 0, body, "RTM_DELROUTE", target, (errno.ESRCH,))


def _device_route(
    index: int, destination: Network, table: int = RT_TABLE_MAIN, protocol: int = RTPROT_GUESTNET
) -> bytes:
    first = destination.network_address
    family, kind = _family(first), RTN_UNICAST if protocol else 0
    body = _ROUTE.pack(family, destination.prefixlen, 0, 0, table, protocol, 0, kind, 0)
    return body + attribute(RTA_DST, first.packed) + u32(RTA_OIF, index)


def add_default_route(name: str, index: int, gateway: Address) -> Message:
    """A default route by `gateway` on the device."""
    body = _ROUTE.pack(_family(gateway), 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST, 0)
    body += attribute(RTA_GATEWAY, gateway.packed) + u32(RTA_OIF, index)
    flags = nl.NLM_F_CREATE | nl.NLM_F_EXCL
    return Message(RTM_NEWROUTE, flags, body, "RTM_NEWROUTE", f"default on {name}")


def addresses(route: NetlinkSocket) -> list[tuple[int, Interface]]:
    """Every address of the namespace, with the index of its device."""
    message = Message(RTM_GETADDR, 0, _ADDR.pack(0, 0, 0, 0, 0), "RTM_GETADDR", "all")
    found: list[tuple[int, Interface]] = []
    for kind, answer in route.dump(message):
        if kind != RTM_NEWADDR:
            continue
        _, prefix, _, _, index = _ADDR.unpack_from(answer)
        parts = nl.attributes(answer, _ADDR.size)
        packed = parts.get(IFA_LOCAL, parts.get(IFA_ADDRESS))
        if packed:
            found.append((index, ipaddress.ip_interface((packed, prefix))))
    return found


def is_delivered(route: NetlinkSocket, address: Address) -> bool:
    """Whether packets to an address of this namespace are its own already.

    An IPv6 address is not answered for until a moment after it was given: a worker of the kernel
    makes its local route (addrconf_dad_work), and until then packets to it are forwarded, or lost.
    """
    body = _ROUTE.pack(_family(address), address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    body += attribute(RTA_DST, address.packed)
    unreachable = (errno.ENETUNREACH, errno.EHOSTUNREACH)
    message = Message(RTM_GETROUTE, 0, body, "RTM_GETROUTE", str(address), unreachable)
    kind, answer = route.ask(message)
    return kind == RTM_NEWROUTE and _ROUTE.unpack_from(answer)[7] == RTN_LOCAL


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the main table: where it leads and by which devices."""

    destination: Network
    devices: tuple[int, ...]
    type: int


def routes(route: NetlinkSocket, version: int) -> Iterator[Route]:
    """The unicast, blackhole and unreachable routes of the main table of one family."""
    family = AF_INET if version == 4 else AF_INET6
    body = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0) + u32(RTA_TABLE, RT_TABLE_MAIN)
    # A kernel without the family has no routes of it; a missing table is an empty one.
    none = (errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP)
    message = Message(RTM_GETROUTE, 0, body, "RTM_GETROUTE", f"IPv{version} main table", none)
    for kind, answer in route.dump(message):
        if kind == RTM_NEWROUTE:
            yield _route(answer)


#: What the routing table says about an address it has no way to, or whose route forbids it.
_NO_WAY = (
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.EACCES,
    errno.EINVAL,
    errno.ESRCH,
    errno.EAFNOSUPPORT,
    errno.EOPNOTSUPP,
)


def lookup(route: NetlinkSocket, address: Address) -> Route | None:
    """The route that decides about `address`, as the FIB matches it; None if unreachable.

    A question to the routing table only: nothing is sent.
    """
    full = address.max_prefixlen
    body = _ROUTE.pack(_family(address), full, 0, 0, 0, 0, 0, 0, RTM_F_FIB_MATCH)
    body += attribute(RTA_DST, address.packed)
    message = Message(RTM_GETROUTE, 0, body, "RTM_GETROUTE", str(address), _NO_WAY)
    kind, answer = route.ask(message)
    return _route(answer) if kind == RTM_NEWROUTE else None


def _route(answer: bytes) -> Route:
    family, prefix, _, _, _, _, _, kind, _ = _ROUTE.unpack_from(answer)
    parts = nl.attributes(answer, _ROUTE.size)
    size = 4 if family == AF_INET else 16
    packed = parts.get(RTA_DST, bytes(size))
    devices = [read_u32(parts[RTA_OIF])] if RTA_OIF in parts else []
    devices += _nexthop_devices(parts.get(RTA_MULTIPATH, b""))
    return Route(
        ipaddress.ip_network((packed, prefix), strict=False),
        tuple(dict.fromkeys(devices)),
        kind,
    )


def _nexthop_devices(data: bytes) -> list[int]:
    """Devices of a multipath route (struct rtnexthop)."""
    devices = []
    offset = 0
    while offset + _NEXTHOP.size <= len(data):
        length, _flags, _hops, index = _NEXTHOP.unpack_from(data, offset)
        if length < _NEXTHOP.size:
            break
        devices.append(index)
        offset += (length + 3) & ~3
    return devices
