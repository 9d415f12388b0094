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
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from ..flow.inward import ECHO_REQUEST, TOO_BIG
from ..flow.reactor import Reactor

#: linux/in.h, in6.h, errqueue.h
_IP_MTU_DISCOVER, _IP_RECVERR, _IPV6_MTU_DISCOVER, _IPV6_RECVERR = 10, 11, 23, 25
_PMTUDISC_WANT, _PMTUDISC_DO = 1, 2
_MSG_ERRQUEUE = 0x2000
_EXTENDED_ERROR = struct.Struct("=IBBBBII")
_ORIGIN_LOCAL, _ORIGIN_ICMP, _ORIGIN_ICMP6 = 1, 2, 3
#: Errors read at a time, and room for what is said about each.
_ERRORS_TURN, _ANCILLARY_BYTES = 64, 256
#: Datagrams read at a time before others get their turn.
TURN = 64
_MAX_BYTES = 65535

Peer = tuple[str, int]
_NOBODY: Peer = ("", 0)


@dataclass(frozen=True, slots=True)
class Problem:
    """An error about what was sent to a peer, as ICMP puts it."""

    kind: int
    code: int
    #: The MTU, where that is the problem.
    info: int
    #: The payload it is about, or its beginning.
    about: bytes
    #: Whether this machine said it, and nobody on the way.
    is_local: bool = False


class Hears(Protocol):
    """Whoever hears one peer."""

    def heard(self, data: bytes) -> None:
        """The peer's datagram, or for pings its message."""

    def failed(self, problem: Problem) -> None:
        """Something sent to the peer did not arrive."""


class Outward:
    """The outward socket of one endpoint. Raises `OSError` where the machine gives none."""

    __slots__ = ("_closed", "_reactor", "_socket", "_version", "is_ping", "peers")

    def __init__(
        self, reactor: Reactor, version: int, egress: tuple[str, ...], *, is_ping: bool
    ) -> None:
        self._reactor = reactor
        self._version = version
        self.is_ping = is_ping
        #: By address and port as a socket tells them; a ping's port is 0.
        self.peers: dict[Peer, Hears] = {}
        self._closed = False
        family, protocol = socket.AF_INET, socket.IPPROTO_ICMP if is_ping else 0
        if version == 6:
            family, protocol = socket.AF_INET6, socket.IPPROTO_ICMPV6 if is_ping else 0
        made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, protocol)
        try:
            if version == 6:
                # An address that embeds an IPv4 one leads nowhere, rather than there.
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            level, recverr, _discover = self._options()
            made.setsockopt(level, recverr, 1)
            self._socket = made
            self._discover(_PMTUDISC_DO)
            if len(egress) == 1:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, egress[0].encode())
            reactor.add(made.fileno(), self._on_event, select.EPOLLIN)
        except OSError:
            made.close()
            raise

    def close(self) -> None:
        """Close it; the next datagram of the endpoint gets another port."""
        self._closed = True
        self._reactor.remove(self._socket.fileno())
        self._socket.close()

    def send(self, data: bytes | memoryview, peer: Peer, *, in_pieces: bool) -> bool:
        """Send to a peer; False if it could not be sent.

        `in_pieces`: the guest sent it as fragments, so it may go on as such. What it sent whole and
        is too large for the path comes back as a `Problem`, as its path MTU discovery wants.
        """
        if self.is_ping:
            data = struct.pack("!BBHH", ECHO_REQUEST[self._version], 0, 0, 0) + bytes(data)
        for attempt in (1, 2):
            try:
                self._socket.sendto(data, peer)
            except BlockingIOError:
                return False  # the uplink does not keep up: it is lost, as it would be there
            except OSError as error:
                if error.errno == errno.EMSGSIZE and in_pieces:
                    self._hear_problems(_NOBODY)  # the guest is not to learn of it
                    return self._send_in_pieces(data, peer)
                # An error about an earlier datagram comes in the way of this one, once.
                self._hear_problems(peer)
                if error.errno == errno.EMSGSIZE or attempt == 2 or self._closed:
                    return False
            else:
                return True
        return False

    def _send_in_pieces(self, data: bytes | memoryview, peer: Peer) -> bool:
        self._discover(_PMTUDISC_WANT)
        try:
            self._socket.sendto(data, peer)
        except OSError:
            return False
        finally:
            self._discover(_PMTUDISC_DO)
        return True

    def _options(self) -> tuple[int, int, int]:
        if self._version == 4:
            return socket.IPPROTO_IP, _IP_RECVERR, _IP_MTU_DISCOVER
        return socket.IPPROTO_IPV6, _IPV6_RECVERR, _IPV6_MTU_DISCOVER

    def _discover(self, how: int) -> None:
        level, _recverr, discover = self._options()
        self._socket.setsockopt(level, discover, how)

    # -- hearing -----------------------------------------------------------------------------

    def _on_event(self, events: int) -> None:
        if events & select.EPOLLERR:
            self._hear_problems()
        self._hear()

    def _hear(self) -> None:
        peers, receive = self.peers, self._socket.recvfrom
        for _turn in range(TURN):
            if self._closed:
                return
            try:
                data, source = receive(_MAX_BYTES)
            except BlockingIOError:
                return
            except OSError:
                self._hear_problems()
                continue
            known = peers.get(source[:2])
            if known is not None:
                known.heard(data)
        self._reactor.call_soon(self._hear)

    def _hear_problems(self, sending_to: Peer | None = None) -> None:
        """Read the error queue; a local error does not always say which peer it is about."""
        for _turn in range(_ERRORS_TURN):
            if self._closed:
                return
            try:
                data, ancillary, _flags, peer = self._socket.recvmsg(
                    _MAX_BYTES, _ANCILLARY_BYTES, _MSG_ERRQUEUE
                )
            except OSError:
                return
            problem = self._problem(ancillary, data)
            if problem is None:
                continue
            known = self.peers.get(sending_to if problem.is_local and sending_to else peer[:2])
            if known is not None:
                known.failed(problem)

    def _problem(self, ancillary: list[tuple[int, int, bytes]], data: bytes) -> Problem | None:
        level, recverr, _discover = self._options()
        for at, kind, said in ancillary:
            if at == level and kind == recverr and len(said) >= _EXTENDED_ERROR.size:
                number, origin, icmp_type, code, _pad, info, _data = _EXTENDED_ERROR.unpack_from(
                    said
                )
                if origin == _ORIGIN_LOCAL and number == errno.EMSGSIZE:
                    return Problem(*TOO_BIG[self._version], info, data, is_local=True)
                if origin in (_ORIGIN_ICMP, _ORIGIN_ICMP6):
                    mtu = info if number == errno.EMSGSIZE else 0
                    return Problem(icmp_type, code, mtu, data)
        return None


class Outwards:
    """The outward sockets of all endpoints, by endpoint."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._by_endpoint: dict[object, Outward] = {}

    def join(
        self, endpoint: object, version: int, egress: tuple[str, ...], *, is_ping: bool
    ) -> Outward:
        """The endpoint's socket, made where there is none yet. Raises `OSError`."""
        known = self._by_endpoint.get(endpoint)
        if known is None:
            known = Outward(self._reactor, version, egress, is_ping=is_ping)
            self._by_endpoint[endpoint] = known
        return known

    def leave(self, endpoint: object, peer: Peer) -> None:
        """A peer is talked to no more; with the last one the socket goes."""
        known = self._by_endpoint.get(endpoint)
        if known is not None:
            known.peers.pop(peer, None)
            if not known.peers:
                del self._by_endpoint[endpoint]
                with suppress(KeyError, OSError):
                    known.close()
