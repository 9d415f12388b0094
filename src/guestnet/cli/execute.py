"""`exec`: a command in a namespace guest."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer

from ..errors import ConfigError
from . import output
from .context import of
from .values import to_run

#: What a shell says of a command that it cannot run, and of one that it cannot find.
EXIT_NOT_RUNNABLE, EXIT_NOT_FOUND = 126, 127


def register(app: typer.Typer) -> None:
    """Add the command. What follows the guest's id is the command's, options included."""
    app.command("exec", context_settings={"allow_interspersed_args": False})(execute)


def execute(
    ctx: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help="The guest's id.")],
    command: Annotated[list[str], typer.Argument(metavar="-- CMD...", help="What to run.")],
) -> None:
    """Run a command in a namespace guest, with its resolvers and names; its status is ours.

    It is this machine's command with this machine's files and rights; only its network is the
    guest's.
    """
    command = to_run(command)
    context = of(ctx)
    attachment = context.api.get("/v1/guest", {"id": vm})
    context.api.close()
    if attachment["netns"] is None:
        raise ConfigError(
            "guest", vm, "has a TAP: it is a VM's, and only that VM runs commands in it"
        )
    from .inside import enter, leave_rights

    uid, gid = os.getuid(), os.getgid()
    for remark in enter(attachment["netns"], attachment, [context.settings().run_dir]):
        output.note(remark)
    leave_rights(uid, gid)
    sys.stdout.flush()
    try:
        os.execvp(command[0], command)
    except OSError as error:
        output.note(f"{output.shown(command[0])}: {error.strerror}")
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        raise typer.Exit(EXIT_NOT_FOUND if missing else EXIT_NOT_RUNNABLE) from None
