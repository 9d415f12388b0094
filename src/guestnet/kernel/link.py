"""Devices as rtnetlink messages (linux/rtnetlink.h, if_link.h).

Builders return `Message`s and touch nothing; readers turn the kernel's answers into values.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, AF_UNSPEC

from . import netlink as nl
from .netlink import Message, NetlinkSocket, attribute, nested, read_u32, u8, u32

AF_BRIDGE = 7

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWNEIGH = 28

IFF_UP = 1
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER = 1, 3, 4, 10
IFLA_PROTINFO, IFLA_LINKINFO, IFLA_STATS64, IFLA_AF_SPEC = 12, 18, 23, 26
IFLA_GROUP, IFLA_NET_NS_FD, IFLA_EXT_MASK = 27, 28, 29
RTEXT_FILTER_SKIP_STATS = 8
IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2
VETH_INFO_PEER = 1
IFLA_BR_STP_STATE, IFLA_BR_MCAST_SNOOPING = 5, 23
IFLA_BRPORT_LEARNING, IFLA_BRPORT_UNICAST_FLOOD, IFLA_BRPORT_ISOLATED = 8, 9, 33
IFLA_INET_CONF, IFLA_INET6_ADDR_GEN_MODE = 1, 8
IN6_ADDR_GEN_MODE_NONE = 1
IPV4_DEVCONF_SEND_REDIRECTS, IPV4_DEVCONF_ARP_ANNOUNCE, IPV4_DEVCONF_ARP_IGNORE = 6, 18, 19
NDA_LLADDR = 2
NUD_NOARP = 0x40
NTF_MASTER = 0x04

_LINK = struct.Struct("=BxHiII")
_NEIGH = struct.Struct("=BxxxiHBB")


def mac_bytes(mac: str) -> bytes:
    """Six bytes of a MAC's text."""
    return bytes.fromhex(mac.replace(":", ""))


def set_link(
    name: str,
    *,
    index: int = 0,
    group: int | None = None,
    mac: str | None = None,
    mtu: int | None = None,
    master: int | None = None,
    up: bool | None = None,
    host_side: bool = False,
    has_ipv6: bool = True,
    tolerate: tuple[int, ...] = (),
) -> Message:
    """Change a device, all in one message; `host_side` gives it a guest-facing device's settings.

    Those are: no IPv6 link-local address, as nothing needs one where neighbours are permanent, and
    ARP answers only for addresses of the device itself, or a guest could probe the host's others.
    Without `has_ipv6` (an MTU below 1280, a kernel without IPv6) there is nothing to set of it.
    """
    attributes = [] if index else [nl.text(IFLA_IFNAME, name)]
    if group is not None:
        attributes.append(u32(IFLA_GROUP, group))
    if mac is not None:
        attributes.append(attribute(IFLA_ADDRESS, mac_bytes(mac)))
    if mtu is not None:
        attributes.append(u32(IFLA_MTU, mtu))
    if master is not None:
        attributes.append(u32(IFLA_MASTER, master))
    if host_side:
        attributes.append(_host_side(has_ipv6))
    flags = IFF_UP if up else 0
    change = IFF_UP if up is not None else 0
    body = _LINK.pack(AF_UNSPEC, 0, index, flags, change) + b"".join(attributes)
    return Message(RTM_SETLINK, 0, body, "RTM_SETLINK", name, tolerate)


def _host_side(has_ipv6: bool) -> bytes:
    conf = nested(
        IFLA_INET_CONF,
        u32(IPV4_DEVCONF_ARP_IGNORE, 1),
        u32(IPV4_DEVCONF_ARP_ANNOUNCE, 2),
        u32(IPV4_DEVCONF_SEND_REDIRECTS, 0),
    )
    families = [nested(AF_INET, conf)]
    if has_ipv6:
        families.append(nested(AF_INET6, u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE)))
    return nested(IFLA_AF_SPEC, *families)


def new_veth(name: str, group: int, peer: str, peer_mac: str, mtu: int, netns_fd: int) -> Message:
    """A veth pair whose other end `peer` is born inside the namespace behind `netns_fd`."""
    peer_body = _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + b"".join(
        [
            nl.text(IFLA_IFNAME, peer),
            attribute(IFLA_ADDRESS, mac_bytes(peer_mac)),
            u32(IFLA_MTU, mtu),
            u32(IFLA_NET_NS_FD, netns_fd),
        ]
    )
    info = nested(
        IFLA_LINKINFO,
        nl.text(IFLA_INFO_KIND, "veth"),
        nested(IFLA_INFO_DATA, attribute(VETH_INFO_PEER | nl.NLA_F_NESTED, peer_body)),
    )
    body = _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + nl.text(IFLA_IFNAME, name) + u32(IFLA_MTU, mtu)
    body += u32(IFLA_GROUP, group)
    flags = nl.NLM_F_CREATE | nl.NLM_F_EXCL
    return Message(RTM_NEWLINK, flags, body + info, "RTM_NEWLINK veth", name)


