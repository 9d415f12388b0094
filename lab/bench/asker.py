"""Ask one question after the other: `python -m lab.bench.asker RESOLVER SUFFIX SECONDS [FIRST]`.

With the number of the first name every name is new, without one they are a few that come again.
What each answer took is said as JSON.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import sys
import time

from .contenders import ZONES
from .table import percentile

_PORT = 53
_PATIENCE_S = 2.0
_NAMES = 50
_A, _IN, _RECURSE = 1, 1, 0x0100


def question(number: int, name: str) -> bytes:
    """A query for an address (RFC 1035 section 4.1)."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack("!6H", number, _RECURSE, 1, 0, 0, 0) + labels + struct.pack("!xHH", _A, _IN)


def ask(resolver: str, suffix: str, seconds: float, first: int | None) -> dict[str, float]:
    """Seconds that answers took, at the median and at p99."""
    took: list[float] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(_PATIENCE_S)
        sock.connect((resolver, _PORT))
        begin = last = time.perf_counter()
        while last - begin < seconds:
            turn = len(took)
            name = f"n{turn % _NAMES}" if first is None else f"m{first + turn}.z{turn % ZONES}"
            wire = question(random.getrandbits(16), f"{name}.{suffix}")
            last = time.perf_counter()
            sock.send(wire)
            answer = sock.recv(4096)
            now = time.perf_counter()
            if answer[:2] != wire[:2] or answer[3] & 0xF:
                raise ConnectionError(f"{name}: not its answer")
            took.append(now - last)
            last = now
    return {"p50_s": percentile(took, 50), "p99_s": percentile(took, 99)}


if __name__ == "__main__":
    first = int(sys.argv[4]) if sys.argv[4:] and sys.argv[4] else None
    print(json.dumps(ask(sys.argv[1], sys.argv[2], float(sys.argv[3]), first)))
