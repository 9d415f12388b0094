"""The daemon's side of a pump: start it, hear it, start it again.

The daemon keeps the TAP's descriptor and the VMM's socket, so a pump that crashed loses a
connection at most. The thread is the one that starts the process: the kernel ends the process with
that thread.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from ..errors import GuestnetError, HostError
from ..frames.transport import Kind, Transport
from ..kernel import descriptors
from ..kernel.process import start_thread
from . import places
from .loop import STATUS_TAP_GONE
from .places import Owner, Place
from .reports import MAX_REPORT_BYTES, Report, read_report
from .state import State

logger = logging.getLogger(__name__)

#: A pump that lived for less is started again only after a pause, doubled each time.
SHORT_LIFE_S = 10.0
PAUSE_S = 0.1
PAUSE_MAX_S = 10.0
#: How often a VMM that is to listen is tried.
CONNECT_EVERY_S = 0.5
#: Of what a VMM can cause, one line is logged in so much time.
LOG_EVERY_S = 60.0
#: nobody: owns nothing on a machine.
NOBODY = 65534


class Pump:
    """One pump process, as long as it is wanted.

    `open_tap` gives a descriptor of the TAP; it is called again when the TAP was made anew. A
    `connection` that is there already is served once.
    """

    def __init__(
        self,
        transport: Transport,
        owner: Owner,
        mtu: int,
        place: Place | None,
        open_tap: Callable[[], int],
        name: str,
        connection: socket.socket | None = None,
    ) -> None:
        self._transport = transport
        self._owner = owner
        self._mtu = mtu
        self._place = place
        self._open_tap = open_tap
        self._name = name
        self._connection = connection
        self._tap: int | None = open_tap()
        self._changed = threading.Condition()
        self._stopping = False
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._state = State()
        #: Of pumps that have ended.
        self._earlier = State()
        self._logged_at = -LOG_EVERY_S
        self._thread = threading.Thread(target=self._run, name="guestnet-pump", daemon=True)
        try:
            start_thread(self._thread)
        except HostError:
            if self._tap is not None:
                os.close(self._tap)
            raise

    @property
    def pid(self) -> int | None:
        """The process's id while it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def state(self) -> State:
        """How it goes."""
        with self._changed:
            return self._state.plus(self._earlier)

    def close(self, *, keep_place: bool) -> None:
        """End the process and let go of the TAP; the socket's file stays if it is to be kept."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            if self._control is not None:
                with suppress(OSError):  # its end, which it hears, and so does the thread
                    self._control.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        if self._tap is not None:
            os.close(self._tap)
            self._tap = None
        if self._connection is not None:
            self._connection.close()
        if self._place is not None:
            if keep_place:
                self._place.socket.close()
            else:
                self._place.remove()

    # -- the process -------------------------------------------------------------------------

    def _run(self) -> None:
        pause = PAUSE_S
        while not self._stopping:
            began = time.monotonic()
            problem = "it ended"
            try:
                if self._tap is None:
                    self._tap = self._open_tap()
                self._live_once(self._tap)
            except (OSError, ValueError, GuestnetError) as error:
                problem = str(error)
            status = self._bury()
            if self._stopping:
                return
            if status == STATUS_TAP_GONE:
                problem = "its TAP was deleted"
                if self._tap is not None:
                    os.close(self._tap)
                    self._tap = None
            lived = time.monotonic() - began
            self._note_end(problem)
            self._log("pump of %s: %s, after %.1f s; starting it again", problem, lived)
            pause = PAUSE_S if lived >= SHORT_LIFE_S else min(pause * 2, PAUSE_MAX_S)
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, timeout=pause)

    def _note_end(self, problem: str) -> None:
        with self._changed:
            ended = self._state.plus(self._earlier)
            self._earlier = State(
                connections=ended.connections,
                malformed=ended.malformed,
                refused=ended.refused,
                restarts=ended.restarts + 1,
            )
            self._state = State(problem=problem)

    def _live_once(self, tap: int) -> None:
        """Start a process and hear it until it ends."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            bound = self._place.socket.fileno() if self._place is not None else None
            owner, dgram = self._owner, self._transport.kind is Kind.DGRAM
            setup = {
                "control": theirs.fileno(),
                "tap": tap,
                "socket": bound,
                "transport": self._transport.kind.value,
                "vnet_hdr": self._transport.vnet_hdr,
                "mtu": self._mtu,
                # Datagrams are answered at the VMM's own socket, to which its user may write.
                "uid": (owner.user if dgram else None) or NOBODY,
                "gid": (owner.gid if dgram else None) or NOBODY,
                "answers_any": dgram and owner.user is None and not owner.gid,
            }
            passed = [theirs.fileno(), tap, *([bound] if bound is not None else [])]
            process = subprocess.Popen(
                [sys.executable, "-I", "-m", "guestnet.pump", json.dumps(setup)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=passed,
                env={"PYTHONMALLOC": "default", "LC_ALL": "C.UTF-8"},
                cwd="/",
            )
            theirs.close()
            with self._changed:
                self._process, self._control = process, ours
                if self._stopping:
                    process.kill()
            self._hear_all(ours)

    def _bury(self) -> int | None:
        with self._changed:
            process, self._process, self._control = self._process, None, None
        if process is None:
            return None
        if not self._stopping:
            with suppress(subprocess.TimeoutExpired):  # its control socket went first
                return process.wait(1.0)
        process.kill()
        return process.wait()

    # -- hearing -----------------------------------------------------------------------------

    def _hear_all(self, control: socket.socket) -> None:
        """Hear the pump until it ends; connect it to its VMM where that listens."""
        poll = select.poll()
        poll.register(control, select.POLLIN)
        connects = self._transport.kind is Kind.STREAM_CLIENT
        rest = b""
        while True:
            wanted = connects and self._state.serving and not self._state.connected
            if not poll.poll(CONNECT_EVERY_S * 1000 if wanted else None):
                self._connect(control)
                continue
            data = control.recv(65536)
            if not data:
                return
            *whole, rest = (rest + data).split(b"\n")
            for text in whole:
                report = read_report(text)
                self._hear(report)
                if report.kind == "ready":
                    self._give_connection(control)
            if len(rest) > MAX_REPORT_BYTES:
                raise ValueError("a report without an end")

    def _hear(self, report: Report) -> None:
        with self._changed:
            state = replace(
                self._state,
                connections=report.connections,
                malformed=report.malformed,
                refused=report.refused,
            )
            match report.kind:
                case "ready":
                    state = replace(state, serving=True, confinement=report.confinement, problem="")
                case "connected":
                    state = replace(state, connected=True, peer=report.peer, problem="")
                case "closed":
                    state = replace(state, connected=False, peer="", problem=report.reason)
                case "counts":
                    pass
            self._state = state
        if report.kind == "closed" and report.reason:
            self._log("transport of %s: its VMM is cut off: %s", report.reason)

    def _give_connection(self, control: socket.socket) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with connection:
                descriptors.send(control, b".", [connection.fileno()])

    def _connect(self, control: socket.socket) -> None:
        try:
            made = places.connect(self._transport, self._owner)
        except GuestnetError as error:
            with self._changed:
                self._state = replace(self._state, problem=str(error))
            return
        with made:
            descriptors.send(control, b".", [made.fileno()])
        with self._changed:
            # Its word follows; until then no other is made.
            self._state = replace(self._state, connected=True, problem="")

    def _log(self, text: str, *words: object) -> None:
        """Log what a VMM can cause, and not as often as it can."""
        now = time.monotonic()
        if now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            logger.warning(text, self._name, *words)
