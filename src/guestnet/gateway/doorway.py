"""The sockets at which guests' flows arrive. The daemon opens them and keeps them.

They outlive a worker that crashed: what arrives in between waits in their queues. Whatever is one
flow stays at one worker. Connections knock first (`ruleset.knocking`), at whichever worker's their
ends lead to, and come in by that worker's own doors. The other doors of all workers have the same
ports (SO_REUSEPORT), and the kernel chooses between them by a flow's addresses and ports.

Some can do what their holder may not: those that take datagrams for other addresses, and those that
answer in the name of others (`transparent`).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Self

from ..errors import HostError
from ..flow.options import prepare
from ..kernel.packetlog import open_log
from ..ruleset.doors import Doors
from ..ruleset.knocking import SYN_BYTES
from ..ruleset.names import KNOCK_GROUP, KNOCK_GROUPS, MARK_ANSWER, MARK_WORKER
from .transparent import (
    answering_as_one,
    answering_datagrams,
    echo_door,
    make_transparent,
    raw_pair,
    writing,
)

#: Connections that wait to be accepted, while a worker is busy or being restarted.
BACKLOG = 4096
#: Ports of peers, first come, from which many datagrams are sent to guests at once.
ANSWERING_PORTS = 8
#: What one that knocks takes of a socket's room until it is read.
KNOCK_ROOM_BYTES = 512
#: Ports tried until one is free for both families.
_ATTEMPTS = 16
#: linux/in.h, in6.h
_IP_PKTINFO, _IPV6_RECVPKTINFO = 8, 49


@dataclass(frozen=True, slots=True)
class Doorway:
    """One worker's listening sockets: for each service one of IPv4, and one of IPv6 where it is."""

    #: Connections that were let in; who knocks; and raw sockets by which it is let in or refused.
    relay: tuple[socket.socket, ...]
    knocks: tuple[socket.socket, ...]
    porter: tuple[socket.socket, ...]
    resolver_udp: tuple[socket.socket, ...]
    resolver_tcp: tuple[socket.socket, ...]
    #: Where datagrams and echo requests are relayed: guests' datagrams to others, their echo
    #: requests to others, and raw sockets by which others' answers are written: whole packets.
    relay_udp: tuple[socket.socket, ...] = ()
    echo: tuple[socket.socket, ...] = ()
    answer: tuple[socket.socket, ...] = ()
    #: Of datagrams, from the UDP header on.
    answer_udp: tuple[socket.socket, ...] = ()
    #: Of many datagrams at once, each from one port: only where nobody else has ports.
    answer_as_one: tuple[socket.socket, ...] = ()

    @classmethod
    def open(cls, workers: int, datagrams: bool = False, apart: bool = False) -> tuple[Self, ...]:
        """One for each worker, in the calling thread's namespace, on ports the kernel chooses.

        `apart` says that the namespace is the site's alone.

        The first one's worker takes all datagrams: what one endpoint of a guest sends to several
        peers goes out from one port, which is one worker's.
        """
        opened: list[list[tuple[socket.socket, ...]]] = []
        try:
            opened.append([])
            for _ in range(workers):
                opened[-1] += service(socket.SOCK_STREAM, 1)
            opened.append([])
            for number in range(workers):
                opened[-1].append(_knocks(number, workers))
            opened.append([])
            for number in range(workers):
                opened[-1].append(raw_pair(partial(writing, MARK_WORKER + number)))
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                opened.append(service(kind, workers))
            if datagrams:
                others: list[tuple[socket.socket, ...]] = [()] * (workers - 1)
                opened.append([*service(socket.SOCK_DGRAM, 1), *others])
                for door in opened[-1][0]:
                    make_transparent(door)
                for made_by in (echo_door, partial(writing, MARK_ANSWER), answering_datagrams):
                    opened.append([raw_pair(made_by), *others])
                opened.append([(), *others])
                for _ in range(ANSWERING_PORTS if apart else 0):
                    opened[-1][0] += raw_pair(answering_as_one)
        except BaseException:
            for each in opened:
                for sockets in each:
                    _close(sockets)
            raise
        return tuple(cls(*each) for each in zip(*opened, strict=True))

    @property
    def descriptors(self) -> dict[str, list[int]]:
        """Their numbers, for the process that they are handed to."""
        return {
            service.name: [each.fileno() for each in getattr(self, service.name)]
            for service in fields(self)
        }

    @classmethod
    def adopt(cls, descriptors: dict[str, list[int]]) -> Self:
        """The same sockets in the process that they were handed to."""
        return cls(
            **{
                service.name: tuple(socket.socket(fileno=n) for n in descriptors[service.name])
                for service in fields(cls)
            }
        )

    def close(self) -> None:
        """Close them."""
        for service in fields(self):
            _close(getattr(self, service.name))


