"""Descriptors from process to process (SCM_RIGHTS, unix(7)).

The standard library's `send_fds` and `recv_fds` leave their flags out before Python 3.12, and what
is received then is inherited by whatever another thread starts.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence

_INT_BYTES = array.array("i").itemsize


def send(connection: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """Send bytes with descriptors in one message, without waiting. Raises `OSError`."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    connection.sendmsg([data], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def receive(connection: socket.socket, most_bytes: int, most_fds: int) -> tuple[bytes, list[int]]:
    """Receive bytes, and the descriptors that came with them. Raises `OSError`."""
    room = socket.CMSG_LEN(most_fds * _INT_BYTES)
    data, along, flags, _from = connection.recvmsg(most_bytes, room, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, value in along:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(value[: len(value) - len(value) % _INT_BYTES])
    if flags & socket.MSG_CTRUNC:
        for each in fds:
            os.close(each)
        raise OSError(0, "more descriptors than are expected, or than may be open")
    return data, list(fds)
