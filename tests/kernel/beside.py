"""A guest on guestnet, and beside it a namespace with a cable to the same internet.

What a connection through guestnet comes to can be held against the same connection without it.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from guestnet.host import Host
from lab import processes
from lab.addresses import ALLOWED, RESOLVER, Server
from lab.caller import Caller
from lab.netns import Lent, Namespace, veth
from lab.user import User
from lab.waiting import PATIENCE_S, eventually
from lab.world import World

Address = IPv4Address | IPv6Address

NAME = ALLOWED.name
#: Asks which processes the gateway is.
Gateway = Callable[[], tuple[int, ...]]


@dataclass(frozen=True)
class Manner:
    """One way in which guestnet gets a guest's connections to the other end."""

    make: Callable[[World, Path], AbstractContextManager[tuple[Namespace, Gateway]]]
    is_relayed: bool = True
    by_name: bool = False


@dataclass(frozen=True)
class Beside:
    """The world, the guest, and who goes without guestnet."""

    world: World
    manner: Manner
    guest: Caller
    direct: Caller
    #: Where the server is.
    far: Namespace
    gateway: Gateway

    def prepare(self, version: int) -> None:
        """Where the name decides the guest has to ask for it before it connects."""
        if self.manner.by_name:
            self.guest.ask(NAME, "AAAA" if version == 6 else "A")

    @contextlib.contextmanager
    def meeting(
        self, caller: Caller, version: int, port: int, *first: tuple[bytes, int]
    ) -> Iterator[tuple[socket.socket, socket.socket]]:
        """Both ends of a connection to the named server.

        `first` is said at once, with the flags of send(2), before anybody has accepted.
        """
        address = of(ALLOWED, version)
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        with self.far.enter():
            listener = socket.create_server((str(address), port), family=family)
        with listener:
            listener.settimeout(PATIENCE_S)
            self.prepare(version)
            with caller.connect(address, port) as near:
                for said in first:
                    near.sendall(*said)
                far, _address = listener.accept()
                with far:
                    yield near, far


def of(server: Server, version: int) -> Address:
    """A server's address of one family."""
    found = server.ipv6 if version == 6 else server.ipv4
    assert found is not None
    return found


@contextlib.contextmanager
def as_root(
    world: World, state: Path, policy: str, *, relays_all: bool = False
) -> Iterator[tuple[Namespace, Gateway]]:
    """The site is root's."""
    with Host.open(state, site=world.site.path, relays_all=relays_all) as host:
        host.create_network({"name": "default", "dns": [str(a) for a in RESOLVER.addresses]})
        host.attach("vm", netns=world.guest.path, policy=policy)
        gateway = host._relays.gateway
        yield world.guest, lambda: () if gateway is None else gateway.pids


@contextlib.contextmanager
def as_user(world: World, state: Path) -> Iterator[tuple[Namespace, Gateway]]:
    """The site is an ordinary user's."""
    with User(world.site) as user:

        def say(*arguments: str) -> str:
            done = user.guestnet(*arguments)
            assert done.returncode == 0, done.stderr
            return done.stdout

        def gateway() -> tuple[int, ...]:
            found = sorted(user.processes())
            return tuple(p for p in found if "-m guestnet.gateway" in processes.command_line(p))

        say("up")
        try:
            box = json.loads(say("attach", "box", "--netns", "new", "--policy", "public", "--json"))
            yield Lent(Path(box["netns"]), "box"), gateway
        finally:
            user.guestnet("down")
            eventually(lambda: not user.processes())


MANNERS = {
    "forwarded": Manner(lambda world, state: as_root(world, state, "public"), is_relayed=False),
    "by name": Manner(lambda world, state: as_root(world, state, f"allow@{NAME}"), by_name=True),
    "relays_all": Manner(lambda world, state: as_root(world, state, "public", relays_all=True)),
    "rootless": Manner(as_user),
}


@contextlib.contextmanager
def beside(manner: Manner, state: Path) -> Iterator[Beside]:
    """A world with both."""
    with World() as world, manner.make(world, state) as (namespace, gateway):
        direct = Caller(_cabled(world))
        yield Beside(world, manner, Caller(namespace), direct, world.internet, gateway)


def _cabled(world: World) -> Namespace:
    """A namespace with a cable to the internet, and nothing in between."""
    made = world.add_guest("direct")
    veth(world.internet, "direct0", made, "eth0")
    world.internet.ip(
        "address add 45.66.78.1/24 dev direct0",
        "address add 2a0a:1235::1/64 dev direct0 nodad",
    )
    made.ip(
        "address add 45.66.78.2/24 dev eth0",
        "address add 2a0a:1235::2/64 dev eth0 nodad",
        "route add default via 45.66.78.1",
        "route add default via 2a0a:1235::1",
    )
    return made
