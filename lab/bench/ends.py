"""The far end of flows: `python -m lab.bench.ends ADDRESS`, until its standard input ends.

    HELLO   each connection is given one byte and closed: what a new connection costs
    ECHO    what comes goes back: what an exchange costs, and flows that then stay idle
    SOURCE  the first byte starts a stream without an end: who gets how much

and on UDP the far end of `datagrams`.

A connection to HELLO counts once its byte is there: a relay answers before the server does.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys
from collections.abc import Callable

from . import limits
from .datagrams import DATAGRAMS, FarEnd, open_socket

#: A port pair comes back only when the NAT has forgotten it, so there are several.
HELLO = range(7010, 7018)
ECHO, SOURCE = 7020, 7021
_BACKLOG = 4096
_CHUNK = bytes(64 * 1024)


class Ends:
    """All services in one loop."""

    def __init__(self, address: str) -> None:
        self._selector = selectors.DefaultSelector()
        for port in HELLO:
            self._listen(address, port, self._hello)
        self._listen(address, ECHO, self._echo_accept)
        self._listen(address, SOURCE, self._source_accept)
        datagrams = open_socket()
        datagrams.bind((address, DATAGRAMS))
        self._selector.register(datagrams, selectors.EVENT_READ, FarEnd().serve)

    def run(self) -> None:
        """Serve; "ready" says that all ports listen."""
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for key, _events in self._selector.select():
                if key.fileobj is sys.stdin:
                    return
                key.data(key.fileobj)

    def _listen(self, address: str, port: int, accept: Callable[[socket.socket], None]) -> None:
        listener = socket.create_server((address, port), backlog=_BACKLOG)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, accept)

    def _hello(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection, _peer = listener.accept()
            with connection:
                connection.send(b"k")

    def _echo_accept(self, listener: socket.socket) -> None:
        self._accept(listener, self._echo)

    def _source_accept(self, listener: socket.socket) -> None:
        self._accept(listener, self._begin)

    def _accept(self, listener: socket.socket, handler: Callable[[socket.socket], None]) -> None:
        # All that wait: a turn in which a thousand streams are given something takes long, and one
        # that is accepted a turn later than its client wrote would seem to be starved by the way.
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _peer = listener.accept()
                connection.setblocking(False)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._selector.register(connection, selectors.EVENT_READ, handler)

    def _echo(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(4096)
        except OSError:
            data = b""
        if data:
            connection.send(data)
        else:
            self._drop(connection)

    def _begin(self, connection: socket.socket) -> None:
        self._selector.modify(connection, selectors.EVENT_WRITE, self._pour)

    def _pour(self, connection: socket.socket) -> None:
        try:
            connection.send(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        connection.close()


if __name__ == "__main__":
    limits.many_descriptors()
    Ends(sys.argv[1]).run()
