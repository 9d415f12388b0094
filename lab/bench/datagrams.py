"""Datagrams at a set rate, and what of them arrives: the far end's part and the guest's.

What is counted is zeros. The rest is JSON: an order that the far end send so many back, and
questions what it has counted and sent so far. Those may get lost, so they are asked again. A sender
does not wait where it would have to: what is not taken at once is lost.
"""

from __future__ import annotations

import json
import select
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

#: The far end's port.
DATAGRAMS = 7022
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_BUFFER_BYTES = 4 << 20
_LARGEST = 64 << 10
#: Between two looks at the clock, and to sleep where none is due.
_BURST, _NAP_S = 64, 0.0001
#: After so long a silence nothing more comes.
_QUIET_S = 0.3
_AGAIN_S, _PATIENCE_S = 0.2, 8.0


@dataclass
class Tally:
    """What the far end knows of one peer."""

    arrived: int = 0
    offered: int = 0
    took_s: float = 0.0


def open_socket() -> socket.socket:
    """One whose own queue is not what loses datagrams; it takes root."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
    sock.setblocking(False)
    return sock


class FarEnd:
    """Counts, sends and answers; `serve` is to be called when its socket has something."""

    def __init__(self) -> None:
        self._tallies: dict[Any, Tally] = {}

    def serve(self, sock: socket.socket) -> None:
        """Take some of what has come. What is to be sent is sent at once, and all of it."""
        with suppress(BlockingIOError):
            for _ in range(_BURST):
                data, peer = sock.recvfrom(_LARGEST)
                tally = self._tallies.setdefault(peer, Tally())
                if not data[0]:
                    tally.arrived += 1
                    continue
                asked = json.loads(data)
                if "turn" in asked:
                    with suppress(OSError):
                        sock.sendto(json.dumps(asked | asdict(tally)).encode(), peer)
                else:
                    tally.offered, tally.took_s = _send(sock, peer, **asked)


def out(address: str, size: int, rate: float, seconds: float) -> dict[str, float]:
    """From here to the far end: how many a second were offered, and arrived."""
    with open_socket() as sock:
        peer = (address, DATAGRAMS)
        _ask(sock, peer, 0)
        offered, took_s = _send(sock, peer, size, rate, seconds)
        time.sleep(_QUIET_S)
        return _rates(_ask(sock, peer, 1).arrived, offered, took_s)


def back(address: str, size: int, rate: float, seconds: float) -> dict[str, float]:
    """The same from the far end to here."""
    with open_socket() as sock:
        peer = (address, DATAGRAMS)
        _ask(sock, peer, 0)
        order = {"size": size, "rate": rate, "seconds": seconds}
        sock.sendto(json.dumps(order).encode(), peer)
        arrived = _count(sock)
        tally = _ask(sock, peer, 1)
        return _rates(arrived, tally.offered, tally.took_s)


def _rates(arrived: int, offered: int, took_s: float) -> dict[str, float]:
    if not offered:
        raise TimeoutError("the far end was not told to send")
    return {
        "arrived": arrived,
        "offered_per_s": offered / took_s,
        "arrived_per_s": arrived / took_s,
        "lost": 1 - arrived / offered,
    }


def _send(
    sock: socket.socket, peer: Any, size: int, rate: float, seconds: float
) -> tuple[int, float]:
    """At an even rate, as far as the processor is to be had; returns how many, in how long."""
    payload = bytes(size)
    offered = 0
    begin = time.perf_counter()
    while (spent := time.perf_counter() - begin) < seconds:
        due = min(int(spent * rate) - offered, _BURST)
        if due <= 0:
            time.sleep(_NAP_S)
        for _ in range(due):
            with suppress(BlockingIOError):
                sock.sendto(payload, peer)
        offered += max(due, 0)
    return offered, spent


def _count(sock: socket.socket) -> int:
    """Datagrams of zeros until none comes for a while, the first within patience."""
    arrived, wait_s = 0, _PATIENCE_S
    scratch = bytearray(_LARGEST)
    while select.select([sock], [], [], wait_s)[0]:
        wait_s = _QUIET_S
        with suppress(BlockingIOError):
            while True:
                sock.recv_into(scratch)
                arrived += not scratch[0]
    return arrived


def _ask(sock: socket.socket, peer: Any, turn: int) -> Tally:
    """What the far end has counted and sent; `turn` tells an answer from a former one."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        sock.sendto(json.dumps({"turn": turn}).encode(), peer)
        if not select.select([sock], [], [], _AGAIN_S)[0]:
            continue
        answer = json.loads(sock.recv(_LARGEST))
        if answer.pop("turn") == turn:
            return Tally(**answer)
    raise TimeoutError("the far end does not answer datagrams")
