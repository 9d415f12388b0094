"""Following what changes on the machine while guests run: routes, and other tools' filters."""

from __future__ import annotations

import logging
import threading

from ..errors import GuestnetError
from ..host import Host
from ..kernel.process import start_thread

logger = logging.getLogger(__name__)

#: Seconds between two looks. A default route that moved is followed within this time.
INTERVAL_S = 5.0


class Upkeep:
    """Calls `Host.follow` every few seconds, in a thread of its own, from `start` to `stop`."""

    def __init__(self, host: Host, interval_s: float = INTERVAL_S) -> None:
        self._host = host
        self._interval_s = interval_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="guestnet-upkeep", daemon=True)
        self._said = ""

    def start(self) -> None:
        """Begin."""
        start_thread(self._thread)

    def stop(self) -> None:
        """End, once a look that has begun is done."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            try:
                self._host.follow()
            except GuestnetError as error:
                self._say(str(error))
            except Exception:
                # The daemon must outlive a look that failed: attach and detach go on.
                logger.exception("following the machine's changes")
            else:
                self._said = ""

    def _say(self, text: str) -> None:
        # What stays wrong is said once, not every few seconds.
        if text != self._said:
            logger.error("following the machine's changes: %s", text)
            self._said = text
