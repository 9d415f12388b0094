"""`network create|ls|show|rm`."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Annotated, Any

import typer

from ..client import network_path
from . import output
from .context import Json, of
from .values import policy_text, records, several

commands = typer.Typer(
    help="Pools of guests' addresses.", no_args_is_help=True, rich_markup_mode=None
)

_DNS = (
    "Resolvers, repeated or with commas: ADDRESS, or tls://ADDRESS[:PORT][#NAME]; `none` for the "
    "host's."
)
_RECORD = "A name of the network's own as NAME=ADDRESS or NAME=OTHER-NAME, repeated."
Name = Annotated[str, typer.Argument(metavar="NAME")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(commands, name="network")


@commands.command()
def create(
    ctx: typer.Context,
    name: Name,
    topology: Annotated[str | None, typer.Option(help="routed or bridge.")] = None,
    ipv4: Annotated[str | None, typer.Option(help="Pool as CIDR, or none.")] = None,
    ipv6: Annotated[str | None, typer.Option(help="Pool as CIDR, or none.")] = None,
    mtu: Annotated[int | None, typer.Option(help="Bytes; by default the egress's.")] = None,
    egress: Annotated[
        list[str] | None, typer.Option(help="Interface to leave by, repeated or with commas.")
    ] = None,
    dns: Annotated[list[str] | None, typer.Option(help=_DNS)] = None,
    policy: Annotated[str | None, typer.Option(help="Of guests that bring none.")] = None,
    policy_file: Annotated[str | None, typer.Option(help="The same in a file; - is stdin.")] = None,
    record: Annotated[list[str] | None, typer.Option(help=_RECORD)] = None,
    serve_stale: Annotated[
        int | None,
        typer.Option(help="Seconds that answers outlive their end if no resolver answers."),
    ] = None,
    strip_ech: Annotated[
        bool | None, typer.Option(help="Whether clients get no key to hide the names they mean.")
    ] = None,
    deny_encrypted_dns: Annotated[
        bool | None, typer.Option(help="Whether names of public encrypted resolvers are denied.")
    ] = None,
    synthetic: Annotated[
        bool | None, typer.Option(help="Whether each name has an address of its own.")
    ] = None,
    isolate: Annotated[
        bool | None, typer.Option(help="Whether guests of a bridge are kept apart.")
    ] = None,
    bridge: Annotated[str | None, typer.Option(help="Name of the bridge.")] = None,
    gateway: Annotated[str | None, typer.Option(help="The host's address on the bridge.")] = None,
    rest: Annotated[
        float | None, typer.Option(help="Seconds an address rests when it is released.")
    ] = None,
    json: Json = False,
) -> None:
    """Create a network. One that exists with the same settings is left as it is."""
    document: dict[str, Any] = {
        "name": name,
        "topology": topology,
        "mtu": mtu,
        "egress": several(egress),
        "policy": policy_text(policy, policy_file),
        "records": records(record),
        "serve_stale_s": serve_stale,
        "strip_ech": strip_ech,
        "deny_encrypted_dns": deny_encrypted_dns,
        "synthetic": synthetic,
        "isolate": isolate,
        "bridge": bridge,
        "gateway": gateway,
        "rest_s": rest,
    }
    document = {key: value for key, value in document.items() if value is not None}
    for family, pool in (("ipv4", ipv4), ("ipv6", ipv6)):
        if pool is not None:
            # Null says: without this family. An absent key says: the default pool.
            document[family] = None if pool == "none" else pool
    if dns is not None:
        document["dns"] = [] if dns == ["none"] else several(dns)
    _print(of(ctx).api.post("/v1/networks", document), json)


@commands.command()
def ls(ctx: typer.Context, json: Json = False) -> None:
    """List the networks."""
    found = of(ctx).api.get("/v1/networks")
    if json:
        output.as_json(found)
        return
    headers = ("NETWORK", "TOPOLOGY", "IPV4", "IPV6", "MTU", "EGRESS", "GUESTS", "CAPACITY")
    rows = [
        (
            *(each["spec"][key] for key in ("name", "topology", "ipv4", "ipv6", "mtu")),
            each["egress"],
            each["attached"],
            each["capacity"],
        )
        for each in found
    ]
    output.table(headers, rows)


@commands.command()
def show(ctx: typer.Context, name: Name, json: Json = False) -> None:
    """Show a network, and which parts of its pools are left out because the host uses them."""
    _print(of(ctx).api.get(network_path(name)), json)


@commands.command()
def rm(ctx: typer.Context, name: Name, json: Json = False) -> None:
    """Remove a network that has no guests."""
    of(ctx).api.delete(network_path(name))
    if json:
        output.as_json({"removed": name})
    else:
        output.say(f"network {output.shown(name)} is removed")


def _print(info: dict[str, Any], json: bool) -> None:
    if json:
        output.as_json(info)
        return
    spec = info["spec"]
    shown = {
        "network": spec["name"],
        "topology": spec["topology"],
        "ipv4": spec["ipv4"],
        "ipv6": spec["ipv6"],
        "mtu": spec["mtu"],
        "egress": f"{output.shown(spec['egress'])} ({output.shown(info['egress'])})",
        "dns": spec["dns"],
        "policy": spec["policy"] or "none",
    }
    if spec["records"]:
        shown["records"] = ", ".join(f"{k}={v}" for k, vs in spec["records"].items() for v in vs)
    if spec["serve_stale_s"]:
        shown["serve stale"] = f"{spec['serve_stale_s']} s"
    shown |= {key: False for key in ("strip_ech", "deny_encrypted_dns") if not spec[key]}
    if spec["synthetic"]:
        shown["synthetic"] = True
    if spec["topology"] == "bridge":
        shown |= {
            "bridge": spec["bridge"],
            "gateway": spec["gateway"] or _first_address(spec["ipv4"]),
            "isolate": spec["isolate"],
        }
    shown |= {
        "rest": f"{spec['rest_s']:g} s",
        "guests": f"{info['attached']} of {info['capacity']}",
        "resting": info["resting"],
    }
    output.fields(shown)
    if info["skipped"]:
        output.say("\nleft out of the pools:")
        output.table(("POOL", "REASON"), [(s["pool"], s["reason"]) for s in info["skipped"]])


def _first_address(pool: str | None) -> str | None:
    """Where a bridge's gateway is unless it is told otherwise (`NetworkSpec.gateway_ipv4`)."""
    return str(ip_network(pool)[1]) if pool is not None else None
