"""Flows of a guest to the far end, as `bench relay` and `bench rootless` measure them.

Beside what the guest sees, each figure of throughput has what the processes in between used.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .. import processes
from ..netns import Namespace
from . import contenders
from .contenders import Contender
from .policy import IPERF_PORT
from .samples import Figures, Measurement
from .stage import FAR_IPV4

AT_A_TIME = 16
#: Where `python -m lab…` works.
ROOT = Path(__file__).parents[2]


def throughput(name: str, streams: int, *, down: bool) -> Measurement:
    """Bits a second that arrived, by iperf3, and the cost of a GB."""

    def once(contender: Contender, seconds: float) -> Figures:
        command = ["iperf3", "--json", "--client", str(FAR_IPV4), "--port", str(IPERF_PORT)]
        command += ["--time", str(max(round(seconds), 1)), "--parallel", str(streams)]
        command += ["--reverse"] if down else []
        used = contenders.cpu_seconds(contender.pids)
        result = contender.guest.run(command, timeout_s=seconds + 30)
        received = json.loads(result.stdout)["end"]["sum_received"]
        figures = {name: float(received["bits_per_second"])}
        return {**figures, **_cost(contender, name, used, received["bytes"] / 1e9)}

    return Measurement(f"{streams} {'in' if down else 'out'}", once)


def connections(name: str, at_a_time: int) -> Measurement:
    """New connections a second, each with the far end's first byte, and the cost of one."""

    def once(contender: Contender, seconds: float) -> Figures:
        used = contenders.cpu_seconds(contender.pids)
        figures = probe(contender, "connect", seconds, at_a_time)
        return {
            **{f"{name} {key}": value for key, value in figures.items()},
            **_cost(contender, name, used, figures["per_s"] * seconds),
        }

    return Measurement(f"new connections, {at_a_time} at a time", once)


def datagrams(size: int, rate: int, way: str) -> Measurement:
    """Datagrams `out` or `back` that arrive, of so many a second, and the cost of one."""
    name = datagrams_name(size, rate, way)

    def once(contender: Contender, seconds: float) -> Figures:
        used = contenders.cpu_seconds(contender.pids)
        figures = probe(contender, way, seconds, size, rate)
        return {
            **{f"{name} {key}": value for key, value in figures.items()},
            **_cost(contender, name, used, figures["arrived"]),
        }

    return Measurement(f"{rate:,} datagrams of {size} bytes {way}", once)


def datagrams_name(size: int, rate: int, way: str) -> str:
    """What their figures begin with."""
    return f"{way} {size} {rate}"


def _cost(contender: Contender, name: str, before: float, amount: float) -> Figures:
    """Seconds that the processes in between have used since, for each of what there was."""
    if not contender.pids or not amount:
        return {}
    return {f"{name} cpu": (contenders.cpu_seconds(contender.pids) - before) / amount}


def _exchanges(contender: Contender, seconds: float) -> Figures:
    """Request and response on one connection."""
    return {f"rtt {key}": v for key, v in probe(contender, "exchange", seconds).items()}


#: Bytes both ways, connections and exchanges.
STREAMS = (
    throughput("out1", 1, down=False),
    throughput("in1", 1, down=True),
    throughput("out8", 8, down=False),
    throughput("in8", 8, down=True),
    connections("one", 1),
    connections("many", AT_A_TIME),
    Measurement("exchanges", _exchanges),
)
#: Columns of tables about them (see `samples.shares`).
GIGABITS = (
    ("1 stream out", "out1", 1e9),
    ("1 in", "in1", 1e9),
    ("8 streams out", "out8", 1e9),
    ("8 in", "in8", 1e9),
)
CONNECTIONS = (("1 at a time", "one per_s", 1e3), (f"{AT_A_TIME} at a time", "many per_s", 1e3))


def probe(contender: Contender, what: str, *arguments: object) -> Figures:
    """Have `lab.bench.probes` do something in the guest's namespace."""
    command = [sys.executable, "-m", "lab.bench.probes", what, str(FAR_IPV4)]
    command += [str(each) for each in arguments]
    figures: Figures = json.loads(contender.guest.run(command, cwd=ROOT).stdout)
    return figures


@contextlib.contextmanager
def servers(far: Namespace) -> Iterator[None]:
    """What the far end does, listening."""
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile())
        iperf = far.popen(["iperf3", "--server", "--port", str(IPERF_PORT)], stdout=log, stderr=log)
        stack.callback(processes.stop, iperf)
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "lab.bench.ends", str(FAR_IPV4)]
        ends = far.popen(command, stdin=pipe, stdout=pipe, cwd=ROOT)
        stack.callback(processes.stop, ends)
        assert ends.stdout is not None
        if not ends.stdout.readline():
            raise RuntimeError("the far end does not listen")
        yield
