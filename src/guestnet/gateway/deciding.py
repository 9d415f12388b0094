"""The ladder down which a TCP flow is decided. Each step says what comes next; nothing acts here.

1. What resolves names beside the gateway is nobody's to allow.
2. If no name can change the verdict (the policy was replaced meanwhile), that holds.
3. Where clients speak first (`SPEAKING_PORTS`) the first bytes are waited for, `PEEK_S` at most: a
   TLS ClientHello's server name or an HTTP request's Host is the flow's name, and nothing else is.
   The address must be one that this name has: pinned for this guest, or just now resolved. A
   client that is silent there or cannot be read is refused: it could say whom it means afterwards.
4. Everywhere else, and for protocols that carry no name (TLS without one, SSH), the names pinned
   for the address decide, if they agree. So a server that speaks first is never waited for.
5. An address that stands for a name is resolved now; whoever says another name there is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from ..address import is_synthetic
from ..errors import ConfigError
from ..flow.first import First, is_address
from ..flow.http import Head, NotHttp
from ..policy import (
    REPORTED,
    Action,
    FlowName,
    Mode,
    Protocol,
    Verdict,
    canonical_name,
)
from .dialling import in_turn
from .guests import Guest, Guests, is_allowed, verified
from .judging import name_service
from .peeking import Unheard
from .ports import SPEAKING_PORTS

Address = IPv4Address | IPv6Address


class Listen(NamedTuple):
    """The client's first bytes are wanted: `heard` or `unheard` is next."""


class Ask(NamedTuple):
    """The addresses that a name has, of these families, are wanted: `resolved` is next."""

    name: str
    versions: tuple[int, ...]


class Ruling(NamedTuple):
    """The end of the ladder."""

    verdict: Verdict
    """Of the flow to the first of the targets."""
    targets: Sequence[Address] = ()
    """Where the flow may go; none where it is denied."""


Step = Listen | Ask | Ruling


