"""An attachment to say in other words."""

from __future__ import annotations

from typing import Any

from guestnet.model import Attachment


def attachment(**changes: Any) -> Attachment:
    """A dual-stack guest of a routed network, with one resolver of each family."""
    fields: dict[str, Any] = {
        "guest": "vm-1",
        "network": "default",
        "topology": "routed",
        "generation": 1,
        "slot": 1,
        "tap": "gn1",
        "mac": "02:6d:73:00:01:02",
        "ipv4": "172.16.0.6/30",
        "ipv6": "fd42:6d73:62:1::2/64",
        "gateway_ipv4": "172.16.0.5",
        "gateway_ipv6": "fd42:6d73:62:1::1",
        "mtu": 1420,
        "dns": ("2620:fe::fe", "9.9.9.9"),
        "policy": "",
    }
    return Attachment(**(fields | changes))
