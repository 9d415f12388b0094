"""Datagrams and pings that guests send to others, relayed.

The ladder, per datagram:

1. Its source is the guest, its destination the peer: the kernel has kept both as they were.
2. A datagram of a known exchange (endpoint and peer) goes out at once.
3. A new exchange is decided: by address if names cannot change that, else by the names pinned for
   the peer's address, if they agree. Nothing that is inside is read, QUIC's names neither.
   On a synthetic network an address stands for a name, which is resolved then.
4. A refused one is answered by ICMP "port unreachable", as far as refusals are told.
5. An allowed one is entered (`exchange`), and sent by its endpoint's socket (`outward`).

Answers are written to the guest by a raw socket, in the name of the peer; so a relayed exchange has
no socket of its own on the guest's side, and a worker that was restarted goes on with the next
datagram.
"""

from __future__ import annotations

import errno
import select
import socket
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv6Address

from ..address import is_synthetic
from ..flow.inward import PORT_UNREACHABLE, Inward, fragments, read_echo_request
from ..flow.reactor import Reactor
from ..model.decision import Decision
from ..policy import (
    Action,
    FlowName,
    Protocol,
    Verdict,
)
from .doorway import Doorway
from .exchange import Exchange, Limits
from .guests import Guest, Guests, is_allowed
from .judging import judge, name_service
from .lookup import Resolve
from .outward import Outwards

Address = IPv4Address | IPv6Address

#: Read at a time before others get their turn.
TURN = 64
_MAX_BYTES = 65535
_ANCILLARY_BYTES = 128
#: linux/in.h, in6.h
_IP_ORIGDSTADDR, _IP_RECVFRAGSIZE = 20, 25
_IPV6_ORIGDSTADDR, _IPV6_RECVFRAGSIZE, _IPV6_PKTINFO = 74, 77, 50
_SOCKADDR_IN_BYTES, _SOCKADDR_IN6_BYTES = 16, 28
#: What every link of a guest carries whole.
_SMALLEST_MTU = {4: 576, 6: 1280}
_ICMP = {4: Protocol.ICMPV4, 6: Protocol.ICMPV6}


