"""`bench relay`: what it costs that guestnet relays a flow instead of forwarding it.

Plain NAT is the measure, and beside the relay stand the two user-mode networks that people use
where they cannot or would not touch the kernel's. All are measured in rounds: a round is one
measurement on each, one right after the other, and who goes first changes.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from .. import processes
from ..netns import Namespace
from . import contenders, limits, machine
from .contenders import Contender
from .policy import IPERF_PORT
from .stage import FAR_IPV4
from .table import render

ROUNDS = 3
SECONDS = 1.0
#: Of fairness, and of idle flows; the idle ones come in as many batches as there are rounds.
FLOWS = 1000
#: guestnet relays 4,096 flows of one guest at a time, shared by its workers.
_BATCHES_MOST = 3
AT_A_TIME = 16
_SHARE_S = 3.0
_SETTLE_S = 0.5
_WARM_UP_S = 0.2
_ROOT = Path(__file__).parents[2]

#: Figures of one measurement, by their names.
Figures = Mapping[str, float]


@dataclass(frozen=True)
class Measurement:
    """What is measured once, on one contender, in about so many seconds."""

    words: str
    once: Callable[[Contender, float], Figures]


@dataclass
class Samples:
    """All figures of one contender, over the rounds."""

    contender: Contender
    by_name: dict[str, list[float]] = field(default_factory=dict)

    def add(self, figures: Figures) -> None:
        """One round's."""
        for name, value in figures.items():
            self.by_name.setdefault(name, []).append(value)

    def middle(self, name: str) -> float | None:
        """Median over the rounds; `None` for what this one does not have."""
        values = self.by_name.get(name)
        return median(values) if values else None


def throughput(name: str, streams: int, *, down: bool) -> Measurement:
    """Bits a second that arrived, by iperf3, and what the process in between used for a GB."""

    def once(contender: Contender, seconds: float) -> Figures:
        command = ["iperf3", "--json", "--client", str(FAR_IPV4), "--port", str(IPERF_PORT)]
        command += ["--time", str(max(round(seconds), 1)), "--parallel", str(streams)]
        command += ["--reverse"] if down else []
        before = _cpu(contender)
        result = contender.guest.run(command, timeout_s=seconds + 30)
        used = _cpu(contender) - before
        received = json.loads(result.stdout)["end"]["sum_received"]
        figures = {name: float(received["bits_per_second"])}
        if contender.pids:
            figures[f"{name} cpu"] = used / (received["bytes"] / 1e9)
        return figures

    return Measurement(f"{streams} {'in' if down else 'out'}", once)


def _cpu(contender: Contender) -> float:
    return contenders.cpu_seconds(contender.pids)


def _probe(contender: Contender, what: str, *arguments: object) -> Figures:
    command = [sys.executable, "-m", "lab.bench.probes", what, str(FAR_IPV4)]
    command += [str(each) for each in arguments]
    figures: Figures = json.loads(contender.guest.run(command, cwd=_ROOT).stdout)
    return figures


def connections(name: str, at_a_time: int) -> Measurement:
    """New connections a second, each with the far end's first byte."""

    def once(contender: Contender, seconds: float) -> Figures:
        figures = _probe(contender, "connect", seconds, at_a_time)
        return {f"{name} {key}": value for key, value in figures.items()}

    return Measurement(f"new connections, {at_a_time} at a time", once)


def exchanges(contender: Contender, seconds: float) -> Figures:
    """Request and response on one connection."""
    return {f"rtt {key}": v for key, v in _probe(contender, "exchange", seconds).items()}


def fairness(contender: Contender, _seconds: float) -> Figures:
    """How evenly a thousand downloads share what there is."""
    return _probe(contender, "share", _SHARE_S, FLOWS)


MEASUREMENTS = (
    throughput("out1", 1, down=False),
    throughput("in1", 1, down=True),
    throughput("out8", 8, down=False),
    throughput("in8", 8, down=True),
    connections("one", 1),
    connections("many", AT_A_TIME),
    Measurement("exchanges", exchanges),
)
#: After all others: it leaves behind flows whose end got lost on the way.
LAST = Measurement(f"{FLOWS} downloads", fairness)


def run(
    *, rounds: int, seconds: float, say: Callable[[str], None], note: Callable[[str], None]
) -> None:
    """Measure, and say the tables."""
    say(machine.describe())
    limits.many_descriptors()
    held = idle_flows(min(rounds, _BATCHES_MOST), note)
    with contextlib.ExitStack() as stack:
        # The plain one first: everything is told as a share of it.
        samples = [Samples(each) for each in _contenders(stack)]
        for far in {id(each.contender.far): each.contender.far for each in samples}.values():
            stack.enter_context(_servers(far))
        for each in samples:
            each.by_name.update(held.get(each.contender.words, {}))
        for measurement in MEASUREMENTS:
            note(f"warm-up, {measurement.words}")
            for each in samples:
                measurement.once(each.contender, _WARM_UP_S)
        for number in range(rounds):
            for measurement in MEASUREMENTS:
                note(f"round {number + 1}, {measurement.words}")
                _round(measurement, samples, number, seconds)
        for number in range(rounds):
            note(f"round {number + 1}, {LAST.words}")
            _round(LAST, samples, number, seconds)
    say(f"\n{rounds} rounds, about {seconds:g} s for each figure of a round; medians")
    report(samples, say)


