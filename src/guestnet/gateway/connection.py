"""One connection that a guest opened and the kernel redirected here: decide, dial, relay.

The ladder, per connection:

1. Its source is the guest, its original destination is asked of connection tracking.
2. If no name can change the verdict any more (the policy was replaced meanwhile), that holds.
3. Where clients speak first (`SPEAKING_PORTS`) the first bytes are waited for, `PEEK_S` at most: a
   TLS ClientHello's server name or an HTTP request's Host is the flow's name, and nothing else is.
   The address must be one that this name has: pinned for this guest, or just now resolved. A
   client that is silent there or cannot be read is refused: it could say whom it means afterwards.
4. Everywhere else, and for protocols that carry no name (TLS without one, SSH), the names pinned
   for the address decide, if they agree. So a server that speaks first is never waited for.
5. A denied flow is reset. An allowed one is dialled at the very address that was checked; what
   that answers (refused, unreachable) resets the flow too.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

from ..address import is_synthetic
from ..errors import ConfigError
from ..flow import (
    First,
    Head,
    NotHello,
    NotHttp,
    Reactor,
    Reason,
    Refused,
    Relay,
    Timer,
    is_address,
    read_first,
)
from ..flow.relay import EVENTS, Ended, Flow
from ..model import Decision
from ..policy import (
    NAME_SERVICES,
    REPORTED,
    Action,
    FlowName,
    Group,
    Mode,
    Verdict,
    canonical_name,
    has_names,
)
from .dialling import Dialling, Reached, in_turn
from .guests import Guest, Guests, is_allowed, verified
from .lookup import Resolve
from .screening import Screening
from .service_class import class_of

Address = IPv4Address | IPv6Address

#: Ports at which the client speaks first and says whom it means: TLS, and HTTP without it.
TLS_PORTS = frozenset({443, 465, 636, 853, 989, 990, 992, 993, 994, 995, 5061, 6443, 8443, 9443})
HTTP_PORTS = frozenset({80, 591, 3000, 5000, 8000, 8008, 8080, 8081, 8088, 8888})
SPEAKING_PORTS = TLS_PORTS | HTTP_PORTS
#: How long a client may take to say whom it means; after that it is refused.
PEEK_S = 3.0
#: Bytes read until it must have said it: the largest ClientHello or request head that is read.
PEEK_BYTES = 64 * 1024
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Means:
    """What a connection needs of the gateway."""

    reactor: Reactor
    guests: Guests
    relay: Relay
    #: Which addresses a name has.
    resolve: Resolve
    tell: Callable[[Decision], None]


class Connection:
    """One connection of a guest, from its arrival to its end."""

    __slots__ = (
        "_buffer", "_client", "_dialling", "_first", "_flow", "_is_watched", "_left", "_means",
        "_stands_for", "_timer", "address", "began", "guest", "name", "port", "verdict",
    )  # fmt: skip

    def __init__(
        self,
        means: Means,
        client: socket.socket,
        guest: Guest,
        address: Address,
        port: int,
        left: Callable[[Connection], None],
    ) -> None:
        self._means = means
        self._left = left
        self._client: socket.socket | None = client
        self._dialling: Dialling | None = None
        self._flow: Flow | None = None
        self._timer: Timer | None = None
        self._buffer = b""
        #: Whether the reactor watches the client.
        self._is_watched = False
        self._first: First | None = None
        #: The name that a synthetic address stands for.
        self._stands_for = ""
        self.guest = guest
        #: The other end's; a synthetic one until the name behind it is resolved.
        self.address = address
        self.port = port
        self.name: FlowName | None = None
        self.verdict: Verdict | None = None
        self.began = time.time()

    # -- deciding ----------------------------------------------------------------------------

    def start(self) -> None:
        """Decide at once, or wait for the client's first bytes."""
        guests = self._means.guests
        enforced = self.guest.policy.mode is Mode.ENFORCE
        if enforced and self.port in NAME_SERVICES and has_names(self.guest.policy):
            self.refuse_for(
                "name services",
                f"port {self.port} resolves names beside the gateway, where no rule sees them",
            )
        elif self.guest.synthetic and is_synthetic(self.address):
            self._start_synthetic()
        elif not guests.needs_name(self.guest, self.address, self.port):
            self._decided(guests.decide(self.guest, self.address, self.port, None))
        elif self.port in SPEAKING_PORTS:
            self._listen()
        else:
            self._decide_by_pins()

    def _listen(self) -> None:
        """Wait for the client's first bytes."""
        if self._client is not None:
            self._timer = self._means.reactor.call_later(PEEK_S, self._silent)
            self._means.reactor.add(self._client.fileno(), self._peek, EVENTS)
            self._is_watched = True

    def _peek(self, _events: int) -> None:
        """Read until the client has said whom it means, or will not."""
        client = self._client
        while client is not None:
            try:
                data = client.recv(16384)
            except BlockingIOError:
                return
            except OSError:
                self.reset()
                return
            if not data:
                self._silent()
                return
            before = len(self._buffer)
            self._buffer += data
            try:
                first = read_first(self._buffer, before)
            except (NotHello, NotHttp) as error:
                self._undecidable(
                    "unreadable", f"no name can be read from its first bytes: {error}"
                )
                return
            if first is not None:
                self._first = first
                self._decide_spoken(first.name)
                return
            if len(self._buffer) >= PEEK_BYTES:
                self._undecidable("unreadable", f"no name in its first {PEEK_BYTES} bytes")
                return

    def _silent(self) -> None:
        self._undecidable(
            "silent", f"port {self.port} is one whose clients say whom they mean; this one did not"
        )

    def _decide_spoken(self, spoken: str) -> None:
        """The client named whom it means: that name decides, if the address is really its."""
        self._unwatch()
        if self._stands_for:
            self._decide_synthetic(spoken)
            return
        if not spoken:
            self._decide_by_pins()
            return
        guests = self._means.guests
        if is_address(spoken):
            self._decide_unnamed()
            return
        try:
            spoken = canonical_name(spoken)
        except ConfigError:
            self._undecidable("unreadable", f"{spoken!r} is no name of a host")
            return
        if self._is_pinned(spoken):
            self._decide_named(verified(spoken))
            return
        if is_allowed(
            guests.decide(self.guest, self.address, self.port, FlowName(spoken, verified=True))
        ):
            # Allowed if the address is the name's: ask, as the guest may have resolved it itself.
            versions = (self.address.version,)
            self._means.resolve(self.guest, spoken, versions, lambda a: self._resolved(spoken, a))
            return
        self._decide_named(FlowName(spoken, verified=False))

    def _is_pinned(self, name: str) -> bool:
        pins, now = self._means.guests.pins, self._means.reactor.now()
        if pins.is_pinned(self.guest.id, name, self.address, now):
            return True
        self._means.guests.hear_siblings()
        return pins.is_pinned(self.guest.id, name, self.address, now)

    def _resolved(self, spoken: str, addresses: tuple[Address, ...]) -> None:
        if self._client is not None:
            self._decide_named(FlowName(spoken, verified=self.address in addresses))

    def _decide_named(self, name: FlowName) -> None:
        self.name = name
        guests = self._means.guests
        verdict = guests.decide(self.guest, self.address, self.port, name)
        if not is_allowed(verdict) and not name.verified:
            reason = f"{verdict.reason}; {self.address} is no address of {name.name}"
            verdict = Verdict(verdict.action, verdict.rule, verdict.text, verdict.group, reason)
        self._decided(verdict)

    def _decide_by_pins(self) -> None:
        """Nothing was said: the names this guest resolved to the address decide, if they agree."""
        self._unwatch()
        # Always, as one more name may make it ambiguous.
        self._means.guests.hear_siblings()
        guests, now = self._means.guests, self._means.reactor.now()
        names = guests.pins.names_of(self.guest.id, self.address, now)
        agreed = guests.decide_pinned(self.guest, self.address, self.port, names)
        if agreed is not None:
            verdict, name = agreed
            self.name = verified(name)
            self._decided(verdict)
        elif names:
            self._undecidable(
                "ambiguous name",
                f"{self.address} was resolved for {', '.join(names)}, which the policy treats "
                "differently, and the client did not say which it means",
            )
        else:
            self._decide_unnamed()

    def _decide_unnamed(self) -> None:
        """No name at all: rules by name do not match, and the rest of the policy decides."""
        verdict = self._means.guests.decide(self.guest, self.address, self.port, None)
        if not is_allowed(verdict):
            reason = f"{verdict.reason}; the guest resolved no name to {self.address}"
            verdict = Verdict(verdict.action, verdict.rule, verdict.text, verdict.group, reason)
        self._decided(verdict)

    def _decided(self, verdict: Verdict) -> None:
        self.verdict = verdict
        if is_allowed(verdict):
            self._dial([self.address])
        else:
            self._end(verdict, verdict.reason)

    # -- deciding about an address that stands for a name ------------------------------------

    def _start_synthetic(self) -> None:
        self._means.guests.hear_siblings()
        guests = self._means.guests
        names = guests.pins.names_of(self.guest.id, self.address, self._means.reactor.now())
        if len(names) != 1:
            reason = f"{self.address} stands for no name that this guest asked for"
            self.refuse_for("synthetic address", reason)
            return
        (self._stands_for,) = names
        if self.port in SPEAKING_PORTS:
            self._listen()
        else:
            self._decide_synthetic("")

    def _decide_synthetic(self, spoken: str) -> None:
        """Resolve the name now; whoever says another name there would reach that one's server."""
        name = self._stands_for
        enforced = self.guest.policy.mode is Mode.ENFORCE
        if spoken and spoken.lower().removesuffix(".") != name and enforced:
            reason = f"the client says {spoken!r} where {self.address} stands for {name}"
            self.refuse_for("another name", reason)
            return
        self.name = FlowName(name, verified=True)
        self._means.resolve(self.guest, name, (6, 4), self._resolved_synthetic)

    def _resolved_synthetic(self, addresses: tuple[Address, ...]) -> None:
        if self._client is None or self.name is None:
            return
        if not addresses:
            self.refuse_for("upstream", f"no address of {self.name.name} was found")
            return
        verdicts = {
            address: self._means.guests.decide(self.guest, address, self.port, self.name)
            for address in in_turn(addresses)
        }
        allowed = [address for address, verdict in verdicts.items() if is_allowed(verdict)]
        self.address = (allowed or list(verdicts))[0]
        if allowed:
            self.verdict = verdicts[self.address]
            self._dial(allowed)
        else:
            self._decided(verdicts[self.address])

    def _undecidable(self, rule: str, reason: str) -> None:
        """No name can be known: refused, or told only where the policy reports."""
        self._unwatch()
        if self.guest.policy.mode is Mode.REPORT:
            self._decided(Verdict(Action.ALLOW, None, REPORTED, None, f"{rule}: {reason}"))
        else:
            self.refuse_for(rule, reason)

    def refuse_for(self, rule: str, reason: str) -> None:
        """Refuse for another reason than a rule."""
        self._end(Verdict(Action.DENY, None, rule, None, reason), reason)

    def recheck(self) -> None:
        """The policy changed: go on only if it still allows this flow."""
        if self.verdict is None:
            return  # still being decided, with the new policy from here on
        guests = self._means.guests
        verdict = guests.decide(self.guest, self.address, self.port, self.name)
        self.verdict = verdict
        if not is_allowed(verdict):
            self.reset("the policy was changed")

    # -- the other end -----------------------------------------------------------------------

    def _dial(self, targets: Sequence[Address]) -> None:
        if self._client is None:
            return
        guest, reactor = self.guest, self._means.reactor
        device = guest.egress[0] if len(guest.egress) == 1 else None
        wanted = class_of(self._client)
        to_host = self.verdict is not None and self.verdict.group is Group.HOST
        self._dialling = Dialling(
            reactor, targets, self.port, device, wanted, self._dialled, to_host=to_host
        )
        self._dialling.start()

    def _dialled(self, result: Reached | OSError) -> None:
        self._dialling = None
        if isinstance(result, OSError):
            self._fail(result)
            return
        client = self._client
        if client is None:
            self._close(result.server)
            return
        if result.address != self.address:
            self.address = result.address
            self.verdict = self._means.guests.decide(self.guest, self.address, self.port, self.name)
            if not is_allowed(self.verdict):  # the policy was changed meanwhile
                self._close(result.server)
                self._end(self.verdict, self.verdict.reason)
                return
        said, self._buffer = self._buffer, b""
        screens = None
        if self._is_screened():
            screening = Screening(self._may_ask)
            screens = (screening, screening.answers)
            try:
                said = screening.take(said)
            except Refused:
                self._close(result.server)
                self.reset(Reason.REFUSED)
                return
        self._client = None
        # What was told of the client while its first bytes were read is not told again.
        seen = (select.EPOLLIN | select.EPOLLOUT if self._is_watched else None, result.events)
        self._flow = self._means.relay.start(
            client, result.server, said, self._relayed, screens, seen
        )

    def _close(self, server: socket.socket) -> None:
        self._means.reactor.forget(server.fileno())
        server.close()

    def _is_screened(self) -> bool:
        """Whether further requests may follow that name other hosts."""
        is_http = self._first is not None and self._first.is_http
        return is_http and self.guest.policy.mode is Mode.ENFORCE

    def _may_ask(self, asked: Head | NotHttp) -> bool:
        """Whether a request on an allowed connection may be made; one that may not is told."""
        if isinstance(asked, NotHttp):
            reason = f"a later request cannot be read: {asked}"
            self._tell(Verdict(Action.DENY, None, "unreadable", None, reason), reason, name="")
            return False
        host = asked.host or ""
        if self._first is None or host == self._first.name:
            return True
        name = None
        if host and not asked.is_address:
            name = FlowName(host, verified=self._is_pinned(host))
        verdict = self._means.guests.decide(self.guest, self.address, self.port, name)
        if self._stands_for or not is_allowed(verdict):
            reason = f"{verdict.reason}; a later request on a connection to {self._first.name}"
            denied = replace(verdict, action=Action.DENY, reason=reason)
            self._tell(denied, reason, name=host)
            return False
        return True

    def _relayed(self, ended: Ended) -> None:
        self._left(self)
        if self.verdict is not None:
            self._tell(self.verdict, ended.reason, ended.bytes_up, ended.bytes_down)

    def _fail(self, error: OSError) -> None:
        """The other end refused or could not be reached: that is what the guest gets to see."""
        reason = f"upstream: {errno.errorcode.get(error.errno or 0, 'error')}"
        if self.verdict is not None:
            self._end(self.verdict, reason)

    # -- the end -----------------------------------------------------------------------------

    def reset(self, reason: str = "reset") -> None:
        """Cut the flow, whatever state it is in."""
        if self._flow is not None:
            self._flow.close(reset=True)
            return
        verdict = self.verdict or Verdict(Action.DENY, None, "undecided", None, reason)
        self._end(verdict, reason)

    def _end(self, verdict: Verdict, reason: str) -> None:
        self._unwatch()
        dialling, self._dialling = self._dialling, None
        if dialling is not None:
            dialling.cancel()
        client, self._client = self._client, None
        if client is not None:
            if self._is_watched:
                self._means.reactor.forget(client.fileno())
            reset(client)
        self._left(self)
        self._tell(verdict, reason)

    def _tell(
        self, verdict: Verdict, reason: str, up: int = 0, down: int = 0, name: str | None = None
    ) -> None:
        omitted = self.guest.share.take(time.time())
        if omitted is None:
            return
        self._means.tell(
            Decision(
                omitted=omitted,
                time=self.began,
                guest=self.guest.id,
                network=self.guest.network,
                kind="flow",
                protocol="tcp",
                name=name if name is not None else self.name.name if self.name else "",
                address=self.address,
                port=self.port,
                verdict=verdict.action.value,
                rule=verdict.text[:1024],
                rule_index=verdict.rule,
                reason=reason[:2048],
                bytes_up=up,
                bytes_down=down,
                duration_s=round(time.time() - self.began, 6),
            )
        )

    def _unwatch(self) -> None:
        """Wait no longer for the client's first bytes."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            if self._client is not None:
                self._means.reactor.replace(self._client.fileno(), _wait)


def _wait(_events: int) -> None:
    """Nothing is read of a client until its flow begins."""


def reset(client: socket.socket) -> None:
    """Close a connection so that the other end sees a reset."""
    with suppress(OSError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    client.close()
