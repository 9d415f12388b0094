"""A client's first bytes, where clients speak first: read until they say whom it means."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from dataclasses import dataclass

from ..flow.first import First, read_first
from ..flow.hello import NotHello
from ..flow.http import NotHttp
from ..flow.reactor import Reactor
from ..flow.relay import CLIENT_EVENTS

#: How long a client may take to say whom it means; after that it is refused.
PEEK_S = 3.0
#: Bytes read until it must have said it: the largest ClientHello or request head that is read.
PEEK_BYTES = 64 * 1024
_READ_BYTES = 16384


@dataclass(frozen=True, slots=True)
class Unheard:
    """A client did not say whom it means."""

    rule: str
    """What of it is told in place of a rule."""
    reason: str


#: What came of it; an `OSError` is the client's connection, which failed.
Heard = Callable[[First | Unheard | OSError], None]


class Peeking:
    """Reads a client; `done` is called once, unless it is stopped before.

    The reactor watches the client for a relay's `CLIENT_EVENTS` from here on, also when this is
    over.
    """

    __slots__ = ("_client", "_done", "_port", "_reactor", "_timer", "data", "seen")

    def __init__(self, reactor: Reactor, client: socket.socket, port: int, done: Heard) -> None:
        self._reactor = reactor
        self._client = client
        self._port = port
        self._done: Heard | None = done
        #: What was read so far.
        self.data = b""
        #: What was told of the client, which is not told again; it may be ready for both still.
        self.seen = select.EPOLLIN | select.EPOLLOUT
        self._timer = reactor.call_later(PEEK_S, self._silent)
        reactor.add(client.fileno(), self._read, CLIENT_EVENTS)

    def stop(self) -> None:
        """Read no more; stopping twice, or after the end, is fine."""
        if self._done is not None:
            self._done = None
            self._timer.cancel()
            self._reactor.replace(self._client.fileno(), self._note)

    def _note(self, events: int) -> None:
        """Nothing is read of a client until its flow begins."""
        self.seen |= events

    def _read(self, events: int) -> None:
        self._note(events)
        while self._done is not None:
            try:
                data = self._client.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self._finish(error)
                return
            if not data:
                self._silent()
                return
            self._take(data)

    def _take(self, data: bytes) -> None:
        before = len(self.data)
        self.data += data
        try:
            first = read_first(self.data, before)
        except (NotHello, NotHttp) as error:
            reason = f"no name can be read from its first bytes: {error}"
            self._finish(Unheard("unreadable", reason))
            return
        if first is not None:
            self._finish(first)
        elif len(self.data) >= PEEK_BYTES:
            self._finish(Unheard("unreadable", f"no name in its first {PEEK_BYTES} bytes"))

    def _silent(self) -> None:
        reason = f"port {self._port} is one whose clients say whom they mean; this one did not"
        self._finish(Unheard("silent", reason))

    def _finish(self, result: First | Unheard | OSError) -> None:
        done = self._done
        self.stop()
        if done is not None:
            done(result)