def new_bridge(name: str, mac: str, mtu: int, group: int) -> Message:
    """A bridge without STP, which passes all multicast (ND needs no MLD querier then)."""
    info = nested(
        IFLA_LINKINFO,
        nl.text(IFLA_INFO_KIND, "bridge"),
        nested(IFLA_INFO_DATA, u32(IFLA_BR_STP_STATE, 0), u8(IFLA_BR_MCAST_SNOOPING, 0)),
    )
    body = _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + b"".join(
        [
            nl.text(IFLA_IFNAME, name),
            attribute(IFLA_ADDRESS, mac_bytes(mac)),
            u32(IFLA_MTU, mtu),
            u32(IFLA_GROUP, group),
            info,
        ]
    )
    return Message(RTM_NEWLINK, nl.NLM_F_CREATE | nl.NLM_F_EXCL, body, "RTM_NEWLINK bridge", name)


def bridge_port(name: str, index: int, *, isolated: bool) -> Message:
    """Port settings: no learning and no flooding of unknown unicast, as the leased MAC is set."""
    port = nested(
        IFLA_PROTINFO,
        u8(IFLA_BRPORT_LEARNING, 0),
        u8(IFLA_BRPORT_UNICAST_FLOOD, 0),
        u8(IFLA_BRPORT_ISOLATED, int(isolated)),
    )
    body = _LINK.pack(AF_BRIDGE, 0, index, 0, 0) + port
    return Message(RTM_SETLINK, 0, body, "RTM_SETLINK bridge port", name)


def delete_link(name: str) -> Message:
    """Delete one device; its absence is no error."""
    body = _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + nl.text(IFLA_IFNAME, name)
    return Message(RTM_DELLINK, 0, body, "RTM_DELLINK", name, (errno.ENODEV,))


def delete_group(group: int) -> Message:
    """Delete every device of a link group in one go: one grace period for all of them."""
    body = _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + u32(IFLA_GROUP, group)
    return Message(RTM_DELLINK, 0, body, "RTM_DELLINK", f"group {group:#x}", (errno.ENODEV,))


def add_forwarding_entry(name: str, index: int, mac: str) -> Message:
    """A static entry of the bridge's forwarding table: frames for `mac` go out by this port."""
    body = _NEIGH.pack(AF_BRIDGE, index, NUD_NOARP, NTF_MASTER, 0)
    body += attribute(NDA_LLADDR, mac_bytes(mac))
    return Message(
        RTM_NEWNEIGH,
        nl.NLM_F_CREATE | nl.NLM_F_REPLACE,
        body,
        "RTM_NEWNEIGH fdb",
        f"{mac} on {name}",
    )


# -- reading ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Link:
    """A device as the kernel shows it."""

    index: int
    name: str
    group: int
    mac: str
    mtu: int
    master: int
    up: bool
    kind: str
    rx_bytes: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    tx_packets: int = 0


def _link(body: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(body)
    found = nl.attributes(body, _LINK.size)
    info = nl.attributes(found.get(IFLA_LINKINFO, b""))
    # struct rtnl_link_stats64 begins with rx_packets, tx_packets, rx_bytes, tx_bytes.
    stats = found.get(IFLA_STATS64, b"")
    counts = struct.unpack_from("=QQQQ", stats) if len(stats) >= 32 else (0, 0, 0, 0)
    return Link(
        index,
        nl.zero_terminated(found.get(IFLA_IFNAME, b"")),
        read_u32(found.get(IFLA_GROUP)),
        found.get(IFLA_ADDRESS, b"").hex(":"),
        read_u32(found.get(IFLA_MTU)),
        read_u32(found.get(IFLA_MASTER)),
        bool(flags & IFF_UP),
        nl.zero_terminated(info.get(IFLA_INFO_KIND, b"")),
        rx_packets=counts[0],
        tx_packets=counts[1],
        rx_bytes=counts[2],
        tx_bytes=counts[3],
    )


def links(route: NetlinkSocket) -> list[Link]:
    """Every device of the namespace."""
    body = _LINK.pack(AF_UNSPEC, 0, 0, 0, 0)
    message = Message(RTM_GETLINK, 0, body, "RTM_GETLINK", "all")
    return [_link(answer) for kind, answer in route.dump(message) if kind == RTM_NEWLINK]


def link(route: NetlinkSocket, name: str) -> Link | None:
    """One device, or None."""
    body = _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + nl.text(IFLA_IFNAME, name)
    message = Message(RTM_GETLINK, 0, body, "RTM_GETLINK", name, (errno.ENODEV,))
    kind, answer = route.ask(message)
    return _link(answer) if kind == RTM_NEWLINK else None


def index_of(route: NetlinkSocket, name: str) -> int:
    """The index of a device, or 0 if there is none.

    The question also has the kernel take note of the device's carrier (linkwatch_sync_dev). Asked
    between making a TAP and bringing it up, that saves a later "change" of the device, at which
    the kernel would walk all IPv6 routes.
    """
    body = _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + nl.text(IFLA_IFNAME, name)
    body += u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    message = Message(RTM_GETLINK, 0, body, "RTM_GETLINK", name, (errno.ENODEV,))
    kind, answer = route.ask(message)
    return int(_LINK.unpack_from(answer)[2]) if kind == RTM_NEWLINK else 0
