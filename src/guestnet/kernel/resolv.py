"""The host's own resolvers (resolv.conf(5))."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

RESOLV_CONF = Path("/etc/resolv.conf")


def host_resolvers(*, loopback: bool = False) -> tuple[IPv4Address | IPv6Address, ...]:
    """Resolvers that a guest can be told of: loopback and link-local ones mean the host itself.

    With `loopback` those on the host's loopback too, for whoever asks from there.
    """
    try:
        lines = RESOLV_CONF.read_text(errors="replace").splitlines()
    except OSError:
        return ()
    found: list[IPv4Address | IPv6Address] = []
    for line in lines:
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = ipaddress.ip_address(words[1])
        except ValueError:
            continue
        if address.is_loopback:
            usable = loopback
        else:
            usable = not (address.is_link_local or address.is_unspecified)
        if usable:
            found.append(address)
    return tuple(dict.fromkeys(found))
