"""The sockets at which guests' flows arrive. The daemon opens them and keeps them.

They outlive a gateway that crashed: what arrives in between waits in their queues.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from typing import Self

from ..errors import HostError
from ..ruleset import Doors

#: Connections that wait to be accepted, while the gateway is busy or being restarted.
BACKLOG = 4096
#: Ports tried until one is free for both families.
_ATTEMPTS = 16
#: linux/in.h, in6.h
_IP_PKTINFO, _IPV6_RECVPKTINFO = 8, 49


@dataclass(frozen=True, slots=True)
class Doorway:
    """Listening sockets: for each service one of IPv4, and one of IPv6 where the kernel has it."""

    relay: tuple[socket.socket, ...]
    resolver_udp: tuple[socket.socket, ...]
    resolver_tcp: tuple[socket.socket, ...]

    @classmethod
    def open(cls) -> Self:
        """Open them in the calling thread's namespace, on ports that the kernel chooses."""
        opened: list[tuple[socket.socket, ...]] = []
        try:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_STREAM):
                opened.append(_pair(kind))
        except BaseException:
            for sockets in opened:
                _close(sockets)
            raise
        return cls(*opened)

    @property
    def ports(self) -> Doors:
        """Where they listen."""
        return Doors(
            relay_tcp=self.relay[0].getsockname()[1],
            resolver_udp=self.resolver_udp[0].getsockname()[1],
            resolver_tcp=self.resolver_tcp[0].getsockname()[1],
        )

    @property
    def descriptors(self) -> dict[str, list[int]]:
        """Their numbers, for the process that they are handed to."""
        return {
            "relay": [each.fileno() for each in self.relay],
            "resolver_udp": [each.fileno() for each in self.resolver_udp],
            "resolver_tcp": [each.fileno() for each in self.resolver_tcp],
        }

    @classmethod
    def adopt(cls, descriptors: dict[str, list[int]]) -> Self:
        """The same sockets in the process that they were handed to."""
        return cls(
            *(
                tuple(socket.socket(fileno=number) for number in descriptors[name])
                for name in ("relay", "resolver_udp", "resolver_tcp")
            )
        )

    def close(self) -> None:
        """Close them."""
        for sockets in (self.relay, self.resolver_udp, self.resolver_tcp):
            _close(sockets)


def _close(sockets: tuple[socket.socket, ...]) -> None:
    for each in sockets:
        each.close()


def _pair(kind: int) -> tuple[socket.socket, ...]:
    """One port in both families."""
    for _attempt in range(_ATTEMPTS):
        low = _bound(socket.AF_INET, kind, 0)
        if not socket.has_ipv6:
            return (low,)
        try:
            return low, _bound(socket.AF_INET6, kind, low.getsockname()[1])
        except HostError as error:
            if error.errno == errno.EAFNOSUPPORT:
                return (low,)
            low.close()
            if error.errno != errno.EADDRINUSE:
                raise
    raise HostError("bind", "a port of both families", errno.EADDRINUSE)


def _bound(family: int, kind: int, port: int) -> socket.socket:
    word = f"{'[::]' if family == socket.AF_INET6 else '0.0.0.0'}:{port}"
    try:
        made = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise HostError.from_os("socket", word, error) from None
    try:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            made.bind(("", port))
            made.listen(BACKLOG)
        else:
            # An answer goes out from the address that was asked.
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
            else:
                made.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            made.bind(("", port))
    except OSError as error:
        made.close()
        raise HostError.from_os("bind", word, error) from None
    return made
