"""What the gateway knows of guests, and how it decides with that."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from ..dns import LocalRecords, Pins
from ..policy import (
    Action,
    Direction,
    FlowName,
    Group,
    Places,
    Policy,
    Protocol,
    Verdict,
    classify,
    decide,
    parse_policy,
)
from .messages import SetGuest, SetPlaces

Address = IPv4Address | IPv6Address

#: The name under which guests find the host.
HOST_ALIAS = "host.guestnet.internal"


@dataclass(slots=True, eq=False)
class Guest:
    """One guest whose policy has rules by name."""

    id: str
    network: str
    addresses: tuple[Address, ...]
    gateways: tuple[Address, ...]
    policy: Policy
    upstreams: tuple[Address, ...]
    egress: tuple[str, ...]
    #: Names of our own that it finds.
    local: LocalRecords
    #: `sequence` of the order that told of it last.
    told: int = 0
    #: Flows that are relayed for it now, by any handle of theirs.
    flows: set[object] = field(default_factory=set)
    #: Its questions that wait for an upstream.
    asking: int = 0


class Guests:
    """All guests, by address: the source of a packet is the guest, the kernel has seen to that."""

    def __init__(self, pins: Pins) -> None:
        self.pins = pins
        self._by_id: dict[str, Guest] = {}
        self._by_address: dict[Address, Guest] = {}
        self._places = Places(host=frozenset(), guests=())

    def set_places(self, order: SetPlaces) -> None:
        """Take over what the machine's addresses are."""
        self._places = Places(host=frozenset(order.host), guests=order.guests)

    def set_guest(self, order: SetGuest) -> Guest:
        """Take over a guest, or what is new about it."""
        policy = parse_policy(order.policy)
        known = self._by_id.get(order.guest)
        if known is not None and known.addresses != order.addresses:
            self.forget(order.guest)
            known = None
        if known is None:
            known = Guest(
                order.guest, order.network, order.addresses, order.gateways, policy,
                order.upstreams, order.egress, LocalRecords({}),
            )  # fmt: skip
            self._by_id[order.guest] = known
            for address in order.addresses:
                self._by_address[address] = known
        known.gateways, known.policy, known.told = order.gateways, policy, order.sequence
        known.upstreams, known.egress = order.upstreams, order.egress
        known.local = LocalRecords({HOST_ALIAS: order.gateways})
        return known

    def forget(self, guest: str) -> Guest | None:
        """Forget a guest and its pins; returns it, for its flows to be ended."""
        known = self._by_id.pop(guest, None)
        if known is not None:
            for address in known.addresses:
                self._by_address.pop(address, None)
            self.pins.forget(guest)
        return known

    def at(self, address: Address) -> Guest | None:
        """The guest that has an address."""
        return self._by_address.get(address)

    def get(self, guest: str) -> Guest | None:
        """A guest by its id."""
        return self._by_id.get(guest)

    def all(self) -> list[Guest]:
        """Every guest."""
        return list(self._by_id.values())

    # -- deciding ----------------------------------------------------------------------------

    def places(self, guest: Guest) -> Places:
        """The machine's addresses as this guest's policy sees them."""
        return Places(host=self._places.host, guests=self._places.guests, dns=guest.gateways)

    def is_public(self, address: Address) -> bool:
        """Whether an address is neither the machine's, nor a guest's, nor special."""
        return classify(address, self._places) is Group.PUBLIC

    def decide(
        self,
        guest: Guest,
        address: Address,
        port: int,
        name: FlowName | None,
        protocol: Protocol = Protocol.TCP,
    ) -> Verdict:
        """The policy's verdict on a flow of a guest whose name is `name`."""
        places = self.places(guest)
        return decide(guest.policy, Direction.EGRESS, protocol, address, port, places, name)

    def decide_pinned(
        self, guest: Guest, address: Address, port: int, names: Iterable[str]
    ) -> tuple[Verdict, str] | None:
        """The verdict that all names pinned for an address agree on, and one of these names.

        `None` where there is no name, or names that the policy treats differently.
        """
        found: tuple[Verdict, str] | None = None
        for name in names:
            verdict = self.decide(guest, address, port, FlowName(name, verified=True))
            if found is not None and found[0].action is not verdict.action:
                return None
            found = found or (verdict, name)
        return found


def is_allowed(verdict: Verdict) -> bool:
    """Whether a flow may pass."""
    return verdict.action is Action.ALLOW
