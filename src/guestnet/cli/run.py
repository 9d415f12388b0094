"""`run`: from nothing to a running guest, and nothing left of it."""

from __future__ import annotations

import contextlib
import json as codec
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import BusyError, ConflictError, GuestnetError, HostError
from ..kernel.caller import Caller
from ..kernel.process import start_thread
from . import janitor, output, waiting
from .context import ExitFd, Json, ReadyFd
from .launcher import Launcher
from .values import policy_given, to_run
from .words import Words

if TYPE_CHECKING:
    from ..host import Host
    from ..host.decisions import Watch
    from ..model import Attachment
    from .summary import Summary

GUEST = "guest"
#: How long a command may take to end whose caller hung up; it cannot be asked again.
GRACE_S = 10.0
#: A command's last flows end within moments of it; so long is waited for what they were.
SETTLE_S, SETTLE_MAX_S = 0.1, 2.0
#: The kernel tells of what it refused itself after up to 50 ms (kernel/flowevents.py).
HEARSAY_S = 0.06


def register(app: typer.Typer) -> None:
    """Add the command. What follows is the guest's command, options included."""
    app.command("run", context_settings={"allow_interspersed_args": False})(run)


def run(
    ctx: typer.Context,
    command: Annotated[list[str], typer.Argument(metavar="-- CMD...", help="What to run.")],
    rootless: Annotated[
        bool, typer.Option("--rootless", help="In namespaces of its own, even as root.")
    ] = False,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="What it may reach: a name, or what a rule's @ takes."),
    ] = None,
    policy: Annotated[
        str | None, typer.Option(metavar="FILE|TEXT", help="What it may do, in full.")
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Stop nothing, and suggest a policy at the end.")
    ] = False,
    ready_fd: ReadyFd = None,
    exit_fd: ExitFd = None,
    json: Json = False,
) -> None:
    """Run a program, or a VM, in a network of its own; its status is ours.

    In its arguments {tap}, {fd}, {stream}, {dgram}, {dgram_local}, {mac}, {kernel_args}, {mtu},
    {ipv4}, {ipv6}, {gateway} and {gateway6} are replaced, and {stream+vnet} and {dgram+vnet}, which
    have a virtio header. With one of the first seven, or of the last two, the command is a VM's,
    and gets a TAP or a socket; otherwise it is a program of this machine, whose network alone is
    the guest's.
    """
    command = to_run(command)
    del ctx
    logging.basicConfig(format="guestnet: %(message)s")  # beside the command's own words
    words, caller = Words.read(command), Caller(ready_fd, exit_fd)
    waiting.block()
    text = _policy(allow or [], policy, report)
    rootless = rootless or os.geteuid() != 0
    # What ends with its process needs nobody to clear it away.
    parent = janitor.part(caller.fds) if words.socket or not rootless else None
    with Launcher() as launcher, _opened(rootless, parent) as host, _upkept(host):
        status, summary, suggestion = _run(host, words, text, report, parent, caller, launcher)
    _tell(summary, suggestion, status, as_json=json)
    raise typer.Exit(status)


def _policy(allow: Sequence[str], policy: str | None, report: bool) -> str:
    """The policy's text; nothing given is nothing allowed."""
    parts = [f"allow@{name}" for name in allow]
    if policy is not None:
        parts.append(policy_given(policy))
    if report:
        parts.append("mode=report")
    return "\n".join(parts) or "none"


@contextlib.contextmanager
def _opened(rootless: bool, parent: janitor.Run | None) -> Iterator[Host]:
    if rootless or parent is None:
        from ..kernel.rootless.process import Agent

        agent = Agent()  # it gets ready while we do
        try:
            from ..host import Host

            with Host.open(rootless=agent, remember=False, gateway_workers=1) as host:
                yield host
        finally:
            agent.close()
    else:
        with _opened_by_root(parent) as host:
            try:
                yield host
            finally:
                janitor.leave(host)
    if parent is not None:
        parent.done()