class Deciding:
    """One flow on the ladder: what it asks for, and what is known of whom it means."""

    __slots__ = (
        "_asked", "_first", "_guests", "_stands_for", "address", "guest", "name", "port",
    )  # fmt: skip

    def __init__(self, guests: Guests, guest: Guest, address: Address, port: int) -> None:
        self._guests = guests
        #: The name that a synthetic address stands for.
        self._stands_for = ""
        #: The name that the client said, whose addresses are asked for.
        self._asked = ""
        self._first: First | None = None
        self.guest = guest
        #: The other end's; a synthetic one until the name behind it is resolved.
        self.address = address
        self.port = port
        #: The name that it goes by.
        self.name: FlowName | None = None

    def begin(self, now: float) -> Step:
        """The first step."""
        guest, guests = self.guest, self._guests
        service = name_service(guest, Protocol.TCP, self.port)
        if service is not None:
            return Ruling(service)
        if guest.synthetic and is_synthetic(self.address):
            return self._begin_synthetic(now)
        if not guests.needs_name(guest, self.address, self.port):
            return self._ruled(self.verdict_now())
        if self.port in SPEAKING_PORTS:
            return Listen()
        return self._by_pins(now)

    def presumed(self, now: float) -> Ruling | None:
        """Where the flow goes unless the client, who is yet to be heard, says otherwise.

        `None` where nothing says that it may go anywhere. Nothing is decided by it.
        """
        if self._stands_for:
            return None
        names = self._guests.pins.names_of(self.guest.id, self.address, now)
        agreed = self._guests.decide_pinned(self.guest, self.address, self.port, names)
        if agreed is not None:
            verdict, name = agreed
            self.name = verified(name)
        elif names:
            return None
        else:
            verdict = self.verdict_now()
        return self._ruled(verdict) if is_allowed(verdict) else None

    def heard(self, first: First, now: float) -> Step:
        """The client said whom it means: that name decides, if the address is really its."""
        self._first, self.name = first, None
        spoken = first.name
        if self._stands_for:
            return self._by_synthetic(spoken)
        if not spoken:
            return self._by_pins(now)
        if is_address(spoken):
            return self._by_no_name()
        try:
            spoken = canonical_name(spoken)
        except ConfigError:
            return self.unheard(Unheard("unreadable", f"{spoken!r} is no name of a host"))
        if self._is_pinned(spoken, now):
            return self._by_name(verified(spoken))
        if is_allowed(self._verdict(self.address, FlowName(spoken, verified=True))):
            # Allowed if the address is the name's: ask, as the guest may have resolved it itself.
            self._asked = spoken
            return Ask(spoken, (self.address.version,))
        return self._by_name(FlowName(spoken, verified=False))

    def unheard(self, unheard: Unheard) -> Ruling:
        """No name can be known: refused, or told only where the policy reports."""
        self.name = None
        if self._is_enforced:
            return refused(unheard.rule, unheard.reason)
        reason = f"{unheard.rule}: {unheard.reason}"
        return self._ruled(Verdict(Action.ALLOW, None, REPORTED, None, reason))

    def resolved(self, addresses: tuple[Address, ...]) -> Ruling:
        """These are the addresses that the name has."""
        if not self._stands_for:
            return self._by_name(FlowName(self._asked, verified=self.address in addresses))
        if not addresses:
            return refused("upstream", f"no address of {self._stands_for} was found")
        verdicts = {each: self._verdict(each, self.name) for each in in_turn(addresses)}
        allowed = [each for each, verdict in verdicts.items() if is_allowed(verdict)]
        self.address = (allowed or list(verdicts))[0]
        return Ruling(verdicts[self.address], allowed)

    def reached(self, address: Address) -> Verdict:
        """The verdict at this moment, now that it is this of its targets."""
        self.address = address
        return self.verdict_now()

    def verdict_now(self) -> Verdict:
        """What the policy says at this moment, by what is known of the flow."""
        service = name_service(self.guest, Protocol.TCP, self.port)
        return service or self._verdict(self.address, self.name)

    @property
    def may_ask_again(self) -> bool:
        """Whether further requests may follow that name other hosts: `refusal_of` judges them."""
        return self._first is not None and self._first.is_http and self._is_enforced

    def refusal_of(self, asked: Head | NotHttp, now: float) -> tuple[Verdict, str] | None:
        """Why a request on an allowed connection may not be made, and the name it is for."""
        if isinstance(asked, NotHttp):
            reason = f"a later request cannot be read: {asked}"
            return Verdict(Action.DENY, None, "unreadable", None, reason), ""
        host = asked.host or ""
        if self._first is None or host == self._first.name:
            return None
        name = None
        if host and not asked.is_address:
            name = FlowName(host, verified=self._is_pinned(host, now))
        verdict = self._verdict(self.address, name)
        if is_allowed(verdict) and not self._stands_for:
            return None
        reason = f"{verdict.reason}; a later request on a connection to {self._first.name}"
        return replace(verdict, action=Action.DENY, reason=reason), host

    # -- an address of its own ---------------------------------------------------------------

    def _by_name(self, name: FlowName) -> Ruling:
        self.name = name
        verdict = self.verdict_now()
        if not is_allowed(verdict) and not name.verified:
            reason = f"{verdict.reason}; {self.address} is no address of {name.name}"
            verdict = replace(verdict, reason=reason)
        return self._ruled(verdict)

    def _by_pins(self, now: float) -> Ruling:
        """Nothing was said: the names this guest resolved to the address decide, if they agree."""
        # Always, as one more name may make it ambiguous.
        self._guests.hear_siblings()
        names = self._guests.pins.names_of(self.guest.id, self.address, now)
        agreed = self._guests.decide_pinned(self.guest, self.address, self.port, names)
        if agreed is not None:
            verdict, name = agreed
            self.name = verified(name)
            return self._ruled(verdict)
        if names:
            reason = (
                f"{self.address} was resolved for {', '.join(names)}, which the policy treats "
                "differently, and the client did not say which it means"
            )
            return self.unheard(Unheard("ambiguous name", reason))
        return self._by_no_name()

    def _by_no_name(self) -> Ruling:
        """No name at all: rules by name do not match, and the rest of the policy decides."""
        verdict = self.verdict_now()
        if not is_allowed(verdict):
            reason = f"{verdict.reason}; the guest resolved no name to {self.address}"
            verdict = replace(verdict, reason=reason)
        return self._ruled(verdict)

    def _is_pinned(self, name: str, now: float) -> bool:
        pins = self._guests.pins
        if pins.is_pinned(self.guest.id, name, self.address, now):
            return True
        self._guests.hear_siblings()
        return pins.is_pinned(self.guest.id, name, self.address, now)

    # -- an address that stands for a name ---------------------------------------------------

    def _begin_synthetic(self, now: float) -> Step:
        self._guests.hear_siblings()
        names = self._guests.pins.names_of(self.guest.id, self.address, now)
        if len(names) != 1:
            reason = f"{self.address} stands for no name that this guest asked for"
            return refused("synthetic address", reason)
        (self._stands_for,) = names
        return Listen() if self.port in SPEAKING_PORTS else self._by_synthetic("")

    def _by_synthetic(self, spoken: str) -> Step:
        """Resolve the name now; whoever says another name there would reach that one's server."""
        name = self._stands_for
        if spoken and spoken.lower().removesuffix(".") != name and self._is_enforced:
            reason = f"the client says {spoken!r} where {self.address} stands for {name}"
            return refused("another name", reason)
        self.name = FlowName(name, verified=True)
        return Ask(name, (6, 4))

    # -- the verdict -------------------------------------------------------------------------

    @property
    def _is_enforced(self) -> bool:
        return self.guest.policy.mode is Mode.ENFORCE

    def _verdict(self, address: Address, name: FlowName | None) -> Verdict:
        return self._guests.decide(self.guest, address, self.port, name)

    def _ruled(self, verdict: Verdict) -> Ruling:
        return Ruling(verdict, (self.address,) if is_allowed(verdict) else ())


def refused(rule: str, reason: str) -> Ruling:
    """Refused for another reason than a rule."""
    return Ruling(Verdict(Action.DENY, None, rule, None, reason))
