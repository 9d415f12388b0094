"""What a name stands for from now on: the pins of an answer, before the guest gets it."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from ..dns import GRACE_S
from ..flow.reactor import Reactor, Timer
from ..policy import Action, DomainTarget, Protocol
from .guests import Guest, Guests
from .messages import AddPins, Message

Address = IPv4Address | IPv6Address

#: Pins of one guest that stand in the kernel at a time. A rule's set has room for 65,536, and may
#: be shared by many guests: one that owns a zone could fill it with addresses in some seconds.
GUEST_PINS = 8192
#: How long an answer waits for its pins to stand in the kernel.
PIN_WAIT_S = 2.0


class Pinning:
    """Learns what guests are told, and has the kernel learn what it needs of that.

    Rules by name that are about more than TCP follow the pins in the kernel: it has them before
    the guest has the answer, as its first packet may follow at once.
    """

    def __init__(self, reactor: Reactor, guests: Guests, send: Callable[[Message], None]) -> None:
        self._reactor = reactor
        self._guests = guests
        self._send = send
        self._waiting: dict[int, tuple[Callable[[str], None], Timer]] = {}
        self._sequence = 0

    def pin(
        self,
        guest: Guest,
        name: str,
        addresses: list[tuple[Address, float]],
        done: Callable[[str], None],
    ) -> bool:
        """Pin (address, until) of a name; `done` gets the reason why not, or nothing.

        Returns whether they stood already, so that `done` was called.
        """
        now = self._reactor.now()
        self._guests.learn(guest, name, addresses, now)
        until = max((until for _address, until in addresses), default=now)
        pins = [
            pin
            for pin in self._kernel_pins(guest, name, addresses)
            if guest.standing.get(pin, 0.0) < until
        ]
        if not pins:
            done("")
            return True
        if guest.is_asking_too_much:
            done("too many questions at a time")
            return False
        if not self._has_room(guest, pins, now):
            done("too many addresses at a time")
            return False
        guest.asking += 1
        self._sequence += 1
        number = self._sequence

        def stand(problem: str) -> None:
            guest.asking -= 1
            if not problem:
                guest.standing.update(dict.fromkeys(pins, until))
            done(problem)

        late = self._reactor.call_later(PIN_WAIT_S, lambda: self._late(number))
        self._waiting[number] = (stand, late)
        ttl_s = max(1, min(86400, int(until - now + GRACE_S)))
        self._send(
            AddPins(sequence=number, guest=guest.id, told=guest.told, pins=tuple(pins), ttl_s=ttl_s)
        )
        return False

    def stand(self, sequence: int) -> None:
        """The kernel has the pins: the guest gets its answer."""
        waiting = self._waiting.pop(sequence, None)
        if waiting is not None:
            stand, late = waiting
            late.cancel()
            stand("")

    def _has_room(self, guest: Guest, pins: list[tuple[int, Address]], now: float) -> bool:
        most = GUEST_PINS - sum(pin not in guest.standing for pin in pins)
        if len(guest.standing) <= most:
            return True
        if now >= guest.pins_due_at:
            left = {pin: u for pin, u in guest.standing.items() if u + GRACE_S > now}
            guest.standing = left
            # Until one of them ends there is no need to look at all of them again.
            guest.pins_due_at = min(left.values(), default=now) + GRACE_S
        return len(guest.standing) <= most

    def _late(self, sequence: int) -> None:
        stand, _late = self._waiting.pop(sequence)
        stand("the gateway is busy")

    def _kernel_pins(
        self, guest: Guest, name: str, addresses: list[tuple[Address, float]]
    ) -> list[tuple[int, Address]]:
        """Rules by this name that are about more than TCP, with the addresses it leads to."""
        if not addresses:
            return []
        own = {address.version for address in guest.addresses}
        return [
            (index, address)
            for index, rule in enumerate(guest.policy.rules)
            if isinstance(rule.target, DomainTarget)
            and rule.target.holds(name)
            and rule.protocols != (Protocol.TCP,)
            for address, _until in addresses
            if address.version in own
            and (rule.action is Action.DENY or self._guests.is_public(address))
        ][:256]
