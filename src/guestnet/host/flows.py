"""Telling of the flows that the kernel forwards, and of what it refuses.

The kernel has decided; which rule it was, `policy.decide` is asked. Each guest has its share of the
events (`ruleset.telling`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address

from ..errors import GuestnetError
from ..kernel.flowevents import Event, FlowEvent, RefusedPacket, device_name
from ..kernel.interface import Site
from ..model import Attachment, Decision
from ..policy import WITH_PORTS, Action, Direction, FlowName, Protocol, Verdict
from ..ruleset.telling import EGRESS, IDENTITY, INGRESS
from .explain import Explainer
from .hearing import Hearing
from .ledger import Ledger
from .seen import Seen

logger = logging.getLogger(__name__)

Address = IPv4Address | IPv6Address

#: Flows that were told when they began and will be when they end, some 2 kB each; without an entry
#: the end is told by the policy of that time.
REMEMBERED_FLOWS = 16384
#: Refusals that are remembered as told, and for how long others like them are counted only.
REMEMBERED_REFUSALS, REPEATED_S = 8192, 5.0
#: How long what is known of the machine's addresses holds.
MOMENT_S = 5.0


@dataclass(slots=True)
class _Counts:
    """One guest's, of what is not told one by one."""

    #: Left out since the last that was told.
    omitted: int = 0
    #: As many as the kernel had left out when it was asked last, and in which second that was.
    by_kernel: int = 0
    asked_at: int = 0


@dataclass(frozen=True, slots=True)
class _Part:
    """One guest's part in a flow."""

    attachment: Attachment
    direction: Direction
    peer: Address
    port: int
    protocol: Protocol


