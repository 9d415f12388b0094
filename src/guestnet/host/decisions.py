"""Remembering decisions: a rotated file of JSON lines, and whoever watches.

Guests cause decisions, so their number is bounded: beyond a guest's share of a second they are
counted, and the next one that is told says how many were left out.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ..gateway.share import Share
from ..model import Decision
from .seen import Seen

logger = logging.getLogger(__name__)

#: Bytes of the file until it is put aside, and how many put aside are kept.
FILE_BYTES = 16 * 1024 * 1024
FILES_KEPT = 4
#: The last decisions, for who begins to watch.
RECENT = 1000
#: Decisions waiting for one watcher; a slower one misses some, and is told so by `omitted`.
QUEUE = 10_000
#: How long a watcher may go on after it was closed, if its queue was full.
POLL_S = 0.5


class Watch(Iterator[Decision]):
    """Decisions as they are taken. Closing it ends the iteration, from any thread."""

    def __init__(self, guest: str | None, leave: Callable[[Watch], None]) -> None:
        self._guest = guest
        self._leave = leave
        self._waiting: queue.Queue[Decision | None] = queue.Queue(QUEUE)
        self._closed = False

    def tell(self, decision: Decision) -> None:
        """Hand over a decision; one too many is left out."""
        if self._guest in (None, decision.guest):
            with suppress(queue.Full):
                self._waiting.put_nowait(decision)

    def poll(self) -> Decision | None:
        """The next decision, if there is one already."""
        with suppress(queue.Empty):
            return self._waiting.get_nowait()
        return None

    def __next__(self) -> Decision:
        while not self._closed:
            with suppress(queue.Empty):
                decision = self._waiting.get(timeout=POLL_S)
                if decision is not None:
                    return decision
        raise StopIteration

    def close(self) -> None:
        """Hear no more."""
        self._closed = True
        self._leave(self)
        with suppress(queue.Full):
            self._waiting.put_nowait(None)


class Decisions:
    """Takes decisions from any thread; without a `path` none is written down."""

    def __init__(self, path: Path | None, is_known: Callable[[str], bool]) -> None:
        """`is_known` says whether a guest is here; what is said of others is not believed."""
        self._path = path
        self._is_known = is_known
        self.seen = Seen()
        self._lock = threading.Lock()
        self._recent: deque[Decision] = deque(maxlen=RECENT)
        self._shares: dict[str, Share] = {}
        self._watchers: list[Watch] = []
        self._broken = False

    def take(self, decision: Decision) -> None:
        """Write a decision down and tell watchers, unless its guest had its share."""
        # The gateway may name any guest there is text for: each would be remembered.
        if not self._is_known(decision.guest):
            return
        self.seen.take(decision)
        with self._lock:
            share = self._shares.setdefault(decision.guest, Share())
            omitted = share.take(time.time())
            if omitted is None:
                share.omitted += decision.omitted
                return
            if omitted:
                omitted += decision.omitted
                decision = replace(decision, omitted=omitted)
            self._recent.append(decision)
            self._write(decision)
            for watch in self._watchers:
                watch.tell(decision)

    def forget_the_gone(self) -> None:
        """Forget guests that are not here any more; what was told of them stays told."""
        with self._lock:
            gone = [guest for guest in self._shares if not self._is_known(guest)]
            for guest in gone:
                del self._shares[guest]
        for guest in gone:
            self.seen.forget(guest)

    def recent(self, guest: str | None = None) -> list[Decision]:
        """The last decisions, oldest first."""
        with self._lock:
            return [d for d in self._recent if guest in (None, d.guest)]

    def watch(self, guest: str | None = None) -> Watch:
        """Decisions from now on, of all guests or of one."""
        watch = Watch(guest, self._leave)
        with self._lock:
            self._watchers.append(watch)
        return watch

    def close(self) -> None:
        """End whoever watches."""
        with self._lock:
            watchers = list(self._watchers)
        for watch in watchers:
            watch.close()

    def _leave(self, watch: Watch) -> None:
        with self._lock:
            if watch in self._watchers:
                self._watchers.remove(watch)

    def _write(self, decision: Decision) -> None:
        path = self._path
        if path is None:
            return
        text = decision.text(brief=True) + "\n"
        try:
            if path.exists() and path.stat().st_size + len(text) > FILE_BYTES:
                _rotate(path)
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
            self._broken = False
        except OSError as error:
            if not self._broken:  # once, not for each decision
                logger.error("decisions are not written down: %s", error)
            self._broken = True


def _rotate(path: Path) -> None:
    for number in range(FILES_KEPT - 1, 0, -1):
        older = path.with_suffix(f".{number}.jsonl")
        if older.exists():
            older.replace(path.with_suffix(f".{number + 1}.jsonl"))
    path.replace(path.with_suffix(".1.jsonl"))
