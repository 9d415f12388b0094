"""The agent's process: started, asked, and told of when it ends.

Light, so that it can be started before anything heavy is imported: both take about as long.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ...errors import HostError
from ..process import start_process, start_thread
from .channel import Channel
from .obstacles import hint

#: How long an agent that was told to end may take.
END_S = 5.0
_MODULE = "guestnet.kernel.rootless.agent"


class Agent:
    """The process that holds a rootless site's namespaces, until `close`. Thread-safe."""

    def __init__(self) -> None:
        """Start it; raises `HostError` where the machine has no room for one."""
        self._lock = threading.Lock()
        self._closing = False
        self._ready = False
        self._reason = ""
        self._lost: list[Callable[[str], None]] = []
        self._ended = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        #: Why there never was one.
        self._failure: HostError | None = None
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        started = threading.Event()
        # The kernel ends the agent with the thread that started it, so that one does nothing else.
        self._keeper = threading.Thread(
            target=self._keep, args=(theirs, started), name="guestnet-rootless", daemon=True
        )
        try:
            start_thread(self._keeper)
            started.wait()
            if self._failure is not None:
                raise self._failure
        except HostError:
            theirs.close()
            self._channel.close()
            raise

    @property
    def pid(self) -> int:
        """The process's id; raises `HostError` if it has ended."""
        if self._process is None or self._ended.is_set():
            raise self._gone()
        return self._process.pid

    def await_ready(self) -> None:
        """Wait until the namespaces are there; raises `HostError`, with a remedy if known."""
        try:
            self._receive()
        except HostError as error:
            detail = hint(error) or error.detail
            raise HostError(error.call, error.target, error.errno, detail) from None

    def ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Have the agent's site do something; raises what that raises."""
        with self._lock:
            try:
                self._channel.send((name, args, kwargs))
            except OSError:
                raise self._gone() from None
            return self._receive()

    def watch(self, lost: Callable[[str], None]) -> None:
        """Call `lost` with the reason, from a thread of ours, should the process end unasked."""
        self._lost.append(lost)
        if self._ended.is_set() and not self._closing:
            lost(self._reason)

    def close(self) -> None:
        """End the process, and with it everything inside; a second call does nothing."""
        if self._closing:
            return
        self._closing = True
        with suppress(OSError):
            self._channel.hang_up()
        self._keeper.join(END_S)
        if self._keeper.is_alive() and self._process is not None:
            self._process.kill()
            self._keeper.join()
        self._channel.close()

    def _keep(self, theirs: socket.socket, started: threading.Event) -> None:
        try:
            with theirs:
                self._process = start_process(
                    "the rootless site's agent",
                    [sys.executable, "-I", "-m", _MODULE, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    cwd="/",
                )
        except HostError as error:
            self._failure = error
            return
        finally:
            started.set()
        status = self._process.wait()
        self._reason = f"pid {self._process.pid} {_how(status)}"
        self._ended.set()
        if self._closing:
            return
        with suppress(OSError):
            self._channel.hang_up()  # whoever waits for an answer
        for lost in self._lost:
            lost(self._reason)

    def _receive(self) -> Any:
        try:
            done, answer = self._channel.receive()
        except (EOFError, OSError):
            raise self._gone() from None
        if not done:
            raise answer
        return answer

    def _gone(self) -> HostError:
        if not self._closing:
            self._ended.wait(END_S)  # how it ended is known in a moment
        reason = "was closed" if self._closing else self._reason or "does not answer"
        return HostError("ask", "the rootless site", 0, f"its process {reason}: its guests are cut")


def _how(status: int) -> str:
    if status < 0:
        return f"was killed ({signal.Signals(-status).name})"
    return f"ended with status {status}"
