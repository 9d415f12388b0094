"""Connections to the resolver doors: questions, each with its length before it (RFC 7766)."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from ..dns import MAX_TCP_QUERY_BYTES
from ..flow.reactor import Reactor
from .guests import Guest, Guests

#: Connections to the resolver, of one guest: they are closed when they have been idle.
GUEST_STREAMS, STREAM_IDLE_S = 32, 10.0

Answer = Callable[[Guest, bytes, Callable[[bytes], None], str], object]


class Streams:
    """The resolver doors for TCP."""

    def __init__(
        self, reactor: Reactor, doors: tuple[socket.socket, ...], guests: Guests, answer: Answer
    ) -> None:
        self._reactor = reactor
        self._guests = guests
        self._answer = answer
        for each in doors:
            reactor.add(each.fileno(), partial(self._on_door, each), select.EPOLLIN)

    def _on_door(self, door: socket.socket, _events: int) -> None:
        self._accept(door)

    def _accept(self, door: socket.socket) -> None:
        while True:
            try:
                client, source = door.accept()
            except BlockingIOError:
                return
            except OSError:
                self._reactor.call_later(0.1, lambda: self._accept(door))
                return
            guest = self._guests.at(source[0])
            streams = sum(isinstance(flow, Stream) for flow in guest.flows) if guest else 0
            if guest is None or streams >= GUEST_STREAMS:
                client.close()
                continue
            client.setblocking(False)
            guest.flows.add(Stream(self._reactor, client, guest, self._answer))


class Stream:
    """One connection of a guest to the resolver."""

    __slots__ = ("_answer", "_buffer", "_client", "_guest", "_reactor", "_timer")

    def __init__(
        self,
        reactor: Reactor,
        client: socket.socket,
        guest: Guest,
        answer: Answer,
    ) -> None:
        self._reactor = reactor
        self._client = client
        self._guest = guest
        self._answer = answer
        self._buffer = b""
        self._timer = reactor.call_later(STREAM_IDLE_S, self.reset)
        reactor.add(client.fileno(), self._hear, select.EPOLLIN | select.EPOLLRDHUP)

    def _hear(self, _events: int) -> None:
        while self._client.fileno() >= 0:
            try:
                data = self._client.recv(8192)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.reset()
                return
            self._buffer += data
            self._timer.cancel()
            self._timer = self._reactor.call_later(STREAM_IDLE_S, self.reset)
            while len(self._buffer) >= 2:
                (size,) = struct.unpack_from(">H", self._buffer)
                if size > MAX_TCP_QUERY_BYTES:
                    self.reset()
                    return
                if len(self._buffer) < 2 + size:
                    break
                question, self._buffer = self._buffer[2 : 2 + size], self._buffer[2 + size :]
                self._answer(self._guest, question, self._reply, "tcp")

    def _reply(self, wire: bytes) -> None:
        if self._client.fileno() < 0:
            return
        data = struct.pack(">H", len(wire)) + wire
        try:
            sent = self._client.send(data)
        except OSError:
            sent = 0
        if sent < len(data):
            self.reset()  # a guest that asks and does not read

    def reset(self) -> None:
        """Close the connection."""
        self._timer.cancel()
        self._guest.flows.discard(self)
        if self._client.fileno() >= 0:
            with suppress(KeyError, OSError):
                self._reactor.remove(self._client.fileno())
            self._client.close()
