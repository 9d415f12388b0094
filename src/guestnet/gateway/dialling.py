"""Connecting to the other end: to one address, or to the first of several that answers.

Where the gateway resolved a name itself it races the addresses as RFC 8305 wants it: IPv6 first,
the families in turn, the next one a moment after the last, and at once where one refuses.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from itertools import chain, zip_longest
from typing import NamedTuple

from ..flow.options import prepare
from ..flow.reactor import Reactor, Timer
from ..flow.relay import EVENTS
from .service_class import set_class

Address = IPv4Address | IPv6Address

#: How long the other end may take to answer (the kernel's own limit is two minutes).
DIAL_S = 20.0
#: How long one address has a head start (RFC 8305 section 5).
ATTEMPT_S = 0.25
#: Addresses that are tried; a name may have hundreds.
MAX_TARGETS = 8

_FAILED = select.EPOLLERR | select.EPOLLHUP


class Reached(NamedTuple):
    """A connected socket, which the reactor watches for what a relay wants to know."""

    server: socket.socket
    address: Address
    #: What was told of it.
    events: int


#: What came of it.
Dialled = Callable[[Reached | OSError], None]


class Dialling:
    """One attempt to get through; `done` is called once, unless it is cancelled before."""

    __slots__ = (
        "_class", "_deadline", "_device", "_done", "_error", "_left", "_next", "_open", "_port",
        "_reactor", "_to_host",
    )  # fmt: skip

    def __init__(
        self,
        reactor: Reactor,
        targets: Sequence[Address],
        port: int,
        device: str | None,
        service_class: int,
        done: Dialled,
        *,
        to_host: bool = False,
    ) -> None:
        """`device` is the interface to leave by, where there is but one.

        Unless it is `to_host` the other end must not be this machine: an address that it was given
        a moment ago is one that nobody has told of yet.
        """
        self._reactor = reactor
        self._port = port
        self._device = device
        self._class = service_class
        self._to_host = to_host
        self._done = done
        self._left = list(targets[:MAX_TARGETS])
        self._open: dict[socket.socket, Address] = {}
        self._error = OSError(errno.EADDRNOTAVAIL, "no address")
        self._next: Timer | None = None
        self._deadline = reactor.call_later(DIAL_S, self._late)

    def start(self) -> None:
        """Try the next address."""
        while self._left:
            address = self._left.pop(0)
            try:
                self._try(address)
            except OSError as error:
                self._error = error
                continue
            if self._left:
                self._next = self._reactor.call_later(ATTEMPT_S, self.start)
            return
        if not self._open:
            self._finish(self._error)

    def cancel(self) -> None:
        """Give up, and say nothing."""
        self._deadline.cancel()
        self._wait_no_more()
        for each in list(self._open):
            self._drop(each)

    def _try(self, address: Address) -> None:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        server = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            prepare(server)
            if self._class:
                set_class(server, self._class)
            if self._device is not None and not self._to_host:
                device = self._device.encode()
                server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
            text = str(address)
            code = server.connect_ex((text, self._port))
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, errno.errorcode.get(code, str(code)))
            if not self._to_host and server.getsockname()[0] == text:
                raise PermissionError(errno.EACCES, "it is this machine")
            self._reactor.add(server.fileno(), partial(self._answered, server), EVENTS)
        except OSError:
            server.close()
            raise
        self._open[server] = address

    def _answered(self, server: socket.socket, events: int) -> None:
        if not events & select.EPOLLOUT:
            # Not connected: an ICMP error came while the kernel was busy with the socket, and waits
            # beside it (tcp_v4_err); without one it is still trying.
            code = server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code:
                return
        else:
            code = _failure(server) if events & _FAILED else 0
        if not code:
            self._finish(Reached(server, self._open.pop(server), events))
            return
        self._drop(server)
        self._error = OSError(code, errno.errorcode.get(code, str(code)))
        self._wait_no_more()
        self.start()

    def _late(self) -> None:
        self._finish(OSError(errno.ETIMEDOUT, "timed out"))

    def _finish(self, result: Reached | OSError) -> None:
        self.cancel()
        self._done(result)

    def _drop(self, server: socket.socket) -> None:
        del self._open[server]
        self._reactor.forget(server.fileno())
        server.close()

    def _wait_no_more(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None


def _failure(server: socket.socket) -> int:
    """Why a socket failed; 0 if it was connected and holds words of the other end's, who then
    reset it: they come first, and the error, which asking for it would take away, after them.
    """
    try:
        server.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return 0
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def in_turn(addresses: Iterable[Address]) -> list[Address]:
    """IPv6 first, and the families in turn (RFC 8305 section 4)."""
    known = list(addresses)
    six, four = ([each for each in known if each.version == version] for version in (6, 4))
    pairs = chain.from_iterable(zip_longest(six, four))
    return [each for each in pairs if each is not None]
