"""Who knocks: guests' connections before anybody has answered them (`ruleset.knocking`)."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from ipaddress import IPv4Address, IPv6Address

from ..flow.reactor import Reactor
from ..flow.relay import close_by_reset
from ..flow.syn import Syn, read_syn
from ..kernel.packetlog import packets
from ..ruleset.names import DOOR_ADDRESSES
from .doorway import Doorway
from .problems import problem_of

Address = IPv4Address | IPv6Address
#: The end that a guest asked for; and after the guest's own end, both.
_Target = tuple[Address, int]
_Ends = tuple[tuple[str, int], _Target | None]

#: Heard of one group's, and let in, at a time before others get their turn.
HEARD_TURN, LET_IN_TURN = 16, 64
#: How long one that was let in may take to come: the kernel answers it a few times meanwhile.
COMING_S = 10.0
_MESSAGE_BYTES = 4096
#: linux/netfilter_ipv4.h, netfilter_ipv6/ip6_tables.h
_SO_ORIGINAL_DST = 80


class Knock:
    """One connection that somebody asks for; it ends by `let_in`, `refuse` or `fail`."""

    __slots__ = ("_door", "arrived", "syn", "until", "vanished")

    def __init__(self, door: Door, syn: Syn) -> None:
        self._door = door
        self.syn = syn
        #: Once it is let in: who is told of its connection, or that there came none, and by when.
        self.arrived: Callable[[socket.socket], None] | None = None
        self.vanished: Callable[[], None] | None = None
        self.until = 0.0

    def let_in(
        self, arrived: Callable[[socket.socket], None], vanished: Callable[[], None]
    ) -> None:
        """Have the kernel answer it. One of the two is called, unless it is refused before.

        Raises `OSError` if that cannot be sent.
        """
        self.arrived, self.vanished = arrived, vanished
        self._door.let_in(self)

    def refuse(self) -> None:
        """Tell the guest that nobody is there."""
        self._door.answer(self, self.syn.reset())

    def fail(self, error: OSError) -> None:
        """Tell the guest what became of it at the other end; if that is silent, nothing."""
        problem = problem_of(error, self.syn.address.version)
        if problem is not None:
            self._door.answer(self, self.syn.error(*problem))
        elif error.errno == errno.ETIMEDOUT:
            self._door.forget(self)  # it asks again, and gives up when it wants to
        else:
            self.refuse()


class Door:
    """A worker's: hears who knocks, and has it come in."""

    def __init__(self, doorway: Doorway, reactor: Reactor, begin: Callable[[Knock], None]) -> None:
        self._reactor = reactor
        self._begin = begin
        self._writers = {_version(each): each for each in doorway.porter}
        #: By the flow's ends.
        self._knocks: dict[bytes, Knock] = {}
        #: Those that are let in, and will come. A guest may use a port of its for several ends.
        self._coming: dict[_Ends, Knock] = {}
        self._is_looking = False
        for log in doorway.knocks:
            reactor.add(log.fileno(), partial(self._hear, log), select.EPOLLIN)
        self._doors = {_version(each): each for each in doorway.relay}
        for door in doorway.relay:
            reactor.add(door.fileno(), partial(self._accept, door), select.EPOLLIN)

    # -- who knocks --------------------------------------------------------------------------

    def _hear(self, log: socket.socket, _events: int = 0) -> None:
        heard_all = False
        try:
            heard_all = self._hear_some(log)
        finally:
            if not heard_all:
                self._reactor.go_on(self._hear, log)

    def _hear_some(self, log: socket.socket) -> bool:
        """Take as many as there are in a turn; whether that was all."""
        for _turn in range(HEARD_TURN):
            try:
                data = log.recv(_MESSAGE_BYTES)
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno in (errno.ENOBUFS, errno.EINTR):
                    continue  # some were lost, which guests repeat
                raise
            for packet in packets(data):
                syn = read_syn(packet)
                if syn is not None:
                    self._take(syn)
        return False

    def _take(self, syn: Syn) -> None:
        known = self._knocks.get(syn.ends)
        if known is not None:
            known.syn = syn  # it may have begun anew meanwhile
            return
        knock = self._knocks[syn.ends] = Knock(self, syn)
        self._begin(knock)

    def answer(self, knock: Knock, packet: bytes) -> None:
        """Tell the guest something, and be done."""
        self.forget(knock)
        with suppress(OSError):  # it asks again
            self._writers[knock.syn.address.version].sendto(packet, (knock.syn.guest, 0))

    def forget(self, knock: Knock) -> None:
        """Be done with one; a second call does nothing."""
        self._knocks.pop(knock.syn.ends, None)
        if knock.until:
            self._coming.pop(_ends(knock), None)

    # -- who comes in ------------------------------------------------------------------------

    def let_in(self, knock: Knock) -> None:
        """Send the guest's request to our own door."""
        version = knock.syn.address.version
        knock.until = self._reactor.now() + COMING_S
        self._coming[_ends(knock)] = knock
        try:
            self._writers[version].sendto(knock.syn.packet, (_DOORS[version], 0))
        except OSError:
            self.forget(knock)
            raise
        # A guest in a namespace has answered by now: that saves it a turn.
        self._reactor.go_on(self._accept, self._doors[version])
        if not self._is_looking:
            self._is_looking = True
            self._reactor.call_later(COMING_S, self._look)

    def _look(self) -> None:
        """Those that did not come are not waited for any longer."""
        now = self._reactor.now()
        for knock in [each for each in self._coming.values() if each.until <= now]:
            self.forget(knock)
            if knock.vanished is not None:
                self._reactor.call_soon(knock.vanished)
        self._is_looking = bool(self._coming)
        if self._is_looking:
            self._reactor.call_later(COMING_S / 4, self._look)

    def _accept(self, door: socket.socket, _events: int = 0) -> None:
        for _turn in range(LET_IN_TURN):
            try:
                client, source = door.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.ECONNABORTED, errno.EINTR):
                    continue
                # Out of descriptors or memory: what waits is tried again when some are free.
                self._reactor.call_later(0.1, partial(self._accept, door))
                return
            client.setblocking(False)  # accept4 could, but Python's does not
            target = original_destination(client)
            knock = self._coming.get((source[:2], target)) or self._renumbered(source[0], target)
            if knock is None or knock.arrived is None:
                close_by_reset(client)  # it was waited for in vain, or knocked at our own door
                continue
            self.forget(knock)
            knock.arrived(client)
        self._reactor.go_on(self._accept, door)

    def _renumbered(self, guest: str, target: _Target | None) -> Knock | None:
        """Who it is whose port the kernel changed, as another flow of the guest has it here."""
        for (end, wanted), knock in self._coming.items():
            if end[0] == guest and wanted == target:
                return knock
        return None


_DOORS = {version: str(address) for version, address in DOOR_ADDRESSES.items()}


def _ends(knock: Knock) -> _Ends:
    syn = knock.syn
    return (syn.guest, syn.guest_port), (syn.address, syn.port)


def _version(each: socket.socket) -> int:
    return 4 if each.family == socket.AF_INET else 6


def original_destination(client: socket.socket) -> _Target | None:
    """Where a connection was to go (SO_ORIGINAL_DST)."""
    try:
        if client.family == socket.AF_INET:
            return _endpoint(client.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, 16))
        return _endpoint(client.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, 28))
    except OSError:
        return None  # never redirected, or its entry is gone


@lru_cache(1024)
def _endpoint(raw: bytes) -> _Target:
    """A `struct sockaddr_in` or `sockaddr_in6`."""
    address = IPv4Address(raw[4:8]) if len(raw) == 16 else IPv6Address(raw[8:24])
    return address, int.from_bytes(raw[2:4], "big")
