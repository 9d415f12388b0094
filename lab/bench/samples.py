"""What was measured, of whom, in rounds; and the tables that set it beside the first of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from .contenders import Contender
from .table import render

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


def take_turns(
    measurement: Measurement, samples: Sequence[Samples], number: int, seconds: float
) -> None:
    """One round's measurement on all, of whom another one is the first each time."""
    turn = number % len(samples)
    for each in (*samples[turn:], *samples[:turn]):
        each.add(measurement.once(each.contender, seconds))


# -- telling -------------------------------------------------------------------------------------


def shares(
    title: str, samples: Sequence[Samples], columns: Sequence[tuple[str, str, float]]
) -> str:
    """A row for each contender, and in brackets what part of the first's it is.

    A column is its heading, the figure's name, and what to divide it by.
    """
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
    return render([title, *(column[0] for column in columns)], rows)


def values(
    title: str, samples: Sequence[Samples], columns: Sequence[tuple[str, str, float, int]]
) -> str:
    """A row for each contender; a column as for `shares`, and its digits after the point."""
    rows = []
    for each in samples:
        row = [each.contender.words]
        for _heading, name, scale, digits in columns:
            value = each.middle(name)
            row.append("-" if value is None else f"{value / scale:.{digits}f}")
        rows.append(row)
    return render([title, *(column[0] for column in columns)], rows)


def latencies(samples: Sequence[Samples]) -> str:
    """In microseconds; added is what is more than the first's."""
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
    return render(headings, rows)
