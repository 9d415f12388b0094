"""Packets that rules log (linux/netfilter/nfnetlink_log.h): a group is read by whoever bound it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from . import netlink as nl
from .netlink import Message, NetlinkSocket, attribute

_SUBSYSTEM, _PACKET, _CONFIG = 4, 0, 1
#: The type of a message that holds a packet, and of the attribute that is the packet.
LOGGED, PAYLOAD = _SUBSYSTEM << 8 | _PACKET, 9
_COMMAND, _MODE, _BUFFER, _TIMEOUT, _THRESHOLD = 1, 2, 3, 4, 5
_BIND, _COPY = 1, 2
_ATTRIBUTE = struct.Struct("=HH")


def binding(
    group: int, snaplen: int, batch: int, wait: int = 100, buffer: int | None = None
) -> list[Message]:
    """What binds a socket to a group: it hears the first `snaplen` bytes of each packet.

    The kernel hands over `batch` packets at a time, or what there is after `wait` hundredths of a
    second; each message takes `buffer` bytes of the socket's room, or what the kernel thinks.
    """
    room = nl.be32(_BUFFER, buffer) if buffer is not None else b""
    mode = attribute(_MODE, struct.pack("!IBx", snaplen, _COPY))
    parts = (
        attribute(_COMMAND, struct.pack("=B", _BIND)),
        mode + room + nl.be32(_TIMEOUT, wait) + nl.be32(_THRESHOLD, batch),
    )
    header = struct.pack("!BBH", socket.AF_UNSPEC, 0, group)
    kind, word = _SUBSYSTEM << 8 | _CONFIG, f"group {group}"
    return [Message(kind, 0, header + part, "nfnetlink_log bind", word) for part in parts]


def open_log(group: int, snaplen: int, buffer: int) -> socket.socket:
    """A socket, which does not block, that hears each packet of a group at once.

    Raises `HostError`.
    """
    with NetlinkSocket(nl.NETLINK_NETFILTER) as made:
        made.request(binding(group, snaplen, 1, buffer=buffer))
        return made.detach()


def packets(data: bytes) -> Iterator[bytes]:
    """The packets in what was read of such a socket."""
    offset, end = 0, len(data)
    while offset + 20 <= end:
        length, kind = struct.unpack_from("=IH", data, offset)
        if length < 20:
            return
        if kind == LOGGED:
            at, last = offset + 20, min(offset + length, end)
            while at + 4 <= last:
                size, what = _ATTRIBUTE.unpack_from(data, at)
                if what & nl.NLA_TYPE_MASK == PAYLOAD:
                    yield data[at + 4 : min(at + size, last)]
                at += max(size + 3 & ~3, 4)
        offset += (length + 3) & ~3
