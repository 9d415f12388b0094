"""Connection tracking: the flows of an address (ctnetlink, linux/netfilter/nfnetlink_conntrack.h).

An address must not be handed on with its old flows: packets of a former guest's peers would reach
the next one as "established".
"""

from __future__ import annotations

import errno
import struct
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from . import netlink as nl
from .netlink import Message, NetlinkSocket, attribute, nested

_NFNL_SUBSYS_CTNETLINK = 1
_GET, _DELETE = 1, 2
_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY, _CTA_STATUS, _CTA_ID = 1, 2, 3, 12
_CTA_TUPLE_IP, _CTA_TUPLE_PROTO = 1, 2
_PROTO_NUMBER, _PROTO_PORT = 1, 3
#: enum ip_conntrack_status (nf_conntrack_common.h): the destination was rewritten.
_IPS_DST_NAT = 1 << 5
_IP_V4_SRC, _IP_V4_DST, _IP_V6_SRC, _IP_V6_DST = 1, 2, 3, 4
_AF_INET, _AF_INET6 = 2, 10
#: Deletions sent together.
_BATCH = 500

Address = IPv4Address | IPv6Address


def _message(kind: int, family: int, body: bytes, call: str) -> Message:
    header = struct.pack("!BBH", family, 0, 0)
    return Message(
        _NFNL_SUBSYS_CTNETLINK << 8 | kind, 0, header + body, call, "table", (errno.ENOENT,)
    )


@dataclass(frozen=True, slots=True)
class Tracked:
    """A flow as whoever opened it sees it."""

    source: Address
    destination: Address
    #: IP protocol number, and the destination's port (0 where it has none).
    protocol: int
    port: int
    #: Whether it goes elsewhere than to its destination: to the gateway.
    is_redirected: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """A flow in the table, and by what attributes the kernel finds it there."""

    flow: Tracked
    family: int
    key: bytes


class Conntrack:
    """The table of flows of the namespace in which this was made. Thread-safe.

    It has a socket and a lock of its own: a table of many flows takes a while to look through.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._netfilter = NetlinkSocket(nl.NETLINK_NETFILTER)

    def close(self) -> None:
        """Close the socket."""
        self._netfilter.close()

    def find(self, addresses: Collection[Address]) -> list[Entry]:
        """Every entry in which one of the addresses takes part.

        One pass over the table for all of them. A flow's parties are its original source and the
        source of its replies, whatever was translated on the way.
        """
        with self._lock:
            return list(self._entries(addresses))

    def delete(self, entries: Sequence[Entry]) -> None:
        """Delete entries; one that is gone already is no error."""
        with self._lock:
            for start in range(0, len(entries), _BATCH):
                part = entries[start : start + _BATCH]
                self._netfilter.request(
                    [_message(_DELETE, e.family, e.key, "conntrack delete") for e in part]
                )

    def forget(self, addresses: Collection[Address]) -> None:
        """Delete the entries of addresses: who gets one next begins without them."""
        self.delete(self.find(addresses))

    def _entries(self, addresses: Collection[Address]) -> Iterator[Entry]:
        for family, version in ((_AF_INET, 4), (_AF_INET6, 6)):
            wanted = frozenset(a.packed for a in addresses if a.version == version)
            if not wanted:
                continue
            for _kind, answer in self._netfilter.dump(
                _message(_GET, family, b"", "conntrack list")
            ):
                key = _match(answer, wanted)
                if key is not None:
                    yield Entry(_tracked(answer, version), family, key)


def _tracked(answer: bytes, version: int) -> Tracked:
    parts = nl.attributes(answer, 4)
    original = nl.attributes(parts[_CTA_TUPLE_ORIG])
    ends, proto = nl.attributes(original[_CTA_TUPLE_IP]), nl.attributes(original[_CTA_TUPLE_PROTO])
    kinds = (_IP_V4_SRC, _IP_V4_DST) if version == 4 else (_IP_V6_SRC, _IP_V6_DST)
    source, destination = (ip_address(ends[kind]) for kind in kinds)
    status = int.from_bytes(parts.get(_CTA_STATUS, b""), "big")
    return Tracked(
        source,
        destination,
        proto[_PROTO_NUMBER][0],
        int.from_bytes(proto.get(_PROTO_PORT, b""), "big"),
        bool(status & _IPS_DST_NAT),
    )


def _match(answer: bytes, wanted: frozenset[bytes]) -> bytes | None:
    """The attributes that name an entry for deletion, if an address of ours takes part in it."""
    parts = nl.attributes(answer, 4)
    original = parts.get(_CTA_TUPLE_ORIG, b"")
    if not (_ends(original) | _ends(parts.get(_CTA_TUPLE_REPLY, b""))) & wanted:
        return None
    found = nested(_CTA_TUPLE_ORIG, original)
    if _CTA_ID in parts:
        # The id tells this entry from a new one with the same tuple.
        found += attribute(_CTA_ID, parts[_CTA_ID])
    return found


def _ends(tuple_: bytes) -> set[bytes]:
    addresses = nl.attributes(nl.attributes(tuple_).get(_CTA_TUPLE_IP, b""))
    ends = (_IP_V4_SRC, _IP_V4_DST, _IP_V6_SRC, _IP_V6_DST)
    return {addresses[kind] for kind in ends if kind in addresses}
