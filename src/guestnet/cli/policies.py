"""`policy check|explain`."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import ConfigError
from . import output
from .context import Json, of
from .values import destination, policy_text

commands = typer.Typer(
    help="What guests may do, asked in advance.", no_args_is_help=True, rich_markup_mode=None
)

#: Status of `explain` for a flow that is denied; above those of errors.
EXIT_DENIED = 10


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(commands, name="policy")


@commands.command()
def check(
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="The policy.")] = None,
    file: Annotated[str | None, typer.Option(help="The same in a file; - is stdin.")] = None,
    json: Json = False,
) -> None:
    """Read a policy: prints its one canonical text, and remarks on rules without effect."""
    from ..policy import parse_policy, warnings

    policy = policy_text(text, file)
    if policy is None:
        raise ConfigError("policy", None, "give a text, or --file")
    parsed = parse_policy(policy)
    remarks = warnings(parsed)
    if json:
        told = [{"rule": r.rule, "text": r.text, "message": r.message} for r in remarks]
        output.as_json({"policy": str(parsed), "remarks": told})
        return
    output.say(str(parsed))
    for remark in remarks:
        output.say(f"rule {remark.rule} `{remark.text}` {remark.message}")


@commands.command(name="set")
def set_policy(
    ctx: typer.Context,
    vm: Annotated[
        str | None, typer.Argument(metavar="VM", help="The guest's id; not with --network.")
    ] = None,
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="The policy.")] = None,
    file: Annotated[str | None, typer.Option(help="The same in a file; - is stdin.")] = None,
    network: Annotated[
        str | None, typer.Option(help="Of this network, and its guests that brought none.")
    ] = None,
    json: Json = False,
) -> None:
    """Put another policy in the place of a guest's. Flows that it denies end at once."""
    if network is not None:
        if text is not None:
            raise ConfigError("vm", vm, "a policy is set of a guest or of a network, not of both")
        vm, text = None, vm
    elif vm is None:
        raise ConfigError("vm", None, "say whose policy: a guest's id, or --network")
    policy = policy_text(text, file)
    if policy is None:
        raise ConfigError("policy", None, "give a text, or --file")
    if network is not None:
        info = of(ctx).api.post("/v1/network/policy", {"network": network, "policy": policy})
        if json:
            output.as_json(info)
        else:
            output.say(f"network {output.shown(network)} has the policy {info['spec']['policy']}")
        return
    attachment = of(ctx).api.post("/v1/guest/policy", {"guest": vm, "policy": policy})
    if json:
        output.as_json(attachment)
    else:
        output.say(f"{output.shown(vm)} has the policy {attachment['policy']}")


@commands.command()
def suggest(
    ctx: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help="The guest's id.")],
    suffixes: Annotated[
        bool, typer.Option("--suffixes", help="Names below a common one become one rule.")
    ] = False,
    json: Json = False,
) -> None:
    """Make a policy of what a guest was seen to use, best after a while with mode=report."""
    query = {"id": vm, "suffixes": str(suffixes).lower()}
    found = of(ctx).api.get("/v1/guest/suggestion", query)
    if json:
        output.as_json(found)
    else:
        output.say(found["policy"])


@commands.command()
def explain(
    ctx: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help="The guest's id.")],
    protocol: Annotated[
        str, typer.Argument(metavar="PROTOCOL", help="tcp, udp, icmpv4, icmpv6, or any other.")
    ],
    address: Annotated[
        str,
        typer.Argument(metavar="PEER[:PORT]", help="1.1.1.1:443, [2606::1]:443, api.test:443 …"),
    ],
    port: Annotated[str | None, typer.Argument(metavar="[PORT]", show_default=False)] = None,
    ingress: Annotated[
        bool, typer.Option("--ingress", help="The flow is opened from there to the guest.")
    ] = False,
    json: Json = False,
) -> None:
    """Say what would happen to a flow, and which rule decides. Status 10 if it is denied."""
    host, number = destination(address, port)
    flow = {
        "guest": vm,
        "protocol": protocol,
        "address": host,
        "port": number,
        "direction": "ingress" if ingress else "egress",
    }
    verdict = of(ctx).api.post("/v1/guest/explain", flow)
    if json:
        output.as_json(verdict)
    else:
        position = "" if verdict["rule"] is None else f"rule {verdict['rule']} "
        word = "allowed" if verdict["allowed"] else "denied"
        output.say(f"{word} by {position}`{verdict['text']}`")
        output.say(verdict["reason"])
    raise typer.Exit(0 if verdict["allowed"] else EXIT_DENIED)
