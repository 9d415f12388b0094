"""The thread that hears what the kernel says of flows, and how much of it in a second."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable

from ..errors import HostError
from ..kernel.flowevents import Event, FlowEvents
from ..kernel.interface import Site
from ..kernel.process import start_thread

logger = logging.getLogger(__name__)

#: Events read at once, while whoever else needs the host waits.
BATCH = 256
#: Events that are read in a second. Guests' shares of it are far below; the rest are flows of the
#: machine's own, and what is not read of them is lost, and counted.
EVENTS_PER_SECOND = 5000
#: How long to wait at most until everything that has happened is dealt with.
SETTLE_S = 1.0
#: Pause after something failed that should not.
RETRY_S = 1.0


class Hearing:
    """Takes events in batches, with how many were lost before, from `start` until `stop`."""

    def __init__(self, site: Site, take: Callable[[list[Event], int], None]) -> None:
        self._site = site
        self._take = take
        self._quiet = threading.Condition()
        self._asked = self._settled = 0
        self._stopping = threading.Event()
        self._events: FlowEvents | None = None
        #: Written to when there is something else to do than to wait for events.
        self._wake_fd = -1
        self._thread: threading.Thread

    def start(self) -> None:
        """Begin."""
        events = self._events = self._site.within(FlowEvents)
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(
            target=self._run, args=(events,), name="guestnet-flows", daemon=True
        )
        try:
            start_thread(self._thread)
        except HostError:
            self._events = None
            events.close()
            os.close(self._wake_fd)
            raise

    def stop(self) -> None:
        """End the thread. Not to be called by who holds what `take` waits for."""
        self._stopping.set()
        with self._quiet:
            events, self._events = self._events, None
            if events is None:
                return
            os.eventfd_write(self._wake_fd, 1)
            self._quiet.notify_all()
        self._thread.join()
        events.close()
        os.close(self._wake_fd)

    def settle(self) -> None:
        """Return when everything that has happened is dealt with, or has taken too long.

        Not to be called by who holds what `take` waits for.
        """
        with self._quiet:
            if self._events is None:
                return
            self._asked += 1
            wanted = self._asked
            os.eventfd_write(self._wake_fd, 1)
            self._quiet.wait_for(lambda: self._settled >= wanted or self._events is None, SETTLE_S)

    def _run(self, events: FlowEvents) -> None:
        while not self._stopping.is_set():
            try:
                self._hear(events)
            except Exception:
                # Whatever it was, nothing would be told any more without this thread.
                logger.exception("hearing of flows")
                self._stopping.wait(RETRY_S)

    def _hear(self, events: FlowEvents) -> None:
        second, heard, lost = int(time.monotonic()), 0, events.lost()
        while not self._stopping.is_set():
            asked = self._asked
            found = events.read(BATCH)
            if found:
                before, lost = lost, events.lost()
                self._take(found, max(0, lost - before))
            else:
                with self._quiet:
                    self._settled = asked
                    self._quiet.notify_all()
                self._wait(events)
            if second != int(time.monotonic()):
                second, heard = int(time.monotonic()), 0
            heard += len(found)
            if heard > EVENTS_PER_SECOND:
                self._stopping.wait(1 - time.monotonic() % 1)

    def _wait(self, events: FlowEvents) -> None:
        poll = select.poll()
        for fd in (*events.filenos(), self._wake_fd):
            poll.register(fd, select.POLLIN)
        for fd, _what in poll.poll():
            if fd == self._wake_fd:
                os.eventfd_read(fd)
