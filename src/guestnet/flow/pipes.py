"""Pipes through which the kernel moves bytes from socket to socket, taken only while it does."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

#: Bytes of a pipe. Among many flows more is slower and less fair.
PIPE_BYTES = 128 * 1024
#: Bytes of a large one. A few flows that are alone move more with each system call: one stream
#: takes half the processor time.
LARGE_BYTES = 512 * 1024
#: Tried in turn where the kernel allows less (fs.pipe-max-size, fs.pipe-user-pages-soft).
_SIZES = (PIPE_BYTES, 64 * 1024)
#: Smaller ones are made where that allowance is used up, and not kept: it may be back later.
_KEPT_BYTES = 64 * 1024
#: Pipes in use and kept together, and how many of them are large. Without privileges a user's pipes
#: may hold 64 MiB (fs.pipe-user-pages-soft); these hold 56, and a few are left to others.
MAX_PIPES, MAX_LARGE = 400, 16


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

    The first `large` of them are large, and taken first. Past the limit `take` answers `None`, and
    whoever asked does without: flows whose receiver has stalled hold pipes for as long as it
    pleases them, and must not stop the others.
    """

    def __init__(
        self, *, limit: int = MAX_PIPES, large: int = 0, pipe_bytes: int = PIPE_BYTES
    ) -> None:
        self._limit = limit
        #: Large ones that may yet be made.
        self._large = large
        self._sizes = (pipe_bytes, *(size for size in _SIZES if size < pipe_bytes))
        self._free: list[Pipe] = []
        self._free_large: list[Pipe] = []
        self._taken = 0

    @property
    def taken(self) -> int:
        """Pipes that are in use."""
        return self._taken

    def take(self) -> Pipe | None:
        """An empty pipe, or `None` if there is none to be had."""
        if self._free_large:
            pipe = self._free_large.pop()
        elif self._free and not self._large:
            pipe = self._free.pop()
        elif self._taken >= self._limit:
            return None
        else:
            try:
                pipe = self._make()
            except OSError:  # out of descriptors, or of fs.pipe-user-pages-hard
                return None
        self._taken += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Keep a pipe if it is empty and of use; bytes in it would reach the next flow."""
        self._taken -= 1
        is_large = pipe.size >= LARGE_BYTES
        if pipe.held or pipe.size < _KEPT_BYTES:
            self._large += is_large
            pipe.close()
        elif is_large:
            self._free_large.append(pipe)
        else:
            self._free.append(pipe)

    def close(self) -> None:
        """Close the kept ones."""
        for free in (self._free, self._free_large):
            while free:
                free.pop().close()

    def _make(self) -> Pipe:
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._large:
            with suppress(OSError):
                size = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, LARGE_BYTES)
                self._large -= 1
                return Pipe(reader, writer, size)
            self._large = 0  # the kernel does not allow them
        for size in self._sizes:
            with suppress(OSError):
                return Pipe(reader, writer, fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, size))
        return Pipe(reader, writer, fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ))
