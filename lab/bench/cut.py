"""How long a guest's packets still pass once its owner called detach.

A guest floods a server; the uplink is watched by a packet socket whose packets carry the kernel's
own time (SO_TIMESTAMPNS), on the same clock as the call's (CLOCK_REALTIME).
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..addresses import UPLINK
from .crowd import Crowd, await_gone
from .stage import FAR_IPV4, Stage
from .table import milliseconds, percentile

SAMPLES = 40
PORT = 9
#: The flood runs for so long before a cut, and is watched for so long after it.
_BEFORE_S, _AFTER_S = 0.03, 0.02
#: A cut is seen only as sharply as packets come. With a longer silence right before the call, or
#: nothing at all after it, the flood's process was not running, and the sample says nothing.
GAP_MOST_S = 0.0002

_ETH_P_IP = 0x0800
_PACKET_OUTGOING = 4  # linux/if_packet.h
_SO_TIMESTAMPNS, _SO_RCVBUFFORCE = 35, 33  # asm-generic/socket.h
_TIMESPEC = struct.Struct("=qq")
_BUFFER_BYTES = 64 << 20
_IPPROTO_UDP = 17
_ROOT = Path(__file__).parents[2]


@dataclass
class Cuts:
    """Seconds from the call to the last packet, and to the call's return."""

    last: list[float] = field(default_factory=list)
    returned: list[float] = field(default_factory=list)
    #: Packets that passed after detach had returned: there must be none.
    late: int = 0
    #: Samples thrown away because the flood had paused.
    paused: int = 0

    def cells(self) -> list[str]:
        """As they stand in the table."""
        if not self.last:
            return ["-", "-", "-", "-", f"0 of {self.paused}"]
        return [
            milliseconds(percentile(self.last, 50)),
            milliseconds(percentile(self.last, 99)),
            milliseconds(percentile(self.returned, 50)),
            str(self.late),
            f"{len(self.last)} of {len(self.last) + self.paused}",
        ]


def measure_cuts(people: Crowd, stage: Stage, samples: int = SAMPLES) -> Cuts:
    """Attach a flooding namespace guest and cut it off, again and again."""
    cuts = Cuts()
    guest = stage.add_guest()
    command = [sys.executable, "-m", "lab.bench.flood", str(FAR_IPV4), str(PORT)]
    try:
        # The far end answers nothing, or its ICMP errors would stop the flood's socket.
        with _sink(stage), _watch() as watch, _apart() as other:
            flood = guest.popen(command, stdin=subprocess.PIPE, cwd=_ROOT)
            os.sched_setaffinity(flood.pid, other)
            for _ in range(samples):
                attachment, _seconds = people.attach(netns=str(guest.path))
                _await_flood(watch)
                time.sleep(_BEFORE_S)
                before = time.time_ns()
                people.host.detach(attachment.guest)
                after = time.time_ns()
                time.sleep(_AFTER_S)
                _judge(cuts, _times(watch), before, after)
                await_gone(attachment.tap)
    finally:
        guest.delete()
    return cuts


def _judge(cuts: Cuts, times: list[int], before: int, after: int) -> None:
    earlier = [each for each in times if each < before]
    if not earlier or before - earlier[-1] > GAP_MOST_S * 1e9 or times[-1] < before:
        cuts.paused += 1
        return
    cuts.last.append((times[-1] - before) / 1e9)
    cuts.returned.append((after - before) / 1e9)
    cuts.late += sum(each > after for each in times)


@contextlib.contextmanager
def _apart() -> Iterator[set[int]]:
    """Keep the calling thread on one processor; yields the others, for the flood.

    On one processor the call to detach would stop the flood by taking its place.
    """
    before = os.sched_getaffinity(0)
    first, *rest = sorted(before)
    os.sched_setaffinity(0, {first})
    try:
        yield set(rest) or before
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _sink(stage: Stage) -> Iterator[None]:
    with stage.far.enter():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.bind((str(FAR_IPV4), PORT))
        yield


@contextlib.contextmanager
def _watch() -> Iterator[socket.socket]:
    """A packet socket on the uplink of the namespace in which the calling thread stands."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as sock:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        # ETH_P_ALL: packets that leave are shown to nobody who asks for one protocol.
        sock.bind((UPLINK, 0x0003))
        sock.setblocking(False)
        yield sock


def _await_flood(watch: socket.socket) -> None:
    deadline = time.monotonic() + 5
    while not _times(watch):
        if time.monotonic() > deadline:
            raise TimeoutError("nothing of the flood passes")
        time.sleep(0.001)


def _times(watch: socket.socket) -> list[int]:
    """Nanoseconds of the epoch at which each of the flood's packets left, so far."""
    found: list[int] = []
    while True:
        try:
            data, ancillary, _flags, address = watch.recvmsg(32, 64)
        except BlockingIOError:
            return found
        if address[1] != _ETH_P_IP or address[2] != _PACKET_OUTGOING or data[9] != _IPPROTO_UDP:
            continue
        for level, kind, value in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                seconds, nanoseconds = _TIMESPEC.unpack_from(value)
                found.append(seconds * 1_000_000_000 + nanoseconds)
