"""Firecracker: bodies for its API, after `NetworkInterface` and `SnapshotLoadParams` of its spec.

Source: src/firecracker/swagger/firecracker.yaml of Firecracker. It refuses unknown fields.
"""

from __future__ import annotations

import re
from typing import NotRequired, TypedDict

from ..model import Attachment
from .interface import single_queue_tap_name


class NetworkInterface(TypedDict):
    """Body of `PUT /network-interfaces/{iface_id}`, and an item of that key in a config file."""

    iface_id: str
    host_dev_name: str
    guest_mac: str
    mtu: NotRequired[int]


class NetworkOverride(TypedDict):
    """One of `network_overrides` in the body of `PUT /snapshot/load`."""

    iface_id: str
    host_dev_name: str


def interface_id(attachment: Attachment) -> str:
    """The guest's interface name as an id that the API takes: alphanumerics and `_`.

    The id in the path must equal the one in the body. Guests see `eth0`, whatever the id says.
    """
    return re.sub(r"[^0-9A-Za-z]", "_", attachment.guest_interface)


def network_interface(attachment: Attachment, *, mtu: bool = True) -> NetworkInterface:
    """The interface, to be put before boot.

    `mtu` advertises VIRTIO_NET_F_MTU. Firecracker knows the field since 1.16 and refuses it before;
    with `mtu=False` the guest must set its MTU by itself (`env`, `cloud-init`).
    """
    tap = single_queue_tap_name(attachment, "Firecracker")
    body = NetworkInterface(
        iface_id=interface_id(attachment), host_dev_name=tap, guest_mac=attachment.mac
    )
    if mtu:
        body["mtu"] = attachment.mtu
    return body


def network_overrides(attachment: Attachment) -> list[NetworkOverride]:
    """The TAP that a restored snapshot's interface gets, in place of the one it was taken with.

    The id must be that of the snapshot, so attach with the same `guest_interface`. MAC, addresses
    and MTU stay those in the snapshot too; only an attachment that has the same lets them pass.
    """
    tap = single_queue_tap_name(attachment, "Firecracker")
    return [NetworkOverride(iface_id=interface_id(attachment), host_dev_name=tap)]
