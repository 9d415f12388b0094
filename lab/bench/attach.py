"""`bench attach`: how long it takes to give a guest its network and to take it away.

guestnet and the recipe take turns in one namespace, beside the same guests. One column of the
table is a network with IPv4 and IPv6 (the default), one a network with IPv4 alone: with thousands
of devices most of the time is the kernel's, walking IPv6 addresses and routes for each change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import machine, restart
from .crowd import Crowd, crowd, state_directory
from .cut import Cuts, measure_cuts
from .phases import Profile
from .recipe import Recipe
from .stage import Stage
from .table import count, milliseconds, percentile, render

#: Both kinds of network, by the word that stands for them in tables.
FAMILIES: Mapping[str, Mapping[str, Any]] = {"IPv4+IPv6": {}, "IPv4": {"ipv6": None}}
SAMPLES = 200
#: With many guests a sample of the recipe takes a tenth of a second; then there are fewer.
BUDGET_S = 60.0
SAMPLES_LEAST = 30
#: Attached one after another before they are detached, so that the crowd stays as it is.
_BATCH = 10
PROFILED = 60


@dataclass
class Times:
    """Seconds of one kind of call, on both sides."""

    ours: list[float] = field(default_factory=list)
    recipe: list[float] = field(default_factory=list)

    def cells(self) -> list[str]:
        """p50 and p99 of both, and how many times longer the recipe's median is."""
        ours, recipe = percentile(self.ours, 50), percentile(self.recipe, 50)
        return [
            milliseconds(ours),
            milliseconds(percentile(self.ours, 99)),
            milliseconds(recipe),
            milliseconds(percentile(self.recipe, 99)),
            f"{recipe / ours:.1f}×",
        ]


@dataclass
class Result:
    """One network's measurements at one number of guests."""

    guests: int
    family: str
    attach: Times
    detach: Times
    cuts: Cuts


@dataclass
class Clearing:
    """All guests of a host detached, one after another, as fast as it goes."""

    guests: int
    family: str
    calls: list[float]
    total_s: float


def run(
    sizes: Sequence[int],
    samples: int,
    *,
    profile: bool,
    say: Callable[[str], None],
    note: Callable[[str], None],
) -> None:
    """Measure, and say the tables."""
    say(machine.describe())
    results: list[Result] = []
    clearings: list[Clearing] = []
    restarts: list[restart.Restart] = []
    for family, network in FAMILIES.items():
        with Stage() as stage, state_directory() as state:
            with crowd(stage, state, network) as people:
                recipe = Recipe(stage.site)
                for size in sorted(sizes):
                    note(_label(size, family))
                    people.grow(size)
                    if profile:
                        say(profiled(people, family))
                        continue
                    results.append(measured(people, recipe, stage, family, samples))
            if not profile:
                note(f"restart, {family}")
                restarts.append(restart.measure(stage, state, family, max(sizes)))
            note(f"all guests detached, {family}")
            clearings.append(clear(stage, state, family))
    if not profile:
        report(results, clearings, restarts, say)


def measured(people: Crowd, recipe: Recipe, stage: Stage, family: str, samples: int) -> Result:
    """Everything that is measured beside a crowd of one size."""
    attach, detach = Times(), Times()
    warm_up(people, recipe)
    deadline = time.monotonic() + BUDGET_S
    while len(attach.ours) < samples:
        if time.monotonic() > deadline and len(attach.ours) >= SAMPLES_LEAST:
            break
        _turns(people, recipe, len(attach.ours), attach, detach)
    return Result(people.size, family, attach, detach, measure_cuts(people, stage))


def warm_up(people: Crowd, recipe: Recipe) -> None:
    """The first call of each kind loads code and fills caches."""
    for _ in range(3):
        _turns(people, recipe, 0, Times(), Times())


