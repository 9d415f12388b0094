"""Remembering decisions: a rotated file of JSON lines, and whoever watches.

Guests cause decisions, so their number is bounded: beyond a guest's share of a second they are
counted, and the next one that is told says how many were left out.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..model import Decision
from .seen import Seen

logger = logging.getLogger(__name__)

#: Decisions of one guest in one second that are told one by one.
TOLD_PER_SECOND = 200
#: Bytes of the file until it is put aside, and how many put aside are kept.
FILE_BYTES = 16 * 1024 * 1024
FILES_KEPT = 4
#: The last decisions, for who begins to watch.
RECENT = 1000
#: Decisions waiting for one watcher; a slower one misses some, and is told so by `omitted`.
QUEUE = 10_000


@dataclass(slots=True)
class _Share:
    second: int = 0
    told: int = 0
    omitted: int = 0


class Decisions:
    """Takes decisions from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seen = Seen()
        self._lock = threading.Lock()
        self._recent: deque[Decision] = deque(maxlen=RECENT)
        self._shares: dict[str, _Share] = {}
        self._watchers: list[queue.Queue[Decision]] = []
        self._broken = False

    def take(self, decision: Decision) -> None:
        """Write a decision down and tell watchers, unless its guest had its share."""
        self.seen.take(decision)
        with self._lock:
            share = self._shares.setdefault(decision.guest, _Share())
            if share.second != int(decision.time):
                share.second, share.told = int(decision.time), 0
            if share.told >= TOLD_PER_SECOND:
                share.omitted += 1
                return
            share.told += 1
            if share.omitted:
                decision = decision.model_copy(update={"omitted": share.omitted})
                share.omitted = 0
            self._recent.append(decision)
            self._write(decision)
            for watcher in self._watchers:
                if not watcher.full():
                    watcher.put_nowait(decision)

    def forget(self, guest: str) -> None:
        """Forget a guest that is gone; what was told of it stays told."""
        with self._lock:
            self._shares.pop(guest, None)
        self.seen.forget(guest)

    def recent(self, guest: str | None = None) -> list[Decision]:
        """The last decisions, oldest first."""
        with self._lock:
            return [d for d in self._recent if guest in (None, d.guest)]

    @contextmanager
    def watching(self) -> Iterator[queue.Queue[Decision]]:
        """Decisions from now on, as a queue."""
        watcher: queue.Queue[Decision] = queue.Queue(QUEUE)
        with self._lock:
            self._watchers.append(watcher)
        try:
            yield watcher
        finally:
            with self._lock:
                self._watchers.remove(watcher)

    def _write(self, decision: Decision) -> None:
        text = decision.model_dump_json(exclude_defaults=True) + "\n"
        try:
            if self._path.exists() and self._path.stat().st_size + len(text) > FILE_BYTES:
                self._rotate()
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
            self._broken = False
        except OSError as error:
            if not self._broken:  # once, not for each decision
                logger.error("decisions are not written down: %s", error)
            self._broken = True

    def _rotate(self) -> None:
        for number in range(FILES_KEPT - 1, 0, -1):
            older = self._path.with_suffix(f".{number}.jsonl")
            if older.exists():
                older.replace(self._path.with_suffix(f".{number + 1}.jsonl"))
        self._path.replace(self._path.with_suffix(".1.jsonl"))
