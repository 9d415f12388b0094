"""`up` and `down`: the daemon's start and end."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..client import NO_DAEMON, Api, error_from
from ..errors import ConfigError, ConflictError, GuestnetError, HostError, UnreachableError
from ..kernel.caller import Caller
from ..kernel.process import start_process
from ..settings import Settings
from . import output
from .context import ExitFd, Json, ReadyFd, of

#: Seconds for a start, which repairs what stands: 10,000 guests take about five.
START_TIMEOUT_S = 120
#: Seconds for an end: requests under way finish, and detached guests are cleared away.
STOP_TIMEOUT_S = 60
#: How long what a daemon is may take to say before it is stopped: it may hang.
ASK_TIMEOUT_S = 1.0
LOG_FILE = "guestnet.log"
#: A log larger than this is begun anew by the next `up`: the run directory is memory.
LOG_MAX_BYTES = 1 << 20
#: Of a daemon that died without a word, so much of its log is shown.
_TAIL_BYTES = 2000


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(up)
    app.command()(down)


def up(
    ctx: typer.Context,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay, and log to stderr: for systemd.")
    ] = False,
    site: Annotated[
        str | None,
        typer.Option(metavar="NETNS", help="Work in this network namespace.  [GUESTNET_SITE]"),
    ] = None,
    socket_group: Annotated[
        str | None, typer.Option(help="Group that may use the socket.  [GUESTNET_SOCKET_GROUP]")
    ] = None,
    rootless: Annotated[
        bool, typer.Option("--rootless", help="In namespaces of its own, even as root.")
    ] = False,
    ready_fd: ReadyFd = None,
    exit_fd: ExitFd = None,
    json: Json = False,
) -> None:
    """Start the daemon; returns when it is ready."""
    context = of(ctx)
    context.rootless = context.rootless or rootless
    for key, fd in (("ready_fd", ready_fd), ("exit_fd", exit_fd)):
        if fd is not None and not foreground:
            raise ConfigError(key, fd, "goes with --foreground: otherwise `up` itself returns")

    def load() -> Settings:
        return context.settings(site=site, socket_group=socket_group)

    if foreground:
        from ..daemon.serve import run

        raise typer.Exit(run(load, caller=Caller(ready_fd, exit_fd)))
    settings = load()
    about = _running(settings)
    started = about is None
    if about is None:
        about = _start(settings)
    if json:
        output.as_json({"started": started, **about, "socket": str(settings.socket)})
    else:
        word = "is up" if started else "was up already"
        output.say(f"guestnet {word}: pid {about['pid']}, socket {settings.socket}")
        where = "of its own, rootless" if about["rootless"] else about["site"] or "this namespace"
        output.say(f"state in {about['state_dir']}, site {where}")


def down(ctx: typer.Context, json: Json = False) -> None:
    """Stop the daemon; guests keep their network, but for a rootless one's."""
    settings = of(ctx).settings()
    guests = "went with it" if _keeps_guests_itself(settings) else "keep their network"
    pid = _stop(settings)
    if json:
        output.as_json({"stopped": pid is not None, "pid": pid})
    elif pid is None:
        output.say(f"guestnet is not up: nothing listens on {settings.socket}")
    else:
        output.say(f"guestnet is down (was pid {pid}); guests {guests}")


def _running(settings: Settings) -> dict[str, Any] | None:
    """What the daemon on our socket says of itself, if there is one."""
    api = Api(settings.socket)
    try:
        about: dict[str, Any] = api.get("/v1/version")
    except UnreachableError as error:
        if error.errno in NO_DAEMON:
            return None
        raise
    finally:
        api.close()
    for key, wanted in (
        ("state_dir", str(settings.state_dir)),
        ("site", settings.site),
        ("rootless", settings.rootless),
    ):
        if about[key] != wanted:
            raise ConflictError(
                key,
                wanted,
                f"the daemon on {settings.socket} (pid {about['pid']}) has "
                f"{'none' if about[key] is None else repr(about[key])}; "
                "stop it (guestnet down), or give this one a run directory of its own",
            )
    return about


def _start(settings: Settings) -> dict[str, Any]:
    """Start a daemon in the background and wait for its word."""
    from ..daemon.rundir import make_directory

    make_directory(settings.run_dir)
    log = settings.run_dir / LOG_FILE
    reading, writing = os.pipe()
    with open(reading, "rb") as reports, open(_open_log(log), "ab") as lines:
        try:
            process = start_process(
                "the daemon",
                [*_command(settings), f"--report-fd={writing}"],
                stdin=subprocess.DEVNULL,
                stdout=lines,
                stderr=lines,
                pass_fds=(writing,),
                # Neither the terminal's signals nor a directory's unmounting concern it.
                start_new_session=True,
                cwd="/",
            )
        finally:
            os.close(writing)
        try:
            report = _report(reports.fileno())
        except BaseException:
            process.terminate()
            raise
    document = json.loads(report or b"{}")
    if not document:
        raise HostError("start", "the daemon", 0, f"it ended without a word; {_tail(log)}")
    if not document.pop("ready", False):
        raise error_from(document)
    return dict(document)


def _command(settings: Settings) -> list[str]:
    """The daemon's command line: paths resolved here, as it works elsewhere."""
    arguments = {
        "state-dir": settings.state_dir,
        "run-dir": settings.run_dir,
        "config": settings.config,
        "site": settings.site,
        "socket-group": settings.socket_group,
        "rootless": "on" if settings.rootless else "off",
    }
    given = [f"--{key}={value}" for key, value in arguments.items() if value is not None]
    return [sys.executable, "-P", "-m", "guestnet.daemon", *given]


def _open_log(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags, 0o600)
        if os.fstat(fd).st_size > LOG_MAX_BYTES:
            os.ftruncate(fd, 0)
    except OSError as error:
        raise HostError.from_os("open", str(path), error) from None
    return fd


def _report(fd: int) -> bytes:
    """Everything that the daemon says of its start; empty if it dies first."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    report = b""
    while poll.poll(START_TIMEOUT_S * 1000):
        chunk = os.read(fd, 65536)
        if not chunk:
            return report
        report += chunk
    raise UnreachableError(
        "start", "the daemon", errno.ETIMEDOUT, f"not ready after {START_TIMEOUT_S} s"
    )


def _tail(log: Path) -> str:
    text = log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace").strip()
    return f"the end of {log}:\n{text}"


def _keeps_guests_itself(settings: Settings) -> bool:
    """Whether the daemon is rootless, which root's may be as well: who started it said so."""
    api = Api(settings.socket, answer_s=ASK_TIMEOUT_S)
    try:
        return bool(api.get("/v1/version")["rootless"])
    except GuestnetError:
        return settings.rootless
    finally:
        api.close()


def _stop(settings: Settings) -> int | None:
    """End the daemon and wait for it; returns its pid, or None if there is none."""
    api = Api(settings.socket)
    try:
        pid, process = api.peer()
    except UnreachableError as error:
        if error.errno in NO_DAEMON:
            return None
        raise
    with open(process, "rb") as held:
        try:
            signal.pidfd_send_signal(held.fileno(), signal.SIGTERM)
        except OSError as error:
            raise HostError.from_os("kill", f"pid {pid}", error) from None
        poll = select.poll()
        poll.register(held, select.POLLIN)
        if not poll.poll(STOP_TIMEOUT_S * 1000):
            raise HostError(
                "stop", f"pid {pid}", errno.ETIMEDOUT, f"still there after {STOP_TIMEOUT_S} s"
            )
    return pid