def _turns(people: Crowd, recipe: Recipe, number: int, attach: Times, detach: Times) -> None:
    """A batch of guests attached by either side in turn, then detached in turn."""
    names = [f"gnr{i}" for i in range(_BATCH)]
    attachments = []
    for i, name in enumerate(names):
        for side in _order(number + i):
            if side == "ours":
                attachment, seconds = people.attach()
                attachments.append(attachment)
                attach.ours.append(seconds)
            else:
                attach.recipe.append(timed(recipe.attach, name))
    for i, name in enumerate(names):
        for side in _order(number + i):
            if side == "ours":
                detach.ours.append(people.detach(attachments[i]))
            else:
                detach.recipe.append(timed(recipe.detach, name))


def _order(number: int) -> tuple[str, str]:
    """Who goes first alternates: neither side always finds the caches as the other left them."""
    return ("ours", "recipe") if number % 2 == 0 else ("recipe", "ours")


def timed(call: Callable[[str], object], argument: str) -> float:
    """Seconds of a call."""
    begin = time.perf_counter()
    call(argument)
    return time.perf_counter() - begin


def clear(stage: Stage, state: Path, family: str) -> Clearing:
    """Detach everybody and close the host: then nothing of them is left."""
    with crowd(stage, state, FAMILIES[family]) as people:
        guests = [attachment.guest for attachment in people.host.attachments()]
        begin = time.perf_counter()
        calls = [timed(people.host.detach, guest) for guest in guests]
        people.host.close()
        return Clearing(len(guests), family, calls, time.perf_counter() - begin)


def report(
    results: Sequence[Result],
    clearings: Sequence[Clearing],
    restarts: Sequence[restart.Restart],
    say: Callable[[str], None],
) -> None:
    """The tables."""
    sides = ["guestnet p50", "p99", "recipe p50", "p99", "recipe/guestnet"]
    for title, pick in (("attach, ms", _attach), ("detach, ms", _detach)):
        rows = [[_label(r.guests, r.family), *pick(r).cells()] for r in results]
        say(f"\n{render([title, *sides], rows)}")
    say("\nfrom the call of detach to the last packet that passed, and to the call's return")
    headings = ["cut, ms", "last packet p50", "p99", "returned p50", "passed after", "samples"]
    say(render(headings, [[_label(r.guests, r.family), *r.cuts.cells()] for r in results]))
    headings = ["all guests detached", "call p50, ms", "call p99, ms", "until all gone, s"]
    rows = [
        [
            _label(c.guests, c.family),
            milliseconds(percentile(c.calls, 50)),
            milliseconds(percentile(c.calls, 99)),
            f"{c.total_s:.1f}",
        ]
        for c in clearings
        if c.calls
    ]
    say(f"\n{render(headings, rows)}")
    rows = [[_label(r.guests, r.family), *r.cells()] for r in restarts]
    say(f"\n{render(restart.HEADINGS, rows)}")


def _attach(result: Result) -> Times:
    return result.attach


def _detach(result: Result) -> Times:
    return result.detach


def _label(guests: int, family: str) -> str:
    return f"{count(guests)}, {family}"


def profiled(people: Crowd, family: str) -> str:
    """Where an attach and a detach spend their time, in tables."""
    attach, messages, detach = Profile(), Profile(), Profile()
    for _ in range(3):
        people.detach(people.attach()[0])
    attachments = []
    for profile, split in ((attach, False), (messages, True)):
        with profile.patched(split=split):
            for _ in range(PROFILED):
                with profile.call():
                    attachment, _seconds = people.attach()
                attachments.append(attachment)
    with detach.patched():
        for attachment in attachments:
            people.detach(attachment, profile=detach)
    parts = []
    for what, profile in (
        ("attach", attach),
        ("attach, each rtnetlink message by itself", messages),
        ("detach", detach),
    ):
        headings = [what, "µs a call", "share", "entered"]
        parts.append(f"\n{_label(people.size, family)}\n{render(headings, profile.rows())}")
    if attach.missing:
        parts.append(f"not found, and so in other phases: {', '.join(attach.missing)}")
    return "\n".join(parts)
