"""The class of service that a guest's packets ask for, on the connection that goes on for them.

What is forwarded keeps its DSCP, so what is relayed does too: that of the guest's first packet.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

#: linux/in.h; in6.h (IPV6_2292PKTOPTIONS is what TCP answers)
_IP_TOS, _IP_PKTOPTIONS, _IP_RECVTOS = 1, 9, 13
_IPV6_PKTOPTIONS, _IPV6_RECVTCLASS, _IPV6_TCLASS = 6, 66, 67
#: struct cmsghdr: its length, level and type.
_HEADER = struct.Struct("@Nii")
#: Bytes asked for: one control message with an integer.
_ROOM = 32
#: The two lowest bits are the connection's own (ECN, RFC 3168).
_DSCP = 0xFC


def hear_class(listener: socket.socket) -> None:
    """Have the kernel remember the class of what the listener accepts."""
    if listener.family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVTCLASS, 1)
    else:
        listener.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)


def class_of(accepted: socket.socket, version: int) -> int:
    """What the first packet of an accepted connection asked for: DSCP in the upper six bits.

    `version` is its IP's.
    """
    try:
        if version == 6:
            raw = accepted.getsockopt(socket.IPPROTO_IPV6, _IPV6_PKTOPTIONS, _ROOM)
        else:
            raw = accepted.getsockopt(socket.IPPROTO_IP, _IP_PKTOPTIONS, _ROOM)
    except OSError:
        return 0
    if len(raw) < _HEADER.size + 4:
        return 0
    (value,) = struct.unpack_from("@i", raw, _HEADER.size)
    return int(value) & _DSCP


def set_class(server: socket.socket, value: int) -> None:
    """Ask for the same; without it the connection is as good."""
    with suppress(OSError):
        if server.family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, _IPV6_TCLASS, value)
        else:
            server.setsockopt(socket.IPPROTO_IP, _IP_TOS, value)
