"""QEMU: a TAP back end and a virtio-net front end, as arguments.

Source: QEMU's invocation page (`-netdev tap`) and `-device virtio-net-pci,help`. A comma in an
option's value would be doubled; names of interfaces have none.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from ..model import Attachment
from .interface import tap_name


def arguments(attachment: Attachment, *, mmio: bool = False, vhost: bool = False) -> list[str]:
    """The arguments, unquoted, one item each.

    `mmio` is for machines without PCI, as `-M microvm`: virtio-net-device in place of
    virtio-net-pci. `vhost` moves packets in the host's kernel; it needs access to /dev/vhost-net.
    """
    back_end: dict[str, object] = {
        # An id begins with a letter (qemu util/id.c); an interface's name need not.
        "id": f"net-{attachment.guest_interface}",
        "ifname": tap_name(attachment, "QEMU"),
        # QEMU otherwise runs /etc/qemu-ifup on a TAP that is already configured.
        "script": "no",
        "downscript": "no",
    }
    front_end: dict[str, object] = {
        "netdev": back_end["id"],
        "mac": attachment.mac,
        "host_mtu": attachment.mtu,
    }
    if attachment.queues > 1:
        back_end["queues"] = attachment.queues
        front_end["mq"] = "on"
        if not mmio:
            # One vector a virtqueue, one for the control queue and one for configuration changes.
            front_end["vectors"] = 2 * attachment.queues + 2
    if vhost:
        back_end["vhost"] = "on"
    model = "virtio-net-device" if mmio else "virtio-net-pci"
    return ["-netdev", _option("tap", back_end), "-device", _option(model, front_end)]


def command_line(attachment: Attachment, *, mmio: bool = False, vhost: bool = False) -> str:
    """The arguments as one line: to paste into a shell, or for an unquoted `$(…)`."""
    return shlex.join(arguments(attachment, mmio=mmio, vhost=vhost))


def _option(driver: str, properties: Mapping[str, object]) -> str:
    return ",".join([driver, *(f"{key}={value}" for key, value in properties.items())])
