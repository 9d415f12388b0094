"""New TCP connections a second: one process accepts, another connects and closes, both bounded.

    python -m lab.bench.connections serve ADDRESS
    python -m lab.bench.connections connect ADDRESS SECONDS

The client closes by reset (SO_LINGER 0), so that no port waits in TIME_WAIT, and takes turns with
several server ports, so that a port pair comes back only when the NAT has forgotten it.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import sys
import time

PORTS = range(7000, 7008)
_LINGER_RESET = struct.pack("ii", 1, 0)
_BACKLOG = 1024
#: Connections between two looks at the clock.
_BURST = len(PORTS) * 4


def serve(address: str) -> None:
    """Accept and close until the standard input ends; "ready" says that all ports listen."""
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for port in PORTS:
            listener = stack.enter_context(socket.create_server((address, port), backlog=_BACKLOG))
            listener.setblocking(False)
            selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for key, _events in selector.select():
                if key.fileobj is sys.stdin:
                    return
                with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
                    key.fileobj.accept()[0].close()  # type: ignore[union-attr]


def connect(address: str, seconds: float) -> float:
    """Connect and reset for so long; returns connections a second."""
    targets = [(address, port) for port in PORTS]
    done = 0
    begin = time.perf_counter()
    while (now := time.perf_counter()) - begin < seconds:
        for turn in range(_BURST):
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
                sock.connect(targets[turn % len(targets)])
        done += _BURST
    return done / (now - begin)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        print(connect(sys.argv[2], float(sys.argv[3])))
