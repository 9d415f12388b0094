"""One process of the gateway: one loop over control socket, inbox, doors, flows and upstreams."""

from __future__ import annotations

import gc
import logging
import os
import select
import socket
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn

from ..dns import Pins
from ..flow.pipes import MAX_LARGE, MAX_PIPES, PipePool
from ..flow.reactor import Reactor
from ..flow.relay import Relay
from ..kernel.confine import confine, most_files
from ..model.decision import Decision
from .asking import Asking
from .connection import Means
from .datagrams import Datagrams
from .doorway import Doorway
from .exchange import Limits
from .guests import Guests
from .lookup import Lookup
from .messages import (
    MAX_LINE_BYTES,
    Begin,
    Decided,
    Done,
    ForgetGuest,
    Message,
    PinsStand,
    Ready,
    SetGuest,
    SetNetwork,
    SetPeers,
    SetPlaces,
    Settle,
    SetTrust,
    TellPins,
    line,
    read_order,
)
from .pinning import Pinning
from .relaying import GUEST_FLOWS, Relaying
from .resolving import Resolving
from .secure import Secure
from .siblings import Siblings

logger = logging.getLogger(__name__)

#: Reports that wait for the daemon to read them; decisions beyond it are left out and counted.
WAITING_BYTES = 1024 * 1024
#: How long a decision may wait for others to be told together: each message wakes the daemon, and
#: that took a processor from the next connection.
TOLD_TOGETHER_S = 0.02
#: A relayed flow on which nothing moves for so long ends (the kernel's own conntrack: five days).
IDLE_S = 2 * 3600.0
EXPIRE_S = 60.0
#: Objects more than before at which Python looks for garbage in circles (700 by default).
GARBAGE_THRESHOLD = 20_000


