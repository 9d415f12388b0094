"""The doors for datagrams without a host: guests on one link, and the doors in the test's thread.

Rules of their own deliver whatever the guests send, and the loop is turned by the test.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address

from guestnet.dns import Pins
from guestnet.flow.reactor import Reactor
from guestnet.gateway.datagrams import Datagrams
from guestnet.gateway.doorway import Doorway, doors_of
from guestnet.gateway.exchange import Limits
from guestnet.gateway.guests import Guests
from guestnet.gateway.messages import SetGuest, SetPlaces
from guestnet.kernel import netlink
from guestnet.kernel.netlink import NetlinkSocket
from guestnet.kernel.steering import steer
from guestnet.model.decision import Decision
from guestnet.ruleset.names import MARK_TAKEN
from lab.addresses import ALLOWED
from lab.netns import veth
from lab.servers import ECHO
from lab.world import World

Address = IPv4Address | IPv6Address

PATIENCE_S = 20.0
GUESTS: dict[str, tuple[Address, ...]] = {
    "a": (IPv4Address("172.16.0.2"), IPv6Address("fd42::2")),
    "b": (IPv4Address("172.16.0.3"), IPv6Address("fd42::3")),
}


def no_name(*_asked: object) -> None:
    """Addresses stand for no names here, so none is resolved."""
    raise AssertionError


class Stage:
    """Doors with their guests, and the far servers of a world."""

    def __init__(
        self,
        world: World,
        limits: Limits,
        addresses: Mapping[str, tuple[Address, ...]] = GUESTS,
    ) -> None:
        self.world = world
        self.addresses = addresses
        self.told: list[Decision] = []
        self._errors: list[Exception] = []
        self._stack = contextlib.ExitStack()
        self.reactor = self._stack.enter_context(Reactor(on_error=self._errors.append))
        with world.site.enter():
            (self.doorway,) = Doorway.open(1, datagrams=True)
        self._stack.callback(self.doorway.close)
        self.guests = Guests(Pins())
        self.guests.set_places(SetPlaces(sequence=1, host=(), guests=()))
        self.datagrams = Datagrams(
            self.doorway, self.reactor, self.guests, self.told.append, no_name, limits
        )
        for number, name in enumerate(addresses):
            self.set_policy(name, "public", number)
        self._stack.callback(self._end)
        self._build()

    def _build(self) -> None:
        world = self.world
        veth(world.guest, "eth0", world.site, "g0")
        port = doors_of([self.doorway]).relay_udp
        world.site.ip("address add 172.16.0.1/24 dev g0", "address add fd42::1/64 dev g0 nodad")
        world.guest.ip(
            *(f"address add {low}/24 dev eth0" for low, _high in self.addresses.values()),
            *(f"address add {high}/64 dev eth0 nodad" for _low, high in self.addresses.values()),
            "route add default via 172.16.0.1", "route add default via fd42::1",
        )  # fmt: skip
        rules = f"""
            table inet doors {{
              chain in {{
              type filter hook prerouting priority 0;
              iifname g0 meta l4proto udp tproxy to :{port} meta mark set {MARK_TAKEN} accept
              }}
            }}
        """
        world.site.run(["nft", "-f", "-"], stdin=rules)
        with world.site.enter(), NetlinkSocket(netlink.NETLINK_ROUTE) as route:
            steer(route)

    def _end(self) -> None:
        for guest in self.guests.all():
            self.datagrams.end_all(guest)
        assert self._errors == []

    def close(self) -> None:
        self._stack.close()

    def set_policy(self, guest: str, policy: str, sequence: int = 9) -> None:
        known = self.guests.set_guest(
            SetGuest(
                sequence=sequence, guest=guest, network="net", addresses=self.addresses[guest],
                gateways=(), policy=policy, egress=(), synthetic=False,
                stay=list(self.addresses).index(guest),
            )
        )  # fmt: skip
        self.datagrams.recheck(known)

    def open(self, guest: str, version: int = 4) -> socket.socket:
        """A guest's socket, until the end."""
        return self._stack.enter_context(self.made(guest, version))

    def made(self, guest: str, version: int) -> socket.socket:
        """A guest's socket, the caller's to close."""
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with self.world.guest.enter():
            made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        (address,) = (a for a in self.addresses[guest] if a.version == version)
        made.bind((str(address), 0))
        return made

    def turn(self, until: Callable[[], object], patience_s: float = PATIENCE_S) -> bool:
        """Turn the loop until something is so; False if it never was."""
        deadline = time.monotonic() + patience_s
        with self.world.site.enter():
            while not until():
                if time.monotonic() > deadline:
                    return False
                self.reactor.run_once(0.02)
        return True

    def answered(self, udp: socket.socket, data: bytes) -> bool:
        """Whether a datagram to the far echo comes back."""
        target = ALLOWED.ipv4 if udp.family == socket.AF_INET else ALLOWED.ipv6
        udp.sendto(data, (str(target), ECHO))
        return self.hears(udp, data)

    def hears(self, udp: socket.socket, data: bytes, patience_s: float = PATIENCE_S) -> bool:
        heard: list[bytes] = []

        def look() -> bool:
            with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                heard.append(udp.recv(70000))
            return data in heard

        return self.turn(look, patience_s)

    def ended(self, reason: str) -> list[Decision]:
        return [decision for decision in self.told if decision.reason.startswith(reason)]
