"""Sockets that take what is for others and answer in their name; opening them needs rights.

What is sent by any of them bears a mark that its holder cannot change (SO_MARK), and the rules let
such packets go to guests only, within flows that these began.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Callable

from ..errors import HostError
from ..ruleset.names import MARK_ANSWER, MARK_TAKEN

#: linux/in.h, in6.h: IP_TRANSPARENT, IP_RECVORIGDSTADDR, IP_RECVFRAGSIZE.
_TRANSPARENT, _TRANSPARENT6 = (19, 20, 25), (75, 74, 77)
_IPV6_RECVPKTINFO, _IPV6_HDRINCL = 49, 36
#: linux/icmp.h, icmpv6.h: a bit for each type that is *not* wanted.
_SOL_RAW, _ICMP_FILTER, _ICMPV6_FILTER = 255, 1, 1
_ECHO_REQUEST, _ECHO_REQUEST6 = 8, 128
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
#: Datagrams of all guests that wait to be read; one that floods it makes others lose some.
DATAGRAM_BUFFER_BYTES = 4 * 1024 * 1024


def make_transparent(door: socket.socket) -> None:
    """Take datagrams for any address, and hear which that was and whether they came in pieces."""
    low = door.family == socket.AF_INET
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK_ANSWER)
        for option in _TRANSPARENT if low else _TRANSPARENT6:
            door.setsockopt(socket.IPPROTO_IP if low else socket.IPPROTO_IPV6, option, 1)
    except OSError as error:
        raise HostError.from_os("setsockopt(IP_TRANSPARENT)", "the UDP door", error) from None
    _enlarge(door)


def raw_pair(made_by: Callable[[int], socket.socket]) -> tuple[socket.socket, ...]:
    """A raw socket of each family that the kernel has."""
    try:
        low = made_by(socket.AF_INET)
    except OSError as error:
        raise HostError.from_os("socket(SOCK_RAW)", "IPv4", error) from None
    try:
        return low, made_by(socket.AF_INET6)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return (low,)
        low.close()
        raise HostError.from_os("socket(SOCK_RAW)", "IPv6", error) from None


def echo_door(family: int) -> socket.socket:
    """Hears echo requests that are delivered here by our mark, and no others."""
    low = family == socket.AF_INET
    protocol = socket.IPPROTO_ICMP if low else socket.IPPROTO_ICMPV6
    made = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK_ANSWER)
        _keep_marked(made)
        if low:
            wanted = struct.pack("=I", 0xFFFFFFFF ^ 1 << _ECHO_REQUEST)
            made.setsockopt(_SOL_RAW, _ICMP_FILTER, wanted)
        else:
            words = [0xFFFFFFFF] * 8
            words[_ECHO_REQUEST6 // 32] ^= 1 << _ECHO_REQUEST6 % 32
            made.setsockopt(socket.IPPROTO_ICMPV6, _ICMPV6_FILTER, struct.pack("=8I", *words))
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
        _enlarge(made)
    except OSError:
        made.close()
        raise
    return made


def _keep_marked(made: socket.socket) -> None:
    """A classic BPF program: the packet whole if it bears the mark, else nothing of it."""
    load, equal, answer, mark_offset = 0x20, 0x15, 0x06, 0xFFFFF000 + 20  # SKF_AD_OFF + SKF_AD_MARK
    program = [
        (load, 0, 0, mark_offset),
        (equal, 0, 1, MARK_TAKEN),
        (answer, 0, 0, 0xFFFFFFFF),
        (answer, 0, 0, 0),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    held = struct.pack("@HP", len(program), ctypes.addressof(code))
    made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, held)


def answering(family: int) -> socket.socket:
    """Sends whole packets, from the IP header on; the mark says that they are answers."""
    made = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK_ANSWER)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
    except OSError:
        made.close()
        raise
    return made


def _enlarge(door: socket.socket) -> None:
    try:
        door.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, DATAGRAM_BUFFER_BYTES)
    except PermissionError:  # without CAP_NET_ADMIN in the first user namespace
        door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, DATAGRAM_BUFFER_BYTES)