class Flows:
    """Hears what happens in a site in a thread of its own, and tells it under the host's lock."""

    def __init__(
        self,
        lock: threading.RLock,
        ledger: Ledger,
        site: Site,
        seen: Seen,
        tell: Callable[[Decision], None],
    ) -> None:
        self._lock = lock
        self._ledger = ledger
        self._site = site
        self._seen = seen
        self._tell_one = tell
        #: What was told when it began, by its number and the guest's side.
        self._begun: OrderedDict[tuple[int, Direction], Decision] = OrderedDict()
        #: What was told to be refused of late, and when.
        self._repeated: OrderedDict[tuple[object, ...], float] = OrderedDict()
        self._counts: dict[str, _Counts] = {}
        self._lost = 0
        self._explainer: Explainer | None = None
        self._explains_until = 0.0
        self._hearing = Hearing(site, self._take)

    def start(self) -> None:
        """Begin to hear. What was left out before is not told any more."""
        for address, count in self._site.counts.left_out_so_far().items():
            holder = self._ledger.last_holder_of_address(address)
            if holder is not None:
                self._counts_of(holder.guest).by_kernel += count
        self._hearing.start()

    def stop(self) -> None:
        """Hear no more. Not to be called by who holds the host's lock."""
        self._hearing.stop()

    def settle(self) -> None:
        """Return when what has happened is told, within reason; not with the host's lock."""
        self._hearing.settle()

    def reconsider(self) -> None:
        """Look at the machine's addresses anew."""
        self._explainer = None

    def forget_the_gone(self) -> None:
        """Forget guests that are not here any more."""
        for guest in [each for each in self._counts if not self._ledger.is_here(each)]:
            del self._counts[guest]

    # -- events ------------------------------------------------------------------------------

    def _take(self, events: list[Event], lost: int) -> None:
        with self._lock:
            self._lost += lost
            for event in events:
                try:
                    if isinstance(event, RefusedPacket):
                        self._refused(event)
                    else:
                        self._flow(event)
                except GuestnetError as error:
                    logger.warning("telling of a flow: %s", error)

    # -- flows -------------------------------------------------------------------------------

    def _flow(self, event: FlowEvent) -> None:
        for part in self._parts(event):
            key = event.id, part.direction
            if not event.has_ended:
                begun = self._beginning(event, part)
                self._begun[key] = begun
                if len(self._begun) > REMEMBERED_FLOWS:
                    self._begun.popitem(last=False)
                self._tell(part.attachment, begun)
                continue
            told = self._begun.pop(key, None)
            if told is None or told.guest != part.attachment.guest or told.address != part.peer:
                told = self._beginning(event, part)
            up, down = event.bytes_sent, event.bytes_answered
            if part.direction is Direction.INGRESS:
                up, down = down, up
            ended = replace(
                told,
                time=time.time(),
                event="end",
                bytes_up=up,
                bytes_down=down,
                duration_s=round(event.duration_s, 6),
            )
            self._tell(part.attachment, ended)

    def _parts(self, event: FlowEvent) -> Iterator[_Part]:
        """Who of our guests takes part in a flow, and how."""
        protocol = Protocol.numbered(event.protocol)
        opener = self._ledger.last_holder_of_address(event.source)
        if opener is not None and not self._is_relayed(event):
            yield _Part(opener, Direction.EGRESS, event.responder, event.responder_port, protocol)
        answerer = self._ledger.last_holder_of_address(event.responder)
        if answerer is not None:
            yield _Part(answerer, Direction.INGRESS, event.source, event.responder_port, protocol)

    def _is_relayed(self, event: FlowEvent) -> bool:
        """Whether a flow is the gateway's, which tells of it."""
        doors = self._ledger.doors
        return (
            event.is_redirected
            and doors is not None
            and event.responder_port in (*doors.relay_tcp, doors.resolver_tcp, doors.resolver_udp)
        )

    def _beginning(self, event: FlowEvent, part: _Part) -> Decision:
        name, verdict = self._passed(part)
        return replace(_decision(part, name, verdict), event="begin", flow=event.id)

    def _passed(self, part: _Part) -> tuple[str, Verdict]:
        """By which name and rule the kernel let a flow pass."""
        name = self._name(part)
        for known in (FlowName(name, verified=True), None) if name else (None,):
            verdict = self._explained().by_policy(
                part.attachment, part.direction, part.protocol, part.peer, _port(part), known
            )
            if verdict.allowed:
                return name, verdict
        reason = f"it passed by a policy or a name that held a moment ago; now {verdict.reason}"
        return name, Verdict(Action.ALLOW, None, "a former rule", verdict.group, reason)

    # -- refusals ----------------------------------------------------------------------------

    def _refused(self, packet: RefusedPacket) -> None:
        if packet.prefix == IDENTITY:
            self._forged(packet)
        if packet.source is None or packet.destination is None:
            return
        protocol = Protocol.numbered(packet.protocol)
        opener = self._ledger.last_holder_of_address(packet.source)
        if opener is not None and packet.prefix in (EGRESS, INGRESS):
            part = _Part(opener, Direction.EGRESS, packet.destination, packet.port, protocol)
            self._refuse(part)
        answerer = self._ledger.last_holder_of_address(packet.destination)
        if answerer is not None and packet.prefix == INGRESS:
            part = _Part(answerer, Direction.INGRESS, packet.source, packet.port, protocol)
            self._refuse(part)

    def _refuse(self, part: _Part) -> None:
        guest = part.attachment.guest
        if self._is_repeated(guest, part.direction, part.protocol, part.peer, part.port):
            return
        name = self._name(part)
        explain = self._explained().explain
        for known in (FlowName(name, verified=True), None) if name else (None,):
            verdict = explain(
                part.attachment, part.direction, part.protocol, part.peer, _port(part), known
            )
            if not verdict.allowed:
                break
        else:
            reason = "no gateway takes it, or what allows it came to hold a moment ago"
            verdict = Verdict(Action.DENY, None, "no way", verdict.group, reason)
        self._tell(part.attachment, _decision(part, name, verdict))

    def _forged(self, packet: RefusedPacket) -> None:
        device = self._site.within(partial(device_name, packet.device))
        attachment = self._ledger.attachment_at(device)
        if attachment is None:
            return
        if packet.source is None:
            what = f"a frame of EtherType {packet.ethertype:#06x}"
        elif packet.source in attachment.addresses:
            what = f"from {packet.source}, but with another MAC or a discovery message of others"
        else:
            what = f"from {packet.source}"
        if self._is_repeated(attachment.guest, what):
            return
        who = " and ".join(map(str, attachment.addresses))
        reason = f"{what}: {device} is {attachment.guest!r}, {who} at {attachment.mac}"
        decision = Decision(
            time=time.time(),
            guest=attachment.guest,
            network=attachment.network,
            kind="flow",
            protocol=Protocol.numbered(packet.protocol).value,
            address=packet.destination,
            port=packet.port,
            verdict="deny",
            rule=IDENTITY,
            reason=reason[:2048],
        )
        self._tell(attachment, decision)

    def _is_repeated(self, guest: str, *what: object) -> bool:
        """Whether a guest was told to be refused just this a moment ago; counts it then."""
        told, now, key = self._repeated, time.monotonic(), (guest, *what)
        if now - told.get(key, -REPEATED_S) < REPEATED_S:
            self._counts_of(guest).omitted += 1
            return True
        told.pop(key, None)
        told[key] = now
        if len(told) > REMEMBERED_REFUSALS:
            told.popitem(last=False)
        return False

    # -- telling -----------------------------------------------------------------------------

    def _tell(self, attachment: Attachment, decision: Decision) -> None:
        counts = self._counts_of(attachment.guest)
        if counts.asked_at != int(decision.time):
            # Once in a second in which it is told of: more often nobody would read it.
            counts.asked_at = int(decision.time)
            left_out = self._site.counts.left_out(attachment.addresses)
            counts.omitted += max(0, left_out - counts.by_kernel)
            counts.by_kernel = max(left_out, counts.by_kernel)
        omitted = counts.omitted + self._lost
        counts.omitted = self._lost = 0
        self._tell_one(replace(decision, omitted=omitted) if omitted else decision)

    def _counts_of(self, guest: str) -> _Counts:
        return self._counts.setdefault(guest, _Counts())

    def _name(self, part: _Part) -> str:
        """The name by which a guest came to know its peer."""
        if part.direction is Direction.INGRESS:
            return ""
        return self._seen.name_of(part.attachment.guest, part.peer)

    def _explained(self) -> Explainer:
        now = time.monotonic()
        if self._explainer is None or now >= self._explains_until:
            self._explainer = Explainer(self._ledger, self._site)
            self._explains_until = now + MOMENT_S
        return self._explainer


def _port(part: _Part) -> int | None:
    return part.port if part.protocol in WITH_PORTS else None


def _decision(part: _Part, name: str, verdict: Verdict) -> Decision:
    return Decision(
        time=time.time(),
        guest=part.attachment.guest,
        network=part.attachment.network,
        kind="flow",
        direction="egress" if part.direction is Direction.EGRESS else "ingress",
        protocol=part.protocol.value,
        name=name,
        address=part.peer,
        port=part.port,
        verdict=verdict.action.value,
        rule=verdict.text[:1024],
        rule_index=verdict.rule,
        reason=verdict.reason[:2048],
    )
