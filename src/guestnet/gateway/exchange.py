"""One exchange of datagrams, or of pings: a guest's endpoint and one peer, from first to last."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Literal, Self
from typing import Protocol as Interface

from ..flow.inward import Inward, read_echo_reply
from ..flow.reactor import Reactor, Timer
from ..model.decision import Decision
from ..policy import FlowName, Protocol, Verdict
from .answers import Answers, Way
from .guests import Guest
from .outward import Outward, Peer
from .problems import Problem

Address = IPv4Address | IPv6Address

#: Silence after which an exchange ends: while nothing was answered, once something was (both as
#: the kernel's connection tracking has them), and for services of one question and one answer.
UNANSWERED_S, ANSWERED_S, BRIEF_S = 30.0, 120.0, 10.0
BRIEF_PORTS = frozenset({53, 123})

#: Exchanges of one guest at a time, and of all. Beyond it a new one takes the place of the guest's
#: own that was silent for longest, if that was so for `SPARED_S`, else it is refused.
GUEST_EXCHANGES, ALL_EXCHANGES = 2048, 16_384
SPARED_S = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps and times; tests have smaller ones."""

    guest: int = GUEST_EXCHANGES
    all: int = ALL_EXCHANGES
    spared_s: float = SPARED_S
    unanswered_s: float = UNANSWERED_S
    answered_s: float = ANSWERED_S
    brief_s: float = BRIEF_S

    @classmethod
    def within(cls, files: int) -> Self:
        """For a process that may have so many descriptors: a quarter of them, of which a guest may
        have a quarter. Each exchange may have an endpoint, and so a socket, of its own.
        """
        everybody = min(ALL_EXCHANGES, files // 4)
        return cls(guest=min(GUEST_EXCHANGES, everybody // 4), all=everybody)


_TOLD: dict[Protocol, Literal["udp", "icmpv4", "icmpv6"]] = {
    Protocol.UDP: "udp",
    Protocol.ICMPV4: "icmpv4",
    Protocol.ICMPV6: "icmpv6",
}


class Owner(Interface):
    """What an exchange needs of those who keep it."""

    @property
    def reactor(self) -> Reactor:
        """The loop."""

    @property
    def answers(self) -> Answers:
        """By which guests are answered."""

    def tell(self, decision: Decision) -> None:
        """Report a decision."""

    def touch(self, exchange: Exchange) -> None:
        """Note that it was not silent."""

    def ended(self, exchange: Exchange) -> None:
        """It is at its end."""


class Exchange:
    """A guest's endpoint and one peer."""

    __slots__ = (
        "_answered", "_inward", "_limits", "_outward", "_owner", "_since", "_timer", "_way",
        "address",
        "began", "bytes_down", "bytes_up", "endpoint", "guest", "key", "last", "name", "peer",
        "port", "protocol", "verdict",
    )  # fmt: skip

    def __init__(
        self,
        owner: Owner,
        guest: Guest,
        key: object,
        address: Address,
        port: int,
        protocol: Protocol,
        source: tuple[str, int],
        inward: Inward,
    ) -> None:
        self._owner = owner
        self._inward = inward
        self._way = Way(inward)
        self._outward: Outward | None = None
        self._timer: Timer | None = None
        self._answered = False
        self._limits = Limits()
        self.guest = guest
        self.key = key
        self.address = address
        self.port = port
        self.protocol = protocol
        #: The guest's side: its address as text, its port or identifier.
        self.endpoint: object = (source[0], source[1], protocol)
        self.peer = Peer.at(address, port)
        self.name: FlowName | None = None
        self.verdict: Verdict | None = None
        self.began = time.time()
        self.last = self._since = owner.reactor.now()
        self.bytes_up = self.bytes_down = 0

    def lead_to(self, address: Address) -> None:
        """The guest's peer stands for a name that is here; the guest is answered by its peer."""
        self.address = address
        self.peer = Peer.at(address, self.port)

    def begin(self, outward: Outward, limits: Limits) -> None:
        """From here on what the peer answers is heard."""
        self._outward = outward
        self._limits = limits
        outward.peers[self.peer.source] = self
        self._timer = self._owner.reactor.call_later(self._patience(), self._check_idle)

    def follow(self) -> None:
        """Leave by the interfaces that the guest's network leaves by now."""
        if self._outward is not None and self._outward.egress != self.guest.egress:
            self._outward.leave_by(self.guest.egress)

    def send(self, datagrams: Sequence[memoryview], *, in_pieces: bool) -> None:
        """Send the guest's datagrams on."""
        self.last = self._owner.reactor.now()
        if self._outward is not None:
            self.bytes_up += self._outward.send(datagrams, self.peer, in_pieces=in_pieces)
        self._owner.touch(self)

    def heard(self, datagrams: Sequence[memoryview]) -> None:
        """The peer's datagrams, for the guest."""
        answers = self._owner.answers
        if self.protocol is Protocol.UDP:
            answers.send_datagrams(datagrams, self._way)
            self.bytes_down += sum(map(len, datagrams))
        else:
            for each in datagrams:
                rest = read_echo_reply(each.tobytes(), self.address.version)
                if rest is not None:
                    answers.send_packet(self._inward.echo_reply(rest), self._way.guest)
                    self.bytes_down += len(rest)
        self._answered = True
        self.last = self._owner.reactor.now()
        self._owner.touch(self)

    def failed(self, problem: Problem) -> None:
        """What was sent did not arrive: the guest is told as it would have been on its own."""
        about = problem.about
        if self.protocol is not Protocol.UDP:
            about = about[6:]  # of the message that was sent, what follows its identifier
        self.error_to_guest(problem.kind, problem.code, problem.info, about)

    def error_to_guest(self, kind: int, code: int, info: int, about: bytes) -> None:
        """An ICMP error about a datagram of the guest's."""
        echo = self.protocol is not Protocol.UDP
        packet = self._inward.error(kind, code, info, about, echo=echo)
        self._owner.answers.send_packet(packet, self._way.guest)

    def end(self, reason: str) -> None:
        """End it: the endpoint's next datagram to this peer is decided anew."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._owner.ended(self)
        if self.verdict is not None:
            self.tell(self.verdict, reason)

    def tell(self, verdict: Verdict, reason: str) -> bool:
        """Report what was decided; False if the guest's share of what is told is used up."""
        omitted = self.guest.share.take(time.time())
        if omitted is None:
            return False
        self._owner.tell(
            Decision(
                omitted=omitted,
                time=self.began,
                guest=self.guest.id,
                network=self.guest.network,
                kind="flow",
                protocol=_TOLD[self.protocol],
                name=self.name.name if self.name is not None else "",
                address=self.address,
                port=self.port,
                verdict=verdict.action.value,
                rule=verdict.text[:1024],
                rule_index=verdict.rule,
                reason=reason[:2048],
                bytes_up=self.bytes_up,
                bytes_down=self.bytes_down,
                duration_s=round(self._owner.reactor.now() - self._since, 6),
            )
        )
        return True

    def _patience(self) -> float:
        if self.port in BRIEF_PORTS and self.protocol is Protocol.UDP:
            return self._limits.brief_s
        return self._limits.answered_s if self._answered else self._limits.unanswered_s

    def _check_idle(self) -> None:
        """Look only now and then, so that a datagram costs no timer."""
        reactor = self._owner.reactor
        left = self.last + self._patience() - reactor.now()
        if left <= 0:
            self._timer = None
            self.end("idle")
        else:
            self._timer = reactor.call_later(left, self._check_idle)
