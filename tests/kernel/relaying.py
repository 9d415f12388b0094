"""A stage whose site relays every flow, and what is sent to and fro."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from guestnet.host import Host
from lab.addresses import RESOLVER
from lab.caller import AF
from lab.servers import ECHO
from lab.waiting import PATIENCE_S
from lab.world import World
from stage import Stage

Address = IPv4Address | IPv6Address

SILENCE_S = 0.5


@contextlib.contextmanager
def open_relaying(state: Path, *, rootless: bool = False) -> Iterator[Stage]:
    """The stage, with its gateway running."""
    with World() as world, contextlib.ExitStack() as stack:
        world.site.sysctl("ipv4.ping_group_range", "0 65534")
        if rootless:
            stack.enter_context(world.site.enter())
            host = stack.enter_context(Host.open(state, rootless=True))
        else:
            host = stack.enter_context(Host.open(state, site=world.site.path, relays_all=True))
        host.create_network({"name": "plain", "dns": [str(a) for a in RESOLVER.addresses]})
        made = Stage(world, host, rootless=rootless)
        with made.guest("none"):
            pass  # the gateway runs from the first guest on, and is no test's leftover
        yield made


def exchange(udp: socket.socket, data: bytes, address: Address, port: int = ECHO) -> Any:
    """Send, and return what comes back; it must come from there."""
    udp.sendto(data, (str(address), port))
    answer, source = udp.recvfrom(70000)
    assert source[:2] == (str(address), port)
    return answer


@contextlib.contextmanager
def far(world: World, address: Address, port: int) -> Iterator[socket.socket]:
    """A socket of the internet's."""
    with world.internet.enter():
        made = socket.socket(AF[address.version], socket.SOCK_DGRAM)
    with made:
        made.bind((str(address), port))
        made.settimeout(PATIENCE_S)
        yield made


def is_silent(udp: socket.socket) -> bool:
    return not select.select([udp], [], [], SILENCE_S)[0]
