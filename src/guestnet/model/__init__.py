"""The nouns every room shares, as frozen values that are validated once.

`NetworkSpec` is what an owner asks for, `AttachRequest` what they ask for one guest, `Attachment`
what they get. Addresses are `ipaddress` values, MACs lower-case text with colons, MTUs bytes.

What an owner writes is a pydantic model. pydantic takes a tenth of a second to import, and some
processes never meet an owner: names are imported when they are first used, and those processes take
theirs from `terms` and `decision`, which are without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .decision import Decision
    from .findings import Finding, Repairs
    from .guest import Attachment, AttachRequest, TransportInfo, TransportText, Usage
    from .network import (
        DEFAULT_BRIDGE_IPV4,
        DEFAULT_BRIDGE_IPV6,
        DEFAULT_BRIDGE_NAME,
        DEFAULT_ROUTED_IPV4,
        DEFAULT_ROUTED_IPV6,
        NetworkInfo,
        NetworkSpec,
        Skipped,
    )
    from .terms import (
        GUEST_ID_MAX_BYTES,
        INTERFACE_NAME_MAX_BYTES,
        MTU_MAX,
        MTU_MIN,
        MTU_MIN_IPV6,
        TAP_FD_QUEUES_MAX,
        UID_MAX,
        Topology,
        check_guest_id,
        check_interface_name,
        check_mac,
    )
    from .value import (
        GuestId,
        InterfaceName,
        Mac,
        Mtu,
        NetworkName,
        Value,
        config_error,
        read_decision,
    )

_HOMES = {
    "decision": ("Decision",),
    "findings": ("Finding", "Repairs"),
    "guest": ("AttachRequest", "Attachment", "TransportInfo", "TransportText", "Usage"),
    "network": (
        *("DEFAULT_BRIDGE_IPV4", "DEFAULT_BRIDGE_IPV6", "DEFAULT_BRIDGE_NAME"),
        *("DEFAULT_ROUTED_IPV4", "DEFAULT_ROUTED_IPV6", "NetworkInfo", "NetworkSpec", "Skipped"),
    ),
    "terms": (
        *("GUEST_ID_MAX_BYTES", "INTERFACE_NAME_MAX_BYTES", "MTU_MAX", "MTU_MIN", "MTU_MIN_IPV6"),
        *("TAP_FD_QUEUES_MAX", "UID_MAX", "Topology"),
        *("check_guest_id", "check_interface_name", "check_mac"),
    ),
    "value": (
        *("GuestId", "InterfaceName", "Mac", "Mtu", "NetworkName", "Value"),
        *("config_error", "read_decision"),
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "DEFAULT_BRIDGE_IPV4",
    "DEFAULT_BRIDGE_IPV6",
    "DEFAULT_BRIDGE_NAME",
    "DEFAULT_ROUTED_IPV4",
    "DEFAULT_ROUTED_IPV6",
    "GUEST_ID_MAX_BYTES",
    "INTERFACE_NAME_MAX_BYTES",
    "MTU_MAX",
    "MTU_MIN",
    "MTU_MIN_IPV6",
    "TAP_FD_QUEUES_MAX",
    "UID_MAX",
    "AttachRequest",
    "Attachment",
    "Decision",
    "Finding",
    "GuestId",
    "InterfaceName",
    "Mac",
    "Mtu",
    "NetworkInfo",
    "NetworkName",
    "NetworkSpec",
    "Repairs",
    "Skipped",
    "Topology",
    "TransportInfo",
    "TransportText",
    "Usage",
    "Value",
    "check_guest_id",
    "check_interface_name",
    "check_mac",
    "config_error",
    "read_decision",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value