class Datagrams:
    """The doors for datagrams and pings of all guests."""

    def __init__(
        self,
        doorway: Doorway,
        reactor: Reactor,
        guests: Guests,
        tell: Callable[[Decision], None],
        resolve: Resolve,
        limits: Limits | None = None,
    ) -> None:
        self._reactor = reactor
        self._guests = guests
        self._resolve = resolve
        #: Of exchanges whose name is being resolved.
        self._resolving: set[object] = set()
        self._tell = tell
        self._limits = limits or Limits()
        self._outwards = Outwards(reactor)
        self._exchanges: dict[object, Exchange] = {}
        #: Each guest's, by id, the one that was silent for longest first.
        self._of: dict[str, OrderedDict[Exchange, None]] = {}
        self._buffer = bytearray(_MAX_BYTES)
        self._view = memoryview(self._buffer)
        self._pieces = 0
        self._answer = {_version(each): each for each in doorway.answer}
        self._own_ports = {each.getsockname()[1] for each in doorway.relay_udp}
        for door in doorway.relay_udp:
            reactor.add(door.fileno(), partial(self._on_door, self._hear, door), select.EPOLLIN)
        for door in doorway.echo:
            reactor.add(
                door.fileno(), partial(self._on_door, self._hear_echo, door), select.EPOLLIN
            )

    def __len__(self) -> int:
        """Exchanges at this moment."""
        return len(self._exchanges)

    def recheck(self, guest: Guest) -> None:
        """Ask the guest's policy once more about each exchange, and end those it denies."""
        for each in list(self._of.get(guest.id, ())):
            verdict = self._guests.decide(guest, each.address, each.port, each.name, each.protocol)
            each.verdict = verdict
            if not is_allowed(verdict):
                each.end("the policy was changed")

    def end_all(self, guest: Guest) -> None:
        """End every exchange of a guest that is gone."""
        for each in list(self._of.get(guest.id, ())):
            each.end("reset")

    # -- the doors ---------------------------------------------------------------------------

    def _on_door(
        self, hear: Callable[[socket.socket], None], door: socket.socket, _events: int
    ) -> None:
        hear(door)

    def _hear(self, door: socket.socket) -> None:
        low = door.family == socket.AF_INET
        for _turn in range(TURN):
            try:
                size, ancillary, _flags, source = door.recvmsg_into(
                    [self._buffer], _ANCILLARY_BYTES
                )
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error about nothing of ours
            destination, in_pieces = b"", False
            for _level, kind, said in ancillary:
                if kind == (_IP_ORIGDSTADDR if low else _IPV6_ORIGDSTADDR):
                    destination = said
                elif kind == (_IP_RECVFRAGSIZE if low else _IPV6_RECVFRAGSIZE):
                    in_pieces = True
            key = (source[0], source[1], destination)
            known = self._exchanges.get(key)
            if known is None:
                known = self._begin_datagrams(key, source, destination, self._view[:size])
            if known is not None:
                self._send(known, self._view[:size], in_pieces=in_pieces)
        self._reactor.call_soon(partial(self._hear, door))

    def _begin_datagrams(
        self, key: object, source: tuple[str, int], destination: bytes, data: memoryview
    ) -> Exchange | None:
        found = _socket_address(destination)
        guest = self._guests.at(source[0])
        # A guest that is gone; and our own door is nobody's peer.
        if found is None or guest is None or found[1] in self._own_ports:
            return None
        return self._begin(key, guest, source, found[0], found[1], Protocol.UDP, bytes(data))

    def _hear_echo(self, door: socket.socket) -> None:
        version = _version(door)
        for _turn in range(TURN):
            try:
                data, ancillary, _flags, source = door.recvmsg(_MAX_BYTES, _ANCILLARY_BYTES)
            except BlockingIOError:
                return
            except OSError:
                continue
            destination: Address | None = None
            if version == 4:  # a raw IPv4 socket gives the header too
                destination, data = IPv4Address(data[16:20]), data[(data[0] & 15) * 4 :]
            else:
                for _level, kind, said in ancillary:
                    if kind == _IPV6_PKTINFO:
                        destination = IPv6Address(said[:16])
            asked = read_echo_request(data, version)
            guest = self._guests.at(source[0])
            if asked is None or destination is None or guest is None:
                continue
            number, rest = asked
            key = (source[0], number, destination)
            known = self._exchanges.get(key)
            if known is None:
                endpoint = (source[0], number)
                known = self._begin(key, guest, endpoint, destination, 0, _ICMP[version], rest)
            if known is not None:
                self._send(known, rest, in_pieces=True)
        self._reactor.call_soon(partial(self._hear_echo, door))

    def _send(self, exchange: Exchange, data: bytes | memoryview, *, in_pieces: bool) -> None:
        exchange.send(data, in_pieces=in_pieces)
        self.touch(exchange)

    def touch(self, exchange: Exchange) -> None:
        """Note that an exchange was not silent just now."""
        held = self._of.get(exchange.guest.id)
        if held is not None and exchange in held:
            held.move_to_end(exchange)

    # -- a new exchange ----------------------------------------------------------------------

    def _begin(
        self,
        key: object,
        guest: Guest,
        source: tuple[str, int],
        address: Address,
        port: int,
        protocol: Protocol,
        data: bytes,
    ) -> Exchange | None:
        own = next((each for each in guest.addresses if each.version == address.version), None)
        if own is None:
            return None
        inward = Inward(address, port, own, source[1])
        exchange = Exchange(self, guest, key, address, port, protocol, source, inward)
        if guest.synthetic and is_synthetic(address):
            return self._begin_synthetic(exchange, data)
        now = self._reactor.now()
        verdict, exchange.name = judge(self._guests, guest, protocol, address, port, now)
        return self._decided(exchange, verdict, data)

    def _begin_synthetic(self, exchange: Exchange, data: bytes) -> Exchange | None:
        """Resolve the name that the address stands for; until then its datagrams are lost but one.

        Of the address's own family: what is in a datagram may depend on it.
        """
        guest, address, key = exchange.guest, exchange.address, exchange.key
        if key in self._resolving:
            return None
        self._guests.hear_siblings()
        names = self._guests.pins.names_of(guest.id, address, self._reactor.now())
        service = name_service(guest, exchange.protocol, exchange.port)
        if service is not None:
            return self._decided(exchange, service, data)
        if len(names) != 1:
            reason = f"{address} stands for no name that this guest asked for"
            refused = Verdict(Action.DENY, None, "synthetic address", None, reason)
            return self._decided(exchange, refused, data)
        exchange.name = FlowName(names[0], verified=True)
        self._resolving.add(key)

        def resolved(addresses: tuple[Address, ...]) -> None:
            begun = self._resolved(exchange, addresses, data)
            if begun is not None and not at_once:
                self._send(begun, data, in_pieces=False)

        at_once = True
        self._resolve(guest, names[0], (address.version,), resolved)
        at_once = False
        return self._exchanges.get(key)

    def _resolved(
        self, exchange: Exchange, addresses: tuple[Address, ...], data: bytes
    ) -> Exchange | None:
        guest, name = exchange.guest, exchange.name
        self._resolving.discard(exchange.key)
        if self._guests.get(guest.id) is not guest or name is None:
            return None  # detached meanwhile
        if not addresses:
            reason = f"no address of {name.name} was found"
            nowhere = Verdict(Action.DENY, None, "upstream", None, reason)
            return self._decided(exchange, nowhere, data)
        verdicts = [
            (self._guests.decide(guest, each, exchange.port, name, exchange.protocol), each)
            for each in addresses
        ]
        allowed = [found for found in verdicts if is_allowed(found[0])]
        verdict, real = (allowed or verdicts)[0]
        exchange.lead_to(real)
        return self._decided(exchange, verdict, data)

    def _decided(self, exchange: Exchange, verdict: Verdict, data: bytes) -> Exchange | None:
        """Enter what is allowed, refuse what is not."""
        guest, address, protocol = exchange.guest, exchange.address, exchange.protocol
        if not is_allowed(verdict):
            self._refuse(exchange, verdict, verdict.reason, data)
            return None
        exchange.verdict = verdict
        if not self._make_room(guest):
            limit = f"at most {self._limits.guest} exchanges of datagrams at a time"
            full = Verdict(Action.DENY, None, "limit: exchanges", None, limit)
            self._refuse(exchange, full, limit, data)
            return None
        try:
            exchange.begin(
                self._outwards.join(
                    exchange.endpoint, address.version, guest.egress,
                    is_ping=protocol is not Protocol.UDP,
                ),
                self._limits,
            )  # fmt: skip
        except OSError as error:
            self._refuse(exchange, verdict, f"upstream: {_words(error, protocol)}", data)
            return None
        self._exchanges[exchange.key] = exchange
        self._of.setdefault(guest.id, OrderedDict())[exchange] = None
        return exchange

    def _make_room(self, guest: Guest) -> bool:
        """Whether there may be one more, if need be in the place of another of the same guest."""
        held = self._of.get(guest.id)
        if len(held or ()) < self._limits.guest and len(self._exchanges) < self._limits.all:
            return True
        oldest = next(iter(held), None) if held else None
        if oldest is None or self._reactor.now() - oldest.last < self._limits.spared_s:
            return False
        oldest.end("limit: made room for another")
        return True

    def _refuse(self, exchange: Exchange, verdict: Verdict, reason: str, data: bytes) -> None:
        """Tell, and let the guest know; what is not told any more is not answered either."""
        if exchange.tell(verdict, reason):
            kind, code = PORT_UNREACHABLE[exchange.address.version]
            exchange.error_to_guest(kind, code, 0, data)

    # -- for exchanges -----------------------------------------------------------------------

    @property
    def reactor(self) -> Reactor:
        """The loop."""
        return self._reactor

    def answer(self, packet: bytes, guest: str) -> None:
        """Send a packet to a guest; what it cannot take now is lost, as on any link."""
        version = packet[0] >> 4
        out = self._answer[version]
        try:
            out.sendto(packet, (guest, 0))
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                return
            self._pieces += 1
            with suppress(OSError):
                for piece in fragments(packet, _SMALLEST_MTU[version], self._pieces):
                    out.sendto(piece, (guest, 0))

    def tell(self, decision: Decision) -> None:
        """Report a decision."""
        self._tell(decision)

    def ended(self, exchange: Exchange) -> None:
        """An exchange is at its end."""
        self._exchanges.pop(exchange.key, None)
        held = self._of.get(exchange.guest.id)
        if held is not None:
            held.pop(exchange, None)
            if not held:
                del self._of[exchange.guest.id]
        self._outwards.leave(exchange.endpoint, exchange.peer)


def _version(each: socket.socket) -> int:
    return 4 if each.family == socket.AF_INET else 6


def _socket_address(raw: bytes) -> tuple[Address, int] | None:
    """What a struct sockaddr_in or sockaddr_in6 says."""
    port = int.from_bytes(raw[2:4], "big")
    if len(raw) == _SOCKADDR_IN_BYTES:
        return IPv4Address(raw[4:8]), port
    return (IPv6Address(raw[8:24]), port) if len(raw) >= _SOCKADDR_IN6_BYTES else None


def _words(error: OSError, protocol: Protocol) -> str:
    word = errno.errorcode.get(error.errno or 0, "error")
    if error.errno == errno.EACCES and protocol is not Protocol.UDP:
        return f"{word}: net.ipv4.ping_group_range does not let the gateway's group send pings"
    return word
