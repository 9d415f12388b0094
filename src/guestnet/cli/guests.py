"""`attach`, `detach`, `ls`, `show`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..client import absolute_netns
from ..errors import ConfigError
from . import output
from .context import Json, of
from .values import absolute_transport, group_id, policy_text, user_id

#: `vmm.FORMATS`, told without importing them; a test holds the two together.
FORMATS = (
    *("firecracker", "firecracker-snapshot", "cloud-hypervisor", "qemu", "libkrun"),
    *("kernel-args", "env", "cloud-init"),
)
Vm = Annotated[str, typer.Argument(metavar="VM", help="The guest's id.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (attach, detach, ls, show):
        app.command()(command)


def attach(
    ctx: typer.Context,
    vm: Vm,
    network: Annotated[str | None, typer.Option(help="By default: default.")] = None,
    policy: Annotated[str | None, typer.Option(help="What it may do, as text.")] = None,
    policy_file: Annotated[str | None, typer.Option(help="The same in a file; - is stdin.")] = None,
    ipv4: Annotated[str | None, typer.Option(help="Address it must get.")] = None,
    ipv6: Annotated[str | None, typer.Option(help="Address it must get.")] = None,
    mac: Annotated[str | None, typer.Option(help="MAC it must get.")] = None,
    mtu: Annotated[int | None, typer.Option(help="Bytes.")] = None,
    tap: Annotated[str | None, typer.Option(help="Name of the TAP.")] = None,
    netns: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH|new",
            help="A namespace guest: in this network namespace, or in one made for it.",
        ),
    ] = None,
    guest_interface: Annotated[str | None, typer.Option(help="Its name in the guest.")] = None,
    queues: Annotated[int | None, typer.Option(help="Queues of the TAP.")] = None,
    owner: Annotated[
        str | None, typer.Option(help="User that may open the TAP, or the transport's socket.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Group that may, likewise.")] = None,
    transport: Annotated[
        str | None,
        typer.Option(
            metavar="KIND[+vnet]:PATH",
            help="For a VMM that does not open the TAP: stream, stream-client, dgram or tap-fd.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Give a guest its network. One that is attached just so is left as it is."""
    asked: dict[str, Any] = {
        "guest": vm,
        "network": network,
        "policy": policy_text(policy, policy_file),
        "ipv4": ipv4,
        "ipv6": ipv6,
        "mac": mac,
        "mtu": mtu,
        "tap": tap,
        "netns": absolute_netns(netns) if netns else netns,
        "guest_interface": guest_interface,
        "queues": queues,
        "owner": user_id(owner),
        "group": group_id(group),
        "transport": absolute_transport(transport) if transport else transport,
    }
    asked = {key: value for key, value in asked.items() if value is not None}
    attachment = of(ctx).api.post("/v1/guests", asked)
    if json:
        output.as_json(attachment)
    else:
        output.fields(_told(attachment))


def detach(
    ctx: typer.Context,
    vms: Annotated[list[str], typer.Argument(metavar="VM...", help="Guests' ids.")],
    generation: Annotated[
        int | None, typer.Option(help="Only if this very attachment still stands.")
    ] = None,
    json: Json = False,
) -> None:
    """Cut guests off. To detach what is not attached is a success, and said."""
    api = of(ctx).api
    done = []
    for vm in vms:
        answer = api.delete("/v1/guest", {"id": vm, "generation": generation})
        done.append({"guest": vm, "detached": answer["detached"]})
        if not json:
            word = "is detached" if answer["detached"] else "was not attached"
            which = f" as generation {generation}" if generation is not None else ""
            output.say(f"{output.shown(vm)} {word}{which}")
    if json:
        output.as_json(done)


def ls(
    ctx: typer.Context,
    network: Annotated[str | None, typer.Option(help="Of this network only.")] = None,
    json: Json = False,
) -> None:
    """List the attached guests."""
    found = of(ctx).api.get("/v1/guests", {"network": network})
    if json:
        output.as_json(found)
        return
    keys = ("guest", "network", "tap", "ipv4", "ipv6", "mac")
    rows = [(*(each[key] for key in keys), output.short(each["policy"])) for each in found]
    output.table(("GUEST", "NETWORK", "DEVICE", "IPV4", "IPV6", "MAC", "POLICY"), rows)


def show(
    ctx: typer.Context,
    vm: Vm,
    format: Annotated[
        str | None, typer.Option(metavar="FORMAT", help=f"As one of: {', '.join(FORMATS)}.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="NAME[=on|off]", help="Option of the format."),
    ] = None,
    json: Json = False,
) -> None:
    """Show a guest's attachment and its traffic, or say the attachment in a VMM's words."""
    api = of(ctx).api
    if format is not None:
        query = {"id": vm, "format": format, "option": options or []}
        words = api.get("/v1/guest/format", query)
        if json:
            output.as_json(words["data"])
        else:
            output.say(words["text"])
        return
    if options:
        raise ConfigError("with", options[0], "is an option of a format; give --format too")
    attachment = api.get("/v1/guest", {"id": vm})
    usage = api.get("/v1/guest/usage", {"id": vm})
    del usage["guest"]
    state = api.get("/v1/guest/transport", {"id": vm}) if attachment["transport"] else None
    if json:
        shown = {"transport_state": state} if state else {}
        output.as_json({**attachment, "usage": usage, **shown})
        return
    received = f"{usage['rx_bytes']} bytes in {usage['rx_packets']} packets"
    sent = f"{usage['tx_bytes']} bytes in {usage['tx_packets']} packets"
    told = {**_told(attachment), "received": received, "sent": sent, "refused": usage["refused"]}
    if state:
        told |= {"vmm": _connection(state), "malformed": state["malformed"]}
        told |= {"problem": state["problem"]} if state["problem"] else {}
    output.fields(told)


def _told(attachment: dict[str, Any]) -> dict[str, object]:
    """An attachment's fields for people: what it has, in the order in which one looks."""
    told = {
        "guest": attachment["guest"],
        "network": attachment["network"],
        "device" if attachment["netns"] else "tap": attachment["tap"],
        "mac": attachment["mac"],
        "ipv4": _by(attachment["ipv4"], attachment["gateway_ipv4"]),
        "ipv6": _by(attachment["ipv6"], attachment["gateway_ipv6"]),
        "mtu": attachment["mtu"],
        "dns": attachment["dns"],
        "policy": attachment["policy"],
        "generation": attachment["generation"],
    }
    if attachment["netns"]:
        told |= {"netns": attachment["netns"], "interface": attachment["guest_interface"]}
    if attachment["transport"]:
        told |= {"transport": attachment["transport"]}
    return told


def _connection(state: dict[str, Any]) -> str:
    """Whether a VMM is connected to a transport."""
    if state["connected"]:
        return f"connected, {state['peer']}" if state["peer"] else "connected"
    return "not connected" if state["serving"] else "not served"


def _by(address: str | None, gateway: str | None) -> str | None:
    return f"{address} via {gateway}" if address and gateway else address
