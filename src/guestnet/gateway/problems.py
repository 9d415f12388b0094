"""What the kernel says of a datagram that did not arrive, as ICMP puts it."""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass

from ..flow.inward import TOO_BIG
from ..kernel.mmsg import Ancillary

#: linux/in.h, in6.h, errqueue.h
_RECVERR = {4: (socket.IPPROTO_IP, 11), 6: (socket.IPPROTO_IPV6, 25)}
_EXTENDED_ERROR = struct.Struct("=IBBBBII")
_ORIGIN_LOCAL, _ORIGIN_ICMP, _ORIGIN_ICMP6 = 1, 2, 3
#: What the kernel says of a peer that there is no way to, as ICMP would: (type, code) by version.
_NO_WAY = {
    errno.ENETUNREACH: {4: (3, 0), 6: (1, 0)},
    errno.ENETDOWN: {4: (3, 0), 6: (1, 0)},
    errno.ENODEV: {4: (3, 0), 6: (1, 0)},
    errno.EADDRNOTAVAIL: {4: (3, 0), 6: (1, 0)},
    errno.EHOSTUNREACH: {4: (3, 1), 6: (1, 3)},
    errno.EACCES: {4: (3, 13), 6: (1, 1)},
    errno.EPERM: {4: (3, 13), 6: (1, 1)},
}


@dataclass(frozen=True, slots=True)
class Problem:
    """An error about what was sent to a peer, as ICMP puts it."""

    kind: int
    code: int
    #: The MTU, where that is the problem.
    info: int
    #: The payload it is about, or its beginning.
    about: bytes
    #: Whether this machine said it, and nobody on the way.
    is_local: bool = False


def want_problems(sock: socket.socket, version: int) -> None:
    """Have them queued (IP_RECVERR). Raises `OSError`."""
    sock.setsockopt(*_RECVERR[version], 1)


def is_no_way(error: OSError) -> bool:
    """Whether nothing else would go there either."""
    return error.errno in _NO_WAY


def problem_of(error: OSError, version: int) -> tuple[int, int] | None:
    """What a router would say that had this error; None for any that is not about the way."""
    found = _NO_WAY.get(error.errno or 0)
    return None if found is None else found[version]


def no_way(error: OSError, version: int, about: bytes) -> Problem | None:
    """The same as the problem of what was sent."""
    found = problem_of(error, version)
    return None if found is None else Problem(*found, 0, about, is_local=True)


def read_problem(version: int, said: Ancillary, about: bytes) -> Problem | None:
    """What came from an error queue (struct sock_extended_err); None for what guests hear not."""
    for level, kind, value in said:
        if (level, kind) == _RECVERR[version] and len(value) >= _EXTENDED_ERROR.size:
            number, origin, icmp_type, code, _pad, info, _data = _EXTENDED_ERROR.unpack_from(value)
            if origin == _ORIGIN_LOCAL and number == errno.EMSGSIZE:
                return Problem(*TOO_BIG[version], info, about, is_local=True)
            if origin in (_ORIGIN_ICMP, _ORIGIN_ICMP6):
                return Problem(icmp_type, code, info if number == errno.EMSGSIZE else 0, about)
    return None
