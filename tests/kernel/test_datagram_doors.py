"""The doors for datagrams with small caps and short times: who makes room, what is refused, ends.

No host: two guests on one link, rules that deliver whatever they send, and the doors in the test's
own thread, turn by turn.
"""

from __future__ import annotations

import contextlib
import resource
import select
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address

import pytest

from datagramdoors import Address, Stage
from guestnet.flow.reactor import SOON_CALLS
from guestnet.gateway.exchange import GUEST_EXCHANGES, Limits
from guestnet.kernel.mmsg import SLOTS
from lab.addresses import ALLOWED, FORBIDDEN
from lab.servers import ECHO
from lab.world import World

pytestmark = pytest.mark.root

BOTH = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])


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
@pytest.mark.parametrize(
    ("port", "policy", "rule"),
    [
        (853, "allow@pkg.test\nallow@public", "name services"),
        (ECHO, f"deny@{ALLOWED.name}\nallow@public", f"deny@{ALLOWED.name}"),
        (ECHO, "private", "default_egress=deny"),
    ],
    ids=["name service", "name", "address"],
)
def test_a_new_policy_ends_what_it_would_not_begin(
    stage_of: StageOf, version: int, port: int, policy: str, rule: str
) -> None:
    """Also what nobody needed a name for, and what is nobody's to allow."""
    stage = stage_of(Limits())
    address = ALLOWED.addresses[version == 6]
    now = stage.reactor.now()
    stage.guests.pins.learn("a", ALLOWED.name, [(address, now + 60)], now)
    stage.open("a", version).sendto(b"x", (str(address), port))
    assert stage.turn(lambda: len(stage.datagrams) == 1)
    stage.set_policy("a", policy)
    (ended,) = stage.ended("the policy was changed")
    assert (ended.verdict, ended.rule) == ("deny", rule)
    assert len(stage.datagrams) == 0


def test_a_flood_takes_nobody_else_s_turns(stage_of: StageOf) -> None:
    """What goes on after an event goes on once, however many events came meanwhile."""
    stage = stage_of(Limits())
    udp = stage.open("a")
    door = stage.doorway.relay_udp[0].fileno()
    for _turn in range(2 * SOON_CALLS):
        for _ in range(2 * SOON_CALLS * SLOTS):  # more than is taken in a turn
            udp.sendto(b"x", (str(ALLOWED.ipv4), ECHO))
        # Kernels before 6.13 tell of each datagram that comes, not of the first alone.
        stage.reactor.modify(door, select.EPOLLIN)
        with stage.world.site.enter():
            stage.reactor.run_once(0)
    called: list[bool] = []
    stage.reactor.call_soon(lambda: called.append(True))
    with stage.world.site.enter():
        stage.reactor.run_once(0)
    assert called


@BOTH
def test_a_hundred_guests_with_a_hundred_flows_each(world: World, version: int) -> None:
    """As many descriptors as flows, and each hears what it sent; one more guest is served too."""
    guests: dict[str, tuple[Address, ...]] = {
        f"vm-{n}": (IPv4Address("172.16.0.10") + n, IPv6Address("fd42::10") + n) for n in range(101)
    }
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    stage = Stage(world, Limits(guest=100), guests)
    target = str(ALLOWED.addresses[version == 6])
    try:
        for guest in list(guests)[:100]:
            with contextlib.ExitStack() as stack:
                sockets = [stack.enter_context(stage.made(guest, version)) for _ in range(100)]
                for number, udp in enumerate(sockets):
                    udp.sendto(b"%d" % number, (target, ECHO))
                for number, udp in enumerate(sockets):
                    assert stage.hears(udp, b"%d" % number), guest
        assert len(stage.datagrams) == 10_000
        assert stage.answered(stage.open("vm-100", version), b"one more")
        # Nobody's flow had to go for it, and none is refused.
        assert stage.told == []
    finally:
        stage.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


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
