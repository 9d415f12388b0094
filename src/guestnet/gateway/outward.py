"""A guest's endpoint as the world sees it: one socket, whatever number of peers it talks to.

So a mapping does not depend on the endpoint's peers (RFC 4787: endpoint-independent mapping), and
what comes in is taken only from peers that the endpoint has sent to (address and port-dependent
filtering), which is what a policy allows.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple, Protocol, Self

from ..flow.inward import ECHO_REQUEST, QUOTED_BYTES
from ..flow.reactor import Reactor
from ..kernel.mmsg import NAME_BYTES, SLOTS, Receiver, read_ancillary, socket_address
from .problems import Problem, is_no_way, no_way, read_problem, want_problems
from .segments import ancillary, can_send, gather, pieces, runs, size_in

#: linux/in.h, in6.h, socket.h
_MTU_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
_PMTUDISC_WANT, _PMTUDISC_DO = 1, 2
_MSG_ERRQUEUE = 0x2000
#: linux/if.h: IFNAMSIZ
_NAME_BYTES = 16
#: Errors read at a time, and room for what is said about each.
_ERRORS_TURN, _ANCILLARY_BYTES = 64, 256
_MAX_BYTES = 65535
#: Datagrams of an endpoint's peers that wait to be read, as far as net.core.rmem_max lets it have
#: them: twice what a socket has by default.
BUFFER_BYTES = 1024 * 1024

Address = IPv4Address | IPv6Address


class Peer(NamedTuple):
    """Somebody outside, as Python's sockets want it, and as the kernel says it."""

    to: tuple[str, int]
    source: bytes

    @classmethod
    def at(cls, address: Address, port: int) -> Self:
        """The peer at an address and port; a ping's port is 0."""
        return cls((str(address), port), socket_address(address, port))


_NOBODY = Peer(("", 0), b"")


class Hears(Protocol):
    """Whoever hears one peer."""

    def heard(self, datagrams: Sequence[memoryview]) -> None:
        """The peer's datagrams, or for pings its messages; they are gone with the return."""

    def failed(self, problem: Problem) -> None:
        """Something sent to the peer did not arrive."""