def _contenders(stack: contextlib.ExitStack) -> Iterator[Contender]:
    yield stack.enter_context(contenders.plain())
    policies = {"guestnet, by address": "public", "guestnet, by name": contenders.relay_policy()}
    yield from stack.enter_context(contenders.guestnet(policies))
    for make in (contenders.slirp4netns, contenders.pasta):
        for mtu in (1500, 65520):
            yield stack.enter_context(make(mtu))


def idle_flows(batches: int, note: Callable[[str], None]) -> dict[str, dict[str, list[float]]]:
    """Memory of idle flows, by contender: in processes of their own, that are ended afterwards.

    Memory that other flows have used once would be there to be used again; and thousands of flows
    that end at once leave a user-mode network with some whose end got lost.
    """
    with contextlib.ExitStack() as stack:
        found = {}
        for contender in _contenders(stack):
            if contender.pids:
                note(f"idle flows, {contender.words}")
                samples = Samples(contender)
                with _servers(contender.far):
                    idle(samples, batches)
                found[contender.words] = samples.by_name
        return found


def _round(
    measurement: Measurement, samples: Sequence[Samples], number: int, seconds: float
) -> None:
    """One measurement on all, of whom another one is the first each time."""
    turn = number % len(samples)
    for each in (*samples[turn:], *samples[:turn]):
        each.add(measurement.once(each.contender, seconds))


def idle(samples: Samples, batches: int) -> None:
    """Resident memory for each of a thousand flows that stay, batch on batch."""
    contender = samples.contender
    command = [sys.executable, "-m", "lab.bench.probes", "hold", str(FAR_IPV4), str(FLOWS)]
    pipe = subprocess.PIPE
    process = contender.guest.popen(command, stdin=pipe, stdout=pipe, cwd=_ROOT)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for _ in range(batches):
            before = sum(map(machine.resident_bytes, contender.pids))
            process.stdin.write(b"more\n")
            process.stdin.flush()
            if not process.stdout.readline():
                break  # it cannot have so many: what there is counts
            time.sleep(_SETTLE_S)
            after = sum(map(machine.resident_bytes, contender.pids))
            samples.add({"idle": (after - before) / FLOWS})
    finally:
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        processes.stop(process)


@contextlib.contextmanager
def _servers(far: Namespace) -> Iterator[None]:
    """What the far end does, listening."""
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile())
        iperf = far.popen(["iperf3", "--server", "--port", str(IPERF_PORT)], stdout=log, stderr=log)
        stack.callback(processes.stop, iperf)
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "lab.bench.ends", str(FAR_IPV4)]
        ends = far.popen(command, stdin=pipe, stdout=pipe, cwd=_ROOT)
        stack.callback(processes.stop, ends)
        assert ends.stdout is not None
        if not ends.stdout.readline():
            raise RuntimeError("the far end does not listen")
        yield


# -- telling -------------------------------------------------------------------------------------


def report(samples: Sequence[Samples], say: Callable[[str], None]) -> None:
    """The tables: a row for each contender, and in brackets what part of plain NAT's it is."""
    flows = ("1 stream out", "1 in", "8 streams out", "8 in")
    names = ("out1", "in1", "out8", "in8")
    _table(say, "Gbit/s", samples, [(h, n, 1e9) for h, n in zip(flows, names, strict=True)])
    columns = [
        ("1 at a time", "one per_s", 1e3),
        (f"{AT_A_TIME} at a time", "many per_s", 1e3),
        (f"{FLOWS} downloads, Gbit/s", "bytes_per_s", 1e9 / 8),
    ]
    _table(say, "new connections, 1000/s", samples, columns)
    _latencies(say, samples)
    _costs(say, samples)


def _table(
    say: Callable[[str], None],
    title: str,
    samples: Sequence[Samples],
    columns: Sequence[tuple[str, str, float]],
) -> None:
    rows = []
    for each in samples:
        row = [each.contender.words]
        for _heading, name, scale in columns:
            value, base = each.middle(name), samples[0].middle(name)
            if value is None or not base:
                row.append("-")
            else:
                row.append(f"{value / scale:.2f} ({value / base:.2f})")
        rows.append(row)
    say(f"\n{render([title, *(column[0] for column in columns)], rows)}")


def _latencies(say: Callable[[str], None], samples: Sequence[Samples]) -> None:
    """In microseconds; added is what is more than plain NAT's."""
    headings = ["latency, µs"]
    for words in ("exchange", "connect to first byte"):
        headings += [f"{words} p50", "p99", "added p50", "p99"]
    rows = []
    for each in samples:
        row = [each.contender.words]
        for kind in ("rtt", "one"):
            figures = [each.middle(f"{kind} {p}_s") or 0.0 for p in ("p50", "p99")]
            base = [samples[0].middle(f"{kind} {p}_s") or 0.0 for p in ("p50", "p99")]
            added = [a - b for a, b in zip(figures, base, strict=True)]
            row += [f"{value * 1e6:.0f}" for value in (*figures, *added)]
        rows.append(row)
    say(f"\n{render(headings, rows)}")


def _costs(say: Callable[[str], None], samples: Sequence[Samples]) -> None:
    headings = ["cost", "CPU s/GB out", "in", "KB an idle flow", "Jain's index", "starved"]
    columns = [("out1 cpu", 1, 2), ("in1 cpu", 1, 2), ("idle", 1e3, 1), ("jain", 1, 3)]
    rows = []
    for each in samples:
        row = [each.contender.words]
        for name, scale, digits in [*columns, ("starved", 1, 0)]:
            value = each.middle(name)
            row.append("-" if value is None else f"{value / scale:.{digits}f}")
        rows.append(row)
    say(f"\n{render(headings, rows)}")
