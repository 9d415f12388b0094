"""The relay doors: a connection's arrival, whose it is, how many there may be, and its end."""

from __future__ import annotations

import errno
import select
import socket
from functools import lru_cache, partial
from ipaddress import IPv4Address, IPv6Address

from ..flow.relay import close_by_reset
from .connection import Connection, Means
from .guests import REMEMBERED, Guest

Address = IPv4Address | IPv6Address

#: Flows of one guest at a time, which the workers share evenly, and of all in one worker; more are
#: reset. Browsers open some hundred.
GUEST_FLOWS, ALL_FLOWS = 4096, 30_000
#: Accepted at a time before others get their turn.
ACCEPT_TURN = 64
#: linux/netfilter_ipv4.h, netfilter_ipv6/ip6_tables.h
_SO_ORIGINAL_DST = 80


class Relaying:
    """The relay doors of all guests."""

    def __init__(
        self, doors: tuple[socket.socket, ...], means: Means, guest_flows: int = GUEST_FLOWS
    ) -> None:
        self._means = means
        self._guest_flows = guest_flows
        self.flows = 0
        self._own_ports = {door.getsockname()[1] for door in doors}
        for door in doors:
            version = 4 if door.family == socket.AF_INET else 6
            accept = partial(self._accept, door, version)
            means.reactor.add(door.fileno(), accept, select.EPOLLIN)

    def _accept(self, door: socket.socket, version: int, _events: int = 0) -> None:
        for _turn in range(ACCEPT_TURN):
            try:
                client, source = door.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.ECONNABORTED, errno.EINTR):
                    continue
                # Out of descriptors or memory: what waits is tried again when some are free.
                self._means.reactor.call_later(0.1, partial(self._accept, door, version))
                return
            self._begin(client, version, source[0])
        self._means.reactor.go_on(self._accept, door, version)

    def _begin(self, client: socket.socket, version: int, source: str) -> None:
        guest = self._means.guests.at(source)
        target = original_destination(client, version)
        if guest is None or target is None or target[1] in self._own_ports:
            close_by_reset(client)  # detached meanwhile, or it knocked at our own door
            return
        client.setblocking(False)  # accept4 could, but Python's does not
        connection = Connection(self._means, client, guest, *target, self._left)
        if len(guest.flows) >= self._guest_flows or self.flows >= ALL_FLOWS:
            connection.refuse_for(
                "limit: flows", f"at most {self._guest_flows} flows at a time at a worker"
            )
            return
        self.flows += 1
        guest.flows.add(connection)
        try:
            connection.start()
        except Exception:
            connection.reset("fault")  # undecided is denied
            raise

    def recheck(self, guest: Guest) -> None:
        """Ask the guest's policy once more about each of its flows, and reset those it denies."""
        for connection in list(guest.flows):
            if isinstance(connection, Connection):
                connection.recheck()

    def end_all(self, guest: Guest) -> None:
        """Reset every flow of a guest that is gone."""
        for flow in list(guest.flows):
            flow.reset()

    def _left(self, connection: Connection) -> None:
        """A connection is at its end; it may never have been counted."""
        if connection in connection.guest.flows:
            connection.guest.flows.discard(connection)
            self.flows -= 1


def original_destination(client: socket.socket, version: int) -> tuple[Address, int] | None:
    """Where a redirected connection was to go (SO_ORIGINAL_DST)."""
    try:
        if version == 4:
            return _endpoint(client.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, 16))
        return _endpoint(client.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, 28))
    except OSError:
        return None  # never redirected, or its entry is gone


@lru_cache(REMEMBERED)  # guests come back to where they have been
def _endpoint(raw: bytes) -> tuple[Address, int]:
    """A `struct sockaddr_in` or `sockaddr_in6`."""
    address = IPv4Address(raw[4:8]) if len(raw) == 16 else IPv6Address(raw[8:24])
    return address, int.from_bytes(raw[2:4], "big")
