"""`watch`."""

from __future__ import annotations

import json as codec
import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from . import output
from .context import Json, of


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(watch)


def watch(
    ctx: typer.Context,
    vm: Annotated[str | None, typer.Argument(metavar="[VM]", help="Only this guest.")] = None,
    recent: Annotated[bool, typer.Option("--recent", help="The last ones, and then end.")] = False,
    json: Json = False,
) -> None:
    """Show what the gateway decides, as it decides: flows, questions, refusals."""
    api = of(ctx).api
    if recent:
        found = api.get("/v1/decisions", {"id": vm})
        if json:
            output.as_json(found)
        else:
            for decision in found:
                output.say(_line(decision))
        return
    for text in api.stream("/v1/decisions/stream", {"id": vm}):
        print(text if json else _line(codec.loads(text)), flush=True)


def _line(decision: Mapping[str, Any]) -> str:
    """One decision for people: when, who, what, and why."""
    at = time.strftime("%H:%M:%S", time.localtime(decision["time"]))
    word = "allowed" if decision["verdict"] == "allow" else "DENIED "
    kind = "dns" if decision["kind"] == "dns" else decision["protocol"]
    name, address = decision.get("name") or "", decision.get("address")
    peer = name if address is None else f"{name or '?'} [{address}]:{decision['port']}"
    up, down = decision.get("bytes_up", 0), decision.get("bytes_down", 0)
    parts = [at, output.shown(decision["guest"]), word, kind, output.shown(peer)]
    parts.append(f"by `{decision['rule']}`")
    if up or down:
        parts.append(f"{up} B up, {down} B down")
    if decision["verdict"] != "allow":
        parts.append(decision.get("reason", ""))
    if decision.get("omitted"):
        parts.append(f"({decision['omitted']} like it left out)")
    return "  ".join(parts)
