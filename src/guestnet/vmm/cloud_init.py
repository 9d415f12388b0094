"""cloud-init: network-config version 2, for NoCloud's `network-config` file.

Source: cloud-init's "Networking config Version 2", whose subset of netplan works with every
renderer. So default routes are written `0.0.0.0/0` and `::/0` (`to: default` is netplan's alone),
and `link-local` is not mentioned: IPv6 needs its link-local address for neighbour discovery, and
that of a guest without IPv6 is refused at the TAP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from ..model import Attachment
from .interface import families

_DEFAULT_ROUTE = {4: "0.0.0.0/0", 6: "::/0"}
#: Letters first: never a number in YAML. What else is no plain string is in `_NOT_TEXT`.
_PLAIN_KEY = re.compile(r"[a-z][a-z0-9-]*")
#: YAML 1.1's other names of booleans and of null (yaml.org/type/bool.html, null.html).
_NOT_TEXT = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def network_config(attachment: Attachment) -> dict[str, object]:
    """The configuration: the device with this MAC gets the guest's name, MTU and addresses.

    DHCP and router advertisements are off. guestnet sends neither, so one that a guest hears is
    another guest's.
    """
    active = families(attachment)
    device: dict[str, object] = {
        "match": {"macaddress": attachment.mac},
        "set-name": attachment.guest_interface,
        "mtu": attachment.mtu,
        "dhcp4": False,
        "dhcp6": False,
        "accept-ra": False,
        "addresses": [str(family.address) for family in active],
    }
    routes = [
        {"to": _DEFAULT_ROUTE[family.version], "via": str(family.gateway)}
        for family in active
        if family.gateway is not None
    ]
    if routes:
        device["routes"] = routes
    # In the attachment's order, which is the order of preference.
    versions = {family.version for family in active}
    resolvers = [str(resolver) for resolver in attachment.dns if resolver.version in versions]
    if resolvers:
        device["nameservers"] = {"addresses": resolvers}
    return {"version": 2, "ethernets": {attachment.guest_interface: device}}


def yaml_text(attachment: Attachment) -> str:
    """The configuration as YAML, which reads the same under YAML 1.1 and 1.2."""
    return "\n".join(_mapping(network_config(attachment)))


def _mapping(data: Mapping[str, object]) -> Iterator[str]:
    for key, value in data.items():
        yield from _entry(f"{_key(key)}:", value)


def _entry(head: str, value: object) -> Iterator[str]:
    """One key's lines. Scalars and empty collections are JSON, which is YAML's flow style."""
    if isinstance(value, dict) and value:
        yield head
        yield from (f"  {line}" for line in _mapping(value))
    elif isinstance(value, list) and value:
        yield head
        for item in value:
            first, *rest = _mapping(item) if isinstance(item, dict) else [json.dumps(item)]
            yield f"  - {first}"
            yield from (f"    {line}" for line in rest)
    else:
        yield f"{head} {json.dumps(value)}"


def _key(text: str) -> str:
    plain = _PLAIN_KEY.fullmatch(text) and text not in _NOT_TEXT
    return text if plain else json.dumps(text)
