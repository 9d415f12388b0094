"""A VMM's stream socket: frames behind their lengths, both ways."""

from __future__ import annotations

import socket

from ..frames.framing import LENGTH, StreamReader
from .wire import Wire

#: Bytes gathered for one send: some 160 full packets, or three large segments.
GATHER_BYTES = 256 * 1024


class ClosedError(Exception):
    """The connection ended; says why, or nothing if the VMM closed it in order."""


class StreamLink:
    """One connection. What the other side does not take yet waits here, and nothing more is read.

    So a VMM that never reads has the TAP's queue fill up and drop, as a slow card would.
    """

    def __init__(self, wire: Wire, connection: socket.socket) -> None:
        self._wire = wire
        self.socket = connection
        self._reader = StreamReader(wire.rules)
        #: Frames from the VMM that the TAP does not take yet.
        self._waiting: list[memoryview] = []
        self._gathered = memoryview(bytearray(GATHER_BYTES))
        self._largest = LENGTH.size + wire.rules.max_bytes
        self._sent = 0
        self._filled = 0

    @property
    def wants_to_send(self) -> bool:
        """Frames for the VMM wait until its socket takes them."""
        return self._sent < self._filled

    @property
    def wants_to_write(self) -> bool:
        """Frames from the VMM wait until the TAP takes them."""
        return bool(self._waiting)

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def from_vmm(self) -> None:
        """Carry what the VMM sent to the TAP. Raises `ClosedError` and `FrameError`."""
        if not self._write_waiting():
            return
        try:
            count = self.socket.recv_into(self._reader.room(), 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionError:
            raise ClosedError from None  # it ended with frames unread
        except OSError as error:
            raise ClosedError(error.strerror) from None
        if not count:
            self._reader.end()
            raise ClosedError
        self._reader.filled(count)
        while frames := self._reader.frames():
            self._waiting = frames
            if not self._write_waiting():
                return

    def _write_waiting(self) -> bool:
        """Write what waits for the TAP; False if some still does."""
        write = self._wire.write
        for index, frame in enumerate(self._waiting):
            if not write(frame):
                del self._waiting[:index]
                return False
        self._waiting = []
        return True

    def to_vmm(self) -> None:
        """Carry what waits at the TAP to the VMM, many frames at once. Raises `ClosedError`."""
        if not self.wants_to_send:
            self._gather()
        if not self.wants_to_send:
            return
        try:
            self._sent += self.socket.send(
                self._gathered[self._sent : self._filled], socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return
        except ConnectionError:
            raise ClosedError from None
        except OSError as error:
            raise ClosedError(error.strerror) from None

    def _gather(self) -> None:
        at, gathered, read = 0, self._gathered, self._wire.read
        head, last = LENGTH.size, GATHER_BYTES - self._largest
        while at <= last:
            size = read(gathered[at + head :])
            if not size:
                break
            LENGTH.pack_into(gathered, at, size)
            at += head + size
        self._sent, self._filled = 0, at

    def drop_waiting(self, most: int) -> None:
        """Drop frames that have waited for a former VMM."""
        self._wire.drop_waiting(self._gathered, most)
