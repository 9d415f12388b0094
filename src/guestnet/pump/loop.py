"""The pump's loop: control socket, TAP, and the VMM's socket."""

from __future__ import annotations

import json
import os
import select
import socket
import time
from contextlib import suppress
from typing import NoReturn

from ..frames.framing import FrameError
from ..kernel import descriptors
from .dgram import DgramLink
from .stream import ClosedError, StreamLink
from .wire import TapGoneError, Wire

IN, OUT = select.EPOLLIN, select.EPOLLOUT
#: Exit status of a pump whose TAP was deleted.
STATUS_TAP_GONE = 3
#: Pause after a connection ended before the next is accepted: who connects again and again, only
#: to be hung up on, costs little.
PAUSE_S = 0.1
#: Reports in one second; more are left out, as a VMM can cause them.
REPORTS_PER_SECOND = 20
#: Counters are told so often, if they changed.
COUNTS_S = 1.0
#: Frames that waited for a former VMM: TUN_READQ_SIZE, twice.
STALE_FRAMES = 1000


class Reporter:
    """Tells the supervisor, in lines of JSON; never waits for it."""

    def __init__(self, control: socket.socket, wire: Wire) -> None:
        self._control = control
        self._wire = wire
        self._second = 0
        self._in_second = 0
        self._told = wire.counts.values
        self._told_at = 0.0

    def tell(self, kind: str, **words: object) -> None:
        """Report something, with the counters."""
        now = time.monotonic()
        if int(now) != self._second:
            self._second, self._in_second = int(now), 0
        self._in_second += 1
        if self._in_second > REPORTS_PER_SECOND:
            return
        counts = self._wire.counts
        self._told, self._told_at = counts.values, now
        numbers = {
            "connections": counts.connections,
            "malformed": counts.malformed,
            "refused": counts.refused,
        }
        text = json.dumps({"kind": kind, **words, **numbers})
        with suppress(OSError):
            self._control.send(text.encode() + b"\n", socket.MSG_DONTWAIT)

    @property
    def wait_s(self) -> float | None:
        """In how many seconds counters are to be told, if they are."""
        if self._wire.counts.values == self._told:
            return None
        return max(0.0, self._told_at + COUNTS_S - time.monotonic())


class Loop:
    """What all pumps do; the kinds below it differ in who their VMM is."""

    def __init__(self, control: socket.socket, wire: Wire) -> None:
        self.control = control
        self.wire = wire
        self.reporter = Reporter(control, wire)
        self._epoll = select.epoll()
        self._masks: dict[int, int] = {}
        self.watch(control.fileno(), IN)
        self.watch(wire.fd, 0)

    def watch(self, fd: int, mask: int) -> None:
        """Wait for these events of a descriptor from now on."""
        known = self._masks.get(fd)
        if known is None:
            self._epoll.register(fd, mask)
        elif known != mask:
            self._epoll.modify(fd, mask)
        self._masks[fd] = mask

    def forget(self, fd: int) -> None:
        """Watch a descriptor no more; before it is closed."""
        self._epoll.unregister(fd)
        del self._masks[fd]

    def run(self) -> NoReturn:
        """Carry frames until the supervisor hangs up."""
        while True:
            waits = [w for w in (self.wait_s(), self.reporter.wait_s) if w is not None]
            events = dict(self._epoll.poll(min(waits) if waits else None))
            if self.reporter.wait_s == 0.0:
                self.reporter.tell("counts")
            if events.pop(self.control.fileno(), 0):
                self._hear()
            try:
                if events.get(self.wire.fd, 0) & ~(IN | OUT):
                    self.wire.read(memoryview(bytearray(1)))  # says that it is gone
                self.carry(events)
            except TapGoneError:
                os._exit(STATUS_TAP_GONE)

    def _hear(self) -> None:
        """Take a connection that the supervisor made, or end with it."""
        data, fds = descriptors.receive(self.control, 1, 1)
        if not data:
            os._exit(0)
        for each in fds:
            self.take(socket.socket(fileno=each))

    def wait_s(self) -> float | None:
        """The longest time until `carry` is called again."""
        return None

    def take(self, connection: socket.socket) -> None:
        """Serve a connection that was handed over."""
        connection.close()

    def carry(self, events: dict[int, int]) -> None:
        """Do what there is to do."""
        raise NotImplementedError


