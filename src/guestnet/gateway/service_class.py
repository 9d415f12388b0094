"""The class of service that a guest's packets ask for, on the connection that goes on for them.

What is forwarded keeps its DSCP, so what is relayed does too: that of the guest's first packet.
"""

from __future__ import annotations

import socket
from contextlib import suppress

#: linux/in.h, in6.h
_IP_TOS, _IPV6_TCLASS = 1, 67


def set_class(server: socket.socket, value: int) -> None:
    """Ask for the same; without it the connection is as good."""
    with suppress(OSError):
        if server.family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, _IPV6_TCLASS, value)
        else:
            server.setsockopt(socket.IPPROTO_IP, _IP_TOS, value)
