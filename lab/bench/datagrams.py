"""Datagrams at a set rate, and what of them arrives: the far end's part and the guest's.

What is counted is zeros. The rest is JSON: questions what the far end has counted of a peer, and
has sent to it; one with a size, a rate and seconds has it send first. A question or its answer may
get lost, so it is asked again; its number, which no other has, says whether what it wants was done
already. A sender does not wait where it would have to: what is not taken at once is lost.
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
#: A question is asked again after so long a silence, and for so long.
_AGAIN_S, _PATIENCE_S = 0.2, 10.0


@dataclass
class Tally:
    """What the far end knows of one peer."""

    arrived: int = 0
    #: What it was sent, and the question that wanted it.
    offered: int = 0
    took_s: float = 0.0
    wanted: int = 0


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
                number = asked.pop("number")
                if asked and tally.wanted != number:
                    tally.offered, tally.took_s = _send(sock, peer, **asked)
                    tally.wanted = number
                answer = {"number": number, "tally": asdict(tally)}
                with suppress(OSError):
                    sock.sendto(json.dumps(answer).encode(), peer)


def out(address: str, size: int, rate: float, seconds: float) -> dict[str, float]:
    """From here to the far end: how many a second were offered, and arrived."""
    with open_socket() as sock:
        peer = (address, DATAGRAMS)
        before, _ = _ask(sock, peer)
        offered, took_s = _send(sock, peer, size, rate, seconds)
        after, _ = _ask(sock, peer)
        return _rates(after.arrived - before.arrived, offered, took_s)


def back(address: str, size: int, rate: float, seconds: float) -> dict[str, float]:
    """The same from the far end to here."""
    with open_socket() as sock:
        peer = (address, DATAGRAMS)
        _ask(sock, peer)
        tally, arrived = _ask(sock, peer, size=size, rate=rate, seconds=seconds)
        return _rates(arrived, tally.offered, tally.took_s)


def _rates(arrived: int, offered: int, took_s: float) -> dict[str, float]:
    if not offered:
        raise TimeoutError("there was no time to send a datagram")
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


def _ask(sock: socket.socket, peer: Any, **wanted: float) -> tuple[Tally, int]:
    """The answer to a question, and how many datagrams of zeros came before it.

    It takes the same way as they do, so none comes after it.
    """
    zeros, number = 0, time.monotonic_ns()
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        sock.sendto(json.dumps({"number": number, **wanted}).encode(), peer)
        while select.select([sock], [], [], _AGAIN_S)[0]:
            data = sock.recv(_LARGEST)
            if not data[0]:
                zeros += 1
                continue
            answer = json.loads(data)
            if answer["number"] == number:
                return Tally(**answer["tally"]), zeros
    raise TimeoutError("the far end does not answer datagrams")