class Worker:
    """Everything in the process, which is one of `workers`."""

    def __init__(
        self,
        control: socket.socket,
        doorway: Doorway,
        workers: int,
        inbox: socket.socket | None,
        writers: dict[int, socket.socket],
    ) -> None:
        control.setblocking(False)
        self._control = control
        self._heard = b""
        self._unsent = bytearray()
        self._omitted = 0
        self._writing = False
        self._begun = False
        self._sending = False
        self._is_telling = False
        self.reactor = Reactor(on_error=_report)
        self.guests = Guests(Pins())
        self.guests.catch_up = self._hear
        self.siblings = Siblings(self.reactor, self.guests, inbox, writers)
        # What a user's pipes may hold is for all workers, who are the same user.
        pipes = PipePool(limit=MAX_PIPES // workers, large=MAX_LARGE // workers)
        relay = Relay(self.reactor, pipes=pipes, idle_s=IDLE_S)
        self.secure = Secure(self.reactor)
        asking = Asking(self.reactor, self.secure)
        self.pinning = Pinning(self.reactor, self.guests, self.send)
        self.resolving = Resolving(
            self.reactor, doorway.resolver_udp, doorway.resolver_tcp, self.guests, asking,
            self.pinning, self.tell,
        )  # fmt: skip
        lookup = Lookup(self.reactor, asking)
        files = most_files()
        self.datagrams = Datagrams(
            doorway, self.reactor, self.guests, self.tell, lookup.resolve, Limits.within(files)
        )
        means = Means(self.reactor, self.guests, relay, lookup.resolve, self.tell)
        # Two descriptors each: an eighth of what there may be is one guest's, at all workers.
        guest_flows = min(GUEST_FLOWS, files // 16) // workers
        self.relaying = Relaying(doorway, means, guest_flows=guest_flows)
        self.reactor.call_later(EXPIRE_S, self._expire)
        self.reactor.add(control.fileno(), self._on_control, select.EPOLLIN | select.EPOLLRDHUP)

    def run(self, uid: int, gid: int) -> None:
        """Give up rights and work until the daemon closes the control socket."""
        self.send(Ready(confinement=confine(uid, gid)))
        self._flush()  # the daemon waits for it, and no turn ends before the daemon has answered
        # What stands from the start is never garbage, and flows leave none behind in circles: with
        # thousands of them each look for such costs milliseconds in which nobody is served.
        gc.freeze()
        gc.set_threshold(GARBAGE_THRESHOLD)
        # Who has waited at the doors since a former worker ended must meet one that knows it.
        told = select.poll()
        told.register(self._control.fileno(), select.POLLIN)
        while not self._begun:
            told.poll()
            self._hear()
        self.reactor.run()

    def _expire(self) -> None:
        """Free what is past; nothing finds it any more."""
        self.guests.pins.expire(self.reactor.now())
        self.reactor.call_later(EXPIRE_S, self._expire)

    # -- orders ------------------------------------------------------------------------------

    def _on_control(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush()
        self._hear()

    def _hear(self) -> None:
        """Carry out what the daemon has told so far."""
        while True:
            try:
                data = self._control.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self._leave()
            *whole, self._heard = (self._heard + data).split(b"\n")
            for text in whole:
                self._obey(text)
            if len(self._heard) > MAX_LINE_BYTES:
                os._exit(1)

    def _leave(self) -> NoReturn:
        """The daemon is done, and nobody else could order anything.

        Flows are reset: the end of a process alone would close them in order, and half a download
        would look whole.
        """
        self._writing = True  # nobody reads what would be told
        for guest in self.guests.all():
            self.relaying.end_all(guest)
            self.datagrams.end_all(guest)
        os._exit(0)

    def _obey(self, text: bytes) -> None:
        order = read_order(text)
        match order:
            case SetGuest():
                guest = self.guests.set_guest(order)
                self.siblings.hear_again()
                self.relaying.recheck(guest)
                self.datagrams.recheck(guest)
            case ForgetGuest(guest=name):
                gone = self.guests.forget(name)
                if gone is not None:
                    self.relaying.end_all(gone)
                    self.datagrams.end_all(gone)
            case SetPlaces():
                self.guests.set_places(order)
                self.resolving.forget_answers()
            case SetNetwork():
                self.guests.set_network(order)
                self.secure.keep(self.guests.upstreams())
            case SetTrust(certificates=certificates):
                self.secure.trust(certificates)
                return
            case SetPeers(come=come, gone=gone):
                self.guests.peers.go(gone)
                self.guests.peers.come(come)
                return
            case PinsStand(sequence=sequence):
                self.pinning.stand(sequence)
                return
            case Begin():
                self._begun = True
                return
            case TellPins(worker=number):
                self.siblings.tell_all(number)
                return
            case Settle():
                pass  # what waits goes with the word that it is done
        self.send(Done(sequence=order.sequence))

    # -- reports -----------------------------------------------------------------------------

    def tell(self, decision: Decision) -> None:
        """Report a decision, or count it where the daemon does not keep up."""
        if len(self._unsent) > WAITING_BYTES:
            self._omitted += 1 + decision.omitted
            return
        if self._omitted:
            decision = replace(decision, omitted=decision.omitted + self._omitted)
            self._omitted = 0
        self._unsent += line(Decided(decision=decision))
        if not self._is_telling:
            self._is_telling = True
            self.reactor.call_later(TOLD_TOGETHER_S, self._tell_together)

    def _tell_together(self) -> None:
        self._is_telling = False
        self._end_of_turn()

    def send(self, message: Message) -> None:
        """Report, with what else is told this turn; what the socket does not take waits."""
        self._unsent += line(message)
        if not self._sending:
            self._sending = True
            self.reactor.call_soon(self._end_of_turn)

    def _end_of_turn(self) -> None:
        self._sending = False
        if not self._writing:
            self._flush()

    def _flush(self) -> None:
        while self._unsent:
            try:
                sent = self._control.send(self._unsent)
            except BlockingIOError:
                self._wait_to_write(True)
                return
            except OSError:
                os._exit(0)
            del self._unsent[:sent]
        self._wait_to_write(False)

    def _wait_to_write(self, wanted: bool) -> None:
        if wanted != self._writing:
            self._writing = wanted
            events = select.EPOLLIN | select.EPOLLRDHUP | (select.EPOLLOUT if wanted else 0)
            with suppress(KeyError):
                self.reactor.modify(self._control.fileno(), events)


def _report(error: BaseException) -> None:
    """One flow's or question's failure: the others go on."""
    logger.error("in the gateway", exc_info=error)
