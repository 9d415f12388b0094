"""Sockets that take what is for others and answer in their name; opening them needs rights.

What is sent by any of them bears a mark that its holder cannot change (SO_MARK), and the rules let
such packets go to guests only, within flows that these began; or, by another mark, be what
`ruleset.knocking` says.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

from ..errors import HostError
from ..kernel import sysctl
from ..ruleset.names import MARK_ANSWER, MARK_TAKEN

#: linux/in.h, in6.h: IP_TRANSPARENT, IP_RECVORIGDSTADDR, IP_RECVFRAGSIZE.
_TRANSPARENT, _TRANSPARENT6 = (19, 20, 25), (75, 74, 77)
_IP_PKTINFO, _IPV6_RECVPKTINFO, _IPV6_HDRINCL = 8, 49, 36
#: linux/icmp.h, icmpv6.h: a bit for each type that is *not* wanted.
_SOL_RAW, _ICMP_FILTER, _ICMPV6_FILTER = 255, 1, 1
_ECHO_REQUEST, _ECHO_REQUEST6 = 8, 128
_SO_ATTACH_FILTER, _SO_LOCK_FILTER, _SO_RCVBUFFORCE = 26, 44, 33
#: linux/bpf_common.h: BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_LOAD, _EQUAL, _ANSWER = 0x20, 0x15, 0x06
#: linux/in6.h; where a UDP header has its checksum.
_IPV6_CHECKSUM, _UDP_CHECKSUM_AT = 7, 6
#: Addresses that no interface has: IANA's dummy address, and one of the discard prefix (RFC 7600
#: section 4.8, RFC 6666).
NOBODY = {4: "192.0.0.8", 6: "100::8"}
#: Datagrams of all guests that wait to be read; one that floods it makes others lose some.
DATAGRAM_BUFFER_BYTES = 4 * 1024 * 1024


def make_transparent(door: socket.socket) -> None:
    """Take datagrams for any address, and hear which that was and whether they came in pieces."""
    low = door.family == socket.AF_INET
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK_ANSWER)
        for option in _TRANSPARENT if low else _TRANSPARENT6:
            door.setsockopt(socket.IPPROTO_IP if low else socket.IPPROTO_IPV6, option, 1)
        if low:  # of every datagram the same would be said twice
            door.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 0)
        else:
            door.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 0)
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
    """The packet whole if it bears the mark, else nothing of it."""
    mark_offset = 0xFFFFF000 + 20  # SKF_AD_OFF + SKF_AD_MARK
    _filter(
        made,
        (_LOAD, 0, 0, mark_offset),
        (_EQUAL, 0, 1, MARK_TAKEN),
        (_ANSWER, 0, 0, 0xFFFFFFFF),
        (_ANSWER, 0, 0, 0),
    )


def _filter(made: socket.socket, *program: tuple[int, int, int, int]) -> None:
    """Attach a classic BPF program, which the socket's holder cannot take off again."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    held = struct.pack("@HP", len(program), ctypes.addressof(code))
    made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, held)
    made.setsockopt(socket.SOL_SOCKET, _SO_LOCK_FILTER, 1)


def writing(mark: int, family: int) -> socket.socket:
    """Sends whole packets, from the IP header on; the mark says what they may be."""
    made = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
    except OSError:
        made.close()
        raise
    return made


def answering_datagrams(family: int) -> socket.socket:
    """Sends datagrams from the UDP header on, each from a source that a control message names.

    The kernel writes the IP header, IPv6's checksum, and fragments. It would give such a socket a
    copy of whatever datagram comes to this namespace: bound to an address that nobody has it gets
    none, and the filter has the holder get none either.
    """
    made = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_UDP)
    try:
        _answer_only(made)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_CHECKSUM, _UDP_CHECKSUM_AT)
        made.bind((NOBODY[6 if family == socket.AF_INET6 else 4], 0))
        with suppress(BlockingIOError):
            while True:  # what came before the filter was there
                made.recv(1)
    except OSError:
        made.close()
        raise
    return made


def answering_as_one(family: int) -> socket.socket:
    """Sends many datagrams as one (UDP_SEGMENT) from a port that its holder binds it to.

    Only in a namespace where nobody else has ports: there any is free, and free to be bound.
    """
    with suppress(HostError):  # read-only in a container: then lower ports have none of these
        sysctl.write("ipv4/ip_unprivileged_port_start", "0")  # of IPv6 as well
    made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        _answer_only(made)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    except OSError:
        made.close()
        raise
    return made


def _answer_only(made: socket.socket) -> None:
    """Have it hear nothing, and send answers only, in whatever name."""
    _filter(made, (_ANSWER, 0, 0, 0))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK_ANSWER)
    if made.family == socket.AF_INET:
        made.setsockopt(socket.IPPROTO_IP, _TRANSPARENT[0], 1)
    else:
        made.setsockopt(socket.IPPROTO_IPV6, _TRANSPARENT6[0], 1)


def _enlarge(door: socket.socket) -> None:
    try:
        door.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, DATAGRAM_BUFFER_BYTES)
    except PermissionError:  # without CAP_NET_ADMIN in the first user namespace
        door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, DATAGRAM_BUFFER_BYTES)
