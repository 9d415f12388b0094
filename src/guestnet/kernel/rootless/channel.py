"""Values from process to process, sockets among them.

Both ends are this release, started by one user, and nobody else has the socket: so values go
pickled. Nothing that a guest or a program for it says ever gets here.
"""

from __future__ import annotations

import array
import io
import pickle
import socket
import struct
from typing import Any

#: Length of what follows.
_HEADER = struct.Struct("=Q")
#: Sockets that come with one value: the kernel's own limit (SCM_MAX_FD), above any worker's doors.
MAX_SOCKETS = 253


class Channel:
    """One end of a stream socket between two processes. Not thread-safe."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream

    def fileno(self) -> int:
        """The descriptor, for polling."""
        return self._stream.fileno()

    def close(self) -> None:
        """Close this end; the other hears of it."""
        self._stream.close()

    def hang_up(self) -> None:
        """End the conversation, whoever else may hold this end."""
        self._stream.shutdown(socket.SHUT_RDWR)

    def send(self, value: object) -> list[socket.socket]:
        """Send a value; returns the sockets in it, of which the other end has copies now."""
        packed = io.BytesIO()
        pickler = _Pickler(packed)
        pickler.dump(value)
        data = packed.getbuffer()
        rights = array.array("i", [each.fileno() for each in pickler.sockets])
        along = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
        self._stream.sendmsg([_HEADER.pack(len(data))], along)
        self._stream.sendall(data)
        return pickler.sockets

    def receive(self) -> Any:
        """The next value; raises `EOFError` when the other end is gone."""
        space = socket.CMSG_SPACE(MAX_SOCKETS * array.array("i").itemsize)
        try:
            header, along, _flags, _from = self._stream.recvmsg(
                _HEADER.size, space, socket.MSG_WAITALL | socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError:
            raise EOFError from None
        if len(header) < _HEADER.size:
            raise EOFError
        numbers = array.array("i")
        for level, kind, data in along:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers.frombytes(data)
        sockets = [socket.socket(fileno=number) for number in numbers]
        return _Unpickler(self._read(*_HEADER.unpack(header)), sockets).load()

    def _read(self, size: int) -> io.BytesIO:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = self._stream.recv_into(view)
            if not count:
                raise EOFError
            view = view[count:]
        return io.BytesIO(data)


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.sockets: list[socket.socket] = []

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, socket.socket):
            return None
        self.sockets.append(value)
        return len(self.sockets) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, sockets: list[socket.socket]) -> None:
        super().__init__(file)
        self._sockets = sockets

    def persistent_load(self, number: Any) -> socket.socket:
        found: socket.socket = self._sockets[number]
        return found
