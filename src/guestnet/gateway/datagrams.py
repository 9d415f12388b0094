"""Datagrams and pings that guests send to others, relayed.

The ladder, per datagram:

1. Its source is the guest, its destination the peer: the kernel has kept both as they were.
2. A datagram of a known exchange (endpoint and peer) goes out at once, with those of the same
   exchange that came with it.
3. A new exchange is decided, and refused or entered (`exchanges`).

Answers are written to the guest by a raw socket, in the name of the peer (`answers`); so a relayed
exchange has no socket of its own on the guest's side, and a worker that was restarted goes on with
the next datagram.

As many datagrams as wait are taken by one call, and those of one exchange sent by one (`segments`):
what is done for each is looked up once for its bytes.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address, IPv6Address

from ..flow.inward import read_echo_request
from ..flow.reactor import Reactor
from ..kernel.mmsg import (
    NAME_BYTES,
    SLOTS,
    Receiver,
    ancillary,
    read_ancillary,
    read_socket_address,
)
from ..model.decision import Decision
from ..policy import Protocol
from .answers import Answers
from .doorway import Doorway
from .exchange import Exchange, Limits
from .exchanges import Exchanges
from .guests import Guest, Guests, is_allowed
from .lookup import Resolve
from .outward import Outwards
from .segments import gather, pieces, size_in

Address = IPv4Address | IPv6Address

#: linux/in.h, in6.h
_ORIGDSTADDR = {4: (socket.IPPROTO_IP, 20), 6: (socket.IPPROTO_IPV6, 74)}
_RECVFRAGSIZE = {4: (socket.IPPROTO_IP, 25), 6: (socket.IPPROTO_IPV6, 77)}
_PKTINFO = (socket.IPPROTO_IPV6, 50)
_ICMP = {4: Protocol.ICMPV4, 6: Protocol.ICMPV6}

#: Datagrams that came together, by their exchange.
Queued = dict[Exchange, list[memoryview]]


class Datagrams:
    """The doors for datagrams and pings of all guests."""

    def __init__(
        self,
        doorway: Doorway,
        reactor: Reactor,
        guests: Guests,
        tell: Callable[[Decision], None],
        resolve: Resolve,
        limits: Limits,
    ) -> None:
        self._reactor = reactor
        self._guests = guests
        self._receivers = {version: Receiver(version) for version in (4, 6)}
        self._exchanges = Exchanges(
            reactor, guests, Answers(reactor, doorway),
            Outwards(reactor, self._receivers), tell, resolve, limits,
        )  # fmt: skip
        self._own_ports = {each.getsockname()[1] for each in doorway.relay_udp}
        for door in doorway.relay_udp:
            gather(door)
        for doors, hear in ((doorway.relay_udp, self._hear), (doorway.echo, self._hear_echo)):
            for door in doors:
                reactor.add(door.fileno(), partial(self._on_door, hear, door), select.EPOLLIN)

    def __len__(self) -> int:
        """Exchanges at this moment."""
        return len(self._exchanges)

    def recheck(self, guest: Guest) -> None:
        """Take over what is new about a guest: exchanges that its policy denies now end."""
        for each in self._exchanges.of(guest):
            each.verdict = verdict = self._exchanges.judge_again(each)
            if not is_allowed(verdict):
                each.end("the policy was changed")
            else:
                each.follow()

    def end_all(self, guest: Guest) -> None:
        """End every exchange of a guest that is gone."""
        for each in self._exchanges.of(guest):
            each.end("reset")

    def _on_door(
        self, hear: Callable[[socket.socket], None], door: socket.socket, _events: int
    ) -> None:
        hear(door)

    def _take(
        self, door: socket.socket, again: Callable[[socket.socket], None]
    ) -> list[tuple[bytes, memoryview]]:
        """What waits at a door, and a later look where there may be more."""
        try:
            waiting = self._receivers[_version(door)].receive(door.fileno())
        except OSError:  # an ICMP error about nothing of ours
            self._reactor.go_on(again, door)
            return []
        if len(waiting) == SLOTS:
            self._reactor.go_on(again, door)
        return waiting

    # -- datagrams ---------------------------------------------------------------------------

    def _hear(self, door: socket.socket) -> None:
        find = self._exchanges.find
        queued: Queued = {}
        for where, data in self._take(door, self._hear):
            known = find(where)
            if known is None:
                _send(queued)  # in the order in which they came
                self._hear_at_length(_version(door), where, data)
            elif known in queued:
                queued[known].append(data)
            else:
                queued[known] = [data]
        _send(queued)

    def _hear_at_length(self, version: int, where: bytes, data: memoryview) -> None:
        """A new exchange's, one that came in pieces, or several that the kernel gives as one."""
        name, said = where[: NAME_BYTES[version]], read_ancillary(where[NAME_BYTES[version] :])
        told = {(level, kind): value for level, kind, value in said}
        target = told.get(_ORIGDSTADDR[version])
        if target is None:
            return
        datagrams = pieces(data, size_in(said))
        key = name + ancillary(*_ORIGDSTADDR[version], target)
        known = self._exchanges.find(key)
        if known is None:
            known = self._begin(key, name, target, datagrams[0])
        if known is not None:
            known.send(datagrams, in_pieces=_RECVFRAGSIZE[version] in told)

    def _begin(self, key: bytes, name: bytes, target: bytes, data: memoryview) -> Exchange | None:
        source, port = read_socket_address(name)
        peer, peer_port = read_socket_address(target)
        text = str(source)
        guest = self._guests.at(text)
        # A guest that is gone; and our own door is nobody's peer.
        if guest is None or peer_port in self._own_ports:
            return None
        endpoint = (text, port)
        return self._exchanges.begin(
            key, guest, endpoint, peer, peer_port, Protocol.UDP, bytes(data)
        )

    # -- pings -------------------------------------------------------------------------------

    def _hear_echo(self, door: socket.socket) -> None:
        version = _version(door)
        for where, data in self._take(door, self._hear_echo):
            self._hear_ping(version, where, data.tobytes())

    def _hear_ping(self, version: int, where: bytes, data: bytes) -> None:
        destination: Address | None = None
        if version == 4:  # a raw IPv4 socket gives the header too
            destination, data = IPv4Address(data[16:20]), data[(data[0] & 15) * 4 :]
        else:
            for level, kind, value in read_ancillary(where[NAME_BYTES[version] :]):
                if (level, kind) == _PKTINFO:
                    destination = IPv6Address(value[:16])
        asked = read_echo_request(data, version)
        source = str(read_socket_address(where)[0])
        guest = self._guests.at(source)
        if asked is None or destination is None or guest is None:
            return
        number, rest = asked
        key = (source, number, destination)
        known = self._exchanges.find(key)
        if known is None:
            known = self._exchanges.begin(
                key, guest, (source, number), destination, 0, _ICMP[version], rest
            )
        if known is not None:
            known.send([memoryview(rest)], in_pieces=True)


def _send(queued: Queued) -> None:
    for exchange, datagrams in queued.items():
        exchange.send(datagrams, in_pieces=False)
    queued.clear()


def _version(each: socket.socket) -> int:
    return 4 if each.family == socket.AF_INET else 6
