"""A VMM's end of a TAP or of a transport, as fast as Python goes: `python -m lab.bench.vmmend`.

Sends one frame again and again, or receives, for some seconds; prints how many frames that was.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time
from contextlib import suppress

from guestnet.frames.framing import FrameRules, StreamReader
from guestnet.frames.transport import Kind, Transport
from guestnet.kernel.tap import Tap

_LENGTH = struct.Struct("!I")
#: Frames that one call sends on a stream.
_BATCH = 64


def main() -> None:
    """Do what the one argument says."""
    order = json.loads(sys.argv[1])
    frame, end = bytes.fromhex(order["frame"]), time.monotonic() + order["seconds"]
    if order["tap"] is not None:
        with Tap.open(order["tap"], existing="require", vnet_hdr=order["vnet_hdr"]) as tap:
            print(_tap(tap.queues[0], frame, end, sends=order["sends"]), flush=True)
        return
    transport = Transport.parse(order["transport"])
    dgram = transport.kind is Kind.DGRAM
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM if dgram else socket.SOCK_STREAM) as line:
        if dgram:
            line.bind(transport.peer_path)
        line.connect(transport.path)
        line.settimeout(0.5)
        work = _dgram if dgram else _stream
        print(work(line, frame, end, sends=order["sends"]), flush=True)
    if dgram:
        os.unlink(transport.peer_path)


def _tap(fd: int, frame: bytes, end: float, *, sends: bool) -> int:
    os.set_blocking(fd, True)
    count = 0
    while time.monotonic() < end:
        for _ in range(_BATCH):
            if sends:
                os.write(fd, frame)
            else:
                os.read(fd, 70_000)
        count += _BATCH
    return count


def _dgram(line: socket.socket, frame: bytes, end: float, *, sends: bool) -> int:
    count = 0
    line.send(b"VFKT")
    line.settimeout(None)
    while time.monotonic() < end:
        for _ in range(_BATCH):
            if sends:
                line.send(frame)
            else:
                line.recv(70_000)
        count += _BATCH
    return count


def _stream(line: socket.socket, frame: bytes, end: float, *, sends: bool) -> int:
    count, batch = 0, (_LENGTH.pack(len(frame)) + frame) * _BATCH
    reader = StreamReader(FrameRules(1500, vnet_hdr=True))
    while time.monotonic() < end:
        if sends:
            line.sendall(batch)
            count += _BATCH
            continue
        with suppress(TimeoutError):
            reader.filled(line.recv_into(reader.room()))
            while frames := reader.frames():
                count += len(frames)
    return count


main()
