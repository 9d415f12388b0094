"""The doors for datagrams with small caps and short times: who makes room, what is refused, ends.

No host: two guests on one link, rules that deliver whatever they send, and the doors in the test's
own thread, turn by turn.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address

import pytest

from guestnet.dns import Pins
from guestnet.flow.reactor import Reactor
from guestnet.gateway.datagrams import Datagrams
from guestnet.gateway.doorway import Doorway
from guestnet.gateway.exchange import GUEST_EXCHANGES, Limits
from guestnet.gateway.guests import Guests
from guestnet.gateway.messages import SetGuest, SetPlaces
from guestnet.kernel import netlink
from guestnet.kernel.netlink import NetlinkSocket
from guestnet.kernel.steering import steer
from guestnet.model import Decision
from guestnet.ruleset.names import MARK_TAKEN
from lab.addresses import ALLOWED, FORBIDDEN
from lab.netns import veth
from lab.servers import ECHO
from lab.world import World

pytestmark = pytest.mark.root

Address = IPv4Address | IPv6Address

PATIENCE_S = 20.0
GUESTS: dict[str, tuple[Address, ...]] = {
    "a": (IPv4Address("172.16.0.2"), IPv6Address("fd42::2")),
    "b": (IPv4Address("172.16.0.3"), IPv6Address("fd42::3")),
}
BOTH = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])


def no_name(*_asked: object) -> None:
    """Addresses stand for no names here, so none is resolved."""
    raise AssertionError


class Stage:
    """Doors with their guests, and the far servers of a world."""

    def __init__(self, world: World, limits: Limits) -> None:
        self.world = world
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
        for number, name in enumerate(GUESTS):
            self.set_policy(name, "public", number)
        self._stack.callback(self._end)
        self._build()

    def _build(self) -> None:
        world = self.world
        veth(world.guest, "eth0", world.site, "g0")
        port = self.doorway.ports.relay_udp
        world.site.ip("address add 172.16.0.1/24 dev g0", "address add fd42::1/64 dev g0 nodad")
        world.guest.ip(
            *(f"address add {low}/24 dev eth0" for low, _high in GUESTS.values()),
            *(f"address add {high}/64 dev eth0 nodad" for _low, high in GUESTS.values()),
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
                sequence=sequence, guest=guest, network="net", addresses=GUESTS[guest],
                gateways=(), policy=policy, egress=(), synthetic=False,
                stay=list(GUESTS).index(guest),
            )
        )  # fmt: skip
        self.datagrams.recheck(known)

    def open(self, guest: str, version: int = 4) -> socket.socket:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with self.world.guest.enter():
            made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        made.bind((str(next(a for a in GUESTS[guest] if a.version == version)), 0))
        return self._stack.enter_context(made)

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


StageOf = Callable[[Limits], Stage]


@pytest.fixture
def stage_of(world: World) -> Iterator[StageOf]:
    made: list[Stage] = []

    def make(limits: Limits) -> Stage:
        made.append(Stage(world, limits))
        return made[0]

    yield make
    for each in made:
        each.close()


@BOTH
def test_what_is_not_answered_ends_sooner(stage_of: StageOf, version: int) -> None:
    stage = stage_of(Limits(unanswered_s=0.3, answered_s=60.0))
    target = ALLOWED.ipv4 if version == 4 else ALLOWED.ipv6
    udp, other = stage.open("a", version), stage.open("a", version)
    assert stage.answered(udp, b"answered")
    other.sendto(b"never answered", (str(FORBIDDEN.addresses[version == 6]), 4999))
    assert stage.turn(lambda: stage.ended("idle"))
    assert [(d.address, d.port) for d in stage.ended("idle")] == [
        (FORBIDDEN.addresses[version == 6], 4999)
    ]
    assert len(stage.datagrams) == 1
    assert stage.answered(udp, b"still there")
    assert [d for d in stage.told if d.address == target] == []


def test_what_is_answered_ends_too(stage_of: StageOf) -> None:
    stage = stage_of(Limits(unanswered_s=0.3, answered_s=0.6))
    udp = stage.open("a")
    assert stage.answered(udp, b"x" * 100)
    assert stage.turn(lambda: stage.ended("idle"))
    (end,) = stage.told
    assert (end.bytes_up, end.bytes_down, end.protocol) == (100, 100, "udp")
    assert end.duration_s >= 0.6
    assert len(stage.datagrams) == 0
    assert stage.answered(udp, b"again")


def test_a_question_of_one_answer_ends_soon(stage_of: StageOf) -> None:
    stage = stage_of(Limits(unanswered_s=60.0, answered_s=60.0, brief_s=0.3))
    stage.open("a").sendto(b"time?", (str(ALLOWED.ipv4), 123))
    assert stage.turn(lambda: stage.ended("idle"))


def test_the_longest_silent_makes_room(stage_of: StageOf) -> None:
    stage = stage_of(Limits(guest=3, spared_s=0.2))
    sockets = [stage.open("a") for _ in range(4)]
    for number in (0, 1, 2, 0):
        assert stage.answered(sockets[number], b"%d" % number)
    sockets[3].sendto(b"too soon", (str(ALLOWED.ipv4), ECHO))
    assert stage.turn(lambda: stage.ended("at most 3"))
    assert len(stage.datagrams) == 3
    assert stage.turn(lambda: False, 0.3) is False
    assert stage.answered(sockets[3], b"now")
    (gone,) = stage.ended("limit: made room")
    assert gone.bytes_up == 1
    assert len(stage.datagrams) == 3
    # It was the second's: the first has spoken since.
    assert stage.answered(sockets[0], b"still")
    assert len(stage.ended("limit")) == 1


def test_ten_thousand_flows_of_one_guest_leave_room_for_others(stage_of: StageOf) -> None:
    stage = stage_of(Limits())
    udp, other = stage.open("a"), stage.open("b")
    ports = range(1024, 11_024)
    for start in range(0, len(ports), 200):
        for port in ports[start : start + 200]:
            udp.sendto(b"x", (str(ALLOWED.ipv4), port))
        stage.turn(lambda: False, 0.02)
    assert stage.turn(lambda: len(stage.datagrams) >= GUEST_EXCHANGES)
    assert len(stage.datagrams) == GUEST_EXCHANGES
    assert stage.ended("at most")
    assert stage.answered(other, b"me too")
    stage.datagrams.end_all(stage.guests.all()[0])
    assert len(stage.datagrams) == 1


def test_all_guests_together_have_a_cap(stage_of: StageOf) -> None:
    stage = stage_of(Limits(all=2, spared_s=60.0))
    assert stage.answered(stage.open("a"), b"one")
    assert stage.answered(stage.open("a"), b"two")
    stage.open("b").sendto(b"three", (str(ALLOWED.ipv4), ECHO))
    assert stage.turn(lambda: stage.ended("at most"))
    assert stage.ended("at most")[0].guest == "b"


@BOTH
def test_a_refusal_of_the_gateways_is_said_aloud(stage_of: StageOf, version: int) -> None:
    """The kernel would have refused; a gateway that is asked decides the same."""
    stage = stage_of(Limits())
    stage.set_policy("a", "private")
    udp = stage.open("a", version)
    udp.connect((str(ALLOWED.addresses[version == 6]), ECHO))
    udp.send(b"may I?")

    def is_refused() -> bool:
        try:
            udp.recv(100)
        except ConnectionRefusedError:
            return True
        except BlockingIOError:
            pass
        return False

    assert stage.turn(is_refused)
    (refusal,) = stage.told
    assert (refusal.verdict, refusal.rule) == ("deny", "default_egress=deny")
    assert len(stage.datagrams) == 0


def test_refusals_are_told_and_answered_within_bounds(stage_of: StageOf) -> None:
    stage = stage_of(Limits())
    stage.set_policy("a", "private")
    udp = stage.open("a")
    for _ in range(1000):
        udp.sendto(b"may I?", (str(ALLOWED.ipv4), ECHO))
    assert stage.turn(lambda: stage.told)
    stage.turn(lambda: False, 0.3)
    assert len(stage.told) <= 600  # 200 a second
    assert stage.answered(stage.open("b"), b"others are served")
