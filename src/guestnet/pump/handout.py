"""Giving the open TAP to whoever connects: a thread of the daemon, which reads nothing."""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from ..errors import GuestnetError
from ..kernel.process import start_thread
from ..kernel.tap import handover
from ..kernel.tap.handover import HandedTap
from .places import Place
from .state import State

logger = logging.getLogger(__name__)


class Handout:
    """Serves one attachment's tap-fd socket. `open_tap` opens the TAP anew for each VMM."""

    def __init__(self, place: Place, open_tap: Callable[[], HandedTap], name: str) -> None:
        self._place = place
        self._open_tap = open_tap
        self._name = name
        self._state = State(serving=True)
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="guestnet-handout", daemon=True)
        start_thread(self._thread)

    @property
    def pid(self) -> None:
        """There is no process."""
        return

    @property
    def state(self) -> State:
        """How it goes. Whether a VMM holds the TAP is for the TAP to say."""
        return self._state

    def close(self, *, keep_place: bool) -> None:
        """End; the socket's file stays if it is to be kept."""
        self._stop.close()
        self._thread.join()
        self._stopped.close()
        if keep_place:
            self._place.socket.close()
        else:
            self._place.remove()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._place.socket, select.POLLIN)
        poll.register(self._stopped, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._stopped.fileno() in ready:
                return
            with suppress(OSError):
                connection, _address = self._place.socket.accept()
                with connection:
                    self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        try:
            with self._open_tap() as tap:
                handover.hand(connection, tap.facts, tap.fds)
        except GuestnetError as error:
            self._state = replace(self._state, problem=str(error))
            with suppress(OSError):
                handover.refuse(connection, error)
        else:
            count = self._state.connections + 1
            self._state = replace(self._state, connections=count, problem="")
            logger.info("handed the TAP of %s to a VMM", self._name)
