"""What the gateway knows of guests, and how it decides with that."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from ..address import is_synthetic, synthetic_addresses
from ..dns import Pins
from ..naming import Upstream
from ..policy import (
    DNS_PORT,
    Action,
    Direction,
    FlowName,
    Group,
    Mode,
    Places,
    Policy,
    Protocol,
    Verdict,
    classify,
    decide,
    decide_question,
    has_names,
    may_reach,
    needs_name,
    opens_address,
    parse_policy,
)
from .messages import SetGuest, SetNetwork, SetPlaces
from .peers import Peers
from .service import Service
from .share import REPORTED_PER_SECOND, TOLD_PER_SECOND, Share

Address = IPv4Address | IPv6Address

#: Questions of one guest that wait for an upstream or for pins; more are answered SERVFAIL. A guest
#: that resolves in parallel has some tens.
GUEST_ASKING = 256
#: How long an address stands for a name after it was asked for; programs that never ask again are
#: many. The cap of pins is what bounds it.
SYNTHETIC_S = 86400.0
#: An answer is given again unread for no longer, whatever it says: what a question does beside
#: being answered (its pins are learnt again) happens at least so often.
REPEAT_S = 1.0
#: Verdicts of one guest that are remembered.
REMEMBERED = 4096


class Open(typing.Protocol):
    """Something that a guest opened, and that ends with it."""

    def reset(self) -> None:
        """End it at once."""


@dataclass(slots=True, eq=False)
class Guest:
    """One guest: its policy has rules by name, or all its flows are relayed."""

    id: str
    network: str
    addresses: tuple[Address, ...]
    gateways: tuple[Address, ...]
    policy: Policy
    egress: tuple[str, ...]
    #: Whether names have addresses of their own for it.
    synthetic: bool
    #: Of its being here: see `SetGuest`.
    stay: int
    #: How its network has questions answered.
    service: Service
    #: Where it finds the host by its name.
    host: tuple[Address, ...] = ()
    #: `sequence` of the order that told of it last.
    told: int = 0
    #: What is open for it now.
    flows: set[Open] = field(default_factory=set)
    #: Its questions that wait for an upstream, or for pins to stand in the kernel.
    asking: int = 0
    #: Pins that stand in the kernel, and until when: (rule, address).
    standing: dict[tuple[int, Address], float] = field(default_factory=dict)
    #: When the first of them ended, or ends, as of the last time that there was no room for more.
    pins_due_at: float = 0.0
    share: Share = field(default_factory=Share)
    #: Answers by question without its id, and until when each may be given again (see `repeats`).
    repeats: dict[bytes, tuple[bytes, float]] = field(default_factory=dict)
    #: What its policy said before: it says the same until it, or the machine, changes.
    _verdicts: dict[object, Verdict] = field(default_factory=dict)
    #: Whether a name may change that, by (address, port).
    named: dict[tuple[Address, int], bool] = field(default_factory=dict)
    #: The machine's addresses as its policy sees them, once that was asked.
    places: Places | None = None

    @property
    def is_asking_too_much(self) -> bool:
        """Whether one more question has to be refused for now."""
        return self.asking >= GUEST_ASKING

    def decided_before(self, key: object, decide_now: Callable[[], Verdict]) -> Verdict:
        """The verdict under a key, from memory if it was asked before."""
        found = self._verdicts.get(key)
        if found is None:
            if len(self._verdicts) >= REMEMBERED:
                self._verdicts.clear()  # a guest that asks for ever new things gains nothing
            found = self._verdicts[key] = decide_now()
        return found

    def reconsider(self) -> None:
        """Forget what was decided, as it may be different now."""
        self._verdicts.clear()
        self.named.clear()
        self.places = None
        self.repeats.clear()


class Guests:
    """All guests, by address: the source of a packet is the guest, the kernel has seen to that."""

    def __init__(self, pins: Pins) -> None:
        self.pins = pins
        self._by_id: dict[str, Guest] = {}
        self._by_address: dict[Address, Guest] = {}
        self._by_text: dict[str, Guest] = {}
        self._by_stay: dict[int, Guest] = {}
        #: Hears what the daemon may have told already; of a guest that is not known yet, say.
        self.catch_up: Callable[[], None] = lambda: None
        #: Hears which pins siblings have learnt; before pins decide.
        self.hear_siblings: Callable[[], None] = lambda: None
        #: Tells siblings what a guest is about to be told of a name.
        self.tell_siblings: Callable[[Guest, str], None] = lambda _guest, _name: None
        #: Whether addresses are public: so they are until the places change.
        self._public: dict[Address, bool] = {}
        pins.on_evicted = self._evicted
        self._services: dict[str, Service] = {}
        self.peers = Peers()
        self._places = Places(host=frozenset(), guests=())

    def set_places(self, order: SetPlaces) -> None:
        """Take over what the machine's addresses are."""
        self._places = Places(host=frozenset(order.host), guests=order.guests)
        self._public.clear()
        for service in self._services.values():
            service.cache.clear()  # what is public may be different now
        for guest in self._by_id.values():
            guest.reconsider()

    def set_guest(self, order: SetGuest) -> Guest:
        """Take over a guest, or what is new about it."""
        policy = parse_policy(order.policy)
        known = self._by_id.get(order.guest)
        if known is not None and known.stay != order.stay:
            self.forget(order.guest)
            known = None
        if known is None:
            known = Guest(
                order.guest, order.network, order.addresses, order.gateways, policy,
                order.egress, order.synthetic, order.stay, self._service(order.network),
            )  # fmt: skip
            self._by_id[order.guest] = known
            self._by_stay[order.stay] = known
            for address in order.addresses:
                self._by_address[address] = known
                self._by_text[str(address)] = known
        known.gateways, known.policy, known.told = order.gateways, policy, order.sequence
        known.egress, known.synthetic = order.egress, order.synthetic
        known.host = order.host
        reports = policy.mode is Mode.REPORT
        known.share.per_second = REPORTED_PER_SECOND if reports else TOLD_PER_SECOND
        known.standing.clear()
        known.pins_due_at = 0.0
        known.reconsider()
        return known

    def set_network(self, order: SetNetwork) -> None:
        """Take over how a network's guests are answered; what was answered before is forgotten."""
        service = Service.of(order, self._services.values())
        self._services[order.network] = service
        for guest in self._by_id.values():
            if guest.network == order.network:
                guest.service = service
                guest.reconsider()

    def upstreams(self) -> set[Upstream]:
        """Every resolver of any network."""
        return {each for service in self._services.values() for each in service.upstreams}

    def _service(self, network: str) -> Service:
        return self._services.setdefault(network, Service())

    def forget(self, guest: str) -> Guest | None:
        """Forget a guest and its pins; returns it, for its flows to be ended."""
        known = self._by_id.pop(guest, None)
        if known is not None:
            del self._by_stay[known.stay]
            for address in known.addresses:
                self._by_address.pop(address, None)
                self._by_text.pop(str(address), None)
            self.pins.forget(guest)
        return known

    def _evicted(self, guest: str, age_s: float) -> None:
        """A pin made room for another: no answer that it belongs to may be given unread."""
        known = self._by_id.get(guest)
        if known is not None and age_s <= REPEAT_S:
            known.repeats.clear()

    def at(self, source: str) -> Guest | None:
        """The guest that has the address that a socket tells as a packet's source."""
        known = self._by_text.get(source)
        if known is None:
            self.catch_up()
            # Nearly always the very text that we would write; an address can be written otherwise.
            known = self._by_address.get(ip_address(source.split("%")[0]))
        return known

    def staying(self, stay: int) -> Guest | None:
        """A guest by the number of its stay."""
        return self._by_stay.get(stay)

    def get(self, guest: str) -> Guest | None:
        """A guest by its id."""
        return self._by_id.get(guest)

    def all(self) -> list[Guest]:
        """Every guest."""
        return list(self._by_id.values())

    # -- deciding ----------------------------------------------------------------------------

    def places(self, guest: Guest) -> Places:
        """The machine's addresses as this guest's policy sees them."""
        if guest.places is None:
            places = self._places
            guest.places = Places(host=places.host, guests=places.guests, dns=guest.gateways)
        return guest.places

    def needs_name(self, guest: Guest, address: Address, port: int) -> bool:
        """Whether a name may change the verdict on a TCP flow of a guest."""
        known = guest.named.get((address, port))
        if known is None:
            if len(guest.named) >= REMEMBERED:
                guest.named.clear()
            places = self.places(guest)
            known = needs_name(guest.policy, Protocol.TCP, address, port, places)
            guest.named[address, port] = known
        return known

    def synthetic_address(self, guest: Guest, name: str, version: int, now: float) -> Address:
        """The address that stands for a name; from now on the guest may go there."""
        self.hear_siblings()
        for address in synthetic_addresses(name, version):
            known = self.pins.names_of(guest.id, address, now)
            if known in ((), (name,)):
                break
        # In steps, so that a question repeated is nothing new.
        until = (now // (SYNTHETIC_S / 2) + 2) * (SYNTHETIC_S / 2)
        self.learn(guest, name, [(address, until)], now)
        return address

    def learn(
        self, guest: Guest, name: str, addresses: Iterable[tuple[Address, float]], now: float
    ) -> None:
        """Pin a name for a guest, before it is told; whatever worker it comes to knows it then."""
        if self.pins.learn(guest.id, name, addresses, now):
            self.tell_siblings(guest, name)

    def may_lead(self, guest: Guest, address: Address) -> bool:
        """Whether a name may lead a guest to an address, as far as is known here."""
        if guest.synthetic and is_synthetic(address):
            return True
        # What is public every policy opens.
        return self.is_public(address) or opens_address(guest.policy, address, self.places(guest))

    def is_a_guest_s(self, address: Address) -> bool:
        """Whether an address is of the guests' pools."""
        return classify(address, self._places) is Group.GUESTS

    def may_reach(self, guest: Guest, peer: Address) -> Verdict:
        """Whether the policy lets a guest reach an address by anything at all."""
        return guest.decided_before(
            ("reach", peer), lambda: may_reach(guest.policy, peer, self.places(guest))
        )

    def is_public(self, address: Address) -> bool:
        """Whether an address is neither the machine's, nor a guest's, nor special."""
        found = self._public.get(address)
        if found is None:
            if len(self._public) >= REMEMBERED:
                self._public.clear()
            found = self._public[address] = classify(address, self._places) is Group.PUBLIC
        return found

    def decide(
        self,
        guest: Guest,
        address: Address,
        port: int,
        name: FlowName | None,
        protocol: Protocol = Protocol.TCP,
    ) -> Verdict:
        """The policy's verdict on a flow of a guest whose name is `name`."""

        def decide_now() -> Verdict:
            places = self.places(guest)
            return decide(guest.policy, Direction.EGRESS, protocol, address, port, places, name)

        return guest.decided_before((address, port, name, protocol), decide_now)

    def decide_question(self, guest: Guest, name: str) -> Verdict:
        """Whether a guest may ask for a name.

        Without rules by name it may ask for any if it may reach its resolver, which we are.
        """
        verdict = decide_question(guest.policy, name)
        if is_allowed(verdict) or has_names(guest.policy) or not guest.gateways:
            return verdict
        opened = self.decide(guest, guest.gateways[0], DNS_PORT, None, Protocol.UDP)
        return opened if is_allowed(opened) else verdict

    def decide_pinned(
        self,
        guest: Guest,
        address: Address,
        port: int,
        names: Iterable[str],
        protocol: Protocol = Protocol.TCP,
    ) -> tuple[Verdict, str] | None:
        """The verdict that all names pinned for an address agree on, and one of these names.

        `None` where there is no name, or names that the policy treats differently.
        """
        found: tuple[Verdict, str] | None = None
        for name in names:
            verdict = self.decide(guest, address, port, verified(name), protocol)
            if found is not None and found[0].action is not verdict.action:
                return None
            found = found or (verdict, name)
        return found


@lru_cache(REMEMBERED)
def verified(name: str) -> FlowName:
    """A name that is known to be at the flow's address."""
    return FlowName(name, verified=True)


def is_allowed(verdict: Verdict) -> bool:
    """Whether a flow may pass."""
    return verdict.action is Action.ALLOW
