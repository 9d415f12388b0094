"""`with-tap`: a command on a TAP that another process hands over."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from . import output
from .execute import EXIT_NOT_FOUND, EXIT_NOT_RUNNABLE
from .values import to_run


def register(app: typer.Typer) -> None:
    """Add the command. What follows the socket is the command's, options included."""
    app.command("with-tap", context_settings={"allow_interspersed_args": False})(with_tap)


def with_tap(
    socket: Annotated[str, typer.Argument(metavar="SOCKET", help="Of a tap-fd transport.")],
    command: Annotated[list[str], typer.Argument(metavar="-- CMD...", help="A VMM.")],
) -> None:
    """Receive an attachment's open TAP and become a command that has it.

    In its arguments {fd} is the descriptor, {fds} all of a multi-queue TAP's with colons, {mac},
    {mtu} and {tap} what they say. Asks no daemon: who may open the socket may do this.
    """
    command = to_run(command)
    from ..kernel.tap.handover import receive_tap

    tap = receive_tap(socket)
    words = {
        "{fd}": str(tap.fds[0]),
        "{fds}": ":".join(map(str, tap.fds)),
        "{mac}": tap.facts.mac,
        "{mtu}": str(tap.facts.mtu),
        "{tap}": tap.facts.tap,
    }
    for fd in tap.fds:
        os.set_inheritable(fd, True)
    filled = [_filled(each, words) for each in command]
    try:
        os.execvp(filled[0], filled)
    except OSError as error:
        output.note(f"{output.shown(filled[0])}: {error.strerror}")
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        raise typer.Exit(EXIT_NOT_FOUND if missing else EXIT_NOT_RUNNABLE) from None


def _filled(text: str, words: dict[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text
