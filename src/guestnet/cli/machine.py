"""`gc`, `doctor`, `version`."""

from __future__ import annotations

from typing import Any

import typer

from ..client import NO_DAEMON
from ..errors import UnreachableError
from . import output
from .context import Context, Json, of


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (gc, doctor, version):
        app.command()(command)


def gc(ctx: typer.Context, json: Json = False) -> None:
    """Compare the kernel with the leases and put right what differs."""
    repairs = of(ctx).api.post("/v1/reconcile")
    if json:
        output.as_json(repairs)
    elif not repairs["steps"]:
        output.say("everything stands as it must")
    for step in [] if json else repairs["steps"]:
        output.say(step)


def doctor(ctx: typer.Context, json: Json = False) -> None:
    """Look for what keeps guests from working. Status 1 if there is an error."""
    findings = _findings(of(ctx))
    if json:
        output.as_json(findings)
    else:
        rows = [[finding[key] for key in _COLUMNS] for finding in findings]
        output.table([key.upper() for key in _COLUMNS], rows)
    failed = any(finding["status"] == "error" for finding in findings)
    raise typer.Exit(1 if failed else 0)


_COLUMNS = ("status", "check", "detail", "remedy")


def version(ctx: typer.Context, json: Json = False) -> None:
    """Print the version, and that of the daemon if one is up."""
    from importlib.metadata import version as installed

    here = installed("guestnet")
    about: dict[str, Any] | None
    try:
        about = of(ctx).api.get("/v1/version")
    except UnreachableError:
        about = None
    if json:
        output.as_json({"version": here, "daemon": about})
        return
    output.say(f"guestnet {here}")
    output.say(f"daemon {about['version']}, pid {about['pid']}" if about else "no daemon is up")


def _findings(context: Context) -> list[dict[str, Any]]:
    """The daemon's findings; without it those that need none, and that it is missing."""
    api = context.api
    try:
        found: list[dict[str, Any]] = api.get("/v1/doctor")
    except UnreachableError as error:
        from ..host.doctor import machine_findings

        absent = error.errno in NO_DAEMON
        daemon = {
            "check": "daemon",
            "status": "warning" if absent else "error",
            "detail": f"none listens on {api.path}" if absent else str(error),
            "remedy": "run: guestnet up" if absent else "",
        }
        found = [
            finding.model_dump()
            for finding in machine_findings(rootless=context.settings().rootless)
        ]
        return [*found, daemon]
    up = {"check": "daemon", "status": "ok", "detail": f"listens on {api.path}", "remedy": ""}
    return [*found, up]
