"""QEMU: a back end (a TAP, or a transport's socket) and a virtio-net front end, as arguments.

Source: QEMU's invocation page (`-netdev tap`, `stream`, `dgram`), net/stream.c and net/dgram.c, and
`-device virtio-net-pci,help`. A comma in an option's value is doubled.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from ..errors import ConfigError
from ..frames.transport import Kind, Transport
from ..model import Attachment
from .interface import misfit, tap_name, transport_of

#: How often a client connects anew, as `reconnect` asks.
_RECONNECT_MS = 1000


def arguments(
    attachment: Attachment, *, mmio: bool = False, vhost: bool = False, reconnect: bool = False
) -> list[str]:
    """The arguments, unquoted, one item each.

    `mmio` is for machines without PCI, as `-M microvm`: virtio-net-device in place of
    virtio-net-pci. `vhost` moves packets in the host's kernel; it needs access to /dev/vhost-net.
    `reconnect` has a stream transport connected anew after it was cut; it needs QEMU 9.2.
    """
    transport = transport_of(attachment)
    driver, back_end = _back_end(attachment, transport, vhost=vhost, reconnect=reconnect)
    # An id begins with a letter (qemu util/id.c); an interface's name need not.
    back_end = {"id": f"net-{attachment.guest_interface}", **back_end}
    front_end: dict[str, object] = {
        "netdev": back_end["id"],
        "mac": attachment.mac,
        "host_mtu": attachment.mtu,
    }
    if attachment.queues > 1:
        front_end["mq"] = "on"
        if not mmio:
            # One vector a virtqueue, one for the control queue and one for configuration changes.
            front_end["vectors"] = 2 * attachment.queues + 2
    model = "virtio-net-device" if mmio else "virtio-net-pci"
    return ["-netdev", _option(driver, back_end), "-device", _option(model, front_end)]


def command_line(
    attachment: Attachment, *, mmio: bool = False, vhost: bool = False, reconnect: bool = False
) -> str:
    """The arguments as one line: to paste into a shell, or for an unquoted `$(…)`."""
    return " ".join(
        map(_quoted, arguments(attachment, mmio=mmio, vhost=vhost, reconnect=reconnect))
    )


def _quoted(argument: str) -> str:
    """For a shell, to which {fd} and {fds} are plain text; quotes would stay in a `$(…)`."""
    rest = argument.replace("{fd}", "").replace("{fds}", "")
    return argument if shlex.quote(rest) == rest else shlex.quote(argument)


def _back_end(
    attachment: Attachment, transport: Transport | None, *, vhost: bool, reconnect: bool
) -> tuple[str, dict[str, object]]:
    """The back end's driver and properties."""
    if reconnect and (transport is None or transport.kind is not Kind.STREAM):
        raise ConfigError("reconnect", reconnect, "is for the transport stream")
    if transport is None or transport.kind is Kind.TAP_FD:
        return "tap", _tap(attachment, transport, vhost=vhost)
    if vhost:
        raise ConfigError("vhost", vhost, f"needs a TAP, and this is {transport}")
    if transport.vnet_hdr:
        right = f"QEMU's sockets carry no virtio header; attach with {transport.kind}:PATH"
        raise misfit(transport, right)
    path = transport.path
    if transport.kind is Kind.DGRAM:
        local = {"local.type": "unix", "local.path": transport.peer_path}
        return "dgram", {**local, "remote.type": "unix", "remote.path": path}
    server = "on" if transport.kind is Kind.STREAM_CLIENT else "off"
    again = {"reconnect-ms": _RECONNECT_MS} if reconnect else {}
    return "stream", {"server": server, "addr.type": "unix", "addr.path": path, **again}


def _tap(attachment: Attachment, transport: Transport | None, *, vhost: bool) -> dict[str, object]:
    several = attachment.queues > 1
    if transport is not None:
        # `guestnet with-tap` puts the numbers in their places.
        found: dict[str, object] = {"fds": "{fds}"} if several else {"fd": "{fd}"}
    else:
        found = {
            "ifname": tap_name(attachment, "QEMU"),
            # QEMU otherwise runs /etc/qemu-ifup on a TAP that is already configured.
            "script": "no",
            "downscript": "no",
        }
        if several:
            found["queues"] = attachment.queues
    return {**found, **({"vhost": "on"} if vhost else {})}


def _option(driver: str, properties: Mapping[str, object]) -> str:
    values = {key: str(value).replace(",", ",,") for key, value in properties.items()}
    return ",".join([driver, *(f"{key}={value}" for key, value in values.items())])
