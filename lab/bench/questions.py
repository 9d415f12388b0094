"""`bench dns`: guestnet's resolver beside dnsmasq: the same questions from a guest's namespace.

dnsperf asks, with the same number of questions under way, and a prober that asks one at a time
takes the latency. What neither has cached is answered by a dnsmasq at the far end.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from . import contenders, machine
from .contenders import SUFFIX, ZONES, Contender
from .samples import Samples
from .table import render

ROUNDS = 5
SECONDS = 2.0
#: Names that are asked again and again. guestnet pins the last 1,024 of a guest.
HITS = 500
#: Enough names for the fastest second: none is asked twice.
MISSES_PER_S = 40_000
#: Questions under way. guestnet lets a guest have 256 that wait for an upstream.
UNDER_WAY = 64
#: Of a run's questions that may be lost or fail; more, and it measured something else.
_FAILED_MOST = 0.01
_turns = itertools.count()
_ROOT = Path(__file__).parents[2]

GUESTNET = {
    # A rule about TCP alone is the gateway's; one about UDP too is the kernel's as well, which is
    # told of each address before the guest is.
    "guestnet, TCP rule": f"allow@*.{SUFFIX}:tcp:443",
    "guestnet, TCP+UDP rule": f"allow@*.{SUFFIX}:443",
}


def run(
    *, rounds: int, seconds: float, say: Callable[[str], None], note: Callable[[str], None]
) -> None:
    """Measure, and say the table."""
    say(machine.describe())
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gnbench-")))
        samples = [Samples(each) for each in _contenders(stack)]
        names = directory / "hits"
        names.write_text("".join(f"n{i}.{SUFFIX} A\n" for i in range(HITS)))
        for number in range(rounds):
            note(f"round {number + 1}")
            turn = number % len(samples)
            for each in (*samples[turn:], *samples[:turn]):
                _round(each, names, directory, seconds)
    say(f"\n{rounds} rounds of {seconds:g} s, {UNDER_WAY} questions under way; medians")
    report(samples, say)


def _contenders(stack: contextlib.ExitStack) -> Iterator[Contender]:
    yield stack.enter_context(contenders.dnsmasq())
    yield from stack.enter_context(contenders.guestnet(GUESTNET))


def _round(samples: Samples, names: Path, directory: Path, seconds: float) -> None:
    """Misses of names never asked before, then hits of names all asked before."""
    contender = samples.contender
    used = contenders.cpu_seconds(contender.pids)
    fresh = _fresh(directory, seconds)
    misses = _dnsperf(contender, fresh, seconds, "-n", "1")
    used, before = contenders.cpu_seconds(contender.pids), used
    samples.add({"misses": misses["rate"], "miss cpu": (used - before) / misses["answered"]})
    samples.add(_latency(contender, "miss", str(_take(seconds)), seconds))
    _dnsperf(contender, names, 5.0, "-n", "1")
    used = contenders.cpu_seconds(contender.pids)
    hits = _dnsperf(contender, names, seconds)
    used, before = contenders.cpu_seconds(contender.pids), used
    samples.add({"hits": hits["rate"], "hit cpu": (used - before) / hits["answered"]})
    samples.add(_latency(contender, "hit", "", seconds))
    samples.add({"failed": misses["failed"] + hits["failed"]})


def _fresh(directory: Path, seconds: float) -> Path:
    """Names that nobody has asked for yet, one after the other at another address."""
    file = directory / "misses"
    first, count = _take(seconds), _names(seconds)
    file.write_text("".join(f"m{i}.z{i % ZONES}.{SUFFIX} A\n" for i in range(first, first + count)))
    return file


def _names(seconds: float) -> int:
    return round(MISSES_PER_S * seconds)


def _take(seconds: float) -> int:
    """The first number of as many names as can be asked for; no contender gets another's."""
    return next(_turns) * _names(seconds)


def _dnsperf(contender: Contender, file: Path, seconds: float, *more: str) -> dict[str, float]:
    """Answers a second that were right, how many, and which part was not."""
    command = ["dnsperf", "-s", contender.resolver, "-d", str(file), "-c", "4", "-t", "2"]
    command += ["-q", str(UNDER_WAY), "-l", str(max(round(seconds), 1)), *more]
    said = contender.guest.run(command, timeout_s=seconds + 30).stdout
    sent = _figure(r"Queries sent:\s+(\d+)", said)
    answered = _figure(r"NOERROR (\d+)", said)
    runtime_s = _figure(r"Run time \(s\):\s+([\d.]+)", said)
    failed = 1 - answered / sent
    if failed > _FAILED_MOST:
        raise RuntimeError(f"{contender.words} fails {failed:.1%} of the questions:\n{said}")
    return {"rate": answered / runtime_s, "answered": answered, "failed": sent - answered}


def _figure(pattern: str, said: str) -> float:
    found = re.search(pattern, said)
    if found is None:
        raise RuntimeError(f"dnsperf does not say {pattern}:\n{said}")
    return float(found[1])


def _latency(contender: Contender, kind: str, mark: str, seconds: float) -> dict[str, float]:
    command = [sys.executable, "-m", "lab.bench.asker", contender.resolver, SUFFIX]
    command += [str(seconds / 2), mark]
    figures = json.loads(contender.guest.run(command, cwd=_ROOT).stdout)
    return {f"{kind} {key}": value for key, value in figures.items()}


def report(samples: Sequence[Samples], say: Callable[[str], None]) -> None:
    """A row for each contender, and in brackets what part of dnsmasq's it is."""
    rows, costs = [], []
    for each in samples:
        row = [each.contender.words]
        for name in ("hits", "misses"):
            value, base = each.middle(name) or 0.0, samples[0].middle(name) or 1.0
            row.append(f"{value / 1e3:.2f} ({value / base:.2f})")
        for name in ("hit p50_s", "hit p99_s", "miss p50_s", "miss p99_s"):
            row.append(f"{(each.middle(name) or 0.0) * 1e6:.0f}")
        rows.append(row)
        cells = [(each.middle(name) or 0.0) * 1e6 for name in ("hit cpu", "miss cpu")]
        failed = sum(each.by_name["failed"])
        costs.append([each.contender.words, *(f"{cell:.0f}" for cell in cells), f"{failed:.0f}"])
    headings = ["answers", "hits, 1000/s", "misses, 1000/s", "hit p50, µs", "p99"]
    say(render([*headings, "miss p50, µs", "p99"], rows))
    say(f"\n{render(['cost', 'CPU µs a hit', 'a miss', 'failed of all'], costs)}")