def _opened_by_root(parent: janitor.Run) -> Host:
    from ..host import Host

    try:
        return Host.open(parent.directory)
    except GuestnetError as error:
        parent.done()  # nothing stands: the parent would fail as we did, and say it once more
        if isinstance(error, (BusyError, ConflictError)):
            output.note("another guestnet has this namespace; `run --rootless` is beside it")
        raise


@contextlib.contextmanager
def _upkept(host: Host) -> Iterator[None]:
    """Follow the machine's routes, addresses and resolvers: a laptop goes from place to place."""
    from ..daemon.upkeep import Upkeep

    upkeep = Upkeep(host)
    upkeep.start()
    try:
        yield
    finally:
        upkeep.stop()


def _run(
    host: Host,
    words: Words,
    policy: str,
    report: bool,
    parent: janitor.Run | None,
    caller: Caller,
    launcher: Launcher,
) -> tuple[int, Summary, str | None]:
    """Attach, run, detach: returns the command's status and what was seen of it."""
    from .summary import Summary

    netns = None if words.is_vm else "new"
    transport = words.transport(parent.directory) if parent is not None else None
    attachment = host.attach(GUEST, policy=policy, netns=netns, transport=transport)
    summary = Summary()
    watch = host.watch(GUEST)
    teller = threading.Thread(
        target=_gather, args=(watch, summary), name="guestnet-summary", daemon=True
    )
    start_thread(teller)
    try:
        status = _launched(host, words, attachment, parent, caller, launcher)
        suggestion = _settled(host) if report else None
        if parent is not None:  # so this may be root's, and the kernel one that refuses
            time.sleep(HEARSAY_S)
    finally:
        # In this order: the gateway tells of flows that are open still when the guest goes.
        host.detach(GUEST)
        watch.close()
        teller.join()
        while (left := watch.poll()) is not None:
            summary.take(left)
    return status, summary, suggestion


def _gather(watch: Watch, summary: Summary) -> None:
    for decision in watch:
        summary.take(decision)


def _launched(
    host: Host,
    words: Words,
    attachment: Attachment,
    parent: janitor.Run | None,
    caller: Caller,
    launcher: Launcher,
) -> int:
    spec = {
        "netns": host.namespace if words.is_vm else attachment.netns,
        "attachment": None if words.is_vm else attachment.model_dump(mode="json"),
        "tap": attachment.tap if words.opens_tap else None,
        "argv": words.replaced(attachment),
    }
    number = signal.SIGTERM if caller.is_gone() else waiting.told_to_end()
    if number is not None:
        raise typer.Exit(waiting.SIGNALLED + number)
    caller.tell_ready()
    launcher.tell(spec)
    reasons: list[str] = []

    def lost(reason: str) -> None:
        reasons.append(reason)
        launcher.kill()

    def hung_up() -> None:
        os.kill(os.getpid(), signal.SIGTERM)  # which goes on to it
        time.sleep(GRACE_S)
        launcher.kill()

    host.watch_site(lost)
    caller.watch(hung_up)
    if parent is not None:
        parent.watch(launcher.kill)
    try:
        status = waiting.wait_for(launcher.pid, launcher.poll)
    finally:
        launcher.end()
    if reasons:
        raise HostError("run", words.command[0], 0, f"the rootless site's process {reasons[0]}")
    return status if status >= 0 else waiting.SIGNALLED - status


def _settled(host: Host) -> str:
    """The suggested policy, once what the command left open is told."""
    deadline = time.monotonic() + SETTLE_MAX_S
    found = host.suggest_policy(GUEST)
    while time.monotonic() < deadline:
        time.sleep(SETTLE_S)
        before, found = found, host.suggest_policy(GUEST)
        if found == before:
            break
    return found


def _tell(summary: Summary, suggestion: str | None, status: int, *, as_json: bool) -> None:
    if as_json:
        document: dict[str, Any] = {"status": status, **summary.document()}
        if suggestion is not None:
            document["policy"] = suggestion
        print(codec.dumps(document), file=sys.stderr)
        return
    for line in summary.text():
        output.note(line)
    if suggestion is not None:
        output.note(f"a policy that allows all of this: {suggestion}")
