"""Putting questions to resolvers: one socket a question, failover, TCP where UDP is too small.

A fresh socket has a source port that the kernel chose at random, is connected, so it hears nobody
else, and together with a random id and the letters' random case it makes forged answers hopeless
(RFC 5452). What goes over TLS goes by `secure`, and nowhere else: a resolver that is written so is
never asked in clear.
"""

from __future__ import annotations

import random
import select
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress

from ..dns import CASE_BITS, BadResponse, Response, ask, read_response
from ..flow.reactor import Reactor, Timer
from ..naming import Upstream
from .secure import Secure, Ticket

#: How long one resolver may take until the next is asked; dig and glibc wait 5 s, guests' patience
#: has to cover several.
ANSWER_S = 1.5
#: The same over TLS, where a connection may have to be opened first.
TLS_ANSWER_S = 2.5
#: Times that the list of resolvers is gone through.
ROUNDS = 2
#: Forged or misshapen datagrams that are read past until the resolver counts as broken.
BAD_DATAGRAMS = 8
_MAX_UDP = 4096
_SERVFAIL, _REFUSED = 2, 5

_dice = random.SystemRandom()

Answered = Callable[[Response | str], None]


class Query:
    """One question on its way; `done` is called once, with the answer or the reason for none."""

    def __init__(
        self,
        reactor: Reactor,
        secure: Secure,
        servers: Sequence[Upstream],
        name: str,
        qtype: int,
        done: Answered,
        *,
        dnssec: bool = False,
        checking_disabled: bool = False,
    ) -> None:
        self._reactor = reactor
        self._secure = secure
        self._ticket: Ticket | None = None
        self._left = [server for _round in range(ROUNDS) for server in servers]
        self._name = name
        self._qtype = qtype
        self._done = done
        self._options = {"dnssec": dnssec, "checking_disabled": checking_disabled}
        self._socket: socket.socket | None = None
        self._timer: Timer | None = None
        self._asked = b""
        self._bad = 0
        self._heard = b""
        self._reasons: list[str] = []
        self._last: Response | None = None

    def start(self) -> None:
        """Ask the next resolver, or give up."""
        self._close()
        if not self._left:
            # A resolver that says SERVFAIL has answered, if nobody knew better.
            self._finish(self._last or "; ".join(dict.fromkeys(self._reasons)) or "no resolver")
            return
        server = self._left.pop(0)
        if server.tls:
            self._send_securely(server)
        else:
            self._send(server, socket.SOCK_DGRAM, self._on_datagram)

    def _send_securely(self, server: Upstream) -> None:
        self._server = server
        # Nobody else can say anything there: id and letters' case need not be random.
        self._asked = ask(self._name, self._qtype, 0, padded=True, **self._options)
        self._timer = self._reactor.call_later(TLS_ANSWER_S, self._late)
        self._ticket = self._secure.ask(server, self._asked, self._on_secure)

    def _late(self) -> None:
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            ticket.late()
        self._next("timed out")

    def _on_secure(self, result: bytes | str) -> None:
        self._ticket = None
        if isinstance(result, str):
            self._next(result)
        else:
            self._read(result, truncated_goes_to_tcp=False)

    def _send(self, server: Upstream, kind: int, handler: Callable[[int], None]) -> None:
        family = socket.AF_INET if server.address.version == 4 else socket.AF_INET6
        self._server = server
        dice = _dice.getrandbits(16 + CASE_BITS)  # one system call for both
        self._asked = ask(
            self._name, self._qtype, dice >> CASE_BITS, dice % (1 << CASE_BITS), **self._options
        )
        self._heard = b""
        self._bad = 0
        self._timer = self._reactor.call_later(ANSWER_S, lambda: self._next("timed out"))
        try:
            self._socket = socket.socket(family, kind | socket.SOCK_NONBLOCK)
            with suppress(BlockingIOError):
                self._socket.connect((str(server.address), server.port))
            if kind == socket.SOCK_DGRAM:
                self._socket.send(self._asked)
        except OSError as error:
            self._next(error.strerror or "error")
            return
        events = select.EPOLLIN | (select.EPOLLOUT if kind == socket.SOCK_STREAM else 0)
        self._reactor.add(self._socket.fileno(), handler, events)

    def _on_datagram(self, _events: int) -> None:
        # What was read may have led to another socket, which has a handler of its own.
        asked = self._socket
        while asked is not None and self._socket is asked:
            try:
                data = asked.recv(_MAX_UDP)
            except BlockingIOError:
                return
            except OSError as error:
                self._next(error.strerror or "error")
                return
            self._read(data, truncated_goes_to_tcp=True)

    def _on_stream(self, events: int) -> None:
        if self._socket is None:
            return
        try:
            if events & select.EPOLLOUT and not self._heard:
                self._socket.send(struct.pack(">H", len(self._asked)) + self._asked)
                self._reactor.modify(self._socket.fileno(), select.EPOLLIN)
            asked = self._socket
            while self._socket is asked:
                data = asked.recv(65536)
                if not data:
                    self._next("closed the connection")
                    return
                self._heard += data
                if len(self._heard) >= 2:
                    (size,) = struct.unpack_from(">H", self._heard)
                    if len(self._heard) >= 2 + size:
                        self._read(self._heard[2 : 2 + size], truncated_goes_to_tcp=False)
        except BlockingIOError:
            return
        except OSError as error:
            self._next(error.strerror or "error")

    def _read(self, data: bytes, *, truncated_goes_to_tcp: bool) -> None:
        try:
            response = read_response(data, self._asked)
        except BadResponse as error:
            # What answers another question may be forged: the resolver's own is still to come.
            self._bad += 1
            if not (error.mismatched and truncated_goes_to_tcp and self._bad < BAD_DATAGRAMS):
                self._next(error.reason)
            return
        if response.tc and truncated_goes_to_tcp:
            server = self._server
            self._close()
            self._send(server, socket.SOCK_STREAM, self._on_stream)
        elif response.rcode in (_SERVFAIL, _REFUSED) and self._left:
            self._last = response
            self._next(f"answered {response.rcode}")
        else:
            self._finish(response)

    def _next(self, reason: str) -> None:
        self._reasons.append(f"{self._server}: {reason}")
        self.start()

    def _finish(self, result: Response | str) -> None:
        self._close()
        self._done(result)

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._ticket is not None:
            self._ticket.cancel()
            self._ticket = None
        if self._socket is not None:
            with suppress(KeyError, OSError):
                self._reactor.remove(self._socket.fileno())
            self._socket.close()
            self._socket = None
