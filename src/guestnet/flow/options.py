"""Socket options of relayed connections, apart for those who only open doors."""

from __future__ import annotations

import socket

#: A silent peer is asked after a minute, and lost after another: before most NATs forget it.
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 60, 15, 4


def prepare(each: socket.socket) -> None:
    """Small writes go at once, urgent bytes stay where they were sent."""
    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    each.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


def keep_alive(each: socket.socket) -> None:
    """A server that died is noticed. A guest is not asked: one that is paused keeps its flows."""
    each.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
