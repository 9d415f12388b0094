"""Exchanges of datagrams and pings of all guests: how one begins, how many there may be.

1. A new one is decided: by address if names cannot change that, else by the names pinned for the
   peer's address, if they agree. Nothing that is inside is read, QUIC's names neither.
   On a synthetic network an address stands for a name, which is resolved then.
2. A refused one is answered by ICMP "port unreachable", as far as refusals are told.
3. An allowed one is entered, and has its endpoint's socket (`outward`).
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from ..address import is_synthetic
from ..flow.inward import PORT_UNREACHABLE, Inward
from ..flow.reactor import Reactor
from ..model.decision import Decision
from ..policy import Action, FlowName, Protocol, Verdict
from .answers import Answers
from .exchange import Exchange, Limits
from .guests import Guest, Guests, is_allowed
from .judging import judge, name_service
from .lookup import Resolve
from .outward import Outward, Outwards

Address = IPv4Address | IPv6Address


class Exchanges:
    """All exchanges at this moment, by keys that those who hear guests choose."""

    def __init__(
        self,
        reactor: Reactor,
        guests: Guests,
        answers: Answers,
        outwards: Outwards,
        tell: Callable[[Decision], None],
        resolve: Resolve,
        limits: Limits,
    ) -> None:
        #: The loop.
        self.reactor = reactor
        self._guests = guests
        self._outwards = outwards
        self._resolve = resolve
        #: Of exchanges whose name is being resolved.
        self._resolving: set[object] = set()
        self._limits = limits
        self._by_key: dict[object, Exchange] = {}
        #: Each guest's, by id, the one that was silent for longest first.
        self._of: dict[str, OrderedDict[Exchange, None]] = {}
        #: The exchange of a key, or none: asked of every datagram.
        self.find = self._by_key.get
        #: By which guests are answered.
        self.answers = answers
        #: Reports a decision.
        self.tell = tell

    def __len__(self) -> int:
        """How many there are."""
        return len(self._by_key)

    def of(self, guest: Guest) -> list[Exchange]:
        """A guest's."""
        return list(self._of.get(guest.id, ()))

    def touch(self, exchange: Exchange) -> None:
        """Note that an exchange was not silent just now."""
        held = self._of.get(exchange.guest.id)
        if held is not None and exchange in held:
            held.move_to_end(exchange)

    def begin(
        self,
        key: object,
        guest: Guest,
        source: tuple[str, int],
        address: Address,
        port: int,
        protocol: Protocol,
        data: bytes,
    ) -> Exchange | None:
        """Decide about a new one, of which this is the first; None where it may not be, or not yet.

        `source` is the guest's address and port, `address` and `port` the peer's.
        """
        own = next((each for each in guest.addresses if each.version == address.version), None)
        if own is None:
            return None
        inward = Inward(address, port, own, source[1])
        exchange = Exchange(self, guest, key, address, port, protocol, source, inward)
        if guest.synthetic and is_synthetic(address):
            return self._begin_synthetic(exchange, data)
        now = self.reactor.now()
        verdict, exchange.name = judge(self._guests, guest, protocol, address, port, now)
        return self._decided(exchange, verdict, data)

    def judge_again(self, exchange: Exchange) -> Verdict:
        """What the policy says of one that goes on; the name that it goes by, if any, stays."""
        guest, address, port = exchange.guest, exchange.address, exchange.port
        protocol, name = exchange.protocol, exchange.name
        if name is None:  # none was needed, which may be different now
            now = self.reactor.now()
            verdict, exchange.name = judge(self._guests, guest, protocol, address, port, now)
            return verdict
        service = name_service(guest, protocol, port)
        return service or self._guests.decide(guest, address, port, name, protocol)

    def _begin_synthetic(self, exchange: Exchange, data: bytes) -> Exchange | None:
        """Resolve the name that the address stands for; until then its datagrams are lost but one.

        Of the address's own family: what is in a datagram may depend on it.
        """
        guest, address, key = exchange.guest, exchange.address, exchange.key
        if key in self._resolving:
            return None
        self._guests.hear_siblings()
        names = self._guests.pins.names_of(guest.id, address, self.reactor.now())
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
                begun.send([memoryview(data)], in_pieces=False)

        at_once = True
        self._resolve(guest, names[0], (address.version,), resolved)
        at_once = False
        return self._by_key.get(key)

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
        guest, protocol = exchange.guest, exchange.protocol
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
            exchange.begin(self._socket_for(exchange), self._limits)
        except OSError as error:
            self._refuse(exchange, verdict, f"upstream: {_words(error, protocol)}", data)
            return None
        self._by_key[exchange.key] = exchange
        self._of.setdefault(guest.id, OrderedDict())[exchange] = None
        return exchange

    def _socket_for(self, exchange: Exchange) -> Outward:
        """The endpoint's socket. Raises `OSError`.

        Another where two names of a synthetic network lead one endpoint to one peer: nothing else
        would tell their answers apart.
        """
        is_ping, guest = exchange.protocol is not Protocol.UDP, exchange.guest
        version = exchange.address.version
        found = self._outwards.join(exchange.endpoint, version, guest.egress, is_ping=is_ping)
        if exchange.peer.source in found.peers:
            exchange.endpoint = exchange.key
            found = self._outwards.join(exchange.key, version, guest.egress, is_ping=is_ping)
        return found

    def _make_room(self, guest: Guest) -> bool:
        """Whether there may be one more, if need be in the place of another of the same guest."""
        held = self._of.get(guest.id)
        if len(held or ()) < self._limits.guest and len(self._by_key) < self._limits.all:
            return True
        oldest = next(iter(held), None) if held else None
        if oldest is None or self.reactor.now() - oldest.last < self._limits.spared_s:
            return False
        oldest.end("limit: made room for another")
        return True

    def _refuse(self, exchange: Exchange, verdict: Verdict, reason: str, data: bytes) -> None:
        """Tell, and let the guest know; what is not told any more is not answered either."""
        if exchange.tell(verdict, reason):
            kind, code = PORT_UNREACHABLE[exchange.address.version]
            exchange.error_to_guest(kind, code, 0, data)

    def ended(self, exchange: Exchange) -> None:
        """An exchange is at its end."""
        self._by_key.pop(exchange.key, None)
        held = self._of.get(exchange.guest.id)
        if held is not None:
            held.pop(exchange, None)
            if not held:
                del self._of[exchange.guest.id]
        self._outwards.leave(exchange.endpoint, exchange.peer)


def _words(error: OSError, protocol: Protocol) -> str:
    word = errno.errorcode.get(error.errno or 0, "error")
    if error.errno == errno.EACCES and protocol is not Protocol.UDP:
        return f"{word}: net.ipv4.ping_group_range does not let the gateway's group send pings"
    return word
