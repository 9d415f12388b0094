"""A world whose site relays every flow, its guests, and what is sent to and fro."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, TypeVar

from guestnet.host import Host
from guestnet.model import Attachment
from guestnet.model.decision import Decision
from lab.addresses import RESOLVER
from lab.netns import Lent, Namespace
from lab.servers import ECHO
from lab.world import World

Address = IPv4Address | IPv6Address
T = TypeVar("T")

PATIENCE_S = 20.0
SILENCE_S = 0.5


def at(server: Any, version: int) -> Address:
    found: Address = server.ipv4 if version == 4 else server.ipv6
    return found


def family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def eventually(found: Callable[[], T | None]) -> T:
    deadline = time.monotonic() + PATIENCE_S
    while not (result := found()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
    return result


class Stage:
    """A world whose site relays every flow."""

    def __init__(self, world: World, host: Host, *, rootless: bool = False) -> None:
        self.world, self.host = world, host
        self._rootless = rootless
        self._number = 0

    @contextlib.contextmanager
    def guest(self, policy: str, network: str = "default") -> Iterator[Guest]:
        self._number += 1
        id = f"vm-{self._number}"
        namespace: Namespace
        if self._rootless:
            attachment = self.host.attach(id, network=network, netns="new", policy=policy)
            namespace = Lent(Path(attachment.netns or ""), id)
        else:
            namespace = self.world.add_guest(id)
            path = str(namespace.path)
            attachment = self.host.attach(id, network=network, netns=path, policy=policy)
        yield Guest(self, attachment, namespace)
        self.host.detach(id)
        namespace.delete()


class Guest:
    """One guest, its sockets and what was decided about it."""

    def __init__(self, stage: Stage, attachment: Attachment, namespace: Namespace) -> None:
        self._stage = stage
        self.attachment = attachment
        self.namespace = namespace

    @property
    def id(self) -> str:
        return self.attachment.guest

    def address(self, version: int) -> Address:
        own = self.attachment.ipv4 if version == 4 else self.attachment.ipv6
        assert own is not None
        return own.ip

    def socket(self, version: int, port: int = 0) -> socket.socket:
        with self.namespace.enter():
            made = socket.socket(family(version), socket.SOCK_DGRAM)
        made.bind(("", port))
        made.settimeout(PATIENCE_S)
        return made

    def decisions(self, **wanted: Any) -> list[Decision]:
        return [
            decision
            for decision in self._stage.host.decisions(self.id)
            if all(getattr(decision, key) == value for key, value in wanted.items())
        ]

    def decided(self, **wanted: Any) -> Decision:
        return eventually(lambda: self.decisions(**wanted))[-1]


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
        host.create_network({"name": "default", "dns": [str(a) for a in RESOLVER.addresses]})
        made = Stage(world, host, rootless=rootless)
        with made.guest("none"):
            pass  # the gateway runs from the first guest on, and is no test's leftover
        yield made


GuestOf = Callable[[str], Guest]


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
        made = socket.socket(family(address.version), socket.SOCK_DGRAM)
    with made:
        made.bind((str(address), port))
        made.settimeout(PATIENCE_S)
        yield made


def is_silent(udp: socket.socket) -> bool:
    return not select.select([udp], [], [], SILENCE_S)[0]
