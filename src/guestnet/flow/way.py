"""One direction of a flow: from one socket to another, by a pipe.

It goes round a small ladder until it can go no further:

1. what is on the way (bytes read before, then the pipe) goes to the sink first;
2. at the source's end, the sink is shut for writing: a half-close passes through;
3. otherwise, while the source has something and the sink takes something, one pipe is filled.

So nothing is read that the sink has no room for, but for one pipe; back-pressure is the kernel's.
A pipe is filled only when empty, so EAGAIN from the source means that the *source* is empty.
Readiness is edge-triggered: told once, remembered here until EAGAIN.

An error must never look like the end of a file: a sink is shut only where its source has ended
without one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from typing import Protocol

from .pipes import LARGE_BYTES, Pipe, PipePool

#: Bytes that one direction moves in one turn, before other flows get theirs. A large pipe's fill is
#: one turn too: there are few of them.
TURN_BYTES = 128 * 1024
#: What a byte that is looked at counts in a turn: Python takes so much longer, and more.
LOOK_WEIGHT = 8
#: Bytes at a time where there is no pipe: the size of the scratch that `Way.pump` is given.
COPY_BYTES = 64 * 1024

#: asm-generic/sockios.h: whether the next byte is the urgent one.
_SIOCATMARK = 0x8905
_NOT_AT_MARK = bytes(4)
#: No SPLICE_F_MORE: it would hold the last bytes back for company that may never come.
_SPLICE = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Refused(Exception):  # noqa: N818 - an outcome of looking, not a fault
    """A screen does not let the flow go on."""


class Screen(Protocol):
    """Looks at what a source says."""

    done: bool
    """The rest need not be looked at."""

    def take(self, data: bytes) -> bytes:
        """What may go on, of this and of what was held back before; raises `Refused`."""


class Way:
    """One direction of a flow."""

    __slots__ = (
        "all_came", "copies", "done", "early", "ended", "moved", "pipe", "readable", "screen",
        "sink", "sink_error", "source", "source_error", "writable",
    )  # fmt: skip

    def __init__(self, source: socket.socket, sink: socket.socket, early: bytes) -> None:
        self.source = source
        self.sink = sink
        #: Goes before anything that is read.
        self.early = early
        self.pipe: Pipe | None = None
        self.readable = self.writable = False
        #: The source will say no more.
        self.ended = False
        #: The sink has been told so, or takes nothing any more.
        self.done = False
        #: Moved without a pipe from here on: there is, or was, urgent data.
        self.copies = False
        #: The source's end has come, and was told together with all that came before it.
        self.all_came = False
        #: Looks at every byte before it goes on, as long as it wants to.
        self.screen: Screen | None = None
        self.moved = 0
        self.source_error = self.sink_error = 0

    def pump(self, pipes: PipePool, scratch: memoryview) -> bool:
        """Move what can be moved; True if it stopped only because the turn is over."""
        budget = TURN_BYTES
        while not self.done:
            if self.early or self.pipe is not None:
                if not self.writable:
                    return False
                self._deliver(pipes)
            elif self.ended:
                self._finish()
                return False
            elif not (self.readable and self.writable):
                # Even the end is not read before the sink takes something: shutting a socket that
                # still connects would break the connection off.
                return False
            elif budget <= 0:
                return True
            else:
                budget -= self._fetch(pipes, scratch, budget)
        return False

    def fail_source(self, number: int) -> None:
        """The source has failed, and may yet have something that it received before."""
        if not self.source_error:
            self.source_error = number
            self.readable = True

    def fail_sink(self, number: int, pipes: PipePool) -> None:
        """Nothing can be delivered any more; what is on the way is lost."""
        self.sink_error = self.sink_error or number
        self.done = True
        self.drop(pipes)

    def drop(self, pipes: PipePool) -> None:
        """Give up what is on the way."""
        self.early = b""
        if self.pipe is not None:
            pipe, self.pipe = self.pipe, None
            pipes.give_back(pipe)

    def _deliver(self, pipes: PipePool) -> None:
        pipe = self.pipe
        try:
            if self.early or pipe is None:
                sent = self.sink.send(self.early)
                self.early = self.early[sent:]
            else:
                sent = os.splice(pipe.reader, self.sink.fileno(), pipe.held, flags=_SPLICE)
                pipe.held -= sent
                if not pipe.held:
                    self.pipe = None
                    pipes.give_back(pipe)
            self.moved += sent
        except BlockingIOError:
            self.writable = False
        except OSError as error:
            self.fail_sink(error.errno or errno.EIO, pipes)

    def _fetch(self, pipes: PipePool, scratch: memoryview, most: int) -> int:
        """Fill a pipe from the source; returns how many bytes came."""
        if self.screen is not None:
            return self._look(self.screen, most)
        pipe = None if self.copies else pipes.take()
        if pipe is None:
            return self._copy(pipes, scratch, most)
        try:
            wanted = min(most, pipe.size) if pipe.size < LARGE_BYTES else pipe.size
            pipe.held = os.splice(self.source.fileno(), pipe.writer, wanted, flags=_SPLICE)
        except BlockingIOError:
            self.readable = False
        except OSError as error:
            self._fail_source(error)
        else:
            if not pipe.held:
                pipes.give_back(pipe)
                if self.all_came:
                    self.ended = True
                    return 0
                # The end, or an urgent mark and the end behind it: only a look can tell.
                return self._copy(pipes, scratch, most)
        if not pipe.held:
            pipes.give_back(pipe)
            return 0
        self.pipe = pipe
        return pipe.held

    def _copy(self, pipes: PipePool, scratch: memoryview, most: int) -> int:
        """Move bytes without a pipe and without holding any: look, give, and only then take.

        For when all pipes are taken, and for urgent data, before which splice stops for ever. A
        look stops before an urgent byte as well, so one is the first byte seen or not among them.
        """
        try:
            count = self.source.recv_into(scratch, min(most, COPY_BYTES), socket.MSG_PEEK)
        except BlockingIOError:
            self.readable = False
            return 0
        except OSError as error:
            self._fail_source(error)
            return 0
        if not count:
            self.ended = True
            return 0
        try:
            if self._is_at_mark():
                sent = self.sink.send(scratch[:1], socket.MSG_OOB)
            else:
                sent = self.sink.send(scratch[:count])
        except BlockingIOError:
            self.writable = False
            return 0
        except OSError as error:
            self.fail_sink(error.errno or errno.EIO, pipes)
            return 0
        self.moved += sent
        self._discard(scratch, sent)
        return sent

    def _is_at_mark(self) -> bool:
        """Whether the next byte is urgent (tcp(7))."""
        return fcntl.ioctl(self.source, _SIOCATMARK, _NOT_AT_MARK) != _NOT_AT_MARK

    def _look(self, screen: Screen, most: int) -> int:
        """Read what somebody wants to see before it goes on."""
        try:
            data = self.source.recv(max(1, min(most, TURN_BYTES) // LOOK_WEIGHT))
        except BlockingIOError:
            self.readable = False
            return 0
        except OSError as error:
            self._fail_source(error)
            return 0
        if not data:
            self.ended = True
            return 0
        self.early = screen.take(data)
        if screen.done:
            self.screen = None
        return len(data) * LOOK_WEIGHT

    def _discard(self, scratch: memoryview, count: int) -> None:
        """Take from the source what has been given already; MSG_TRUNC does not copy it (tcp(7))."""
        try:
            while count > 0:  # an urgent mark that came meanwhile makes it two steps
                taken = self.source.recv_into(scratch, count, socket.MSG_TRUNC)
                if not taken:
                    raise OSError(errno.EIO, "what was there is gone")
                count -= taken
        except OSError as error:
            self._fail_source(error)  # going on would give it twice

    def _fail_source(self, error: OSError) -> None:
        self.source_error = error.errno or errno.EIO
        self.readable = False

    def _finish(self) -> None:
        """Tell the sink that no more comes, but never of a source that failed."""
        if self.source_error:
            return
        self.done = True
        try:
            self.sink.shutdown(socket.SHUT_WR)
        except OSError:  # ENOTCONN: it failed, which is told by its events
            return
