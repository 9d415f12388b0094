"""The commands put together, and what becomes of errors."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from typing import Annotated, NoReturn

import typer

from ..errors import GuestnetError, HostError
from ..kernel.standard import hold_standard_descriptors
from .context import Context, of
from .rooms import Commands

app = typer.Typer(
    name="guestnet",
    cls=Commands,
    help="Networks for microVM guests that nobody trusts.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(
    ctx: typer.Context,
    state_dir: Annotated[
        str | None,
        typer.Option(help="Where leases are kept.  [GUESTNET_STATE_DIR, /var/lib/guestnet]"),
    ] = None,
    run_dir: Annotated[
        str | None,
        typer.Option(help="Where the socket is.  [GUESTNET_RUN_DIR, /run/guestnet]"),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="Settings file.  [GUESTNET_CONFIG, /etc/guestnet/guestnet.toml]"),
    ] = None,
    rootless: Annotated[
        bool,
        typer.Option(
            "--rootless",
            help="This user's own daemon; without root there is no other.  [GUESTNET_ROOTLESS=on]",
        ),
    ] = False,
) -> None:
    context = of(ctx)
    context.state_dir, context.run_dir, context.config = state_dir, run_dir, config
    context.rootless = rootless


def main() -> None:
    """Run the command line; ends the process with a status of docs/cli.md."""
    hold_standard_descriptors()
    # Python has none where there was no descriptor, and then prints to another.
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A guest's id may hold what the terminal's encoding has not.
            stream.reconfigure(errors="backslashreplace")
    context = Context()
    try:
        app(obj=context)
    except GuestnetError as error:
        _end(error, context.json)
    except OSError as error:
        # What is not foreseen where it happens: no room for a process or for a file, say.
        call = "open" if error.filename is not None else "start"
        target = str(error.filename or "a process of our own")
        _end(HostError.from_os(call, target, error), context.json)
    except SystemExit as end:
        if isinstance(end.code, int):
            _leave(end.code)
        raise


def _leave(status: int) -> NoReturn:
    """End. Python would take its modules apart first, which is a tenth of a command's time."""
    sys.stdout.flush()
    sys.stderr.flush()
    if threading.active_count() > 1:
        sys.exit(status)  # as ever, for whoever is waited for
    os._exit(status)


def _end(error: GuestnetError, as_json: bool) -> NoReturn:
    if as_json:
        # Typer leaves a mark of its own on what passes it.
        fields = {key: value for key, value in vars(error).items() if not key.startswith("_")}
        document = {"code": error.code, "message": str(error), **fields}
        print(json.dumps(document, default=str), file=sys.stderr)
    else:
        print(f"guestnet: {error}", file=sys.stderr)
    _leave(error.exit_code)