class Outward:
    """The outward socket of one endpoint. Raises `OSError` where the machine gives none."""

    __slots__ = (
        "_closed", "_egress", "_reactor", "_receiver", "_segments", "_socket", "_version",
        "is_ping", "peers",
    )  # fmt: skip

    def __init__(
        self,
        reactor: Reactor,
        receiver: Receiver,
        version: int,
        egress: tuple[str, ...],
        *,
        is_ping: bool,
        segments: bool,
    ) -> None:
        self._reactor = reactor
        self._receiver = receiver
        self._version = version
        self._egress = egress
        #: Whether the kernel takes several datagrams as one.
        self._segments = segments
        self.is_ping = is_ping
        #: By socket address as the kernel says it.
        self.peers: dict[bytes, Hears] = {}
        self._closed = False
        self._socket = self._open()

    def _open(self) -> socket.socket:
        low = self._version == 4
        protocol = socket.IPPROTO_UDP
        if self.is_ping:
            protocol = socket.IPPROTO_ICMP if low else socket.IPPROTO_ICMPV6
        family = socket.AF_INET if low else socket.AF_INET6
        made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, protocol)
        try:
            if not low:
                # An address that embeds an IPv4 one leads nowhere, rather than there.
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            want_problems(made, self._version)
            made.setsockopt(*_MTU_DISCOVER[self._version], _PMTUDISC_DO)
            if not self.is_ping:
                gather(made)
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            if len(self._egress) == 1:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._egress[0].encode())
            self._reactor.add(made.fileno(), self._on_event, select.EPOLLIN)
        except OSError:
            made.close()
            raise
        return made

    def close(self) -> None:
        """Close it; the next datagram of the endpoint gets another port."""
        self._closed = True
        self._reactor.remove(self._socket.fileno())
        self._socket.close()

    def leave_by(self, egress: tuple[str, ...]) -> None:
        """Go on by these interfaces, from another port; as before if there are none such."""
        self._egress = egress
        with suppress(OSError):
            renewed = self._open()
            self._reactor.remove(self._socket.fileno())
            self._socket.close()
            self._socket = renewed

    @property
    def egress(self) -> tuple[str, ...]:
        """The interfaces by which it sends, as it was told."""
        return self._egress

    def send(self, datagrams: Sequence[memoryview], peer: Peer, *, in_pieces: bool) -> int:
        """Send to a peer; returns the bytes that went, as far as is known now.

        `in_pieces`: the guest sent each as fragments, so it may go on as such. What it sent whole
        and is too large for the path comes back as a `Problem`, as its path MTU discovery wants.
        """
        if len(datagrams) == 1 or in_pieces or self.is_ping or not self._segments:
            return self._send_each(datagrams, peer, in_pieces)
        sent = 0
        for run in runs(datagrams):
            try:
                sent += self._socket.sendmsg(run, ancillary(len(run[0])), 0, peer.to)
            except BlockingIOError:
                pass  # the uplink does not keep up: lost, as they would be there
            except OSError:  # each by itself says what is wrong, or is not wrong by itself
                sent += self._send_each(run, peer, in_pieces)
            if self._closed:
                break
        return sent

    def _send_each(self, datagrams: Sequence[memoryview], peer: Peer, in_pieces: bool) -> int:
        sent = 0
        for each in datagrams:
            try:
                if self._send_one(each, peer, in_pieces):
                    sent += len(each)
            except OSError as error:
                self._tell_no_way(error, peer, each)
                break
            if self._closed:
                break
        return sent

    def _send_one(self, data: memoryview, peer: Peer, in_pieces: bool) -> bool:
        """Whether it was sent. Raises `OSError` where others would not be either."""
        wire: bytes | memoryview = data
        if self.is_ping:
            wire = struct.pack("!BBHH", ECHO_REQUEST[self._version], 0, 0, 0) + data
        for attempt in (1, 2):
            try:
                self._socket.sendto(wire, peer.to)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno == errno.EMSGSIZE and in_pieces:
                    self._hear_problems(_NOBODY)  # the guest is not to learn of it
                    return self._send_in_pieces(wire, peer)
                # An error about an earlier datagram comes in the way of this one, once.
                self._hear_problems(peer)
                if error.errno == errno.EMSGSIZE or self._closed:
                    return False
                if attempt == 2 and is_no_way(error):
                    raise
            else:
                return True
        return False

    def _send_in_pieces(self, data: bytes | memoryview, peer: Peer) -> bool:
        discover = _MTU_DISCOVER[self._version]
        self._socket.setsockopt(*discover, _PMTUDISC_WANT)
        try:
            self._socket.sendto(data, peer.to)
        except OSError:
            return False
        finally:
            self._socket.setsockopt(*discover, _PMTUDISC_DO)
        return True

    def _tell_no_way(self, error: OSError, peer: Peer, data: memoryview) -> None:
        """The machine has no way there now: the guest hears it as from any router.

        A way that is back is found by the next datagram, as no address is bound. A device is where
        guests leave by one: after it went away and came back it is another.
        """
        known = self.peers.get(peer.source)
        problem = no_way(error, self._version, bytes(data[:QUOTED_BYTES]))
        if self._closed or known is None or problem is None:
            return
        if not self._has_device():
            self.leave_by(self._egress)
        known.failed(problem)

    def _has_device(self) -> bool:
        """Whether the device that it is bound to, if any, is still there."""
        try:
            self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, _NAME_BYTES)
        except OSError:
            return False
        return True

    # -- hearing -----------------------------------------------------------------------------

    def _on_event(self, events: int) -> None:
        if events & select.EPOLLERR:
            self._hear_problems()
        self._hear()

    def _hear(self) -> None:
        if self._closed:
            return
        try:
            waiting = self._receiver.receive(self._socket.fileno())
        except OSError:
            self._hear_problems()
            self._reactor.go_on(self._hear)
            return
        name_bytes = NAME_BYTES[self._version]
        heard: dict[bytes, list[memoryview]] = {}
        for where, data in waiting:
            if where in heard:
                heard[where].append(data)
            elif len(where) == name_bytes:
                heard[where] = [data]
            else:
                size = size_in(read_ancillary(where[name_bytes:]))
                heard.setdefault(where[:name_bytes], []).extend(pieces(data, size))
        for source, datagrams in heard.items():
            known = self.peers.get(source)
            if known is not None:
                known.heard(datagrams)
        if len(waiting) == SLOTS:
            self._reactor.go_on(self._hear)

    def _hear_problems(self, sending_to: Peer | None = None) -> None:
        """Read the error queue; a local error does not always say which peer it is about."""
        for _turn in range(_ERRORS_TURN):
            if self._closed:
                return
            try:
                data, said, _flags, peer = self._socket.recvmsg(
                    _MAX_BYTES, _ANCILLARY_BYTES, _MSG_ERRQUEUE
                )
            except OSError:
                return
            problem = read_problem(self._version, said, data)
            if problem is None:
                continue
            about = Peer.at(ip_address(peer[0].partition("%")[0]), peer[1])
            if problem.is_local and sending_to is not None:
                about = sending_to
            known = self.peers.get(about.source)
            if known is not None:
                known.failed(problem)


class Outwards:
    """The outward sockets of all endpoints, by endpoint."""

    def __init__(self, reactor: Reactor, receivers: Mapping[int, Receiver]) -> None:
        self._reactor = reactor
        self._receivers = receivers
        self._segments = can_send()
        self._by_endpoint: dict[object, Outward] = {}

    def __len__(self) -> int:
        """Sockets at this moment."""
        return len(self._by_endpoint)

    def join(
        self, endpoint: object, version: int, egress: tuple[str, ...], *, is_ping: bool
    ) -> Outward:
        """The endpoint's socket, made where there is none yet. Raises `OSError`."""
        known = self._by_endpoint.get(endpoint)
        if known is None:
            known = Outward(
                self._reactor, self._receivers[version], version, egress,
                is_ping=is_ping, segments=self._segments,
            )  # fmt: skip
            self._by_endpoint[endpoint] = known
        return known

    def leave(self, endpoint: object, peer: Peer) -> None:
        """A peer is talked to no more; with the last one the socket goes."""
        known = self._by_endpoint.get(endpoint)
        if known is not None:
            known.peers.pop(peer.source, None)
            if not known.peers:
                del self._by_endpoint[endpoint]
                with suppress(KeyError, OSError):
                    known.close()
