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
    """Show what is decided about guests, as it is decided: flows, questions, refusals."""
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
    if decision.get("event") == "end":
        word = "ended  "
    kind = "dns" if decision["kind"] == "dns" else decision["protocol"]
    parts = [at, output.shown(decision["guest"]), word, kind, output.shown(_peer(decision))]
    parts.append(f"by `{decision['rule']}`")
    up, down = decision.get("bytes_up", 0), decision.get("bytes_down", 0)
    if up or down:
        parts.append(f"{up} B up, {down} B down")
    if decision["verdict"] != "allow":
        parts.append(decision.get("reason", ""))
    if decision.get("omitted"):
        parts.append(f"({decision['omitted']} like it left out)")
    return "  ".join(parts)


def _peer(decision: Mapping[str, Any]) -> str:
    """The other end: `NAME [ADDRESS]:PORT` to which, or `from ADDRESS to port PORT` by which."""
    name, address, port = decision.get("name") or "", decision.get("address"), decision["port"]
    if decision.get("direction") == "ingress":
        return f"from {address}" + (f" to port {port}" if port else "")
    if address is None:
        return name
    return f"{name or '?'} [{address}]" + (f":{port}" if port else "")
