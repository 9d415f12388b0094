"""Two connected sockets made one connection: the kernel moves the bytes, this says when.

A flow is two ways (`way`), each of which moves what it can when something has changed. It ends in
order when both have come to their end. A socket that fails (reset, timed out) takes the other with
it, by a reset, as soon as what it had received before cannot go further.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from typing import NamedTuple

from .options import keep_alive
from .pipes import PipePool
from .reactor import Reactor, Timer
from .way import COPY_BYTES, Refused, Screen, Way

#: A flow is looked at after so long: most have ended by then, and need neither the options that
#: notice a dead peer nor a timer.
LOOK_S = 15.0

#: What a relay wants to know of a server from when it connects, and of a client at first: what has
#: just been accepted has room, and most have it to their end.
EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLPRI | select.EPOLLRDHUP
CLIENT_EVENTS = select.EPOLLIN | select.EPOLLPRI | select.EPOLLRDHUP
_READABLE = select.EPOLLIN | select.EPOLLPRI | select.EPOLLERR | select.EPOLLHUP
_WRITABLE = select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP
_RESET = struct.pack("ii", 1, 0)


class Reason(StrEnum):
    """Why a flow ended."""

    #: Both ends closed.
    FINISHED = "finished"
    #: The client's or the server's connection failed; `Ended.errno` says how.
    CLIENT_FAILED = "client failed"
    SERVER_FAILED = "server failed"
    #: Nothing moved for `idle_s`.
    IDLE = "idle"
    #: A screen refused what it saw.
    REFUSED = "refused"
    #: `Flow.close`.
    CLOSED = "closed"
    #: The machine refused to watch a socket, or a fault of ours.
    FAULT = "fault"


class Ended(NamedTuple):
    """What a flow was, now that both sockets are closed."""

    bytes_up: int
    """Bytes given to the server's socket."""
    bytes_down: int
    """Bytes given to the client's socket."""
    reason: Reason
    duration_s: float
    errno: int = 0
    """Of a failed socket or a fault: ECONNRESET, ETIMEDOUT …"""


OnEnd = Callable[[Ended], None]


class Relay:
    """Flows between clients and servers. `idle_s`: seconds without a byte after which one is reset.

    `on_end` is told of flows that were given none of their own. How many flows there may be is the
    caller's to limit: one that is idle costs two descriptors and some 2 KB.
    """

    def __init__(
        self, reactor: Reactor, *, pipes: PipePool, idle_s: float, on_end: OnEnd | None = None
    ) -> None:
        self.reactor = reactor
        self.pipes = pipes
        self.idle_s = idle_s
        self._on_end = on_end
        self._flows: set[Flow] = set()
        #: Those that were not looked at yet, oldest first.
        self._young: dict[Flow, None] = {}
        self._look_s = min(LOOK_S, idle_s / 2)
        self._is_looking = False
        # Shared by all: what is copied is read and written within one call.
        self._scratch = memoryview(bytearray(COPY_BYTES))

    def __len__(self) -> int:
        """Flows that have not ended."""
        return len(self._flows)

    def start(
        self,
        client: socket.socket,
        server: socket.socket,
        to_server: bytes = b"",
        on_end: OnEnd | None = None,
        screens: tuple[Screen, Screen] | None = None,
        seen: tuple[int | None, int | None] = (None, None),
    ) -> Flow:
        """Relay between two non-blocking TCP sockets, which are the relay's from here on.

        Both have been `prepare`d. `to_server` was read from the client already and goes first. The
        server's connect may still be under way. `screens` look at what comes from the client, and
        from the server. `seen` are the events of client and server told so far, of those that the
        reactor watches already, for `CLIENT_EVENTS` and `EVENTS`. A socket that cannot be watched
        ends the flow, like any failure of one.
        """
        flow = Flow(self, client, server, to_server, on_end or self._on_end)
        if screens is not None:
            flow._up.screen, flow._down.screen = screens
        self._flows.add(flow)
        flow._begin(seen)
        return flow

    def _look_later(self, flow: Flow) -> None:
        """Look at a flow if it is still there in a while; one timer for all."""
        self._young[flow] = None
        if not self._is_looking:
            self._is_looking = True
            self.reactor.call_later(self._look_s, self._look)

    def _look(self) -> None:
        self._is_looking = False
        now = self.reactor.now()
        while self._young:
            flow = next(iter(self._young))
            left = flow._began + self._look_s - now
            if left > 0:
                self._is_looking = True
                self.reactor.call_later(left, self._look)
                return
            del self._young[flow]
            flow._grow_old()

    def close(self) -> None:
        """Reset every flow; the pool stays its owner's."""
        for flow in list(self._flows):
            flow.close(reset=True)


