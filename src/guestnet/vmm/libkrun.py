"""libkrun: the values of one C call, after include/libkrun.h.

`krun_add_net_tap`, or for a transport `krun_add_net_unixstream` and `krun_add_net_unixgram`.
"""

from __future__ import annotations

from enum import IntFlag
from typing import TypedDict

from ..frames.transport import Kind, Transport
from ..model import Attachment
from .interface import misfit, single_queue_tap_name, transport_of


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


#: Of a socket without the header there is nobody who could finish frames.
NO_FEATURES = Feature(0)

_CALLS = {Kind.STREAM: "krun_add_net_unixstream", Kind.DGRAM: "krun_add_net_unixgram"}


class AddNetSocket(TypedDict):
    """Arguments of `krun_add_net_unixstream` and `krun_add_net_unixgram` after the context id."""

    path: str
    #: -1: there is a path.
    fd: int
    #: Six bytes.
    mac: list[int]
    features: int
    flags: int


class AddNetTap(TypedDict):
    """Arguments of `krun_add_net_tap` after the context id."""

    tap_name: str
    #: Six bytes.
    mac: list[int]
    features: int
    flags: int


def add_net(attachment: Attachment) -> AddNetTap | AddNetSocket:
    """The values of the call that fits the attachment. No call carries an MTU."""
    transport = transport_of(attachment)
    if transport is None:
        return add_net_tap(attachment)
    return _add_net_socket(attachment, transport)


def _add_net_socket(attachment: Attachment, transport: Transport) -> AddNetSocket:
    """The greeting that a flag would ask for is understood, and not needed."""
    if transport.kind not in _CALLS:
        raise misfit(transport, "libkrun speaks stream and dgram")
    return AddNetSocket(
        path=transport.path,
        fd=-1,
        mac=list(bytes.fromhex(attachment.mac.replace(":", ""))),
        features=int(FEATURES if transport.vnet_hdr else NO_FEATURES),
        flags=0,
    )


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
    transport = transport_of(attachment)
    call = add_net(attachment)
    mac = ", ".join(f"0x{byte:02x}" for byte in call["mac"])
    rest = f"mac, 0x{call['features']:x}, {call['flags']}"
    if transport is not None:
        words = f"{_CALLS[transport.kind]}(ctx_id, {_c_string(transport.path)}, -1, {rest});"
    else:
        words = f"krun_add_net_tap(ctx_id, {_c_string(attachment.tap)}, {rest});"
    return f"uint8_t mac[6] = {{{mac}}};\n{words}"


def _c_string(text: str) -> str:
    """Printable text as a string in C; what is not ASCII as octal bytes of its UTF-8."""
    plain = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isascii() else _octal(c) for c in plain) + '"'


def _octal(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in character.encode())
