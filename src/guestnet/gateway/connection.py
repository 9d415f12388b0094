"""One connection that a guest asks for: decided, dialled, let in, relayed.

A denied one is refused (`deciding` is the ladder). An allowed one is dialled at the very address
that was checked, and what that answers is what the guest gets to see: it is let in, refused, told
that there is no way, or hears nothing. Where its client must be heard first it is let in as soon as
the address answers to which it leads by what is known, and later denied by a reset.
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
from .knocking import Knock
from .lookup import Resolve
from .peeking import Peeking, Unheard
from .screening import Screening

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
    """One connection of a guest, from its knock to its end.

    It *knocks* until it is let in, which is when the other end has answered, or when its client has
    to be heard first; it has a *client* until it is relayed. With neither it is over, or a flow.
    """

    __slots__ = (
        "_began", "_class", "_client", "_deciding", "_dialling", "_flow", "_knock", "_left",
        "_means", "_peeking", "_presumed", "_reached", "_seen", "_since", "_verdict", "guest",
    )  # fmt: skip

    def __init__(
        self, means: Means, knock: Knock, guest: Guest, left: Callable[[Connection], None]
    ) -> None:
        self._means = means
        self._left = left
        self._knock: Knock | None = knock
        self._client: socket.socket | None = None
        self._class = knock.syn.service_class
        self._deciding = Deciding(means.guests, guest, knock.syn.address, knock.syn.port)
        self._peeking: Peeking | None = None
        self._dialling: Dialling | None = None
        #: The other end while it is not relayed yet, and what was told of it.
        self._reached: Reached | None = None
        self._seen = 0
        self._flow: Flow | None = None
        #: Once it is decided; and before, what is thought of it while the other end is dialled.
        self._verdict: Verdict | None = None
        self._presumed: Verdict | None = None
        self._began = time.time()
        self._since = means.reactor.now()
        self.guest = guest

    @property
    def _is_over(self) -> bool:
        return self._knock is None and self._client is None

    # -- deciding ----------------------------------------------------------------------------

    def start(self) -> None:
        """Decide at once, or as soon as more is known."""
        self._go_on(self._deciding.begin(self._means.reactor.now()))

    def _go_on(self, step: Step) -> None:
        """Do what the ladder wants next."""
        if self._is_over:
            return
        if isinstance(step, Listen):
            presumed = self._deciding.presumed(self._means.reactor.now())
            if presumed is None:
                self._let_in()
            else:
                self._presumed = presumed.verdict
                self._dial(presumed.targets, presumed.verdict)
        elif isinstance(step, Ask):
            self._means.resolve(self.guest, step.name, step.versions, self._resolved)
        elif step.targets:
            self._verdict = step.verdict
            if self._reached is not None and step.targets[0] == self._reached.address:
                self._go_through(self._reached)
            else:
                self._hang_up()
                self._dial(step.targets, step.verdict)
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
        if not self._is_over:
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

    # -- letting in --------------------------------------------------------------------------

    def _let_in(self) -> None:
        if self._knock is not None:
            try:
                self._knock.let_in(self._arrived, self._vanished)
            except OSError as error:
                self._fail(error)

    def _arrived(self, client: socket.socket) -> None:
        self._knock, self._client = None, client
        if self._verdict is None:
            self._peeking = Peeking(self._means.reactor, client, self._deciding.port, self._heard)
        elif self._reached is not None:
            self._relay(client, self._reached)

    def _vanished(self) -> None:
        """The guest was let in and did not come."""
        self._knock = None
        self.reset("the client is gone")

    # -- the other end -----------------------------------------------------------------------

    def _dial(self, targets: Sequence[Address], verdict: Verdict) -> None:
        egress = self.guest.egress
        device = egress[0] if len(egress) == 1 else None
        self._dialling = Dialling(
            self._means.reactor, targets, self._deciding.port, device, self._class,
            self._dialled, to_host=verdict.group is Group.HOST,
        )  # fmt: skip
        self._dialling.start()

    def _dialled(self, result: Reached | OSError) -> None:
        self._dialling = None
        if isinstance(result, OSError):
            self._fail(result)
            return
        self._reached, self._seen = result, result.events
        self._means.reactor.replace(result.server.fileno(), self._note)
        if self._verdict is None:
            self._let_in()
            return
        if result.address is not self._deciding.address:  # another of its targets
            self._verdict = self._deciding.reached(result.address)
            if not is_allowed(self._verdict):  # the policy was changed meanwhile
                self._end(self._verdict, self._verdict.reason)
                return
        self._go_through(result)

    def _note(self, events: int) -> None:
        """Nothing is read of the other end until its flow begins."""
        self._seen |= events

    def _go_through(self, reached: Reached) -> None:
        """It is decided, and the other end is there."""
        if self._client is None:
            self._let_in()
        else:
            self._relay(self._client, reached)

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
                self.reset(Reason.REFUSED)
                return
        self._client = self._peeking = self._reached = None
        seen = (None if peeking is None else peeking.seen, self._seen)
        self._flow = self._means.relay.start(
            client, reached.server, said, self._relayed, screens, seen
        )

    def _hang_up(self) -> None:
        reached, self._reached = self._reached, None
        if reached is not None:
            self._means.reactor.forget(reached.server.fileno())
            reached.server.close()

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
        knock, self._knock = self._knock, None
        if knock is not None:
            knock.fail(error)
        self._end(self._verdict or self._presumed or _undecided(reason), reason)

    # -- the end -----------------------------------------------------------------------------

    def reset(self, reason: str = "reset") -> None:
        """Cut the flow, whatever state it is in."""
        if self._flow is not None:
            self._flow.close(reset=True)
            return
        self._end(self._verdict or _undecided(reason), reason)

    def _end(self, verdict: Verdict, reason: str) -> None:
        peeking, self._peeking = self._peeking, None
        if peeking is not None:
            peeking.stop()
        dialling, self._dialling = self._dialling, None
        if dialling is not None:
            dialling.cancel()
        self._hang_up()
        knock, self._knock = self._knock, None
        if knock is not None:
            knock.refuse()
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


def _undecided(reason: str) -> Verdict:
    return Verdict(Action.DENY, None, "undecided", None, reason)