class Flow:
    """One relayed connection. Made by `Relay.start`."""

    __slots__ = (
        "_awaits_room", "_began", "_client", "_down", "_is_client_watched", "_is_server_watched",
        "_last", "_on_end", "_open", "_queued", "_relay", "_server", "_timer", "_up",
    )  # fmt: skip

    def __init__(
        self,
        relay: Relay,
        client: socket.socket,
        server: socket.socket,
        to_server: bytes,
        on_end: OnEnd | None,
    ) -> None:
        self._relay = relay
        self._client = client
        self._server = server
        self._up = Way(client, server, to_server)
        self._down = Way(server, client, b"")
        self._on_end = on_end
        self._began = self._last = relay.reactor.now()
        self._timer: Timer | None = None
        self._open = True
        self._queued = False
        self._is_client_watched = self._is_server_watched = False
        #: Whether it is told when the client has room again.
        self._awaits_room = False
        # It has just been accepted. Before that is told the server may have failed, with last words
        # that have somewhere to go.
        self._down.writable = True

    @property
    def bytes_up(self) -> int:
        """Bytes given to the server's socket so far."""
        return self._up.moved

    @property
    def bytes_down(self) -> int:
        """Bytes given to the client's socket so far."""
        return self._down.moved

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return not self._open

    def close(self, *, reset: bool = True) -> None:
        """End it now, by a reset of both sides or an orderly close; closing twice is fine.

        What has not been delivered is lost either way. `on_end` is called before this returns.
        """
        self._end(Reason.CLOSED, reset=reset)

    # -- from the loop -----------------------------------------------------------------------

    def _begin(self, seen: tuple[int | None, int | None]) -> None:
        reactor, (client, server) = self._relay.reactor, seen
        try:
            if client is not None:
                reactor.replace(self._client.fileno(), self._on_client)
                self._is_client_watched = True
                self._note(client, self._up, self._down)
            if server is not None:
                reactor.replace(self._server.fileno(), self._on_server)
                self._is_server_watched = True
                self._note(server, self._down, self._up)
            if client is None:
                reactor.add(self._client.fileno(), self._on_client, CLIENT_EVENTS)
                self._is_client_watched = True
            if server is None:
                reactor.add(self._server.fileno(), self._on_server, EVENTS)
                self._is_server_watched = True
        except OSError as error:
            number = error.errno or 0
            # Later: the caller has not even got the flow yet.
            reactor.call_soon(lambda: self._end(Reason.FAULT, number))
            return
        except ValueError:  # watched by someone else: the caller's fault, and told to it
            self._on_end = None
            self._end(Reason.FAULT)
            raise
        self._relay._look_later(self)
        if self._up.early or self._up.readable or self._down.readable:
            self._queued = True
            reactor.call_soon(self._turn)

    def _grow_old(self) -> None:
        """It lives for longer than most: notice if its server dies, or nothing moves any more."""
        with suppress(OSError):
            keep_alive(self._server)
        self._check_idle()

    def _on_client(self, events: int) -> None:
        self._on_event(events, self._up, self._down)

    def _on_server(self, events: int) -> None:
        self._on_event(events, self._down, self._up)

    def _on_event(self, events: int, out: Way, into: Way) -> None:
        self._note(events, out, into)
        if not self._queued:
            self._turn()

    def _note(self, events: int, out: Way, into: Way) -> None:
        """Note what a socket is ready for: `out` of it and `into` it."""
        if events & _READABLE:
            out.readable = True
        if events & _WRITABLE:
            into.writable = True
        if events & select.EPOLLPRI:
            out.copies = True
        if events & select.EPOLLRDHUP:
            out.all_came = True
        if events & select.EPOLLERR:
            # Asking takes the error away: from now on the socket only seems to have ended.
            number = out.source.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                out.fail_source(number)
                into.fail_sink(number, self._relay.pipes)

    def _turn(self) -> None:
        self._queued = False
        if not self._open:
            return
        up, down, relay = self._up, self._down, self._relay
        before = up.moved + down.moved
        try:
            up_goes_on = up.pump(relay.pipes, relay._scratch)
            if up.sink_error:
                down.fail_source(up.sink_error)
            down_goes_on = down.pump(relay.pipes, relay._scratch)
            if down.sink_error and not up.source_error:
                up.fail_source(down.sink_error)
                up_goes_on = up.pump(relay.pipes, relay._scratch)
        except Refused:
            self._end(Reason.REFUSED)
            return
        except BaseException:
            self._end(Reason.FAULT)
            raise
        if up.moved + down.moved != before:
            self._last = relay.reactor.now()
        if not down.writable and not self._awaits_room:
            self._awaits_room = True
            relay.reactor.modify(self._client.fileno(), EVENTS)
        if up.source_error and not up_goes_on:
            self._end(Reason.CLIENT_FAILED, up.source_error)
        elif down.source_error and not down_goes_on:
            self._end(Reason.SERVER_FAILED, down.source_error)
        elif up.done and down.done:
            self._end(Reason.FINISHED, reset=False)
        elif up_goes_on or down_goes_on:
            self._queued = True
            relay.reactor.call_soon(self._turn)

    def _check_idle(self) -> None:
        """Look only now and then, so that moving bytes costs no timer."""
        reactor, idle_s = self._relay.reactor, self._relay.idle_s
        left = self._last + idle_s - reactor.now()
        if left <= 0:
            self._timer = None
            self._end(Reason.IDLE)
        else:
            self._timer = reactor.call_later(left, self._check_idle)

    def _end(self, reason: Reason, number: int = 0, *, reset: bool = True) -> None:
        if not self._open:
            return
        self._open = False
        relay = self._relay
        if self._timer is not None:
            self._timer.cancel()
        for way in (self._up, self._down):
            way.drop(relay.pipes)
        if self._is_client_watched:
            relay.reactor.forget(self._client.fileno())
        if self._is_server_watched:
            relay.reactor.forget(self._server.fileno())
        for each in (self._client, self._server):
            if reset:
                close_by_reset(each)
            else:
                each.close()
        relay._flows.discard(self)
        relay._young.pop(self, None)
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            duration_s = relay.reactor.now() - self._began
            on_end(Ended(self._up.moved, self._down.moved, reason, duration_s, number))


def close_by_reset(each: socket.socket) -> None:
    """Close a connection so that the other end sees a reset."""
    with suppress(OSError):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    each.close()
