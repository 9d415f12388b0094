"""Both ends of a big transfer, each way at once.

    python -m lab.transfer serve ADDRESS PORT BYTES      says "ready" when it listens
    python -m lab.transfer connect ADDRESS PORT BYTES

Each sends so many bytes that are like no others, ends, reads to the end, and says in JSON what it
sent and what it received, by digest. The digests are made of blocks that are numbered, so that one
that is lost, doubled or out of its turn shows.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass

BLOCK_BYTES = 1 << 20
#: Nothing came for so long: the transfer stands still.
STALL_S = 60.0


@dataclass
class Outcome:
    """What one end made of it."""

    sent: str = ""
    received: str = ""
    received_bytes: int = 0
    seconds: float = 0.0


def exchange(stream: socket.socket, size: int) -> Outcome:
    """Send `size` bytes and read to the end, both at once."""
    outcome, began = Outcome(), time.monotonic()
    sender = threading.Thread(target=_send, args=(stream, size, outcome))
    sender.start()
    _receive(stream, outcome)
    sender.join()
    outcome.seconds = time.monotonic() - began
    return outcome


def _send(stream: socket.socket, size: int, outcome: Outcome) -> None:
    digest, block = hashlib.sha256(), bytearray(os.urandom(BLOCK_BYTES))
    for number, start in enumerate(range(0, size, BLOCK_BYTES)):
        block[:8] = number.to_bytes(8, "big")
        piece = memoryview(block)[: size - start]
        digest.update(piece)
        stream.sendall(piece)
    stream.shutdown(socket.SHUT_WR)
    outcome.sent = digest.hexdigest()


def _receive(stream: socket.socket, outcome: Outcome) -> None:
    digest, room = hashlib.sha256(), memoryview(bytearray(BLOCK_BYTES))
    while count := stream.recv_into(room):
        digest.update(room[:count])
        outcome.received_bytes += count
    outcome.received = digest.hexdigest()


def main(what: str, address: str, port: str, size: str) -> None:
    """Be one end."""
    where = (address, int(port))
    if what == "serve":
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.create_server(where, family=family) as listener:
            print("ready", flush=True)
            stream, _address = listener.accept()
    else:
        stream = socket.create_connection(where, timeout=STALL_S)
    stream.settimeout(STALL_S)
    with stream:
        print(json.dumps(asdict(exchange(stream, int(size)))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
