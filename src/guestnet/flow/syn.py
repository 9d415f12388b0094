"""The segment by which a guest asks for a TCP connection, and what tells it that there is none.

A guest wrote it: only its headers are read, within bounds, and sent on.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6, inet_ntop

from .packets import HEAD_BYTES, TCP, checksum, icmp, pseudo_sum, tcp

Address = IPv4Address | IPv6Address

_FIN, _SYN, _RST, _ACK = 1, 2, 4, 16
_PORTS = struct.Struct("!HHI")
_SEGMENT = struct.Struct("!HHIIBBHHH")
#: The two lowest bits of the class are the connection's own (ECN, RFC 3168).
_DSCP = 0xFC
#: Targets remembered: guests come back to where they have been.
_REMEMBERED = 1024


class Syn:
    """A guest's request for a connection."""

    __slots__ = (
        "address", "ends", "guest", "guest_port", "number", "packet", "port", "service_class",
    )  # fmt: skip

    def __init__(
        self, packet: bytes, guest: str, address: Address, ends: bytes, service_class: int
    ) -> None:
        self.packet = packet
        """As it is sent on: without IPv4's options and data, its checksums complete."""
        self.guest = guest
        self.address = address
        self.ends = ends
        """Both addresses and ports: what it shares with its repetitions."""
        self.guest_port, self.port, self.number = _PORTS.unpack_from(
            packet, HEAD_BYTES[address.version]
        )
        self.service_class = service_class
        """DSCP in the upper six bits."""

    def reset(self) -> bytes:
        """A packet that says it is refused."""
        after = self.number + 1 & 0xFFFFFFFF
        flags = _RST | _ACK
        segment = _SEGMENT.pack(self.port, self.guest_port, 0, after, 5 << 4, flags, 0, 0, 0)
        return tcp(segment, self.address, _address(self._guest_packed))

    def error(self, kind: int, code: int) -> bytes:
        """A packet that says why there is no way: an ICMP error of the target's."""
        message = struct.pack("!BBHI", kind, code, 0, 0) + self.packet
        return icmp(message, self.address, _address(self._guest_packed))

    @property
    def _guest_packed(self) -> bytes:
        return self.ends[: 4 if self.address.version == 4 else 16]


def read_syn(packet: bytes) -> Syn | None:
    """A logged packet, of which the end may be missing; None for what is none or cut short."""
    version = packet[0] >> 4 if packet else 0
    if version == 4:
        return _read_ipv4(packet)
    return _read_ipv6(packet) if version == 6 else None


def _read_ipv4(packet: bytes) -> Syn | None:
    at = (packet[0] & 15) * 4
    if at < 20 or len(packet) < at + 20 or packet[9] != TCP or packet[6] & 0x3F or packet[7]:
        return None
    segment = _segment(packet, at, packet[12:16], packet[16:20])
    if segment is None:
        return None
    # Its options stay here: one of them says which way it is to go (RFC 791), and no rule is asked.
    size = struct.pack("!H", HEAD_BYTES[4] + len(segment))
    head = b"\x45" + packet[1:2] + size + packet[4:10] + b"\0\0" + packet[12:20]
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    ends = packet[12:20] + packet[at : at + 4]
    guest = inet_ntop(AF_INET, packet[12:16])
    return Syn(head + segment, guest, _address(packet[16:20]), ends, packet[1] & _DSCP)


def _read_ipv6(packet: bytes) -> Syn | None:
    at = HEAD_BYTES[6]
    if len(packet) < at + 20 or packet[6] != TCP:
        return None  # one with extension headers is nobody's who means well
    segment = _segment(packet, at, packet[8:24], packet[24:40])
    if segment is None:
        return None
    head = packet[:4] + struct.pack("!H", len(segment)) + packet[6:at]
    ends = packet[8 : at + 4]
    service_class = (packet[0] << 4 | packet[1] >> 4) & _DSCP
    guest = inet_ntop(AF_INET6, packet[8:24])
    return Syn(head + segment, guest, _address(packet[24:40]), ends, service_class)


def _segment(packet: bytes, at: int, source: bytes, destination: bytes) -> bytes | None:
    """The TCP header alone, its checksum as it is without data (a guest may leave it to a card)."""
    size = (packet[at + 12] >> 4) * 4
    if size < 20 or len(packet) < at + size:
        return None
    if packet[at + 13] & (_FIN | _SYN | _RST | _ACK) != _SYN:
        return None
    bare = packet[at : at + 16] + b"\0\0" + packet[at + 18 : at + size]
    check = checksum(bare, pseudo_sum(source, destination, TCP, size))
    return bare[:16] + struct.pack("!H", check) + bare[18:]


@lru_cache(_REMEMBERED)
def _address(packed: bytes) -> Address:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
