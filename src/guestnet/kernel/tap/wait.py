"""Waiting for a descriptor inside asyncio, leaving nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import asyncio

_Key: TypeAlias = "tuple[asyncio.AbstractEventLoop, int, bool]"


class Readiness:
    """Coroutines that wait until descriptors can be read or written.

    A loop has one callback per descriptor and direction, so the coroutines that wait for the same
    one share it: all wake, try again, and wait anew if another was faster. The callback is removed
    when the last of them has been woken, cancelled or failed.
    """

    def __init__(self) -> None:
        self._waiting: dict[_Key, list[asyncio.Future[None]]] = {}

    async def wait(self, fd: int, *, writing: bool = False) -> None:
        """Return when `fd` can be read (or written), or shows an error condition."""
        import asyncio  # it runs already; who does not wait in it does not wait for it

        loop = asyncio.get_running_loop()
        key = (loop, fd, writing)
        waiting = self._waiting.get(key)
        if waiting is None:
            add = loop.add_writer if writing else loop.add_reader
            add(fd, self._wake, key)
            waiting = self._waiting[key] = []
        future: asyncio.Future[None] = loop.create_future()
        waiting.append(future)
        try:
            await future
        finally:
            waiting.remove(future)
            if not waiting and self._waiting.get(key) is waiting:
                self._forget(key)

    def fail(self, error: Callable[[], Exception]) -> None:
        """Make every waiting coroutine raise; called before the descriptors are closed."""
        for key in list(self._waiting):
            for future in self._forget(key):
                if not future.done() and not key[0].is_closed():
                    future.set_exception(error())

    def _wake(self, key: _Key) -> None:
        for future in self._forget(key):
            if not future.done():
                future.set_result(None)

    def _forget(self, key: _Key) -> list[asyncio.Future[None]]:
        loop, fd, writing = key
        if not loop.is_closed():
            (loop.remove_writer if writing else loop.remove_reader)(fd)
        return self._waiting.pop(key)
