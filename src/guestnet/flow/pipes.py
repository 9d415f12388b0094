"""Pipes through which the kernel moves bytes from socket to socket, taken only while it does."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

#: Bytes of a pipe. Less is more system calls for each byte; more is not faster, and among many
#: flows less fair.
PIPE_BYTES = 128 * 1024
#: Tried in turn where the kernel allows less (fs.pipe-max-size, fs.pipe-user-pages-soft).
_SIZES = (PIPE_BYTES, 64 * 1024)
#: Smaller ones are made where that allowance is used up, and not kept: it may be back later.
_KEPT_BYTES = 64 * 1024
#: Pipes in use and kept together. Without privileges a user's pipes may hold 64 MiB
#: (fs.pipe-user-pages-soft), that is 512 of them; a few are left to others.
MAX_PIPES = 448


class Pipe:
    """Both ends, and how many bytes are between them."""

    __slots__ = ("held", "reader", "size", "writer")

    def __init__(self, reader: int, writer: int, size: int) -> None:
        self.reader = reader
        self.writer = writer
        self.size = size
        self.held = 0

    def close(self) -> None:
        """Close both ends, and drop what is between them."""
        os.close(self.reader)
        os.close(self.writer)


class PipePool:
    """Pipes of `pipe_bytes`, at most `limit`; empty ones are kept for the next.

    Past the limit `take` answers `None`, and whoever asked does without: flows whose receiver has
    stalled hold pipes for as long as it pleases them, and must not stop the others.
    """

    def __init__(self, *, limit: int = MAX_PIPES, pipe_bytes: int = PIPE_BYTES) -> None:
        self._limit = limit
        self._sizes = (pipe_bytes, *(size for size in _SIZES if size < pipe_bytes))
        self._free: list[Pipe] = []
        self._taken = 0

    @property
    def taken(self) -> int:
        """Pipes that are in use."""
        return self._taken

    def take(self) -> Pipe | None:
        """An empty pipe, or `None` if there is none to be had."""
        if self._free:
            pipe = self._free.pop()
        elif self._taken >= self._limit:
            return None
        else:
            try:
                reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:  # out of descriptors, or of fs.pipe-user-pages-hard
                return None
            pipe = Pipe(reader, writer, self._widen(writer))
        self._taken += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Keep a pipe if it is empty and of use; bytes in it would reach the next flow."""
        self._taken -= 1
        if pipe.held or pipe.size < _KEPT_BYTES:
            pipe.close()
        else:
            self._free.append(pipe)

    def close(self) -> None:
        """Close the kept ones."""
        while self._free:
            self._free.pop().close()

    def _widen(self, writer: int) -> int:
        """Make it as large as the kernel allows; returns its size in bytes."""
        for size in self._sizes:
            with suppress(OSError):
                return fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, size)
        return fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
