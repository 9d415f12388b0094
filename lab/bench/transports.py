"""`bench transports`: a guest's frames on a VMM's socket, beside the same frames on the TAP itself.

The VMM's end is a process that only sends, or only receives: what is measured is the way, with a
whole processor for each of its two ends if there are that many.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

from guestnet.frames.virtio import Gso, HeaderFlag, VirtioNetHeader
from guestnet.host import Host
from guestnet.model import Attachment

from ..world import World
from . import machine
from .table import render

ROUNDS = 3
SECONDS = 2.0
KINDS = ("tap", "stream", "dgram", "tap+vnet", "stream+vnet", "dgram+vnet")
#: Full frames, and large segments where there is a header to say so.
_PAYLOAD, _SEGMENT = 1472, 60_000
_FLOOD = """
import socket, sys
line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
line.connect((sys.argv[1], 9))
data = bytes(int(sys.argv[2]))
while True:
    line.send(data)
"""


def run(
    *, rounds: int, seconds: float, say: Callable[[str], None], note: Callable[[str], None]
) -> None:
    """Measure, and say the table."""
    say(machine.describe())
    found: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        note(f"round {number + 1}")
        for kind in KINDS:
            for way in ("up", "down", "segments"):
                if way == "segments" and not kind.endswith("+vnet"):
                    continue
                found.setdefault((kind, way), []).append(_measure(kind, way, seconds))
    say(f"\n{rounds} rounds of {seconds:g} s; medians")
    rows = []
    for kind in KINDS:
        row = [kind]
        for way in ("up", "down"):
            row.append(_beside(found, kind, way))
        row.append(_beside(found, kind, "segments") if kind.endswith("+vnet") else "")
        rows.append(row)
    say(render(("frames", "from the VMM, 1000/s", "to it, 1000/s", "segments, Gbit/s"), rows))


def _beside(found: dict[tuple[str, str], list[float]], kind: str, way: str) -> str:
    tap = "tap+vnet" if kind.endswith("+vnet") else "tap"
    value, base = median(found[kind, way]), median(found[tap, way])
    return f"{value:.1f} ({value / base:.2f})"


def _measure(kind: str, way: str, seconds: float) -> float:
    """Thousands of frames a second, or Gbit/s of large segments."""
    with (
        World() as world,
        tempfile.TemporaryDirectory(prefix="gnbench-") as directory,
        Host.open(Path(directory, "state"), site=world.site.path) as host,
        contextlib.ExitStack() as stack,
    ):
        on_tap = kind.startswith("tap")
        text = None if on_tap else f"{kind}:{directory}/vm.sock"
        given = host.attach("vm", policy="allow:ingress@host", transport=text)
        assert given.ipv4 is not None
        order = {
            "tap": given.tap if on_tap else None,
            "transport": text,
            "vnet_hdr": kind.endswith("+vnet"),
            "sends": way != "down",
            "seconds": seconds,
            "frame": _frame(world, given, way, headed=kind.endswith("+vnet")).hex(),
        }
        if way == "down":
            source = [sys.executable, "-c", _FLOOD, str(given.ipv4.ip), str(_PAYLOAD)]
            flood = world.site.popen(source)
            stack.callback(flood.send_signal, signal.SIGTERM)
        before = host.usage("vm").tx_bytes
        vmm = [sys.executable, "-m", "lab.bench.vmmend", json.dumps(order)]
        count = int(world.site.run(vmm, timeout_s=seconds + 30, cwd=_ROOT).stdout)
        if way == "segments":
            return (host.usage("vm").tx_bytes - before) * 8 / seconds / 1e9
        return count / seconds / 1000


_ROOT = Path(__file__).parents[2]


def _frame(world: World, given: Attachment, way: str, *, headed: bool) -> bytes:
    """A frame that the ruleset takes for the guest's, and drops: nothing is at its destination."""
    from scapy.layers.inet import IP, TCP, UDP
    from scapy.layers.l2 import Ether

    assert given.ipv4 is not None
    mac = world.site.run(["cat", f"/sys/class/net/{given.tap}/address"]).stdout.strip()
    head = Ether(src=given.mac, dst=mac) / IP(src=str(given.ipv4.ip), dst="192.0.2.1")
    if way == "segments":
        header = VirtioNetHeader(
            flags=HeaderFlag.NEEDS_CSUM,
            gso_type=Gso.TCPV4,
            hdr_len=54,
            gso_size=1460,
            csum_start=34,
            csum_offset=16,
        )
        return header.pack() + bytes(head / TCP(flags="A") / bytes(_SEGMENT))
    return (bytes(12) if headed else b"") + bytes(head / UDP(dport=9) / bytes(_PAYLOAD))
