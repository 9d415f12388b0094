"""What workers tell each other: pins, before the guest has the answer that they are of.

A guest's question is answered by one worker, and the connection that follows may arrive at another.
So whoever learns a pin puts it into its siblings' inboxes before it answers, and everybody empties
its own inbox before pins decide: then nobody has to wait for anybody.

The inboxes are opened and kept by the daemon, like the doors. A sibling that does not empty its
inbox (it is stopped, dead or slow) holds nobody up: answers go out, and it is told as soon as there
is room. Until then it resolves for itself names that clients speak, and refuses what pins alone
decide. When one ends, the others tell whoever comes in its place everything once more.

Siblings read guests' bytes as well, so what they tell opens no more here than what is resolved
here: public addresses, such as the guest's policy opens by address, and synthetic ones.
"""

from __future__ import annotations

import logging
import select
import socket
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

from ..flow.reactor import Reactor
from .guests import Guest, Guests
from .messages import Pinned, line, read_pinned

logger = logging.getLogger(__name__)

#: Bytes of a packet: 64 addresses and times take about 5,000.
MAX_PACKET_BYTES = 16 * 1024
#: Names that wait for room in one sibling's inbox; the oldest go.
WAITING = 65536
#: How long until a full inbox is tried again.
RETRY_S = 0.05
#: Packets taken before others get their turn.
TURN = 4096
#: Packets kept of guests that only the sibling has been told of yet; the oldest go.
EARLY = 1024


@dataclass(slots=True)
class _Sibling:
    writer: socket.socket
    #: (guest, name) that there was no room for, in order.
    waiting: dict[tuple[str, str], None] = field(default_factory=dict)


class Siblings:
    """The other workers, by their numbers; one that works alone has none, and no inbox."""

    def __init__(
        self,
        reactor: Reactor,
        guests: Guests,
        inbox: socket.socket | None,
        writers: dict[int, socket.socket],
    ) -> None:
        self._reactor = reactor
        self._guests = guests
        self._inbox = inbox
        self._siblings = {number: _Sibling(writer) for number, writer in writers.items()}
        self._is_trying_later = False
        #: Of guests that are not known here.
        self._early: deque[Pinned] = deque(maxlen=EARLY)
        #: Packets that were none, or told what siblings may not tell.
        self.wrong = 0
        guests.hear_siblings, guests.tell_siblings = self.hear, self.tell
        if inbox is not None:
            reactor.add(inbox.fileno(), lambda _events: self.hear(), select.EPOLLIN)

    # -- telling -----------------------------------------------------------------------------

    def tell(self, guest: Guest, name: str) -> None:
        """Put what a guest is about to be told into all inboxes; one that is full gets it later."""
        if not self._siblings:
            return
        packet = self._packet(guest, name)
        for sibling in self._siblings.values():
            # What waits is put together when there is room: its order is of no matter.
            if packet is not None and not _put(sibling, packet):
                self._later(sibling, guest.id, name)

    def tell_all(self, number: int) -> None:
        """A sibling has ended: tell its successor of all pins, as the inbox has room."""
        sibling = self._siblings.get(number)
        if sibling is not None:
            for guest, name in self._guests.pins.all():
                self._later(sibling, guest, name)

    def _packet(self, guest: Guest, name: str) -> bytes | None:
        addresses = self._guests.pins.promised(guest.id, name, self._reactor.now())
        if not addresses:
            return None  # past, or pushed out
        return line(Pinned(stay=guest.stay, name=name, addresses=addresses))

    def _later(self, sibling: _Sibling, guest: str, name: str) -> None:
        sibling.waiting[guest, name] = None
        if len(sibling.waiting) > WAITING:
            del sibling.waiting[next(iter(sibling.waiting))]
        if not self._is_trying_later:
            self._is_trying_later = True
            self._reactor.call_later(RETRY_S, self._try_again)

    def _try_again(self) -> None:
        self._is_trying_later = False
        for sibling in self._siblings.values():
            while sibling.waiting:
                key = next(iter(sibling.waiting))
                guest = self._guests.get(key[0])
                packet = None if guest is None else self._packet(guest, key[1])
                if packet is not None and not _put(sibling, packet):
                    self._later(sibling, *key)
                    break
                del sibling.waiting[key]

    # -- hearing -----------------------------------------------------------------------------

    def hear(self) -> None:
        """Empty the inbox: whatever a guest was told before now is known then."""
        if self._inbox is None:
            return
        for _turn in range(TURN):
            try:
                packet = self._inbox.recv(MAX_PACKET_BYTES)
            except BlockingIOError:
                return
            if not packet:
                return  # a sibling has shut it: its pins stay unknown here
            try:
                self._learn(read_pinned(packet))
            except ValueError as error:
                self.wrong += 1
                if self.wrong == 1:  # once: whoever sends one may send many
                    logger.warning("a sibling tells what cannot be: %s", error)
        self._reactor.go_on(self.hear)

    def hear_again(self) -> None:
        """A guest has come: what was told of it may have been heard before."""
        early, self._early = self._early, deque(maxlen=EARLY)
        for told in early:
            with suppress(ValueError):
                self._learn(told)

    def _learn(self, told: Pinned) -> None:
        guest = self._guests.staying(told.stay)
        if guest is None:
            self._early.append(told)  # it is gone, or we have not been told of it yet
            return
        for address, _until in told.addresses:
            if not self._guests.may_lead(guest, address):
                raise ValueError(f"{told.name[:255]!r} of {guest.id!r} at {address}")
        self._guests.pins.learn(guest.id, told.name, told.addresses, self._reactor.now())


def _put(sibling: _Sibling, packet: bytes) -> bool:
    """Whether it was put there."""
    try:
        sibling.writer.send(packet)
    except OSError:
        return False
    return True
