"""Datagrams that the kernel takes, or gives, as one: UDP_SEGMENT and UDP_GRO (udp(7)).

All of them have one size, but for the last, which may be shorter.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress

from ..kernel.mmsg import Ancillary

#: linux/udp.h
UDP_SEGMENT, UDP_GRO = 103, 104
#: What one call may have: UDP_MAX_SEGMENTS of kernels before 6.9, and bytes of an IP packet
#: without any headers.
MOST, MOST_BYTES = 64, 65_000


def gather(sock: socket.socket) -> None:
    """Have datagrams of one flow given as one where the kernel has them so."""
    with suppress(OSError):  # then each comes by itself
        sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)


def can_send() -> bool:
    """Whether the kernel takes several as one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, suppress(OSError):
        sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 0)
        return True
    return False


def ancillary(size: int) -> Ancillary:
    """What has the kernel send data as datagrams of `size` bytes."""
    return [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", size))]


def runs(datagrams: Sequence[memoryview]) -> Iterator[Sequence[memoryview]]:
    """Datagrams in their order, those together that can go as one."""
    sizes = [len(each) for each in datagrams]
    first = 0
    while first < len(sizes):
        size, after = sizes[first], first + 1
        # An empty one would be nothing at all among others.
        end = min(len(sizes), first + (min(MOST, MOST_BYTES // size) if size else 1))
        while after < end and sizes[after] == size:
            after += 1
        if after < end and 0 < sizes[after] < size:
            after += 1
        yield datagrams[first:after]
        first = after


def pieces(data: memoryview, size: int) -> list[memoryview]:
    """The datagrams in data that the kernel gave as one."""
    if not 0 < size < len(data):
        return [data]
    return [data[start : start + size] for start in range(0, len(data), size)]


def size_in(said: Ancillary) -> int:
    """The size that the kernel says datagrams have; 0 if it gave one."""
    for level, kind, value in said:
        if level == socket.IPPROTO_UDP and kind == UDP_GRO:
            return int(struct.unpack_from("=i", value)[0])
    return 0
