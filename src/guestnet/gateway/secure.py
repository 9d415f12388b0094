"""Questions over TLS (RFC 7858): one connection to each resolver, kept open and used by all.

The resolver proves its name with a certificate of an authority that the machine trusts, or is not
asked (the strict profile of RFC 8310). A connection that ends while questions wait is opened anew
for them if it had been of use before; what waits on one that never was goes to the next resolver.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from ..flow.reactor import Reactor, Timer
from ..naming import Upstream

#: How long connecting and shaking hands may take.
OPEN_S = 3.0
#: How long a connection is kept that nobody uses (RFC 7858 section 3.4 leaves it to both ends).
KEEP_S = 30.0
#: A resolver that did not take a connection, or could not prove its name, is left alone so long:
#: doubled each time, up to the second.
REST_S, REST_MAX_S = 1.0, 8.0
#: Connections that one question is put on.
MAX_TRIES = 4
#: Answers to what nobody asked, or asks any more, until the connection ends.
MAX_UNASKED = 256
#: Reads before others get their turn.
TURN = 16
_READ_BYTES = 16384
_LENGTH = struct.Struct(">H")

#: What came of a question: the message with its own id, or why there is none.
Done = Callable[[bytes | str], None]

# What is read from files at first use (OpenSSL's configuration, the codec of host names) has to be
# there before the process is confined.
ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(
    ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost"
)


class Ticket:
    """A question on its way; `cancel` it, or say that it is `late`, and `done` is not called."""

    __slots__ = ("_channel", "asked_at", "done", "number", "tries", "wire")

    def __init__(self, channel: Channel, wire: bytes, done: Done, asked_at: float) -> None:
        self._channel = channel
        self.wire = wire
        self.done: Done | None = done
        self.asked_at = asked_at
        #: Its id on the connection.
        self.number = -1
        self.tries = 0

    def cancel(self) -> None:
        """Nobody wants to know any more."""
        self.done = None
        self._channel.forget(self)

    def late(self) -> None:
        """Nobody waits any longer: perhaps nobody is there."""
        self.cancel()
        self._channel.suspect(self.asked_at)

    def finish(self, result: bytes | str) -> None:
        """Tell who asked, once."""
        done, self.done = self.done, None
        if done is not None:
            done(result)


class Secure:
    """All connections to resolvers over TLS."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._context: ssl.SSLContext | None = None
        self._channels: dict[Upstream, Channel] = {}

    def trust(self, certificates: str) -> None:
        """Believe these authorities (PEM) and no others; open connections end."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and name
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        with suppress(ssl.SSLError):  # of an empty store: nobody is believed
            context.load_verify_locations(cadata=certificates)
        self._context = context
        for channel in self._channels.values():
            channel.end("the machine trusts others now")
        self._channels.clear()

    def ask(self, upstream: Upstream, wire: bytes, done: Done) -> Ticket:
        """Put a question (any id); `done` is called later, if the ticket is not cancelled."""
        channel = self._channels.get(upstream)
        if channel is None:
            channel = self._channels[upstream] = Channel(self._reactor, upstream, self._wrap)
        return channel.ask(wire, done)

    def keep(self, upstreams: set[Upstream]) -> None:
        """End connections to resolvers that no network has any more."""
        for upstream in [each for each in self._channels if each not in upstreams]:
            self._channels.pop(upstream).end("it is no resolver of ours any more")

    def _wrap(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, name: str) -> ssl.SSLObject:
        if self._context is None:
            raise ssl.SSLError(0, "no authority is trusted yet")
        return self._context.wrap_bio(incoming, outgoing, server_hostname=name)


class Channel:
    """The connection to one resolver, opened when there is something to ask."""

    def __init__(
        self,
        reactor: Reactor,
        upstream: Upstream,
        wrap: Callable[[ssl.MemoryBIO, ssl.MemoryBIO, str], ssl.SSLObject],
    ) -> None:
        self._reactor = reactor
        self._upstream = upstream
        self._wrap = wrap
        self._tickets: dict[int, Ticket] = {}
        self._next_number = 0
        self._socket: socket.socket | None = None
        self._timer: Timer | None = None
        self._rest_until = 0.0
        self._rest_s = REST_S
        self._rest_reason = ""
        self._begin()

    def ask(self, wire: bytes, done: Done) -> Ticket:
        """See `Secure.ask`."""
        now = self._reactor.now()
        ticket = Ticket(self, wire, done, now)
        if self._socket is None and now < self._rest_until:
            reason = self._rest_reason
            self._reactor.call_soon(lambda: ticket.finish(reason))
            return ticket
        while self._next_number in self._tickets:  # they are far fewer than ids
            self._next_number = (self._next_number + 1) & 0xFFFF
        ticket.number = self._next_number
        self._next_number = (self._next_number + 1) & 0xFFFF
        self._tickets[ticket.number] = ticket
        if self._socket is None:
            self._open()
        elif self._is_open:
            self._put([ticket])
        return ticket

    def forget(self, ticket: Ticket) -> None:
        """A question that nobody waits for."""
        if self._tickets.get(ticket.number) is ticket:
            del self._tickets[ticket.number]

    def suspect(self, asked_at: float) -> None:
        """A question was not answered in time: if nothing else was, the connection is dead."""
        if self._socket is not None and self._is_open and self._heard_at < asked_at:
            self._lost("is silent")

    def end(self, reason: str) -> None:
        """End the connection and all questions on it."""
        self._close()
        tickets, self._tickets = list(self._tickets.values()), {}
        for ticket in tickets:
            self._reactor.call_soon(partial(ticket.finish, reason))

    # -- opening and losing --------------------------------------------------------------------

    def _begin(self) -> None:
        """As it is before anything was sent."""
        self._connected = False
        #: Whether hands are shaken.
        self._is_open = False
        self._answers = self._unasked = 0
        self._heard_at = 0.0
        self._heard = b""
        self._unsent = bytearray()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()

    def _open(self) -> None:
        self._begin()
        address = self._upstream.address
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        try:
            name = self._upstream.server_name or str(address)
            self._tls = self._wrap(self._incoming, self._outgoing, name)
            self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with suppress(BlockingIOError):
                self._socket.connect((str(address), self._upstream.port))
        except OSError as error:
            self._lost(_words(error))
            return
        self._limit(OPEN_S, "timed out")
        events = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP
        self._reactor.add(self._socket.fileno(), partial(self._on_event, self._socket), events)

    def _lost(self, reason: str) -> None:
        """The connection is no more: for some of what waits on it there is another one."""
        was_of_use = self._answers > 0
        if not was_of_use:
            self._rest_until = self._reactor.now() + self._rest_s
            self._rest_s = min(2 * self._rest_s, REST_MAX_S)
            self._rest_reason = reason
        self._close()
        hopeless = [t for t in self._tickets.values() if not was_of_use or t.tries >= MAX_TRIES]
        for ticket in hopeless:
            del self._tickets[ticket.number]
            self._reactor.call_soon(partial(ticket.finish, reason))
        if self._tickets:
            self._open()

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None:
            with suppress(KeyError, OSError):
                self._reactor.remove(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _limit(self, seconds: float, reason: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._reactor.call_later(seconds, lambda: self._expired(reason))

    def _expired(self, reason: str) -> None:
        self._timer = None
        if self._is_open and self._tickets:
            self._limit(KEEP_S, "")
        elif self._is_open:
            self._close()
        else:
            self._lost(reason)

    # -- bytes -----------------------------------------------------------------------------------

    def _on_event(self, which: socket.socket, events: int) -> None:
        if which is not self._socket:
            return  # a turn of one that is lost
        try:
            if not self._connected:
                code = which.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    raise OSError(code, os.strerror(code))
                if not events & (select.EPOLLOUT | select.EPOLLIN):
                    return
                self._connected = True
                self._shake_hands()
            self._flush()
            self._hear(which)
        except OSError as error:  # SSLError is one
            if which is self._socket:
                self._lost(_words(error))

    def _hear(self, which: socket.socket) -> None:
        for _turn in range(TURN):
            try:
                data = which.recv(65536)
            except BlockingIOError:
                return
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()
            if not self._is_open:
                self._shake_hands()
            if self._is_open:
                self._read()
            if which is not self._socket:
                return
            if not data:
                raise OSError(0, "closed the connection")
        self._reactor.call_soon(lambda: self._on_event(which, select.EPOLLIN))

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError:
            with suppress(OSError):
                self._flush()  # the alert that says why
            raise
        self._is_open = True
        self._limit(KEEP_S, "")
        self._put(list(self._tickets.values()))

    def _put(self, tickets: list[Ticket]) -> None:
        for ticket in tickets:
            ticket.tries += 1
            ticket.asked_at = self._reactor.now()
            message = _LENGTH.pack(len(ticket.wire)) + ticket.number.to_bytes(2, "big")
            self._tls.write(message + ticket.wire[2:])
        self._flush()

    def _flush(self) -> None:
        self._unsent += self._outgoing.read()
        if self._unsent and self._socket is not None and self._connected:
            with suppress(BlockingIOError):  # the next event says when
                sent = self._socket.send(self._unsent)
                del self._unsent[:sent]

    def _read(self) -> None:
        """Take whole answers out of what has come."""
        which = self._socket
        while which is self._socket:
            try:
                data = self._tls.read(_READ_BYTES)
            except ssl.SSLWantReadError:
                return
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                data = b""
            if not data:
                raise OSError(0, "closed the connection")
            self._heard += data
            while len(self._heard) >= 2 and which is self._socket:
                (size,) = _LENGTH.unpack_from(self._heard)
                if len(self._heard) < 2 + size:
                    break
                message, self._heard = self._heard[2 : 2 + size], self._heard[2 + size :]
                self._take(message)

    def _take(self, message: bytes) -> None:
        self._heard_at = self._reactor.now()
        ticket = self._tickets.pop(int.from_bytes(message[:2], "big"), None)
        if ticket is None or len(message) < 2:
            self._unasked += 1
            if self._unasked > MAX_UNASKED:
                raise OSError(0, "answers what nobody asked")
            return
        self._answers += 1
        self._rest_until, self._rest_s = 0.0, REST_S
        self._limit(KEEP_S, "")
        ticket.finish(ticket.wire[:2] + message[2:])


def _words(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    return error.strerror or str(error)
