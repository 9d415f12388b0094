"""Packets as random tests send them: built by hand, each with a mark by which it is known again.

The mark travels where nothing on the way changes it: IPv4's identification (RFC 791) or IPv6's flow
label (RFC 8200 section 3).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address

TCP, UDP, ICMPV4, ICMPV6 = 6, 17, 1, 58
#: Protocols without a word in a policy and without a tracker of their own in the kernel (which
#: would find these empty ones invalid): GRE, ESP, OSPF, and the two for experiments (RFC 3692).
OTHERS = (47, 50, 89, 253, 254)
HOP_BY_HOP, FRAGMENT, DESTINATION_OPTIONS = 0, 44, 60

_SYN, _ACK = 0x02, 0x10
_ECHO_REQUEST_4, _TIMESTAMP, _ECHO_REQUEST_6 = 8, 13, 128
_MORE_FRAGMENTS = 0x2000


@dataclass(frozen=True)
class Packet:
    """One packet of a flow that has not been seen before."""

    source: Address
    destination: Address
    protocol: int
    #: The service's port (TCP, UDP); others carry none.
    port: int = 0
    #: Makes the flow new: source port, or ICMP identifier. Also the mark.
    mark: int = 0
    #: How the same question may be dressed: "syn", "ack", "fragments", "hop-by-hop", "options".
    dress: str = "plain"

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.source.version

    @property
    def is_timestamp(self) -> bool:
        """Whether its ICMP asks for the time; all other ICMP asks for an echo."""
        return self.protocol == ICMPV4 and self.mark % 4 == 0

    def __str__(self) -> str:
        names = {TCP: "tcp", UDP: "udp", ICMPV4: "icmpv4", ICMPV6: "icmpv6"}
        name = names.get(self.protocol, f"protocol {self.protocol}")
        port = f" port {self.port}" if self.protocol in (TCP, UDP) else ""
        dress = "" if self.dress == "plain" else f" ({self.dress})"
        return f"{name} from {self.source} to {self.destination}{port}{dress}"

    def ip_packets(self) -> list[bytes]:
        """What goes over the wire from the IP header on: several packets when in fragments."""
        payload = self._layer4()
        if self.version == 6:
            return _ipv6(self, payload)
        return _ipv4(self, payload)

    def _layer4(self) -> bytes:
        """Checksums are right, or connection tracking would call it invalid."""
        body = b"guestnet" * 3
        source_port = 1024 + self.mark % 60000
        if self.protocol == TCP:
            flags = _ACK if self.dress == "ack" else _SYN
            words = struct.pack("!HHIIBBHHH", source_port, self.port, self.mark, 1, 5 << 4, flags,
                                1024, 0, 0)  # fmt: skip
            return self._with_checksum(words, 16, pseudo=True)
        if self.protocol == UDP:
            words = struct.pack("!HHHH", source_port, self.port, 8 + len(body), 0) + body
            return self._with_checksum(words, 6, pseudo=True)
        if self.protocol == ICMPV4:
            kind = _TIMESTAMP if self.is_timestamp else _ECHO_REQUEST_4
            words = struct.pack("!BBHHH", kind, 0, 0, self.mark & 0xFFFF, 1) + body[:12]
            return self._with_checksum(words, 2, pseudo=self.version == 6)
        if self.protocol == ICMPV6:
            words = struct.pack("!BBHHH", _ECHO_REQUEST_6, 0, 0, self.mark & 0xFFFF, 1) + body
            return self._with_checksum(words, 2, pseudo=self.version == 6)
        return bytes(4) + body  # GRE version 0 without a key; to the others it means nothing

    def _with_checksum(self, words: bytes, at: int, *, pseudo: bool) -> bytes:
        head = b""
        if pseudo:
            length = struct.pack("!HH" if self.version == 4 else "!IxxxB", *(
                (self.protocol, len(words)) if self.version == 4 else (len(words), self.protocol)
            ))  # fmt: skip
            head = self.source.packed + self.destination.packed + length
        total = checksum(head + words) or 0xFFFF
        return words[:at] + struct.pack("!H", total) + words[at + 2 :]


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _ipv4(packet: Packet, payload: bytes) -> list[bytes]:
    if packet.dress != "fragments":
        return [_ipv4_header(packet, len(payload), 0) + payload]
    # In fragments of 16 bytes and the rest; the second tells no port.
    first, rest = payload[:16], payload[16:]
    return [
        _ipv4_header(packet, len(first), _MORE_FRAGMENTS) + first,
        _ipv4_header(packet, len(rest), 2) + rest,
    ]


def _ipv4_header(packet: Packet, size: int, fragment: int) -> bytes:
    header = struct.pack(
        "!BBHHHBBH", 0x45, 0, 20 + size, packet.mark & 0xFFFF, fragment, 64, packet.protocol, 0
    )
    header += packet.source.packed + packet.destination.packed
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:]


def _ipv6(packet: Packet, payload: bytes) -> list[bytes]:
    if packet.dress == "fragments":
        first, rest = payload[:16], payload[16:]
        return [
            _ipv6_header(packet, FRAGMENT, 8 + len(part))
            + struct.pack("!BBHI", packet.protocol, 0, offset, packet.mark)
            + part
            for part, offset in ((first, 1), (rest, 16))
        ]
    if packet.dress in ("hop-by-hop", "options"):
        kind = HOP_BY_HOP if packet.dress == "hop-by-hop" else DESTINATION_OPTIONS
        padding = bytes([packet.protocol, 0, 1, 4, 0, 0, 0, 0])  # PadN (RFC 8200 section 4.2)
        return [_ipv6_header(packet, kind, 8 + len(payload)) + padding + payload]
    return [_ipv6_header(packet, packet.protocol, len(payload)) + payload]


def _ipv6_header(packet: Packet, following: int, size: int) -> bytes:
    words = struct.pack("!IHBB", 6 << 28 | packet.mark, size, following, 64)
    return words + packet.source.packed + packet.destination.packed


def mark_of(frame: bytes) -> tuple[int, int] | None:
    """(IP version, mark) of an Ethernet frame that carries IP."""
    kind = frame[12:14]
    if kind == b"\x08\x00" and len(frame) >= 34:
        return 4, int.from_bytes(frame[18:20], "big")
    if kind == b"\x86\xdd" and len(frame) >= 54:
        return 6, int.from_bytes(frame[14:18], "big") & 0xFFFFF
    return None


def marked(packets: list[Packet]) -> list[Packet]:
    """The same packets with marks of their own, from 1."""
    return [replace(packet, mark=number) for number, packet in enumerate(packets, 1)]
