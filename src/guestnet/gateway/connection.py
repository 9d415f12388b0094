"""One connection that a guest opened and the kernel redirected here: decided, dialled, relayed.

A denied flow is reset (`deciding` is the ladder). An allowed one is dialled at the very address
that was checked; what that answers (refused, unreachable) resets the flow too.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from ..flow.first import First
from ..flow.http import Head, NotHttp
from ..flow.reactor import Reactor
from ..flow.relay import Ended, Flow, Reason, Relay, close_by_reset
from ..flow.way import Refused
from ..model.decision import Decision
from ..policy import Action, Group, Verdict
from .deciding import Ask, Deciding, Listen, Step, refused
from .dialling import Dialling, Reached
from .guests import Guest, Guests, is_allowed
from .lookup import Resolve
from .peeking import Peeking, Unheard
from .screening import Screening
from .service_class import class_of

Address = IPv4Address | IPv6Address


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
        "_began", "_client", "_deciding", "_dialling", "_flow", "_left", "_means", "_peeking",
        "_since", "_verdict", "_version", "guest",
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
        self._deciding = Deciding(means.guests, guest, address, port)
        self._peeking: Peeking | None = None
        self._dialling: Dialling | None = None
        self._flow: Flow | None = None
        #: Once it is decided.
        self._verdict: Verdict | None = None
        self._began = time.time()
        self._since = means.reactor.now()
        #: Of the guest's IP; the way on may be by the other one.
        self._version = address.version
        self.guest = guest

    # -- deciding ----------------------------------------------------------------------------

    def start(self) -> None:
        """Decide at once, or wait for the client's first bytes."""
        self._go_on(self._deciding.begin(self._means.reactor.now()))

    def _go_on(self, step: Step) -> None:
        """Do what the ladder wants next."""
        client = self._client
        if client is None:
            return
        if isinstance(step, Listen):
            self._peeking = Peeking(self._means.reactor, client, self._deciding.port, self._heard)
        elif isinstance(step, Ask):
            self._means.resolve(self.guest, step.name, step.versions, self._resolved)
        elif step.targets:
            self._verdict = step.verdict
            self._dial(client, step.targets)
        else:
            self._end(step.verdict, step.verdict.reason)

    def _heard(self, heard: First | Unheard | OSError) -> None:
        if isinstance(heard, First):
            self._go_on(self._deciding.heard(heard, self._means.reactor.now()))
        elif isinstance(heard, Unheard):
            self._go_on(self._deciding.unheard(heard))
        else:
            self.reset()

    def _resolved(self, addresses: tuple[Address, ...]) -> None:
        if self._client is not None:
            self._go_on(self._deciding.resolved(addresses))

    def refuse_for(self, rule: str, reason: str) -> None:
        """Refuse for another reason than a rule."""
        self._go_on(refused(rule, reason))

    def recheck(self) -> None:
        """The policy changed: go on only if it still allows this flow."""
        if self._verdict is None:
            return  # still being decided, with the new policy from here on
        self._verdict = self._deciding.verdict_now()
        if not is_allowed(self._verdict):
            self.reset("the policy was changed")

    # -- the other end -----------------------------------------------------------------------

    def _dial(self, client: socket.socket, targets: Sequence[Address]) -> None:
        egress = self.guest.egress
        device = egress[0] if len(egress) == 1 else None
        to_host = self._verdict is not None and self._verdict.group is Group.HOST
        self._dialling = Dialling(
            self._means.reactor, targets, self._deciding.port, device,
            class_of(client, self._version), self._dialled, to_host=to_host,
        )  # fmt: skip
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
        if result.address is not self._deciding.address:  # another of its targets
            self._verdict = self._deciding.reached(result.address)
            if not is_allowed(self._verdict):  # the policy was changed meanwhile
                self._close(result.server)
                self._end(self._verdict, self._verdict.reason)
                return
        self._relay(client, result)

    def _relay(self, client: socket.socket, reached: Reached) -> None:
        peeking = self._peeking
        said = b"" if peeking is None else peeking.data
        screens = None
        if self._deciding.may_ask_again:
            screening = Screening(self._may_ask)
            screens = (screening, screening.answers)
            try:
                said = screening.take(said)
            except Refused:
                self._close(reached.server)
                self.reset(Reason.REFUSED)
                return
        self._client = self._peeking = None
        seen = (None if peeking is None else peeking.seen, reached.events)
        self._flow = self._means.relay.start(
            client, reached.server, said, self._relayed, screens, seen
        )

    def _close(self, server: socket.socket) -> None:
        self._means.reactor.forget(server.fileno())
        server.close()

    def _may_ask(self, asked: Head | NotHttp) -> bool:
        """Whether a request on an allowed connection may be made; one that may not is told."""
        refusal = self._deciding.refusal_of(asked, self._means.reactor.now())
        if refusal is None:
            return True
        verdict, name = refusal
        self._tell(verdict, verdict.reason, name=name)
        return False

    def _relayed(self, ended: Ended) -> None:
        self._left(self)
        if self._verdict is not None:
            self._tell(self._verdict, ended.reason, ended.bytes_up, ended.bytes_down)

    def _fail(self, error: OSError) -> None:
        """The other end refused or could not be reached: that is what the guest gets to see."""
        reason = f"upstream: {errno.errorcode.get(error.errno or 0, 'error')}"
        if self._verdict is not None:
            self._end(self._verdict, reason)

    # -- the end -----------------------------------------------------------------------------

    def reset(self, reason: str = "reset") -> None:
        """Cut the flow, whatever state it is in."""
        if self._flow is not None:
            self._flow.close(reset=True)
            return
        verdict = self._verdict or Verdict(Action.DENY, None, "undecided", None, reason)
        self._end(verdict, reason)

    def _end(self, verdict: Verdict, reason: str) -> None:
        peeking, self._peeking = self._peeking, None
        if peeking is not None:
            peeking.stop()
        dialling, self._dialling = self._dialling, None
        if dialling is not None:
            dialling.cancel()
        client, self._client = self._client, None
        if client is not None:
            if peeking is not None:
                self._means.reactor.forget(client.fileno())
            close_by_reset(client)
        self._left(self)
        self._tell(verdict, reason)

    def _tell(
        self, verdict: Verdict, reason: str, up: int = 0, down: int = 0, name: str | None = None
    ) -> None:
        omitted = self.guest.share.take(time.time())
        if omitted is None:
            return
        flow = self._deciding
        self._means.tell(
            Decision(
                omitted=omitted,
                time=self._began,
                guest=self.guest.id,
                network=self.guest.network,
                kind="flow",
                protocol="tcp",
                name=name if name is not None else flow.name.name if flow.name else "",
                address=flow.address,
                port=flow.port,
                verdict=verdict.action.value,
                rule=verdict.text[:1024],
                rule_index=verdict.rule,
                reason=reason[:2048],
                bytes_up=up,
                bytes_down=down,
                duration_s=round(self._means.reactor.now() - self._since, 6),
            )
        )
