"""IP packets as a raw socket sends them, with ICMP or TCP (RFC 791, 8200, 792, 4443, 9293)."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address

TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
HEAD_BYTES = {4: 20, 6: 40}
_HOPS = 64


def checksum(data: bytes, start: int = 0) -> int:
    """The Internet checksum of data, and of the sum before it (RFC 1071)."""
    number = int.from_bytes(data, "big") << 8 * (len(data) & 1)
    return 65535 - (start + number) % 65535


def pseudo_sum(source: bytes, destination: bytes, protocol: int, size: int) -> int:
    """What a transport's checksum covers beside its message."""
    return int.from_bytes(source, "big") + int.from_bytes(destination, "big") + protocol + size


def header(protocol: int, size: int, source: Address, destination: Address) -> bytes:
    """The IP header before `size` bytes."""
    if source.version == 6:
        words = struct.pack("!IHBB", 6 << 28, size, protocol, _HOPS)
        return words + source.packed + destination.packed
    words = struct.pack("!BBHHHBBH", 0x45, 0, 20 + size, 0, 0, _HOPS, protocol, 0)
    head = words + source.packed + destination.packed
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:]


def icmp(message: bytes, source: Address, destination: Address) -> bytes:
    """A whole packet; the checksum within `message` is 0."""
    low = source.version == 4
    protocol, size = ICMP if low else ICMP6, len(message)
    # ICMPv6's checksum covers a pseudo header, ICMP's does not.
    ends = 0 if low else pseudo_sum(source.packed, destination.packed, protocol, size)
    check = struct.pack("!H", checksum(message, ends))
    return header(protocol, size, source, destination) + message[:2] + check + message[4:]


def tcp(segment: bytes, source: Address, destination: Address) -> bytes:
    """A whole packet; the checksum within `segment` is 0."""
    check = checksum(segment, pseudo_sum(source.packed, destination.packed, TCP, len(segment)))
    whole = segment[:16] + struct.pack("!H", check) + segment[18:]
    return header(TCP, len(segment), source, destination) + whole
