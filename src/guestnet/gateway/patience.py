"""Patience with a worker that is to do something: neither lost too early nor kept for ever."""

from __future__ import annotations

import time
from collections.abc import Callable

#: How often a worker that takes its time is looked at.
LOOK_S = 0.1
#: The most that counts between two looks. More passes where the daemon itself did not run: it was
#: stopped together with its workers, and one of them goes on before the others.
COUNTED_S = 2 * LOOK_S
#: How long a worker may be seen to be stopped; beyond one look, by `COUNTED_S`.
STOPPED_S = 0.3


class Patience:
    """With one worker, for `patience_s`; `is_stopped` tells whether it is kept from running."""

    __slots__ = ("_is_stopped", "_left_s", "_looked_at", "_stopped_s")

    def __init__(self, patience_s: float, is_stopped: Callable[[], bool]) -> None:
        self._left_s = patience_s
        self._is_stopped = is_stopped
        self._stopped_s = 0.0
        self._looked_at = time.monotonic()

    def lost(self) -> str:
        """Why it is lost at this look, "" while it is not."""
        now = time.monotonic()
        passed_s = min(now - self._looked_at, COUNTED_S)
        self._looked_at = now
        self._left_s -= passed_s
        self._stopped_s = self._stopped_s + passed_s if self._is_stopped() else 0.0
        if self._stopped_s > STOPPED_S:
            return "is stopped"
        return "is late" if self._left_s <= 0 else ""
