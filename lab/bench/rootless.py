"""`bench rootless`: a guest of a site that an ordinary user made, beside what users have today.

guestnet is a user's own daemon, its guests are namespaces in it. slirp4netns and pasta give a
namespace its network in the same place, and plain NAT is what root could do there. What goes in is
asked for by the guest: nothing outside reaches a rootless guest by itself.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median

from ..user import User
from . import contenders, limits, machine, ordinary, starts
from .contenders import Contender
from .flows import CONNECTIONS, GIGABITS, STREAMS, datagrams, datagrams_name, servers
from .ordinary import GUESTS
from .samples import Samples, latencies, shares, take_turns, values
from .stage import Stage
from .table import render

ROUNDS = 3
SECONDS = 1.0
#: A round more is begun if it would end by then.
BUDGET_S = 8 * 60.0
MTUS = (1500, 65520)
STARTS = 5
_STARTS_MOST_S = 150.0
#: Payloads of datagrams in bytes, and how many a second are offered.
SIZES = (64, 1400)
RATES = (10_000, 30_000, 100_000)
_WARM_UP_S = 0.2

Say = Callable[[str], None]


DATAGRAMS = [datagrams(s, rate, way) for s in SIZES for way in ("out", "back") for rate in RATES]


def run(*, rounds: int, seconds: float, say: Say, note: Say) -> None:
    """Measure, and say the tables."""
    begin = time.monotonic()
    say(machine.describe())
    limits.many_descriptors()
    say(f"\n{_start_up(note)}")
    say(f"\n{_memory(note)}")
    with contextlib.ExitStack() as stack:
        samples = [Samples(each) for each in _contenders(stack)]
        for far in {id(each.contender.far): each.contender.far for each in samples}.values():
            stack.enter_context(servers(far))
        note("warm-up")
        for measurement in STREAMS:
            take_turns(measurement, samples, 0, _WARM_UP_S)
        for each in samples:
            each.by_name.clear()
        done = _rounds(samples, rounds, seconds, begin + BUDGET_S, note)
    words = "1 round" if done == 1 else f"{done} rounds"
    say(f"\n{words}, about {seconds:g} s for each figure of a round; medians")
    report(samples, say)


def _contenders(stack: contextlib.ExitStack) -> Iterator[Contender]:
    # The plain one first: everything is told as a share of it.
    yield stack.enter_context(contenders.plain())
    yield from stack.enter_context(ordinary.rootless(MTUS))
    yield from contenders.user_mode(stack)


def _rounds(samples: Sequence[Samples], rounds: int, seconds: float, end: float, note: Say) -> int:
    """As many as there is time for, but one; returns how many."""
    # A datagram is as small whatever the MTU is.
    small = [each for each in samples if str(MTUS[1]) not in each.contender.words]
    longest = 0.0
    for number in range(rounds):
        begin = time.monotonic()
        if number and begin + longest > end:
            note(f"no time for round {number + 1}")
            return number
        for measurements, those in ((STREAMS, samples), (DATAGRAMS, small)):
            for measurement in measurements:
                note(f"round {number + 1}, {measurement.words}")
                take_turns(measurement, those, number, seconds)
        longest = max(longest, time.monotonic() - begin)
    return rounds


# -- what is not a flow --------------------------------------------------------------------------


def _start_up(note: Say) -> str:
    note("start-up")
    with (
        Stage() as stage,
        contenders.upstream(stage.far),
        servers(stage.far),
        User(stage.site) as user,
    ):
        command = [sys.executable, "-P", "-m", "lab.bench.starts", str(STARTS)]
        done = user.run(command, timeout_s=_STARTS_MOST_S)
        if done.returncode:
            raise RuntimeError(f"the start-ups: {done.stderr}")
    rows = []
    for name, figures in json.loads(done.stdout).items():
        row = [name]
        for key in (starts.BYTE, starts.NOTHING, starts.CPU):
            row.append(f"{median(figures[key]) * 1e3:.0f}")
        row.append(f"{min(figures[starts.NOTHING]) * 1e3:.0f}")
        rows.append(row)
    headings = ["start, ms", "to a first byte", "`true`", "its CPU", "`true` at best"]
    return render(headings, rows)


def _memory(note: Say) -> str:
    headings = ["memory, MB", "one guest", f"{GUESTS} guests", "one more", f"{GUESTS}, resident"]
    rows = []
    for each in ordinary.weights(note):
        more = (each.many - each.one) / (GUESTS - 1)
        figures = (each.one, each.many, more, each.resident)
        rows.append([each.words, *(f"{figure / 1e6:.1f}" for figure in figures)])
    return render(headings, rows)


# -- telling -------------------------------------------------------------------------------------


def report(samples: Sequence[Samples], say: Say) -> None:
    """The tables: a row for each contender, and in brackets what part of plain NAT's it is."""
    costs = [(heading, f"{name} cpu", 1, 2) for heading, name, _scale in GIGABITS]
    small = [("a connection", "many cpu", 1e-6, 0)]
    for size in SIZES:
        for way in ("out", "back"):
            name = datagrams_name(size, RATES[1], way)
            small.append((f"{size} bytes {way}", f"{name} cpu", 1e-6, 1))
    for table in (
        shares("Gbit/s", samples, GIGABITS),
        shares("new connections, 1000/s", samples, CONNECTIONS),
        latencies(samples),
        values("CPU s/GB", samples, costs),
        values("CPU µs", samples, small),
        *(_datagrams(samples, size) for size in SIZES),
        _best(samples),
    ):
        say(f"\n{table}")


def _datagrams(samples: Sequence[Samples], size: int) -> str:
    """Thousands that arrived a second, and what part of those offered was lost."""
    headings = [f"{size} bytes, 1000/s"]
    headings += [f"{rate // 1000} {way}" for way in ("out", "back") for rate in RATES]
    rows = []
    for each in samples:
        row = [each.contender.words]
        for way in ("out", "back"):
            for rate in RATES:
                name = datagrams_name(size, rate, way)
                arrived, lost = each.middle(f"{name} arrived_per_s"), each.middle(f"{name} lost")
                if arrived is None or lost is None:
                    break
                row.append(f"{arrived / 1e3:.1f} ({lost:.1%})")
        if len(row) == len(headings):
            rows.append(row)
    return render(headings, rows)


def _best(samples: Sequence[Samples]) -> str:
    """guestnet's larger figure to each other's."""
    names = [name for _heading, name, _scale in (*GIGABITS, *CONNECTIONS)]
    ours = [each for each in samples if each.contender.words.startswith("guestnet")]
    best = {name: max(each.middle(name) or 0.0 for each in ours) for name in names}
    rows = []
    for each in samples:
        if each not in ours:
            values = [each.middle(name) for name in names]
            row = [
                f"{best[name] / value:.2f}" if value else "-"
                for name, value in zip(names, values, strict=True)
            ]
            rows.append([each.contender.words, *row])
    headings = [heading for heading, _name, _scale in (*GIGABITS, *CONNECTIONS)]
    return render(["guestnet's best to", *headings], rows)
