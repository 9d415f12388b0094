"""The daemon's side of the gateway: what all its workers are told, and what they report.

`Gateway` keeps everything that it told, so that a worker that was started again is told again.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from ..model import Attachment, Decision, NetworkSpec
from ..naming import Upstream
from ..ruleset.doors import Doors
from .doorway import doors_of
from .messages import (
    AddPins,
    Address,
    Decided,
    Done,
    ForgetGuest,
    Message,
    Network,
    Peer,
    PinsStand,
    Ready,
    Report,
    SetGuest,
    SetNetwork,
    SetPeers,
    SetPlaces,
    Settle,
    SetTrust,
    TellPins,
)
from .patience import LOOK_S, Patience
from .process import CRASHES_KEPT_S, ORDER_TIMEOUT_S, Handed, WorkerProcess

logger = logging.getLogger(__name__)

#: Workers at most, unless more are asked for: each takes some 25 MB.
MAX_WORKERS = 8
#: Guests in one message: with the longest ids still far below the longest line.
PEERS_AT_ONCE = 1000
#: How long to wait at most until what was decided is told.
SETTLE_S = 1.0


def default_workers() -> int:
    """One for each processor that this process may use."""
    return min(len(os.sched_getaffinity(0)), MAX_WORKERS)


class Gateway:
    """The gateway's workers, as long as they are wanted. `handed` is its own, and closed by it."""

    def __init__(
        self,
        handed: Handed,
        add_pins: Callable[[Sequence[tuple[AddPins, SetGuest]]], None],
        on_decision: Callable[[Decision], None],
    ) -> None:
        self._handed = handed
        self._add_pins = add_pins
        self._on_decision = on_decision
        #: Guards what follows, and tells of workers' progress.
        self._lock = threading.Condition()
        self._guests: dict[str, SetGuest] = {}
        self._networks: dict[str, SetNetwork] = {}
        self._peers: dict[str, Peer] = {}
        self._trust: SetTrust | None = None
        self._places: SetPlaces | None = None
        self._sequence = 0
        self._stopping = False
        self._confinement: dict[int, tuple[str, ...]] = {}
        self.workers: tuple[WorkerProcess, ...] = ()
        workers: list[WorkerProcess] = []
        try:
            for number in range(len(handed.doorways)):
                made = WorkerProcess(
                    number, handed, self._lock, self._known, self._hear, self._ended
                )
                workers.append(made)
        except BaseException:
            for each in workers:
                each.stop()
            handed.close()
            raise
        self.workers = tuple(workers)

    @property
    def doors(self) -> Doors:
        """The ports at which flows are taken over."""
        return doors_of(self._handed.doorways)

    @property
    def pids(self) -> tuple[int, ...]:
        """The ids of the processes that run."""
        return tuple(pid for worker in self.workers if (pid := worker.pid) is not None)

    @property
    def crashes(self) -> int:
        """Times that a worker ended unasked."""
        return sum(worker.crashes for worker in self.workers)

    @property
    def confinement(self) -> tuple[str, ...]:
        """What every worker that got ready has given up."""
        told = list(self._confinement.values())
        return tuple(each for each in (told[0] if told else ()) if all(each in t for t in told))

    @property
    def recent_crashes(self) -> int:
        """Times that a worker ended unasked in the last ten minutes."""
        since = time.monotonic() - CRASHES_KEPT_S
        return sum(at >= since for worker in self.workers for at in list(worker.crashed_at))

    def set_guest(
        self,
        attachment: Attachment,
        egress: Iterable[str],
        *,
        synthetic: bool,
        host: Iterable[Address],
    ) -> None:
        """Tell of a guest, or of its new policy; returns when that holds."""
        gateways = (attachment.gateway_ipv4, attachment.gateway_ipv6)
        with self._lock:
            sequence = self._next()
            known = self._guests.get(attachment.guest)
            stays = known is not None and known.addresses == attachment.addresses
            order = SetGuest(
                sequence=sequence,
                guest=attachment.guest,
                stay=known.stay if known is not None and stays else sequence,
                network=attachment.network,
                addresses=attachment.addresses,
                gateways=tuple(each for each in gateways if each is not None),
                host=tuple(host),
                policy=attachment.policy,
                egress=tuple(egress),
                synthetic=synthetic,
            )
            if known is not None and replace(known, sequence=order.sequence) == order:
                return  # told before, and nothing about it is new
            self._guests[attachment.guest] = order
        self._tell(order)

    def set_network(
        self, spec: NetworkSpec, upstreams: Iterable[Upstream], *, relays_all: bool
    ) -> None:
        """Tell how a network's guests are answered; returns when that holds."""
        with self._lock:
            order = SetNetwork(
                sequence=self._next(),
                network=spec.name,
                upstreams=tuple(upstreams),
                records=spec.records,
                serve_stale_s=spec.serve_stale_s,
                strip_ech=spec.strip_ech,
                deny_encrypted_dns=spec.deny_encrypted_dns,
                relays_all=relays_all,
            )
            known = self._networks.get(spec.name)
            if known is not None and replace(known, sequence=order.sequence) == order:
                return
            self._networks[spec.name] = order
        self._tell(order)

    def trust(self, certificates: str) -> None:
        """Tell whose certificates prove a resolver's name; nothing is waited for."""
        with self._lock:
            if self._trust is not None and self._trust.certificates == certificates:
                return
            self._trust = SetTrust(certificates=certificates)
        self._send(self._trust)

    def come(self, attachments: Iterable[Attachment]) -> None:
        """Tell of guests for others to find, whatever their policy; nothing is waited for."""
        with self._lock:
            peers = [_peer(each) for each in attachments]
            peers = [peer for peer in peers if self._peers.get(peer.guest) != peer]
            self._peers.update({peer.guest: peer for peer in peers})
        self._send(*_in_parts(peers))

    def keep(self, guests: Collection[str]) -> None:
        """Forget all guests but these."""
        for guest in [each for each in self._peers if each not in guests]:
            self.forget(guest)

    def tell_again(self) -> None:
        """Tell of every guest once more: what stood for it in the kernel may be gone."""
        with self._lock:
            orders = []
            for guest, known in self._guests.items():
                orders.append(replace(known, sequence=self._next()))
                self._guests[guest] = orders[-1]
        for order in orders:
            self._tell(order)

    def forget(self, guest: str) -> None:
        """End a guest's flows; returns when they are ended."""
        with self._lock:
            found = self._peers.pop(guest, None) is not None
        if found:
            self._send(SetPeers(gone=(guest,)))
        with self._lock:
            if self._guests.pop(guest, None) is None:
                return
            order = ForgetGuest(sequence=self._next(), guest=guest)
        self._tell(order)

    def set_places(self, host: Iterable[Address], guests: Iterable[Network]) -> None:
        """Tell which addresses are the host's and the guests' pools."""
        with self._lock:
            known = self._places
            order = SetPlaces(sequence=self._next(), host=tuple(host), guests=tuple(guests))
            if known is not None and (known.host, known.guests) == (order.host, order.guests):
                return
            self._places = order
        self._tell(order)

    def knows(self, guest: str) -> bool:
        """Whether the gateway was told of a guest."""
        return guest in self._guests

    def settle(self) -> Callable[[], None]:
        """Have what was decided so far told; what is returned waits for that, within reason."""
        with self._lock:
            order = Settle(sequence=self._next())
        self._send(order)

        def is_told() -> bool:
            return self._stopping or all(
                w.done >= order.sequence for w in self.workers if w.awaited
            )

        def wait() -> None:
            with self._lock:
                self._lock.wait_for(is_told, SETTLE_S)

        return wait

    def close(self) -> None:
        """End the workers; flows they relayed are reset."""
        with self._lock:
            self._stopping = True
        for worker in self.workers:
            worker.stop()
        for worker in self.workers:
            worker.join()
        self._handed.close()

    # -- telling -----------------------------------------------------------------------------

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _known(self) -> list[Message]:
        """All that a worker is told at its start; the lock is held."""
        return [
            *([self._places] if self._places else []),
            *([self._trust] if self._trust else []),
            *self._networks.values(),
            *_in_parts(list(self._peers.values())),
            *self._guests.values(),
        ]

    def _send(self, *messages: Message) -> None:
        """Tell all workers in passing."""
        for worker in self.workers if messages else ():
            worker.send(*messages)

    def _tell(self, order: SetGuest | SetNetwork | ForgetGuest | SetPlaces) -> None:
        """Send an order to all workers and wait for those that live to carry it out.

        One that does not is ended: its flows end with it, and the next one is told everything.
        """
        for worker in self.workers:
            worker.send(order)
        patience = {w: Patience(ORDER_TIMEOUT_S, w.is_stopped) for w in self.workers}
        with self._lock:
            while not self._stopping:
                late = [w for w in patience if w.awaited and w.done < order.sequence]
                if not late:
                    return
                self._lock.wait(LOOK_S)
                for worker in late:
                    if why := patience[worker].lost():
                        worker.bury(f"{why} and has not carried out {order.kind}")
                        del patience[worker]

    # -- hearing, in the workers' threads ----------------------------------------------------

    def _hear(self, worker: WorkerProcess, reports: Sequence[Report]) -> None:
        """What came together; of that, pins are put into the kernel together."""
        pins: list[AddPins] = []
        for report in reports:
            match report:
                case Ready(confinement=confinement):
                    self._confinement[worker.number] = confinement
                    logger.info(
                        "worker %d (%s) is ready, confined by %s",
                        worker.number, worker.pid, ", ".join(confinement),
                    )  # fmt: skip
                case Done(sequence=sequence):
                    with self._lock:
                        worker.done = max(worker.done, sequence)
                        self._lock.notify_all()
                case AddPins():
                    pins.append(report)
                case Decided(decision=decision):
                    self._on_decision(decision)
        if pins:
            self._pin(worker, pins)

    def _ended(self, worker: WorkerProcess) -> None:
        """Have its siblings tell the next one now: its inbox keeps that until it gets ready."""
        for sibling in self.workers:
            if sibling is not worker:
                sibling.send(TellPins(worker=worker.number))

    def _pin(self, worker: WorkerProcess, reports: Sequence[AddPins]) -> None:
        """Have pins stand, and say so."""
        known = [(each, self._guests.get(each.guest)) for each in reports]
        # Under a policy that was replaced meanwhile they mean nothing any more.
        self._add_pins(
            [(each, guest) for each, guest in known if guest and guest.sequence == each.told]
        )
        worker.send(*(PinsStand(sequence=each.sequence) for each in reports))


def _peer(attachment: Attachment) -> Peer:
    addresses = tuple(map(str, attachment.addresses))
    return Peer(attachment.guest, attachment.network, addresses)


def _in_parts(peers: Sequence[Peer]) -> list[SetPeers]:
    """Guests in messages that are not too long."""
    parts = range(0, len(peers), PEERS_AT_ONCE)
    return [SetPeers(come=tuple(peers[at : at + PEERS_AT_ONCE])) for at in parts]
