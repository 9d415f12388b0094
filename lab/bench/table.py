"""Samples as numbers, numbers as a table in plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

#: Between two columns.
_GAP = "  "


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least `percent` of all do not exceed (nearest rank)."""
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    rank = -(-len(ordered) * percent // 100)  # rounded up
    return ordered[max(int(rank), 1) - 1]


def milliseconds(seconds: float) -> str:
    """A time for people: three figures are as many as a shared machine is good for."""
    value = seconds * 1000
    return (
        f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    )


def count(guests: int) -> str:
    """`1 guest`, `1,000 guests`."""
    return f"{guests:,} {'guest' if guests == 1 else 'guests'}"


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours to theirs over several rounds: of the medians, and the least and most of any round."""

    ours: float
    theirs: float
    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
        """From rounds that were measured side by side."""
        each = [a / b for a, b in zip(ours, theirs, strict=True)]
        a, b = median(ours), median(theirs)
        return cls(a, b, a / b, min(each), max(each))

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f}–{self.high:.2f})"


def render(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is flush left and whose others are flush right."""
    widths = [max(len(row[i]) for row in (headings, *rows)) for i in range(len(headings))]
    lines = []
    for row in (headings, ["-" * width for width in widths], *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(_GAP.join(cells).rstrip())
    return "\n".join(lines)
