"""Guests' questions to resolvers, whatever resolver they asked: the kernel redirected them here.

The ladder, per question:

1. What is no single, sane question gets the error that says so.
2. The guest's policy decides about the name; a denied one does not exist, and the answer says why.
   Encrypted resolvers exist only for policies that name them: what is resolved there has no pin.
3. Names of our own, and the network's records, are answered from here.
4. A fresh answer from the cache, or one upstream question for all guests that ask the same.
5. Every address in the answer is classified: a name leads to public addresses, or to such as a rule
   by address names, or the answer is refused whole (rebinding).
6. The addresses are pinned for the guest: they are what the name stands for from now on. Where
   rules by name are about more than TCP the kernel has the pins before the guest has the answer.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from ..dns import (
    LOCAL_TTL_S,
    MAX_TCP_QUERY_BYTES,
    STALE_AFTER_S,
    STALE_REST_S,
    STALE_TTL_S,
    VERSIONS,
    BadQuestion,
    Ede,
    Entry,
    Question,
    Rcode,
    Response,
    build_answer,
    failure,
    fit,
    is_encrypted_resolver,
    read_question,
    refusal,
    with_aliases,
)
from ..dns import (
    addresses as address_answer,
)
from ..errors import ConfigError
from ..flow.reactor import Reactor, Timer
from ..model.decision import Decision
from ..policy import (
    Action,
    DomainTarget,
    Verdict,
    has_names,
    opens_address,
)
from .asking import Asking
from .guests import Guest, Guests, is_allowed
from .own import own_answer
from .pinning import Pinning
from .questions import Questions
from .routes import offered
from .streams import Streams

Address = IPv4Address | IPv6Address

_ANSWERED = (Rcode.NOERROR, Rcode.NXDOMAIN)
#: How long a guest may remember where a name is: it is always there.
SYNTHETIC_TTL_S = 300

Reply = Callable[[bytes], None]


class Resolving:
    """The resolver doors of all guests."""

    def __init__(
        self,
        reactor: Reactor,
        udp: tuple[socket.socket, ...],
        tcp: tuple[socket.socket, ...],
        guests: Guests,
        asking: Asking,
        pinning: Pinning,
        tell: Callable[[Decision], None],
    ) -> None:
        self._reactor = reactor
        self._guests = guests
        self._pinning = pinning
        self._tell = tell
        self._asking = asking
        self._questions = Questions(reactor, udp, guests, self._answer)
        self._streams = Streams(reactor, tcp, guests, self._answer)

    # -- answering ---------------------------------------------------------------------------

    def _answer(self, guest: Guest, data: bytes, reply: Reply, protocol: str) -> float:
        """Answer now or later; until when the same question gets what it was answered now."""
        over_tcp = protocol == "tcp"
        try:
            question = read_question(data, MAX_TCP_QUERY_BYTES) if over_tcp else read_question(data)
        except BadQuestion as bad:
            wire = failure(bad)
            if wire is not None:
                reply(wire)
            return 0.0
        limit = 65535 if over_tcp else question.udp_limit_bytes

        def fitting(wire: bytes) -> None:
            reply(fit(wire, question, limit))

        own = own_answer(self._guests, guest, question)
        if own is not None:
            if own.verdict is not None:
                self._told(guest, question, own.verdict, protocol, answers=own.addresses)
            fitting(own.wire)
            return 0.0  # guests come and go, and the host's name is not told
        name = question.name
        verdict = guest.decided_before(name, lambda: self._verdict(guest, name))
        record = guest.service.records.answer(question)
        if not is_allowed(verdict):
            self._told(guest, question, verdict, protocol)
            fitting(refusal(question, Rcode.NXDOMAIN, Ede.BLOCKED, verdict.reason))
        elif record is not None:
            # Its owner's word, so it may lead anywhere.
            found = guest.service.records.addresses_for(question)
            until = self._reactor.now() + LOCAL_TTL_S
            left = [(address, until) for address in found]
            if not self._pin_and_reply(guest, question, verdict, left, record, fitting, protocol):
                return 0.0
        elif guest.synthetic:
            self._answer_synthetic(guest, question, verdict, fitting, protocol)
        else:
            return self._answer_allowed(guest, question, verdict, fitting, protocol)
        return math.inf  # as long as the guest's policy and names are what they are

    def _verdict(self, guest: Guest, name: str) -> Verdict:
        try:
            verdict = self._guests.decide_question(guest, name)
        except ConfigError:
            return Verdict(Action.DENY, None, "no name", None, f"{name!r} is no name of a host")
        rule = guest.policy.rules[verdict.rule] if verdict.rule is not None else None
        by_name = rule is not None and isinstance(rule.target, DomainTarget)
        hidden = guest.service.deny_encrypted_dns and has_names(guest.policy)
        if hidden and is_allowed(verdict) and not by_name and is_encrypted_resolver(name):
            return Verdict(
                Action.DENY, None, "encrypted resolvers", None,
                f"{name} resolves names where no rule sees them; a rule by its name allows it",
            )  # fmt: skip
        return verdict

    def _answer_synthetic(
        self, guest: Guest, question: Question, verdict: Verdict, reply: Reply, protocol: str
    ) -> None:
        """The name's own address; nothing is asked of anybody, so nothing is carried out."""
        version = VERSIONS.get(question.qtype)
        found: tuple[Address, ...] = ()
        if any(own.version == version for own in guest.addresses) and version is not None:
            now = self._reactor.now()
            found = (self._guests.synthetic_address(guest, question.name, version, now),)
        self._told(guest, question, verdict, protocol, answers=found)
        reply(address_answer(question, found, SYNTHETIC_TTL_S))

    def _answer_allowed(
        self, guest: Guest, question: Question, verdict: Verdict, reply: Reply, protocol: str
    ) -> float:
        now = self._reactor.now()
        entry = guest.service.cache.get(question.key, now)
        if entry is not None:
            # What is in the cache leads to public addresses only, which every policy lets pass.
            left = [(address, entry.expires_at) for address in entry.addresses]
            stood = self._pin_and_reply(
                guest, question, verdict, left, entry.reply(question, now), reply, protocol
            )
            return entry.same_until(now) if stood else 0.0
        stale = guest.service.cache.stale(question.key, now)
        if stale is not None and now < stale.ask_again_at:
            self._answer_stale(guest, question, verdict, stale, reply, protocol)
        elif guest.is_asking_too_much or self._asking.is_full:
            reply(refusal(question, Rcode.SERVFAIL, Ede.OTHER, "too many questions at a time"))
        else:
            self._ask(guest, question, verdict, stale, reply, protocol)
        return 0.0

    def _ask(
        self,
        guest: Guest,
        question: Question,
        verdict: Verdict,
        stale: Entry | None,
        reply: Reply,
        protocol: str,
    ) -> None:
        """Ask upstream; `stale` is the answer where nobody answers, or not soon (RFC 8767)."""
        guest.asking += 1
        service = guest.service
        alias = service.records.find(question.name)
        names = (question.name,) if alias is None else alias.chain
        waiting: Timer | None = None

        def is_here() -> bool:
            return guest.service is service and self._guests.get(guest.id) is guest

        def give_up() -> None:
            nonlocal stale
            if stale is not None and is_here():
                # The next ones are not to wait, too.
                stale.ask_again_at = self._reactor.now() + STALE_REST_S
                self._answer_stale(guest, question, verdict, stale, reply, protocol)
            stale = None

        def answered(result: Response | str) -> None:
            guest.asking -= 1
            if isinstance(result, Response) and alias is not None:
                result = with_aliases(result, names, LOCAL_TTL_S)
            if waiting is not None:
                waiting.cancel()
            if not is_here():
                return
            if waiting is not None and stale is None:
                if isinstance(result, Response):  # it comes late: for those who ask next
                    self._built(guest, question, result)
            elif stale is not None and (isinstance(result, str) or result.rcode not in _ANSWERED):
                give_up()
            else:
                self._answered(guest, question, verdict, result, reply, protocol)

        if stale is not None:
            waiting = self._reactor.call_later(STALE_AFTER_S, give_up)
        self._asking.ask(
            service.upstreams, names[-1], question.qtype, answered,
            dnssec=question.wants_dnssec, checking_disabled=question.checking_disabled,
        )  # fmt: skip

    def _answer_stale(
        self,
        guest: Guest,
        question: Question,
        verdict: Verdict,
        entry: Entry,
        reply: Reply,
        protocol: str,
    ) -> None:
        until = self._reactor.now() + STALE_TTL_S
        left = [(address, until) for address in entry.addresses]
        told = replace(verdict, reason="no resolver answers; this is a former answer")
        wire = entry.stale_reply(question)
        self._pin_and_reply(guest, question, told, left, wire, reply, protocol)

    def _answered(
        self,
        guest: Guest,
        question: Question,
        verdict: Verdict,
        result: Response | str,
        reply: Reply,
        protocol: str,
    ) -> None:
        now = self._reactor.now()
        if isinstance(result, str):
            reason = f"no resolver answered: {result}"
            reply(refusal(question, Rcode.SERVFAIL, Ede.NETWORK_ERROR, reason))
            self._told(guest, question, verdict, protocol, reason)
            return
        ours = [address for address, _ttl in result.addresses]
        elsewhere = [address for address in ours if not self._guests.is_public(address)]
        wrong = self._first_closed(guest, elsewhere)
        if wrong is not None:
            reason = (
                f"{question.name} leads to {wrong}, which is not public; "
                f"a rule that names this address lets the name lead there"
            )
            refused = Verdict(Action.DENY, verdict.rule, "rebinding", None, reason)
            self._told(guest, question, refused, protocol)
            reply(refusal(question, Rcode.NXDOMAIN, Ede.BLOCKED, reason))
            return
        wire = self._built(guest, question, result)
        left = [(address, now + ttl) for address, ttl in result.addresses]
        self._pin_and_reply(guest, question, verdict, left, wire, reply, protocol)

    def _first_closed(self, guest: Guest, elsewhere: list[Address]) -> Address | None:
        """Of addresses that are not public, the first that the guest's policy does not open."""
        if not elsewhere:
            return None
        places = self._guests.places(guest)
        closed = (a for a in elsewhere if not opens_address(guest.policy, a, places))
        return next(closed, None)

    def _built(self, guest: Guest, question: Question, result: Response) -> bytes:
        """The answer, which is remembered if it leads where any guest may be led."""
        addresses = tuple(address for address, _ttl in result.addresses)
        wire = build_answer(question, result, addresses, strip_ech=guest.service.strip_ech)
        if all(map(self._guests.is_public, addresses)):
            now = self._reactor.now()
            guest.service.cache.put(question, wire, result.cache_ttl_s, now, addresses)
        return wire

    def _pin_and_reply(
        self,
        guest: Guest,
        question: Question,
        verdict: Verdict,
        addresses: list[tuple[Address, float]],
        wire: bytes,
        reply: Reply,
        protocol: str,
    ) -> bool:
        """Answer when the pins stand; whether they did already."""
        answers = tuple(address for address, _until in addresses)
        routed = not guest.service.relays_all or question.qtype not in VERSIONS
        # Guests reach each other past the gateway.
        if not (routed or offered(answers) or any(map(self._guests.is_a_guest_s, answers))):
            reason = f"left out, as the host has no route to them: {', '.join(map(str, answers))}"
            self._told(guest, question, verdict, protocol, reason)
            reply(address_answer(question, (), 0))
            return False
        self._told(guest, question, verdict, protocol, answers=answers)

        def pinned(problem: str) -> None:
            if problem:
                reply(refusal(question, Rcode.SERVFAIL, Ede.OTHER, problem))
            else:
                reply(wire)

        return self._pinning.pin(guest, question.name, addresses, pinned)

    def forget_answers(self) -> None:
        """The machine's addresses changed: what is public may have, too."""
        self._questions.forget_answers()

    # -- telling -----------------------------------------------------------------------------

    def _told(
        self,
        guest: Guest,
        question: Question,
        verdict: Verdict,
        protocol: str,
        reason: str = "",
        answers: tuple[Address, ...] = (),
    ) -> None:
        now = time.time()
        omitted = guest.share.take(now)
        if omitted is None:
            return
        self._tell(
            Decision(
                omitted=omitted,
                time=now,
                guest=guest.id,
                network=guest.network,
                kind="dns",
                protocol="tcp" if protocol == "tcp" else "udp",
                name=question.name[:255],
                port=53,
                verdict=verdict.action.value,
                rule=verdict.text[:1024],
                rule_index=verdict.rule,
                reason=(reason or verdict.reason)[:2048],
                answers=answers[:64],
            )
        )
