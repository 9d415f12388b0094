"""The routes by which packets of guests are delivered here: `ip rule` and local routes.

A transparent proxy needs one (Documentation/networking/tproxy.rst): what bears our mark is looked
up in a table of ours, in which every address is local. Nothing else has the mark, so nobody else's
routing changes. Another makes the addresses local at which guests' connections are let in.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from socket import AF_INET, AF_INET6, if_nametoindex

from ..ruleset.names import DOOR_ADDRESSES, MARK_TAKEN
from . import netlink as nl
from .netlink import Message, NetlinkSocket, attribute, u32
from .route import RTM_DELROUTE, RTM_NEWROUTE, RTN_LOCAL, RTPROT_GUESTNET

#: linux/rtnetlink.h, linux/fib_rules.h
_RTM_NEWRULE, _RTM_DELRULE = 32, 33
_FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK, _FRA_PROTOCOL = 6, 10, 15, 16, 21
_FR_ACT_TO_TBL = 1
_RTA_DST, _RTA_OIF, _RTA_TABLE = 1, 4, 15
_RT_SCOPE_HOST, _RT_TABLE_LOCAL = 254, 255
_RULE = struct.Struct("=BBBBBBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")

#: "gnt"; nobody numbers tables so.
TABLE = 0x676E74
#: After the local table (0), before VPNs' rules, which send what lacks their own mark elsewhere.
PRIORITY = 231

#: A kernel without the family has no rules of it, and no routes where IPv6 is turned off.
_NO_FAMILY = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP)
_MISSING: dict[int, tuple[int, ...]] = {AF_INET: _NO_FAMILY, AF_INET6: (*_NO_FAMILY, errno.EACCES)}
#: By the mark, and by themselves.
_DELIVERED: dict[int, tuple[IPv4Network | IPv6Network, IPv4Address | IPv6Address]] = {
    AF_INET: (IPv4Network("0.0.0.0/0"), DOOR_ADDRESSES[4]),
    AF_INET6: (IPv6Network("::/0"), DOOR_ADDRESSES[6]),
}


def steer(route: NetlinkSocket) -> None:
    """Have what has the mark or is for the doors delivered here; what stands is no error."""
    route.request(list(_messages(_RTM_NEWRULE, RTM_NEWROUTE)))


def unsteer(route: NetlinkSocket) -> None:
    """Take it away; what is not there is no error."""
    route.request(list(_messages(_RTM_DELRULE, RTM_DELROUTE)))


def _messages(rule: int, way: int) -> Iterable[Message]:
    new = rule == _RTM_NEWRULE
    flags = nl.NLM_F_CREATE | nl.NLM_F_EXCL if new else 0
    stands = (errno.EEXIST,) if new else (errno.ENOENT, errno.ESRCH)
    loopback = if_nametoindex("lo")
    for family, (everything, door) in _DELIVERED.items():
        fine = (*stands, *_MISSING[family])
        # The route first: a mark without one would go on to the next table.
        kind, call = RTN_LOCAL if new else 0, "RTM_NEWROUTE" if new else "RTM_DELROUTE"
        body = _ROUTE.pack(family, 0, 0, 0, 0, RTPROT_GUESTNET, _RT_SCOPE_HOST, kind, 0)
        body += u32(_RTA_TABLE, TABLE) + u32(_RTA_OIF, loopback)
        yield Message(way, flags, body, call, f"local {everything} table {TABLE}", fine)
        body = _ROUTE.pack(
            family, door.max_prefixlen, 0, 0, _RT_TABLE_LOCAL, RTPROT_GUESTNET, _RT_SCOPE_HOST,
            kind, 0,
        )  # fmt: skip
        body += attribute(_RTA_DST, door.packed) + u32(_RTA_OIF, loopback)
        yield Message(way, flags, body, call, f"local {door}", fine)
        body = _RULE.pack(family, 0, 0, 0, 0, 0, 0, _FR_ACT_TO_TBL, 0)
        body += u32(_FRA_PRIORITY, PRIORITY) + u32(_FRA_FWMARK, MARK_TAKEN)
        body += u32(_FRA_FWMASK, 0xFFFFFFFF) + u32(_FRA_TABLE, TABLE)
        body += attribute(_FRA_PROTOCOL, bytes([RTPROT_GUESTNET]))
        words = f"fwmark {MARK_TAKEN:#x} lookup {TABLE}"
        yield Message(rule, flags, body, "RTM_NEWRULE" if new else "RTM_DELRULE", words, fine)
