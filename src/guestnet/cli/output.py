"""Printing: tables for people, JSON for programs.

Guests' ids are free text of somebody else's, and this is a terminal: what is not printable is shown
escaped. rich is used on a terminal only; a pipe gets the same columns without its help, and faster.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence

Row = Sequence[object]

#: Policies have as many rules as their owners like; a table has not.
CELL_MAX = 48


def say(text: str) -> None:
    """One line for people."""
    print(text)


def note(text: str) -> None:
    """One line beside the result."""
    print(f"guestnet: {text}", file=sys.stderr)


def as_json(document: object) -> None:
    """The result for programs."""
    print(json.dumps(document, indent=2))


def shown(value: object) -> str:
    """A value as one line of printable text, whatever it holds."""
    if value is None or value == "" or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return " ".join(map(shown, value))
    text = str(value)
    return text if text.isprintable() and text == text.strip() else repr(text)


def short(value: object) -> str:
    """The same, cut to what a column of a table takes."""
    text = shown(value)
    return text if len(text) <= CELL_MAX else f"{text[: CELL_MAX - 1]}…"


def fields(pairs: Mapping[str, object]) -> None:
    """Names and values, one a line."""
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        print(f"{name:<{width}}  {shown(value)}")


def table(headers: Sequence[str], rows: Iterable[Row]) -> None:
    """Columns under headers."""
    cells = [[shown(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _pretty(headers, cells)
        return
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    for row in (headers, *cells):
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        print(line.rstrip())


def _pretty(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        # Folded, never cut: an address that lost its end is another address.
        drawn.add_column(header, overflow="fold")
    for row in rows:
        drawn.add_row(*map(Text, row))
    Console(highlight=False).print(drawn)
