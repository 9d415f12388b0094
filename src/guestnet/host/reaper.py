"""Clearing away after detached guests, in the background and many at a time.

Deleting a device waits for a grace period of the kernel, about 20 ms however many go together; so
detaches only cut and mark, and this thread deletes what has gathered.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from ..kernel.process import start_thread
from ..store import Lease

logger = logging.getLogger(__name__)

#: Detaches gather until none has come for so long …
QUIET_S = 0.05
#: … but no longer than this: their addresses are to be free again.
GATHER_MAX_S = 2.0
#: One batch holds the kernel's device lock for about this many quarter milliseconds.
BATCH = 256
#: Pause after the machine refused a batch, before it is tried again.
RETRY_S = 1.0


class Reaper:
    """Calls `clear` with leases that are cut off, in batches, from a thread of its own."""

    def __init__(self, clear: Callable[[Sequence[Lease]], None]) -> None:
        self._clear = clear
        self._pending: list[Lease] = []
        self._changed = threading.Condition()
        #: Held while a batch is cleared, by this thread or by one that will not wait for it.
        self._clearing = threading.Lock()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="guestnet-reaper", daemon=True)

    def start(self) -> None:
        """Begin."""
        start_thread(self._thread)

    def add(self, lease: Lease) -> None:
        """Hand over a lease that is cut off."""
        with self._changed:
            self._pending.append(lease)
            self._changed.notify()

    def drain(self) -> None:
        """Clear away everything pending before returning. Raises what the machine refuses."""
        while self._clear_batch():
            pass

    def stop(self, *, clear: bool = True) -> None:
        """End the thread; clear away what is pending first, unless told not to."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        if clear:
            self.drain()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._stopping)
                if self._stopping:
                    return
                self._gather()
                if self._stopping:
                    return
            try:
                self._clear_batch()
            except Exception:
                # Whatever it was, slots would never be free again without this thread.
                logger.exception("clearing away after detached guests")
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping, timeout=RETRY_S)

    def _gather(self) -> None:
        """Wait until it is quiet: a deletion keeps the detaches that come meanwhile waiting."""
        deadline = time.monotonic() + GATHER_MAX_S
        seen = -1
        while seen != len(self._pending) and time.monotonic() < deadline:
            seen = len(self._pending)
            self._changed.wait_for(lambda: self._stopping, timeout=QUIET_S)

    def _clear_batch(self) -> bool:
        """Clear away one batch; False if there was none. A refused batch stays pending."""
        with self._clearing:
            with self._changed:
                batch = self._pending[:BATCH]
            if not batch:
                return False
            self._clear(batch)
            with self._changed:
                del self._pending[: len(batch)]
            return True
