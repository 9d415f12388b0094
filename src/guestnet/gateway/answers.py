"""Answers to guests in the names of others (`transparent`).

Any datagram can be sent by a raw socket, by itself; many of one size cost a tenth if they go as one
(`segments`). That needs a socket at the peer's port, of which there are a few where a site has a
namespace of its own.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address

from ..flow.inward import Inward, fragments
from ..flow.reactor import Reactor
from ..kernel import mmsg
from ..kernel.mmsg import Sender, read_ancillary, socket_address
from .doorway import Doorway
from .segments import ancillary, runs
from .transparent import NOBODY

Address = IPv4Address | IPv6Address

#: What every link of a guest carries whole.
_SMALLEST_MTU = {4: 576, 6: 1280}
#: linux/in.h, in6.h
_IP_PKTINFO, _IPV6_PKTINFO = 8, 50
_NOBODY = {4: bytes(4), 6: bytes(16)}


class Answers:
    """The raw sockets of each IP version. Whatever a guest cannot take now is lost."""

    def __init__(self, reactor: Reactor, doorway: Doorway) -> None:
        self._reactor = reactor
        self._packets = {_version(each): each for each in doorway.answer}
        self._senders = {}
        for each in doorway.answer_udp:
            version = _version(each)
            self._senders[version] = Sender(each.fileno(), version, len(_from(_NOBODY[version])))
        #: By which many are sent at once: those that are bound to no port yet, and by port.
        self._unbound: dict[int, list[socket.socket]] = {4: [], 6: []}
        for each in doorway.answer_as_one:
            self._unbound[_version(each)].append(each)
        self._bound: dict[tuple[int, int], socket.socket | None] = {}
        self._is_due = False
        self._pieces = 0

    def send_packet(self, packet: bytes, guest: Address) -> None:
        """Send a whole packet to a guest."""
        out, to = self._packets[guest.version], (str(guest), 0)
        try:
            out.sendto(packet, to)
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                return
            self._pieces += 1
            with suppress(OSError):
                for piece in fragments(packet, _SMALLEST_MTU[guest.version], self._pieces):
                    out.sendto(piece, to)

    def send_datagrams(self, datagrams: Sequence[memoryview], way: Way) -> None:
        """Send datagrams, before the turn ends, in their order."""
        many = self._socket_of(way) if len(datagrams) > 1 else None
        if many is None:
            self._put(datagrams, way)
            return
        for run in runs(datagrams):
            if len(run) == 1:
                self._put(run, way)
                continue
            self._senders[way.version].flush()
            try:
                many.sendmsg(run, [*way.said, *ancillary(len(run[0]))], 0, way.guest_at)
            except BlockingIOError:
                pass
            except OSError:  # they are larger than the guest's link: each goes in pieces
                self._put(run, way)

    def _socket_of(self, way: Way) -> socket.socket | None:
        """The socket at the peer's port, if that port has one or can be given one."""
        key = way.version, way.port
        if key not in self._bound and self._unbound[way.version]:
            made = self._unbound[way.version][-1]
            try:
                made.bind((NOBODY[way.version], way.port))
            except OSError:  # the port of a door
                self._bound[key] = None
            else:
                self._bound[key] = self._unbound[way.version].pop()
        return self._bound.get(key)

    def _put(self, payloads: Sequence[memoryview], way: Way) -> None:
        sender, to, datagrams = self._senders[way.version], way.to, way.inward.datagrams(payloads)
        while len(datagrams) > (put := sender.put(datagrams, to)):
            datagrams = datagrams[put:]
            sender.flush()
        if not self._is_due:
            self._is_due = True
            self._reactor.call_soon(self._flush)

    def _flush(self) -> None:
        """Those of all flows that were heard in this turn go together."""
        self._is_due = False
        for sender in self._senders.values():
            sender.flush()


class Way:
    """From somebody, in whose name it is, to a guest."""

    __slots__ = ("guest", "guest_at", "inward", "port", "said", "to", "version")

    def __init__(self, inward: Inward) -> None:
        self.inward = inward
        self.guest = inward.guest
        self.version = inward.guest.version
        self.port = inward.here_port
        #: For a `Sender`.
        self.to = socket_address(inward.guest, 0) + _from(inward.here.packed)
        #: The same for a socket at the peer's port.
        self.guest_at = (str(inward.guest), inward.guest_port)
        self.said = read_ancillary(_from(inward.here.packed))


def _from(packed: bytes) -> bytes:
    """The control message that names the source: struct in_pktinfo or in6_pktinfo."""
    if len(packed) == 4:
        return mmsg.ancillary(socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("=I4s4x", 0, packed))
    return mmsg.ancillary(socket.IPPROTO_IPV6, _IPV6_PKTINFO, struct.pack("=16sI", packed, 0))


def _version(each: socket.socket) -> int:
    return 4 if each.family == socket.AF_INET else 6
