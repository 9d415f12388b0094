"""libkrun: the values of one C call, after include/libkrun.h (`krun_add_net_tap`)."""

from __future__ import annotations

import json
from enum import IntFlag
from typing import TypedDict

from ..model import Attachment
from .interface import single_queue_tap_name


class Feature(IntFlag):
    """Virtio-net features by their bits (linux/virtio_net.h; libkrun.h's `NET_FEATURE_…`)."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12


#: Checksums and TCP segments of both families, both ways. Unlike libkrun's COMPAT_NET_FEATURES it
#: has TSO6, and not UFO, which Linux gave up in 4.14.
FEATURES = (
    Feature.CSUM
    | Feature.GUEST_CSUM
    | Feature.GUEST_TSO4
    | Feature.GUEST_TSO6
    | Feature.HOST_TSO4
    | Feature.HOST_TSO6
)


class AddNetTap(TypedDict):
    """Arguments of `krun_add_net_tap` after the context id."""

    tap_name: str
    #: Six bytes.
    mac: list[int]
    features: int
    flags: int


def add_net_tap(attachment: Attachment) -> AddNetTap:
    """The call's values. It carries no MTU: the guest sets its own (`env`, `cloud-init`).

    `flags` is 0: NET_FLAG_DHCP_CLIENT would ask for a lease that nobody gives.
    """
    return AddNetTap(
        tap_name=single_queue_tap_name(attachment, "libkrun"),
        mac=list(bytes.fromhex(attachment.mac.replace(":", ""))),
        features=int(FEATURES),
        flags=0,
    )


def c_source(attachment: Attachment) -> str:
    """The call as C, for a program that has a context `ctx_id`."""
    call = add_net_tap(attachment)
    mac = ", ".join(f"0x{byte:02x}" for byte in call["mac"])
    # A JSON string of ASCII letters, digits, '_', '-' and '.' is the same string in C.
    name = json.dumps(call["tap_name"])
    return (
        f"uint8_t mac[6] = {{{mac}}};\n"
        f"krun_add_net_tap(ctx_id, {name}, mac, 0x{call['features']:x}, {call['flags']});"
    )
