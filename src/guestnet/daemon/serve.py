"""The daemon's life: settings, run directory, host, API; and all of it back again."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from types import FrameType

import uvicorn

from ..errors import GuestnetError, HostError
from ..host import Host
from ..kernel.caller import Caller
from ..model import NetworkSpec
from ..settings import Settings
from .app import create_app
from .bodies import About
from .faults import fault
from .notify import notify
from .rundir import BACKLOG, RunDir
from .upkeep import Upkeep

logger = logging.getLogger(__name__)

#: Seconds an idle connection is kept. Clients that attach often should not connect each time.
KEEP_ALIVE_S = 75
#: Seconds that requests under way get to finish when the daemon is told to stop.
GRACE_S = 10
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run(
    load: Callable[[], Settings], *, report_fd: int | None = None, caller: Caller | None = None
) -> int:
    """Serve until SIGTERM or SIGINT, or until `caller` hangs up; returns the exit status.

    How the start went is written to `report_fd` as one JSON document: `{"ready": true, …}` or an
    error's. The process holds its end of that descriptor until then, so that a crash shows too.
    """
    _log_to_stderr()
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    caller = caller or Caller()
    caller.watch(lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        serve(load(), report_fd, caller)
    except GuestnetError as error:
        logger.error("%s", error)
        _report(report_fd, fault(error))
        return error.exit_code
    return 0


def serve(settings: Settings, report_fd: int | None, caller: Caller) -> None:
    """Serve with these settings until told to stop."""
    networks = settings.networks
    with contextlib.ExitStack() as stack:
        run_dir = RunDir(settings)
        stack.callback(run_dir.close)
        host = stack.enter_context(
            Host.open(
                settings.state_dir,
                site=settings.site,
                rootless=settings.rootless,
                gateway_workers=settings.gateway_workers,
            )
        )
        for spec in networks:
            _follow(host, spec)
            host.create_network(spec)
        upkeep = Upkeep(host)
        stack.callback(upkeep.stop)
        about = About(
            version=version("guestnet"),
            pid=os.getpid(),
            state_dir=str(settings.state_dir),
            run_dir=str(settings.run_dir),
            site=settings.site,
            rootless=settings.rootless,
        )

        def ready() -> None:
            run_dir.show()
            upkeep.start()
            logger.info("serving on %s, state in %s", settings.socket, settings.state_dir)
            notify("READY=1", f"MAINPID={os.getpid()}", f"STATUS=serving on {settings.socket}")
            _report(report_fd, {"ready": True, **about.model_dump()})
            caller.tell_ready()

        server = _Server(host, about, ready)
        host.watch_site(server.site_lost)
        server.run(sockets=[run_dir.socket])
        notify("STOPPING=1")
        if server.lost:
            raise HostError("serve", "the rootless site", 0, f"its process {server.lost}")
        guests = "went with it" if settings.rootless else "keep their network"
        logger.info("stopping; guests %s", guests)


def _follow(host: Host, spec: NetworkSpec) -> None:
    """Bring a network's policy to what the file says, if it says so: it needs no new network."""
    for known in host.networks():
        given = "policy" in spec.model_fields_set
        if known.spec.name == spec.name and given and known.spec.policy != spec.policy:
            host.set_network_policy(spec.name, spec.policy)


class _Server(uvicorn.Server):
    """uvicorn, with our signals, and a word when it listens."""

    def __init__(self, host: Host, about: About, ready: Callable[[], None]) -> None:
        super().__init__(_config(host, about, lambda: self.should_exit))
        self._ready = ready
        #: Why the site ended by itself, if it did.
        self.lost = ""

    def site_lost(self, reason: str) -> None:
        """End: without its site there is nothing left to serve."""
        self.lost = reason
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on a signal, once; the next ones must not disturb the host's closing."""
        for number in _SIGNALS:
            signal.signal(number, self.handle_exit)
        try:
            yield
        finally:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)


def _config(host: Host, about: About, stopping: Callable[[], bool]) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(host, about, stopping),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        date_header=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Told to stop while starting: unwind, closing what was opened."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(0)


def _report(fd: int | None, document: dict[str, object]) -> None:
    """Tell whoever started us; they may have lost interest."""
    if fd is None:
        return
    with contextlib.suppress(OSError):
        os.write(fd, json.dumps(document).encode())
    os.close(fd)


def _log_to_stderr() -> None:
    # The journal stamps lines itself (systemd.exec(5), JOURNAL_STREAM).
    stamp = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    logging.basicConfig(
        level=logging.INFO, format=f"{stamp}%(levelname)s %(name)s: %(message)s", force=True
    )
    # Says what this log says already.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
