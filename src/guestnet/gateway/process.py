"""One worker as the daemon sees it: started, told, heard, and started again when it ends.

Its thread is the one that starts the process: the kernel ends the process with that thread.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..kernel.process import start_thread
from .doorway import Doorway
from .inbox import Inbox
from .messages import MAX_REPORT_BYTES, Begin, Message, Report, line
from .patience import LOOK_S, Patience
from .reports import read_report

logger = logging.getLogger(__name__)

#: How long an order may take until the worker is ended that did not carry it out.
ORDER_TIMEOUT_S = 5.0
#: How long a worker may take to get ready: a busy machine imports slowly.
START_S = 30.0
#: A worker that lived for less is started again only after a pause, doubled each time.
SHORT_LIFE_S = 10.0
PAUSE_S = 0.1
PAUSE_MAX_S = 10.0
#: Ends unasked that are looked back on, and for how long.
CRASHES_KEPT, CRASHES_KEPT_S = 100, 600.0
#: How long it may take to reset its flows when it is told to end.
LAST_WORD_S = 1.0
#: nobody: owns nothing on a machine.
UID = GID = 65534
#: All that a worker has of it.
_ENVIRONMENT = {"PYTHONMALLOC": "default", "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True, slots=True)
class Handed:
    """What the daemon opens for all workers, keeps, and hands to them."""

    doorways: tuple[Doorway, ...]
    #: None where one works alone.
    inboxes: tuple[Inbox, ...]
    #: Where flows go on from; `None` is where the daemon is.
    netns_fd: int | None

    @classmethod
    def open(cls, doorways: tuple[Doorway, ...], netns_fd: int | None) -> Handed:
        """Open what workers need beside their doors, which are closed if that fails."""
        workers = len(doorways)
        try:
            inboxes = tuple(Inbox.open() for _ in range(workers if workers > 1 else 0))
        except BaseException:
            for doorway in doorways:
                doorway.close()
            raise
        return cls(doorways, inboxes, netns_fd)

    def close(self) -> None:
        """Close what was opened."""
        for doorway in self.doorways:
            doorway.close()
        for inbox in self.inboxes:
            inbox.close()

    def setup(self, number: int) -> tuple[dict[str, object], list[int]]:
        """What worker `number` is told at its start, and the descriptors it is given."""
        doors = self.doorways[number].descriptors
        given = [fd for numbers in doors.values() for fd in numbers]
        inbox = self.inboxes[number].reader.fileno() if self.inboxes else None
        siblings = [(i, e.writer.fileno()) for i, e in enumerate(self.inboxes) if i != number]
        given += [] if inbox is None else [inbox]
        given += [fd for _number, fd in siblings]
        given += [] if self.netns_fd is None else [self.netns_fd]
        setup: dict[str, object] = {
            "netns": self.netns_fd, "uid": UID, "gid": GID, "workers": len(self.doorways),
            "doors": doors, "inbox": inbox, "siblings": siblings,
        }  # fmt: skip
        return setup, given


class WorkerProcess:
    """One worker, as long as it is wanted; `changed` is told of its coming, going and progress."""

    def __init__(
        self,
        number: int,
        handed: Handed,
        changed: threading.Condition,
        known: Callable[[], list[Message]],
        hear: Callable[[WorkerProcess, Sequence[Report]], None],
        ended: Callable[[WorkerProcess], None],
    ) -> None:
        self.number = number
        #: Times that the process ended unasked.
        self.crashes = 0
        self.crashed_at: deque[float] = deque(maxlen=CRASHES_KEPT)
        #: `sequence` of the last order that was carried out.
        self.done = 0
        #: Whether orders are waited for: from when it is ready, and has taken nothing yet of what
        #: waits at its doors, until it ends.
        self.awaited = False
        self._handed = handed
        self._changed = changed
        self._known = known
        self._on_report = hear
        self._on_end = ended
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._sending = threading.Lock()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"guestnet-worker-{number}")
        self._thread.daemon = True
        start_thread(self._thread)

    @property
    def pid(self) -> int | None:
        """The process's id while it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def is_stopped(self) -> bool:
        """Whether it is alive and kept from running (SIGSTOP, a debugger)."""
        process = self._process
        if process is not None:
            with suppress(ChildProcessError):
                options = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
                return os.waitid(os.P_PID, process.pid, options) is not None
        return False

    def send(self, *messages: Message) -> None:
        """Tell it, if there is a process; the next one is told everything at its start."""
        with self._sending:
            if self._control is not None:
                self._push(self._control, messages, ORDER_TIMEOUT_S)

    def kill(self, why: str) -> None:
        """End it: a new one is told everything."""
        process = self._process
        if process is not None:
            logger.error("worker %d (%d) %s; ending it", self.number, process.pid, why)
            process.kill()

    def bury(self, why: str) -> None:
        """End it, and wait until its flows are gone; `changed` is held."""
        self.kill(why)
        self._changed.wait_for(lambda: not self.awaited, LAST_WORD_S)

    def stop(self) -> None:
        """Have it reset its flows and end; `join` waits for that."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            control = self._control
        if control is not None:
            with suppress(OSError):  # its end, which it hears, and so does the thread
                control.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join()

    # -- its thread --------------------------------------------------------------------------

    def _run(self) -> None:
        pause = PAUSE_S
        while not self._stopping:
            began = time.monotonic()
            try:
                self._live_once()
            except (OSError, ValueError) as error:
                logger.error("worker %d: %s", self.number, error)
            self._bury()
            if self._stopping:
                return
            self.crashes += 1
            self.crashed_at.append(time.monotonic())
            self._on_end(self)
            lived = time.monotonic() - began
            logger.error("worker %d ended after %.1f s; starting it again", self.number, lived)
            pause = PAUSE_S if lived >= SHORT_LIFE_S else min(pause * 2, PAUSE_MAX_S)
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, timeout=pause)

    def _live_once(self) -> None:
        """Start a process and hear it until it ends."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            _limit(ours, socket.SO_SNDTIMEO, LOOK_S)
            _limit(ours, socket.SO_RCVTIMEO, START_S)
            setup, given = self._handed.setup(self.number)
            process = subprocess.Popen(
                [
                    sys.executable, "-I", "-m", "guestnet.gateway",
                    json.dumps({**setup, "control": theirs.fileno()}),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), *given],
                env=_ENVIRONMENT,
                cwd="/",
            )  # fmt: skip
            theirs.close()
            try:
                self._tell_known(process, ours)
                for texts in _lines(ours):
                    if not self.awaited:  # it is ready
                        _limit(ours, socket.SO_RCVTIMEO, 0)
                        # In this order: whoever did not wait has told before it begins.
                        self.awaited = True
                        self.send(Begin())
                    self._on_report(self, [read_report(text) for text in texts])
            finally:
                with self._sending:  # nobody sends to what is about to be closed
                    self._control = None

    def _tell_known(self, process: subprocess.Popen[bytes], ours: socket.socket) -> None:
        """What is known goes first: an order given meanwhile must not be followed by its elder."""
        with self._sending:
            with self._changed:
                self._process, self._control = process, ours
                if self._stopping:
                    process.kill()
                known = self._known()
            for message in known:
                if not self._push(ours, [message], START_S):
                    return

    def _push(self, control: socket.socket, messages: Iterable[Message], patience_s: float) -> bool:
        """Send all of it, or see to it that the worker ends; returns whether it was sent."""
        data = memoryview(b"".join(map(line, messages)))
        patience = Patience(patience_s, self.is_stopped)
        while data:
            try:
                data = data[control.send(data) :]
            except BlockingIOError:  # it has not read for `LOOK_S`
                if why := patience.lost():
                    self.kill(f"does not listen: it {why}")
                    return False
            except OSError:
                return False  # it has ended; the thread notices
        return True

    def _bury(self) -> None:
        process = self._process
        if process is not None:
            if self._stopping and self.awaited:  # else it has no flows to reset
                with suppress(subprocess.TimeoutExpired):
                    process.wait(LAST_WORD_S)
            process.kill()
            process.wait()
        with self._changed:
            # Whoever waits goes on: its flows are gone, and the next one is told everything.
            self._process, self.awaited = None, False
            self._changed.notify_all()


def _limit(control: socket.socket, option: int, seconds: float) -> None:
    """Let the kernel end a wait with EAGAIN; 0 is for ever (`struct timeval`, socket(7))."""
    whole = int(seconds)
    value = struct.pack("@ll", whole, int((seconds - whole) * 1e6))
    control.setsockopt(socket.SOL_SOCKET, option, value)


def _lines(control: socket.socket) -> Iterator[list[bytes]]:
    """Lines, those together that came together, until the other end closes.

    Raises `ValueError` for one without an end.
    """
    rest = b""
    while data := control.recv(65536):
        *whole, rest = (rest + data).split(b"\n")
        if whole:
            yield whole
        if len(rest) > MAX_REPORT_BYTES:
            raise ValueError("a report without an end")
