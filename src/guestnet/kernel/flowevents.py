"""What the kernel says of flows: that one begins, that one ended, and what the rules refused.

Beginnings and ends are connection tracking's events (linux/netfilter/nfnetlink_conntrack.h),
refusals the log of our rules (linux/netfilter/nfnetlink_log.h). Of a refused packet, which a guest
wrote, only the addresses, the protocol and the port are read, at fixed offsets and within bounds.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from ..errors import HostError
from ..ruleset.telling import LOG_GROUP, SNAPLEN
from . import netlink as nl
from .netlink import NetlinkSocket
from .packetlog import LOGGED, PAYLOAD, binding

Address = IPv4Address | IPv6Address

_NETLINK_ADD_MEMBERSHIP = 1
_SUBSYS_CTNETLINK = 1
_GROUP_NEW, _GROUP_DESTROY = 1, 3
_CT_NEW, _CT_DELETE = 0, 2
_CTA_ORIG, _CTA_REPLY, _CTA_STATUS = 1, 2, 3
_CTA_SENT, _CTA_ANSWERED, _CTA_ID = 9, 10, 12
_CTA_TIMESTAMP = 20
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_SOURCES, _IP_DESTINATIONS = (1, 3), (2, 4)
_PROTO_NUMBER, _PROTO_SOURCE, _PROTO_DESTINATION = 1, 2, 3
_COUNTER_BYTES = 2
_STAMP_START, _STAMP_STOP = 1, 2
_IPS_DST_NAT = 1 << 5

_LOG_HEADER, _LOG_DEVICE, _LOG_PORT, _LOG_PREFIX = 1, 4, 6, 10
#: The kernel hands logged packets over by the so many, or after so long (hundredths of a second).
_LOG_BATCH, _LOG_WAIT = 32, 5

_SO_MEMINFO, _MEMINFO_DROPS = 55, 8
_RECEIVE_BYTES = 64 * 1024
_ETH_IPV4, _ETH_IPV6 = 0x0800, 0x86DD
_FRAGMENT_OFFSET = 0x1FFF
#: IP protocols whose header begins with two ports.
_WITH_PORTS = frozenset({6, 17})


@dataclass(frozen=True, slots=True)
class FlowEvent:
    """The beginning or the end of a flow, as whoever opened it sees it."""

    has_ended: bool
    #: Connection tracking's number of it: the same at both events, and of no other flow meanwhile.
    id: int
    source: Address
    destination: Address
    #: Whom it really went to, and there to which port: what replies come from.
    responder: Address
    responder_port: int
    #: IP protocol number, and the destination's port (0 where it has none).
    protocol: int
    port: int
    #: Whether it goes elsewhere than to its destination.
    is_redirected: bool
    #: From whoever opened it, and to them; 0 at the beginning.
    bytes_sent: int
    bytes_answered: int
    #: 0 at the beginning, and where connection tracking takes no time.
    duration_s: float


@dataclass(frozen=True, slots=True)
class RefusedPacket:
    """A packet that a rule of ours refused."""

    #: What the rule says of itself (`ruleset.telling`).
    prefix: str
    #: Index of the device by which it came; 0 for the host's own.
    device: int
    #: EtherType; what follows is not known unless it is IP.
    ethertype: int
    source: Address | None = None
    destination: Address | None = None
    protocol: int = 0
    port: int = 0


Event = FlowEvent | RefusedPacket


class FlowEvents:
    """The events of the namespace of the thread that makes it; any process may read them."""

    def __init__(self) -> None:
        self._flows = _Listener()
        try:
            self._refusals = _Listener()
            try:
                self._flows.join(_GROUP_NEW)
                self._flows.join(_GROUP_DESTROY)
                bound = binding(LOG_GROUP, SNAPLEN, _LOG_BATCH, _LOG_WAIT)
                self._refusals.request(bound)
            except BaseException:
                self._refusals.close()
                raise
        except BaseException:
            self._flows.close()
            raise

    def close(self) -> None:
        """Hear no more."""
        self._flows.close()
        self._refusals.close()

    def filenos(self) -> tuple[int, int]:
        """The descriptors, to wait on."""
        return self._flows.fileno(), self._refusals.fileno()

    def read(self, most: int) -> list[Event]:
        """What has happened, up to about `most` events; empty if that was all."""
        found: list[Event] = []
        for kind, body in self._flows.pending(most):
            event = read_flow(kind, body)
            if event is not None:
                found.append(event)
        for kind, body in self._refusals.pending(most):
            packet = read_refusal(kind, body)
            if packet is not None:
                found.append(packet)
        return found

    def lost(self) -> int:
        """Events so far that came faster than they were read."""
        return self._flows.lost() + self._refusals.lost()


class _Listener(NetlinkSocket):
    """A netlink socket that is told things unasked."""

    def __init__(self) -> None:
        super().__init__(nl.NETLINK_NETFILTER)

    def fileno(self) -> int:
        return self._socket.fileno()

    def join(self, group: int) -> None:
        try:
            self._socket.setsockopt(nl.SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        except OSError as error:
            raise HostError.from_os("netlink join", f"conntrack group {group}", error) from None

    def pending(self, most: int) -> Iterator[tuple[int, bytes]]:
        """Messages that wait, as (type, body), from up to `most` datagrams."""
        for _datagram in range(most):
            try:
                data = self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    continue  # some were lost, which is counted; the rest is still there
                if error.errno in (errno.EAGAIN, errno.EINTR):
                    return
                raise HostError.from_os("recv", "flow events", error) from None
            offset = 0
            while offset + 16 <= len(data):
                length, kind = struct.unpack_from("=IH", data, offset)
                if length < 16:
                    raise HostError("recv", "flow events", errno.EBADMSG)
                yield kind, data[offset + 16 : offset + length]
                offset += (length + 3) & ~3

    def lost(self) -> int:
        size = (_MEMINFO_DROPS + 1) * 4
        memory = self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, size)
        return nl.read_u32(memory[_MEMINFO_DROPS * 4 :])


# -- connection tracking -----------------------------------------------------------------------


def read_flow(kind: int, body: bytes) -> FlowEvent | None:
    """An event of connection tracking; `None` for other messages."""
    if kind >> 8 != _SUBSYS_CTNETLINK or kind & 0xFF not in (_CT_NEW, _CT_DELETE):
        return None
    parts = nl.attributes(body, 4)
    if _CTA_ORIG not in parts or _CTA_REPLY not in parts:
        return None
    source, destination, protocol, _port, port = _tuple(parts[_CTA_ORIG])
    responder, _asker, _protocol, responder_port, _other = _tuple(parts[_CTA_REPLY])
    if source is None or destination is None or responder is None:
        return None
    return FlowEvent(
        kind & 0xFF == _CT_DELETE,
        _number(parts.get(_CTA_ID)),
        source,
        destination,
        responder,
        responder_port,
        protocol,
        port,
        bool(_number(parts.get(_CTA_STATUS)) & _IPS_DST_NAT),
        _bytes(parts.get(_CTA_SENT)),
        _bytes(parts.get(_CTA_ANSWERED)),
        _duration_s(parts.get(_CTA_TIMESTAMP)),
    )


def _tuple(data: bytes) -> tuple[Address | None, Address | None, int, int, int]:
    """Source, destination, IP protocol, and their ports (0 where it has none)."""
    parts = nl.attributes(data)
    ends = nl.attributes(parts.get(_TUPLE_IP, b""))
    proto = nl.attributes(parts.get(_TUPLE_PROTO, b""))
    source = next((ends[kind] for kind in _IP_SOURCES if kind in ends), b"")
    destination = next((ends[kind] for kind in _IP_DESTINATIONS if kind in ends), b"")
    return (
        _address(source),
        _address(destination),
        _number(proto.get(_PROTO_NUMBER)),
        _number(proto.get(_PROTO_SOURCE)),
        _number(proto.get(_PROTO_DESTINATION)),
    )


def _address(packed: bytes) -> Address | None:
    if len(packed) == 4:
        return IPv4Address(packed)
    return IPv6Address(packed) if len(packed) == 16 else None


def _number(data: bytes | None) -> int:
    return int.from_bytes(data or b"", "big")


def _bytes(data: bytes | None) -> int:
    return _number(nl.attributes(data).get(_COUNTER_BYTES)) if data else 0


def _duration_s(data: bytes | None) -> float:
    stamps = nl.attributes(data or b"")
    if _STAMP_START not in stamps or _STAMP_STOP not in stamps:
        return 0.0
    return max(0, _number(stamps[_STAMP_STOP]) - _number(stamps[_STAMP_START])) / 1e9


# -- refused packets ---------------------------------------------------------------------------


def read_refusal(kind: int, body: bytes) -> RefusedPacket | None:
    """A logged packet; `None` for other messages."""
    if kind != LOGGED:
        return None
    parts = nl.attributes(body, 4)
    prefix = nl.zero_terminated(parts.get(_LOG_PREFIX, b""))
    ethertype = _number(parts.get(_LOG_HEADER, b"")[:2])
    # Of a frame in a bridge `_LOG_DEVICE` is the bridge, and this the port.
    device = _number(parts.get(_LOG_PORT) or parts.get(_LOG_DEVICE))
    packet = parts.get(PAYLOAD, b"")
    if ethertype == _ETH_IPV4:
        read = read_ipv4(packet)
    elif ethertype == _ETH_IPV6:
        read = read_ipv6(packet)
    else:
        read = None
    if read is None:
        return RefusedPacket(prefix, device, ethertype)
    return RefusedPacket(prefix, device, ethertype, *read)


def read_ipv4(packet: bytes) -> tuple[Address, Address, int, int] | None:
    """Source, destination, protocol and destination port (RFC 791); `None` if it is cut short.

    The port is 0 where there is none: in another protocol, or in a later fragment.
    """
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return None
    length, protocol = (packet[0] & 0xF) * 4, packet[9]
    first = not int.from_bytes(packet[6:8], "big") & _FRAGMENT_OFFSET
    port = _port(packet, length) if first and length >= 20 and protocol in _WITH_PORTS else 0
    return IPv4Address(packet[12:16]), IPv4Address(packet[16:20]), protocol, port


def read_ipv6(packet: bytes) -> tuple[Address, Address, int, int] | None:
    """The same of IPv6 (RFC 8200).

    Extension headers are not looked behind: a packet with one is of its first one's number.
    """
    if len(packet) < 40 or packet[0] >> 4 != 6:
        return None
    protocol = packet[6]
    port = _port(packet, 40) if protocol in _WITH_PORTS else 0
    return IPv6Address(packet[8:24]), IPv6Address(packet[24:40]), protocol, port


def _port(packet: bytes, offset: int) -> int:
    port = packet[offset + 2 : offset + 4]
    return int.from_bytes(port, "big") if len(port) == 2 else 0


def device_name(index: int) -> str:
    """The name of a device in the calling thread's namespace, or empty if it is gone."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""