class StreamLoop(Loop):
    """Serves connections one after the other: those that arrive at a listener, or are handed."""

    def __init__(self, control: socket.socket, wire: Wire, listener: socket.socket | None) -> None:
        super().__init__(control, wire)
        self._listener = listener
        self._link: StreamLink | None = None
        self._accept_at = 0.0
        if listener is not None:
            self.watch(listener.fileno(), IN)

    def wait_s(self) -> float | None:
        """Until connections are accepted again."""
        if self._link is not None or not self._accept_at:
            return None
        return max(0.0, self._accept_at - time.monotonic())

    def take(self, connection: socket.socket) -> None:
        """Begin with a VMM, in place of one that may still be there."""
        if self._link is not None:
            self._end("another connection took its place")
        self._link = StreamLink(self.wire, connection)
        self._link.drop_waiting(STALE_FRAMES)
        self.wire.counts.connections += 1
        if self._listener is not None:
            self.watch(self._listener.fileno(), 0)
        self._arm(self._link)
        self.reporter.tell("connected")

    def carry(self, events: dict[int, int]) -> None:
        """Accept, or carry frames both ways."""
        link = self._link
        if link is None:
            self._accept()
            return
        try:
            tap, vmm = events.get(self.wire.fd, 0), events.get(link.socket.fileno(), 0)
            if vmm & ~OUT or tap & OUT:
                link.from_vmm()
            if tap & IN or vmm & OUT:
                link.to_vmm()
        except ClosedError as error:
            self._end(str(error))
        except FrameError as error:
            self.wire.counts.malformed += 1
            self._end(str(error))
        else:
            self._arm(link)

    def _accept(self) -> None:
        listener = self._listener
        if listener is None or time.monotonic() < self._accept_at:
            return
        if self._accept_at:
            self._accept_at = 0.0
            self.watch(listener.fileno(), IN)
        try:
            connection, _address = listener.accept()
        except OSError:  # nobody, or gone again
            return
        self.take(connection)

    def _arm(self, link: StreamLink) -> None:
        """Read from neither side what the other side does not take."""
        sending, writing = link.wants_to_send, link.wants_to_write
        self.watch(link.socket.fileno(), (0 if writing else IN) | (OUT if sending else 0))
        self.watch(self.wire.fd, (0 if sending else IN) | (OUT if writing else 0))

    def _end(self, reason: str) -> None:
        if self._link is None:
            return
        self.forget(self._link.socket.fileno())
        self.watch(self.wire.fd, 0)
        self._link.close()
        self._link = None
        self._accept_at = time.monotonic() + PAUSE_S
        self.reporter.tell("closed", reason=reason)


class DgramLoop(Loop):
    """Serves a datagram socket."""

    def __init__(self, control: socket.socket, wire: Wire, bound: socket.socket) -> None:
        super().__init__(control, wire)
        self._link = DgramLink(wire, bound)
        self._peer: str | bytes = ""
        self.watch(bound.fileno(), IN)

    def wait_s(self) -> float | None:
        """Until the VMM is tried again that takes nothing."""
        until = self._link.stalled_until
        return max(0.0, until - time.monotonic()) if until else None

    def carry(self, events: dict[int, int]) -> None:
        """Carry frames both ways."""
        link = self._link
        tap, vmm = events.get(self.wire.fd, 0), events.get(link.socket.fileno(), 0)
        if vmm or tap & OUT:
            link.from_vmm()
        if link.peer and (tap & IN or link.stalled_until):
            link.to_vmm()
        if link.peer != self._peer:
            if link.peer:
                self.reporter.tell("connected", peer=link.peer_name)
            else:
                self.reporter.tell("closed", reason=link.reason)
            self._peer = link.peer
        listening = bool(link.peer) and not link.stalled_until
        writing = link.wants_to_write
        self.watch(link.socket.fileno(), 0 if writing else IN)
        self.watch(self.wire.fd, (IN if listening else 0) | (OUT if writing else 0))
