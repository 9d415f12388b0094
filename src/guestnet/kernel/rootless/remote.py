"""The owner's side: the agent's process, and a `Site` whose work it does."""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, KeysView
from contextlib import suppress
from typing import Any, Concatenate, ParamSpec, TypeVar

from ...errors import HostError
from ..outlook import Address as _Address
from ..outlook import Outlook, Surroundings, Way
from ..site import NamespaceSite
from .channel import Channel
from .obstacles import hint

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

#: How long an agent that was told to end may take.
END_S = 5.0
_MODULE = "guestnet.kernel.rootless.agent"


def _remote(
    method: Callable[Concatenate[NamespaceSite, P], R],
) -> Callable[Concatenate[RootlessSite, P], R]:
    """The same method, done by the agent."""
    name = method.__name__

    def call(site: RootlessSite, /, *args: P.args, **kwargs: P.kwargs) -> R:
        answer: R = site.ask(name, *args, **kwargs)
        return answer

    call.__name__, call.__doc__ = name, method.__doc__
    return call


class RootlessSite:
    """`Site` in a private user and network namespace; both end with it.

    What is inside is asked of the agent. What is around guests (the ways out, the host's own
    addresses) is seen from the owner's namespace: that is where relayed flows leave from.
    """

    #: Nothing in the namespace leads outside.
    relays_all = True
    #: The gateway stays where its owner is.
    netns_fd: int | None = None

    def __init__(self) -> None:
        self.life = f"rootless {uuid.uuid4().hex}"
        self._lock = threading.Lock()
        self._closing = False
        self._reason = ""
        self._lost: list[Callable[[str], None]] = []
        self._ended = threading.Event()
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        started = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        # The kernel ends the agent with the thread that started it, so that one does nothing else.
        self._keeper = threading.Thread(
            target=self._keep, args=(theirs, started), name="guestnet-rootless", daemon=True
        )
        self._keeper.start()
        started.wait()
        try:
            self._receive()
        except HostError as error:
            self.close()
            raise HostError(
                error.call, error.target, error.errno, hint(error) or error.detail
            ) from None
        self._outlook = Outlook()

    @property
    def pid(self) -> int | None:
        """The agent's process, while it runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def namespace(self) -> str:
        """The network namespace's path."""
        if self.pid is None:
            raise self._gone()
        return f"/proc/{self.pid}/ns/net"

    def close(self) -> None:
        """End the agent, and with it everything inside; a second call does nothing."""
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
        outlook = getattr(self, "_outlook", None)
        if outlook is not None:
            outlook.close()

    def watch(self, lost: Callable[[str], None]) -> None:
        """Call `lost` with the reason, from a thread of ours, should the agent end unasked."""
        self._lost.append(lost)
        if self._reason:
            lost(self._reason)

    # -- the process -------------------------------------------------------------------------

    def _keep(self, theirs: socket.socket, started: threading.Event) -> None:
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-m", _MODULE, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    cwd="/",
                )
        except OSError as error:
            self._reason = f"cannot be started: {error}"
            self._ended.set()
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

    def ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Have the agent's site do something; raises what that raises."""
        request = name, tuple(map(_sendable, args)), kwargs
        with self._lock:
            try:
                self._channel.send(request)
            except OSError:
                raise self._gone() from None
            return self._receive()

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

    # -- inside --------------------------------------------------------------------------------

    perform = _remote(NamespaceSite.perform)
    delete_retired = _remote(NamespaceSite.delete_retired)
    pin = _remote(NamespaceSite.pin)
    unpin = _remote(NamespaceSite.unpin)
    pinned = _remote(NamespaceSite.pinned)
    seen = _remote(NamespaceSite.seen)
    flows_of = _remote(NamespaceSite.flows_of)
    forget_flows = _remote(NamespaceSite.forget_flows)
    delete_flows = _remote(NamespaceSite.delete_flows)
    forget_refusals = _remote(NamespaceSite.forget_refusals)
    remove_tables = _remote(NamespaceSite.remove_tables)
    steer = _remote(NamespaceSite.steer)
    set_sysctls = _remote(NamespaceSite.set_sysctls)
    restore_sysctls = _remote(NamespaceSite.restore_sysctls)
    forwarding_changes = _remote(NamespaceSite.forwarding_changes)
    sysctl = _remote(NamespaceSite.sysctl)
    observe = _remote(NamespaceSite.observe)
    chains = _remote(NamespaceSite.chains)
    device = _remote(NamespaceSite.device)
    refused = _remote(NamespaceSite.refused)
    counters = _remote(NamespaceSite.counters)
    foreign_filters = _remote(NamespaceSite.foreign_filters)
    accept_in_foreign_filters = _remote(NamespaceSite.accept_in_foreign_filters)
    new_namespace = _remote(NamespaceSite.new_namespace)
    drop_namespace = _remote(NamespaceSite.drop_namespace)
    is_ours = staticmethod(NamespaceSite.is_ours)

    def within(self, work: Callable[[], R]) -> R:
        """Do something in the site's namespace; sockets in what it returns come along."""
        answer: R = self.ask("within", work)
        return answer

    # -- around --------------------------------------------------------------------------------

    def egress(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Interfaces by which flows leave: those named, or where public addresses are routed."""
        return self._outlook.egress(wanted)

    def mtu(self, name: str) -> int | None:
        """The MTU of one of the host's devices in bytes, or None if there is no such device."""
        return self._outlook.mtu(name)

    def way_to(self, address: _Address) -> Way | None:
        """How the host routes an address."""
        return self._outlook.way_to(address)

    def surroundings(self) -> Surroundings:
        """The host's own addresses and routes."""
        return self._outlook.surroundings()


def _sendable(value: Any) -> Any:
    """What can be pickled: a generator is gone through here."""
    return tuple(value) if isinstance(value, (Iterator, KeysView)) else value


def _how(status: int) -> str:
    if status < 0:
        return f"was killed ({signal.Signals(-status).name})"
    return f"ended with status {status}"
