"""A loop around epoll: handlers of descriptors, timers, and calls for the next turn.

One thread, and edge-triggered: an event says that something has changed, and comes once. A handler
goes on until EAGAIN, or remembers that it stopped before.
"""

from __future__ import annotations

import heapq
import os
import select
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Self

Handler = Callable[[int], None]

#: What the kernel tells of every descriptor.
_ALWAYS = select.EPOLLERR | select.EPOLLHUP
#: Events taken at a time.
_EVENTS = 64
#: Calls of `call_soon` made before the descriptors are looked at again. Flows that have much to
#: move continue this way, and one that has little must not wait until all of them had a turn.
SOON_CALLS = 16
#: The heap is cleared of cancelled timers when more than half are, beyond so many.
_TIMERS_TOLERATED = 256


class Timer:
    """One call in the future."""

    __slots__ = ("_call", "_reactor")

    def __init__(self, reactor: Reactor, call: Callable[[], None]) -> None:
        self._reactor = reactor
        self._call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Never call; cancelling twice, or after the call, is fine."""
        if self._call is not None:
            self._call = None
            self._reactor._timer_cancelled()

    def _take(self) -> Callable[[], None] | None:
        call, self._call = self._call, None
        return call


class _Watch:
    """A descriptor's handler, and the number of the batch during which it came."""

    __slots__ = ("batch", "events", "handler")

    def __init__(self, handler: Handler, events: int, batch: int) -> None:
        self.handler = handler
        self.events = events
        self.batch = batch


class Reactor:
    """The loop. `on_error` is given what a handler, timer or call raised, and must not raise.

    Raises `OSError` where the kernel refuses an epoll instance or to watch a descriptor.
    """

    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        self._on_error = on_error
        self._watches: dict[int, _Watch] = {}
        self._soon: deque[Callable[[], None]] = deque()
        #: Of those the ones that `go_on` is asked for.
        self._going_on: set[tuple[object, ...]] = set()
        self._timers: list[tuple[float, int, Timer]] = []
        self._timer_count = self._timers_cancelled = 0
        self._batch = 0
        self._now: float | None = None
        self._stopping = False
        self._epoll = select.epoll()
        try:
            # Readable from the first `stop` on, so that a signal handler can end the waiting.
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError:
            self._epoll.close()
            raise
        self.add(self._wake, lambda _events: None, select.EPOLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the loop's own descriptors; those watched stay their owners'."""
        if not self._epoll.closed:
            self._epoll.close()
            os.close(self._wake)

    # -- descriptors -------------------------------------------------------------------------

    def add(self, fd: int, handler: Handler, events: int) -> None:
        """Call `handler(events)` on changes; EPOLLERR and EPOLLHUP always come too.

        What is ready already is told as the first change. Raises `ValueError` if it is watched.
        """
        if fd in self._watches:
            raise ValueError(f"descriptor {fd} is watched already; remove it before closing it")
        self._epoll.register(fd, events | select.EPOLLET)
        self._watches[fd] = _Watch(handler, events | _ALWAYS, self._batch)

    def modify(self, fd: int, events: int) -> None:
        """Watch for other events; what is ready already is told again. `KeyError` if unwatched."""
        watch = self._watches[fd]
        self._epoll.modify(fd, events | select.EPOLLET)
        watch.events = events | _ALWAYS

    def replace(self, fd: int, handler: Handler) -> None:
        """Call another handler from now on; what was told before is not told again."""
        self._watches[fd].handler = handler

    def forget(self, fd: int) -> None:
        """Watch no more a descriptor that is closed next, which makes the kernel forget it too."""
        del self._watches[fd]

    def remove(self, fd: int) -> None:
        """Watch no more; do this *before* closing the descriptor. `KeyError` if unwatched."""
        del self._watches[fd]
        self._epoll.unregister(fd)

    # -- calls and time ----------------------------------------------------------------------

    def call_soon(self, call: Callable[[], None]) -> None:
        """Call after the handlers whose events are there already; in order."""
        self._soon.append(call)

    def go_on(self, call: Callable[..., None], *args: object) -> None:
        """Call soon, and once, however often the same is asked for until then.

        For a handler that stops before EAGAIN: what comes meanwhile is an event, which has it stop
        once more, and turns that added up would be taken from everybody else.
        """
        key = (call, *args)
        if key not in self._going_on:
            self._going_on.add(key)
            self._soon.append(partial(self._go_on, key, call, *args))

    def _go_on(self, key: tuple[object, ...], call: Callable[..., None], *args: object) -> None:
        self._going_on.discard(key)
        call(*args)

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        """Call in `delay_s` seconds; the timer cancels it."""
        timer = Timer(self, call)
        self._timer_count += 1
        heapq.heappush(self._timers, (self.now() + delay_s, self._timer_count, timer))
        return timer

    def now(self) -> float:
        """Seconds since the machine was started, read once a turn."""
        return _seconds() if self._now is None else self._now

    def _timer_cancelled(self) -> None:
        """A long delay cancelled again and again would otherwise fill the heap."""
        self._timers_cancelled += 1
        if self._timers_cancelled > max(_TIMERS_TOLERATED, len(self._timers) // 2):
            self._timers = [entry for entry in self._timers if entry[2]._call is not None]
            heapq.heapify(self._timers)
            self._timers_cancelled = 0

    # -- the loop ----------------------------------------------------------------------------

    def run(self) -> None:
        """Turn until `stop`."""
        while not self._stopping:
            self.run_once(None)
        self._stopping = False
        with suppress(BlockingIOError):  # `stop` in another thread has not come so far yet
            os.eventfd_read(self._wake)

    def stop(self) -> None:
        """Let `run` return after this turn; also from a signal handler or another thread."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)

    def run_once(self, timeout: float | None) -> None:
        """One turn: wait at most `timeout` seconds (`None`: for ever) and call what is due."""
        ready = self._epoll.poll(self._patience(timeout), _EVENTS)
        self._now = _seconds()
        self._batch += 1
        try:
            for fd, events in ready:
                watch = self._watches.get(fd)
                # One that came during this batch has the number of a descriptor closed during it:
                # the event was the old one's.
                if watch is not None and watch.batch != self._batch and events & watch.events:
                    try:
                        watch.handler(events & watch.events)
                    except Exception as error:
                        self._on_error(error)
            while self._timers and self._timers[0][0] <= self._now:
                call = heapq.heappop(self._timers)[2]._take()
                if call is None:
                    self._timers_cancelled -= 1
                else:
                    self._guarded(call)
            for _ in range(min(len(self._soon), SOON_CALLS)):
                self._guarded(self._soon.popleft())
        finally:
            self._now = None

    def _patience(self, timeout: float | None) -> float | None:
        """How long to wait for events."""
        if self._soon:
            return 0
        if not self._timers:
            return timeout
        until = max(0.0, self._timers[0][0] - self.now())
        return until if timeout is None else min(timeout, until)

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._on_error(error)


def _seconds() -> float:
    """Of a clock that nobody sets, and that goes on while the machine is suspended.

    What a TTL allows, it allows for that long in the world outside.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)
