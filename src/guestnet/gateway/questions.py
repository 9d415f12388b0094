"""Datagrams at the resolver doors: whose each is, and the way back of its answer."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from ..flow.reactor import Reactor
from .guests import Guest, Guests
from .repeats import Repeats

#: Datagrams answered before others get their turn.
TURN = 64
_IP_PKTINFO, _IPV6_PKTINFO = 8, 50
_ANCILLARY_BYTES = 64

#: Ways back that are remembered: interfaces and addresses that guests' questions came to.
WAYS = 4096

Ancillary = list[tuple[int, int, bytes]]
#: Answers now or later; returns until when the same question gets what it was answered now.
Answer = Callable[[Guest, bytes, Callable[[bytes], None], str], float]


class Questions:
    """The resolver doors for UDP."""

    def __init__(
        self, reactor: Reactor, doors: tuple[socket.socket, ...], guests: Guests, answer: Answer
    ) -> None:
        self._reactor = reactor
        self._guests = guests
        self._answer = answer
        self._repeats = Repeats()
        self._ways: dict[tuple[int, int, bytes], Ancillary] = {}
        for each in doors:
            reactor.add(each.fileno(), partial(self._on_door, each), select.EPOLLIN)

    def forget_answers(self) -> None:
        """Read every question again: what they were answered may be wrong now."""
        self._repeats.clear()

    def _on_door(self, door: socket.socket, _events: int) -> None:
        self._hear(door)

    def _hear(self, door: socket.socket) -> None:
        now, second = self._reactor.now(), int(time.time())
        for _turn in range(TURN):
            try:
                data, ancillary, _flags, source = door.recvmsg(4096, _ANCILLARY_BYTES)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error about a former answer
            guest = self._guests.at(source[0])
            if guest is None:
                continue
            known = guest.repeats.get(data[2:])
            # What is to be told has to be read.
            if known is not None and now < known[1] and guest.share.leave_out(second):
                with suppress(OSError):
                    door.sendmsg((data[:2], known[0]), self._way_back(ancillary), 0, source)
                continue
            reply = _Reply(door, source, self._way_back(ancillary))
            until = self._answer(guest, data, reply, "udp")
            if reply.wire is not None and until > now:
                self._repeats.keep(guest, data, reply.wire, until, now)
        self._reactor.go_on(self._hear, door)

    def _way_back(self, ancillary: Ancillary) -> Ancillary:
        """Have the answer leave from the address that the question came to."""
        if len(ancillary) != 1:
            return []
        way = self._ways.get(ancillary[0])
        if way is None:
            if len(self._ways) >= WAYS:
                self._ways.clear()
            way = self._ways[ancillary[0]] = _from_there(*ancillary[0])
        return way


class _Reply:
    """Sends the answer to a datagram, and keeps it."""

    __slots__ = ("_ancillary", "_door", "_source", "wire")

    def __init__(
        self, door: socket.socket, source: tuple[object, ...], ancillary: Ancillary
    ) -> None:
        self._door, self._source, self._ancillary = door, source, ancillary
        self.wire: bytes | None = None

    def __call__(self, wire: bytes) -> None:
        self.wire = wire
        with suppress(OSError):  # its buffers are full, or it is gone: it asks again
            self._door.sendmsg((wire,), self._ancillary, 0, self._source)


def _from_there(level: int, kind: int, data: bytes) -> Ancillary:
    if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
        # struct in_pktinfo: interface, local address to send from, address in the header.
        _index, local, _header = struct.unpack("=I4s4s", data[:12])
        return [(level, kind, struct.pack("=I4s4s", 0, local, b"\0" * 4))]
    if level == socket.IPPROTO_IPV6 and kind == _IPV6_PKTINFO:
        return [(level, kind, data[:16] + b"\0" * 4)]
    return []