def doors_of(doorways: Sequence[Doorway]) -> Doors:
    """Where all workers' listen."""
    first = doorways[0]
    return Doors(
        relay_tcp=tuple(_port(each.relay) for each in doorways),
        resolver_udp=_port(first.resolver_udp),
        resolver_tcp=_port(first.resolver_tcp),
        relay_udp=_port(first.relay_udp) if first.relay_udp else None,
    )


def _port(sockets: tuple[socket.socket, ...]) -> int:
    return int(sockets[0].getsockname()[1])


def _knocks(number: int, workers: int) -> tuple[socket.socket, ...]:
    """A worker's share of the groups."""
    opened: list[socket.socket] = []
    try:
        for group in range(number, KNOCK_GROUPS, workers):
            opened.append(open_log(KNOCK_GROUP + group, SYN_BYTES, KNOCK_ROOM_BYTES))
    except BaseException:
        _close(tuple(opened))
        raise
    return tuple(opened)


def _close(sockets: tuple[socket.socket, ...]) -> None:
    for each in sockets:
        each.close()


def service(kind: int, workers: int) -> list[tuple[socket.socket, ...]]:
    """One port in both families, for each worker."""
    for _attempt in range(_ATTEMPTS):
        opened = [_bound(socket.AF_INET, kind, 0)]
        port = opened[0].getsockname()[1]
        try:
            opened += [_bound(socket.AF_INET, kind, port) for _ in range(workers - 1)]
            low = [(each,) for each in opened]
            try:
                if not socket.has_ipv6:
                    return list(low)
                for _ in range(workers):
                    opened.append(_bound(socket.AF_INET6, kind, port))
            except HostError as error:
                if error.errno == errno.EAFNOSUPPORT:
                    return list(low)
                raise
            return list(zip(opened[:workers], opened[workers:], strict=True))
        except HostError as error:
            _close(tuple(opened))
            if error.errno != errno.EADDRINUSE:
                raise
    raise HostError("bind", "a port of both families", errno.EADDRINUSE)


def _do_not_pace(door: socket.socket) -> None:
    """What is sent to guests goes as fast as they take it: they are on a link of this machine.

    BBR, where it is the machine's default, sends by a timer, which took up to half of a flow's
    throughput and twice the processor time. Every kernel has Reno, for every user (tcp(7)).
    """
    door.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def _bound(family: int, kind: int, port: int) -> socket.socket:
    word = f"{'[::]' if family == socket.AF_INET6 else '0.0.0.0'}:{port}"
    try:
        made = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise HostError.from_os("socket", word, error) from None
    try:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if kind == socket.SOCK_STREAM:
            prepare(made)  # what is accepted has its listener's options
            _do_not_pace(made)
            made.bind(("", port))
            made.listen(BACKLOG)
        else:
            # An answer goes out from the address that was asked.
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
            else:
                made.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            made.bind(("", port))
    except OSError as error:
        made.close()
        raise HostError.from_os("bind", word, error) from None
    return made
