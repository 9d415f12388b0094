"""Which addresses the machine has a way to, asked of its routing table.

A connect of a datagram socket looks for the route and sends nothing. The socket is bound to no
device: of one that is, the kernel believes that every IPv4 address is on its link.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address

Address = IPv4Address | IPv6Address

#: Somewhere in each family's internet: addresses of documentation (RFC 5737, RFC 3849).
_SOMEWHERE = {4: ip_address("192.0.2.1"), 6: ip_address("2001:db8::1")}
_PORT = 9


def offered(addresses: Iterable[Address]) -> bool:
    """Whether to offer these, of one family, to who would reach them by the gateway.

    Not where none has a route and the other family has one: a client that tries them first is
    connected to the gateway, and so has no reason to try the other family.
    """
    known = list(addresses)
    if not known or any(map(_has_route, known)):
        return True
    return not _has_route(_SOMEWHERE[10 - known[0].version])


def _has_route(address: Address) -> bool:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((str(address), _PORT))
        return True
    return False
