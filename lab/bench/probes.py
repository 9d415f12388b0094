"""What a guest does: `python -m lab.bench.probes WHAT ADDRESS …`, JSON comes out.

    connect ADDRESS SECONDS AT_A_TIME   connections a second, and what each took
    exchange ADDRESS SECONDS            what each exchange on one connection took
    share ADDRESS SECONDS FLOWS         bytes that each of so many flows got
    hold ADDRESS FLOWS                  for each line of input so many idle flows more
    out ADDRESS SECONDS SIZE RATE       datagrams a second that were offered and that arrived
    back ADDRESS SECONDS SIZE RATE      the same from the far end to the guest

Connections end by reset (SO_LINGER 0), so that no port waits in TIME_WAIT.
"""

from __future__ import annotations

import itertools
import json
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from . import datagrams, limits
from .ends import ECHO, HELLO, SOURCE
from .table import percentile

_LINGER_RESET = struct.pack("ii", 1, 0)
_PATIENCE_S = 5.0
_REQUEST = b"x" * 64
#: A window that a thousand flows may have at once without filling the machine's memory.
_SHARE_BYTES = 64 * 1024


def connect(address: str, seconds: float, at_a_time: int) -> dict[str, float]:
    """Connect, read the far end's byte, reset, again; `at_a_time` of them are under way."""
    targets = itertools.cycle([(address, port) for port in HELLO])
    if at_a_time == 1:
        return _one_by_one(targets, seconds)
    return _together(targets, seconds, at_a_time)


def _one_by_one(targets: Iterator[tuple[str, int]], seconds: float) -> dict[str, float]:
    took = []
    begin = last = time.perf_counter()
    while last - begin < seconds:
        with _resetting() as sock:
            sock.settimeout(_PATIENCE_S)
            sock.connect(next(targets))
            if sock.recv(1) != b"k":
                raise ConnectionError("not the far end's byte")
        now = time.perf_counter()
        took.append(now - last)
        last = now
    return _times(took, last - begin)


def _together(targets: Iterator[tuple[str, int]], seconds: float, width: int) -> dict[str, float]:
    poll = select.epoll()
    under_way: dict[int, tuple[socket.socket, float]] = {}

    def start() -> None:
        sock = _resetting()
        sock.setblocking(False)
        with suppress(BlockingIOError):
            sock.connect(next(targets))
        poll.register(sock.fileno(), select.EPOLLIN)
        under_way[sock.fileno()] = (sock, time.perf_counter())

    took = []
    begin = now = time.perf_counter()
    for _ in range(width):
        start()
    while now - begin < seconds:
        ready = poll.poll(_PATIENCE_S)
        if not ready:
            raise TimeoutError("no connection came about")
        for number, _events in ready:
            sock, since = under_way.pop(number)
            if sock.recv(1) != b"k":
                raise ConnectionError("not the far end's byte")
            now = time.perf_counter()
            took.append(now - since)
            sock.close()
            start()
    for sock, _since in under_way.values():
        sock.close()
    return _times(took, now - begin)


def exchange(address: str, seconds: float) -> dict[str, float]:
    """Send 64 bytes, wait until all are back, again."""
    took = []
    with _echoing(address) as sock:
        begin = last = time.perf_counter()
        while last - begin < seconds:
            sock.sendall(_REQUEST)
            sock.recv(len(_REQUEST), socket.MSG_WAITALL)
            now = time.perf_counter()
            took.append(now - last)
            last = now
    return _times(took, last - begin)


def share(address: str, seconds: float, flows: int) -> dict[str, float]:
    """Open all, start all, then count what each gets: Jain's index, and all bytes a second."""
    poll = select.epoll()
    socks: dict[int, socket.socket] = {}
    for _ in range(flows):
        sock = _resetting()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SHARE_BYTES)
        sock.settimeout(_PATIENCE_S)
        sock.connect((address, SOURCE))
        sock.setblocking(False)
        socks[sock.fileno()] = sock
        poll.register(sock.fileno(), select.EPOLLIN)
    for sock in socks.values():
        sock.send(b"!")
    got = dict.fromkeys(socks, 0)
    scratch = bytearray(_SHARE_BYTES)
    begin = now = time.perf_counter()
    while (now := time.perf_counter()) - begin < seconds:
        for number, _events in poll.poll(seconds, flows):
            with suppress(BlockingIOError):
                got[number] += socks[number].recv_into(scratch)
    for sock in socks.values():
        sock.close()
    total = sum(got.values())
    index = total**2 / (flows * sum(each**2 for each in got.values())) if total else 0.0
    starved = sum(not each for each in got.values())
    return {"jain": index, "bytes_per_s": total / (now - begin), "starved": starved}


def hold(address: str, flows: int) -> None:
    """Open so many after each line of input, and say how many there are; all end with the input."""
    held: list[socket.socket] = []
    for _line in sys.stdin:
        held += [_echoing(address) for _ in range(flows)]
        print(json.dumps({"held": len(held)}), flush=True)
    for sock in held:
        sock.close()


def _echoing(address: str) -> socket.socket:
    """A connection on which one exchange has been."""
    sock = _resetting()
    sock.settimeout(_PATIENCE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.connect((address, ECHO))
    sock.sendall(_REQUEST)
    if sock.recv(len(_REQUEST), socket.MSG_WAITALL) != _REQUEST:
        raise ConnectionError("not what was sent")
    return sock


def _resetting() -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    return sock


def _times(took: list[float], seconds: float) -> dict[str, float]:
    return {
        "per_s": len(took) / seconds,
        "p50_s": percentile(took, 50),
        "p99_s": percentile(took, 99),
    }


def main(what: str, address: str, *rest: str) -> None:
    """Do one of them, and say what came of it."""
    limits.many_descriptors()
    if what == "hold":
        hold(address, int(rest[0]))
        return
    probes: dict[str, Callable[[], dict[str, float]]] = {
        "connect": lambda: connect(address, float(rest[0]), int(rest[1])),
        "exchange": lambda: exchange(address, float(rest[0])),
        "share": lambda: share(address, float(rest[0]), int(rest[1])),
        "out": lambda: datagrams.out(address, int(rest[1]), float(rest[2]), float(rest[0])),
        "back": lambda: datagrams.back(address, int(rest[1]), float(rest[2]), float(rest[0])),
    }
    print(json.dumps(probes[what]()))


if __name__ == "__main__":
    main(*sys.argv[1:])
