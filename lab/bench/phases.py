"""Where the time of a call goes, by phase: for whoever makes attaching faster.

A phase is the time inside some of guestnet's functions less that of other phases within. Functions
are named by text and looked up when a profile begins, so that moving one costs a phase and not the
benchmark; what was not found is said.
"""

from __future__ import annotations

import functools
import importlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

#: Phase → functions, as module:qualified name below `guestnet`.
PHASES: dict[str, tuple[str, ...]] = {
    "store": ("store.sqlite:SqliteStore.write",),
    "model": ("model:Value.__init__", "host.host:parse_policy", "host.guests:parse_policy"),
    "place": ("host.placing:Placer.place",),
    "tap": ("kernel.devices:_make_tap",),
    "rtnetlink": (
        "kernel.netlink:NetlinkSocket.request",
        "kernel.netlink:NetlinkSocket.ask",
        "kernel.netlink:NetlinkSocket.dump",
    ),
    "nft": ("kernel.netlink:NetlinkSocket.batch", "kernel.nft:_Library.run"),
    "setns": ("kernel.netns:setns", "kernel.netns:open_netns"),
}
#: What is in no phase.
REST = "python"


class Profile:
    """Sums of seconds by phase; `running` opens the gates."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.calls = 0
        self.missing: list[str] = []
        self._stack: list[tuple[str, float]] = []
        #: Other threads (the reaper) call the same functions; their time is not the caller's.
        self._thread = threading.get_ident()
        self._split = False

    @contextmanager
    def patched(self, *, split: bool = False) -> Iterator[Profile]:
        """Watch the functions of `PHASES`.

        With `split` rtnetlink's batches go message by message, each a phase and a system call.
        """
        self._split = split
        undo: list[tuple[Any, str, Any]] = []
        try:
            for phase, names in PHASES.items():
                for name in names:
                    self._patch(phase, name, undo)
            yield self
        finally:
            for owner, attribute, original in reversed(undo):
                setattr(owner, attribute, original)

    @contextmanager
    def call(self) -> Iterator[None]:
        """One call that is profiled."""
        self.calls += 1
        self._enter(REST)
        try:
            yield
        finally:
            self._leave()

    def rows(self) -> list[list[str]]:
        """Phase, microseconds a call, share of the whole, and how often it was entered."""
        whole = sum(self.seconds.values()) or 1.0
        ordered = sorted(self.seconds.items(), key=lambda item: -item[1])
        rows = [
            [
                phase,
                f"{seconds / self.calls * 1e6:.0f}",
                f"{seconds / whole:.0%}",
                f"{self.counts[phase] / self.calls:.1f}",
            ]
            for phase, seconds in ordered
        ]
        return [*rows, ["total", f"{whole / self.calls * 1e6:.0f}", "", ""]]

    def _patch(self, phase: str, name: str, undo: list[tuple[Any, str, Any]]) -> None:
        module, _, path = name.partition(":")
        *outer, attribute = path.split(".")
        try:
            owner: Any = importlib.import_module(f"guestnet.{module}")
            for part in outer:
                owner = getattr(owner, part)
            original = owner.__dict__[attribute]
        except (ImportError, AttributeError, KeyError):
            self.missing.append(name)
            return
        undo.append((owner, attribute, original))
        watched = self._watch(phase, original)
        if self._split and attribute == "request":
            watched = self._watch_messages(original)
        setattr(owner, attribute, watched)

    def _watch(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if not self._is_watching():
                return function(*args, **kwargs)
            self._enter(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self._leave()

        return watched

    def _watch_messages(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def watched(socket: Any, messages: Sequence[Any]) -> None:
            if not self._is_watching():
                function(socket, messages)
                return
            for position, message in enumerate(messages):
                family = "" if "link" in message.call.lower() else _family(message.target)
                self._enter(f"rtnetlink {position} {message.call}{family}")
                try:
                    function(socket, [message])
                finally:
                    self._leave()

        return watched

    def _is_watching(self) -> bool:
        return bool(self._stack) and threading.get_ident() == self._thread

    def _enter(self, phase: str) -> None:
        now = time.perf_counter()
        if self._stack:
            outer, since = self._stack[-1]
            self._add(outer, now - since)
        self._stack.append((phase, now))
        self.counts[phase] = self.counts.get(phase, 0) + 1

    def _leave(self) -> None:
        now = time.perf_counter()
        phase, since = self._stack.pop()
        self._add(phase, now - since)
        if self._stack:
            self._stack[-1] = (self._stack[-1][0], now)

    def _add(self, phase: str, seconds: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds


def _family(target: str) -> str:
    address = target.partition(" on ")[0]
    return " IPv6" if ":" in address else " IPv4"
