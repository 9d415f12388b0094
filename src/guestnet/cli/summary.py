"""What a guest reached and what it was denied, added up from the gateway's decisions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ..model.decision import Decision
from . import output

#: Different lines of a summary; what is beyond is counted in one.
MAX_LINES = 1000


@dataclass(slots=True)
class Line:
    """Decisions that say the same of the same peer."""

    verdict: str
    kind: str
    protocol: str
    name: str
    address: str | None
    port: int
    rule: str
    reason: str
    count: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    @property
    def peer(self) -> str:
        """The other end for people: the name if there is one."""
        if self.kind == "dns":
            return self.name
        address = f"[{self.address}]" if self.address and ":" in self.address else self.address
        where = f"{self.name or address}:{self.port}" if self.port else f"{self.name or address}"
        return f"{where} ({self.address})" if self.name else where


class Summary:
    """Takes decisions from one thread."""

    def __init__(self) -> None:
        self._lines: dict[tuple[object, ...], Line] = {}
        #: Decisions that are in no line: beyond a guest's share, or beyond `MAX_LINES`.
        self.omitted = 0

    def take(self, decision: Decision) -> None:
        """Add a decision."""
        self.omitted += decision.omitted
        line = Line(
            decision.verdict, decision.kind, decision.protocol, decision.name,
            str(decision.address) if decision.address is not None else None,
            decision.port or 0, decision.rule, decision.reason,
        )  # fmt: skip
        key = (line.verdict, line.kind, line.protocol, line.name, line.address, line.port)
        known = self._lines.get(key)
        if known is None:
            if len(self._lines) >= MAX_LINES:
                self.omitted += 1
                return
            known = self._lines[key] = line
        # What is told at its beginning too is one flow all the same.
        known.count += decision.event != "end"
        known.bytes_up += decision.bytes_up
        known.bytes_down += decision.bytes_down

    def lines(self) -> list[Line]:
        """Everything, denied ones last, where they are read first."""
        return sorted(self._lines.values(), key=lambda line: line.verdict == "deny")

    def document(self) -> dict[str, Any]:
        """For programs."""
        return {"decisions": [asdict(line) for line in self.lines()], "omitted": self.omitted}

    def text(self) -> Iterable[str]:
        """For people: one line each, questions that were answered left out."""
        for line in self.lines():
            denied = line.verdict == "deny"
            if line.kind == "dns" and not denied:
                continue
            word = "DENIED " if denied else "allowed"
            kind = "dns" if line.kind == "dns" else line.protocol
            parts = [word, f"{line.count:>4}x", f"{kind:<4}", output.shown(line.peer)]
            parts.append(f"by `{output.shown(line.rule)}`")
            if not denied and line.reason.startswith("upstream"):
                parts.append(f"({line.reason})")
            if line.bytes_up or line.bytes_down:
                parts.append(f"{line.bytes_up} B up, {line.bytes_down} B down")
            yield "  ".join(parts)
        if self.omitted:
            yield f"and {self.omitted} more, which were only counted"
