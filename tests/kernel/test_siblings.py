"""Workers that tell each other of pins, by real sockets."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address

import pytest

from guestnet.dns import Pins
from guestnet.flow.reactor import Reactor
from guestnet.gateway.guests import Guest, Guests
from guestnet.gateway.inbox import Inbox
from guestnet.gateway.messages import ForgetGuest, SetGuest
from guestnet.gateway.siblings import RETRY_S, Siblings

NAME = "allowed.example.test"
HERE = IPv4Address("151.101.1.1")
PRIVATE = IPv4Address("10.1.2.3")
FAR_S = 60.0


def here(stay: int = 1, policy: str = "allow@*.example.test") -> SetGuest:
    return SetGuest(
        sequence=stay, guest="vm", stay=stay, network="default",
        addresses=(IPv4Address("172.16.0.2"),), gateways=(), policy=policy,
        synthetic=False, egress=(),
    )  # fmt: skip


class Worker:
    """What of a worker is about siblings."""

    def __init__(self, number: int, inboxes: list[Inbox]) -> None:
        self.errors: list[Exception] = []
        self.reactor = Reactor(self.errors.append)
        self.guests = Guests(Pins())
        writers = {i: inbox.writer for i, inbox in enumerate(inboxes) if i != number}
        self.siblings = Siblings(self.reactor, self.guests, inboxes[number].reader, writers)
        self.guest: Guest = self.guests.set_guest(here())

    def learn(self, name: str = NAME, address: IPv4Address = HERE, for_s: float = FAR_S) -> None:
        now = self.reactor.now()
        assert self.guests.pins.learn("vm", name, [(address, now + for_s)], now)
        self.siblings.tell(self.guest, name)

    def names(self, address: IPv4Address = HERE) -> tuple[str, ...]:
        self.siblings.hear()
        return self.guests.pins.names_of("vm", address, self.reactor.now())


@pytest.fixture
def pair() -> Iterator[tuple[Worker, Worker]]:
    inboxes = [Inbox.open(), Inbox.open()]
    for inbox in inboxes:  # the kernel's least: a few packets
        inbox.writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    one, two = Worker(0, inboxes), Worker(1, inboxes)
    yield one, two
    for each in (one, two):
        each.reactor.close()
        assert each.errors == []
    for inbox in inboxes:
        inbox.close()


def test_what_one_learns_the_other_knows(pair: tuple[Worker, Worker]) -> None:
    one, two = pair
    one.learn()
    assert two.names() == (NAME,)
    assert two.guests.pins.promised("vm", NAME, 0.0) == one.guests.pins.promised("vm", NAME, 0.0)


def test_who_does_not_hear_is_told_later(pair: tuple[Worker, Worker]) -> None:
    one, two = pair
    names = [f"n{number}.example.test" for number in range(100)]
    for name in names:
        one.learn(name)
    before = two.names()
    assert 0 < len(before) < len(names)
    for _ in range(200):
        one.reactor.run_once(RETRY_S)
        if len(two.names()) == len(names):
            break
    assert two.names() == tuple(sorted(names))


def test_who_was_started_again_is_told_everything(pair: tuple[Worker, Worker]) -> None:
    one, two = pair
    for number in range(100):
        one.learn(f"n{number}.example.test")
    two.siblings.hear()
    two.guests.forget("vm")
    two.guest = two.guests.set_guest(here())
    one.siblings.tell_all(1)
    for _ in range(200):
        one.reactor.run_once(RETRY_S)
        if len(two.names()) == 100:
            break
    assert len(two.names()) == 100


def test_what_is_told_of_a_former_guest_is_nobody_s(pair: tuple[Worker, Worker]) -> None:
    one, two = pair
    one.learn()
    two.guests.forget("vm")
    two.guests.set_guest(here(stay=2))
    assert two.names() == ()


def test_what_is_told_of_a_guest_before_it_is_known_is_kept(pair: tuple[Worker, Worker]) -> None:
    one, two = pair
    two.guests.forget("vm")
    one.learn()
    two.siblings.hear()
    assert two.guests.pins.all() == []
    two.guests.set_guest(here())
    two.siblings.hear_again()
    assert two.names() == (NAME,)


def tell(two: Worker, wire: Worker, packet: bytes) -> None:
    next(iter(wire.siblings._siblings.values())).writer.send(packet)
    two.siblings.hear()


def packet(**changes: object) -> bytes:
    told: dict[str, object] = {"stay": 1, "name": NAME, "addresses": ((HERE, 1e9),), **changes}
    return json.dumps(told, default=str).encode()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: b"{}",
        lambda: b"\xff" * 2000,
        lambda: packet(stay="one"),
        lambda: packet(name="x" * 256),
        lambda: packet(addresses=((HERE, 1e9),) * 65),
        lambda: packet(addresses=((PRIVATE, 1e9),)),
        lambda: packet(addresses=((HERE, 1e9), (IPv4Address("169.254.169.254"), 1e9))),
        lambda: packet().replace(b"1000000000.0", b"NaN"),
        lambda: packet().replace(b"1000000000.0", b"9" * 4000),
        lambda: packet(name="\ud800.example.test"),
        lambda: packet(more=1),
        lambda: b"[" * 4000,
        lambda: packet()[:-1],
    ],
)  # fmt: skip
def test_what_a_sibling_may_not_tell_is_left_out(
    pair: tuple[Worker, Worker], wrong: Callable[[], bytes]
) -> None:
    one, two = pair
    tell(two, one, wrong())
    assert two.siblings.wrong == 1
    assert two.guests.pins.all() == []
    tell(two, one, packet())
    assert two.names() == (NAME,)


def test_no_sibling_makes_a_pin_last(pair: tuple[Worker, Worker]) -> None:
    one, two = pair
    tell(two, one, packet())
    [(_address, until)] = two.guests.pins.promised("vm", NAME, two.reactor.now())
    assert until <= two.reactor.now() + 86400


def test_a_private_address_that_the_policy_opens_is_heard(pair: tuple[Worker, Worker]) -> None:
    one, two = pair
    two.guests.set_guest(here(policy="allow@10.0.0.0/8,allow@*.example.test"))
    tell(two, one, packet(addresses=((PRIVATE, 1e9),)))
    assert two.names(PRIVATE) == (NAME,)


def test_a_forgotten_guest_is_not_told_of(pair: tuple[Worker, Worker]) -> None:
    one, two = pair
    for number in range(100):
        one.learn(f"n{number}.example.test")
    assert one.guests.forget(ForgetGuest(sequence=2, guest="vm").guest)
    heard = len(two.names())
    for _ in range(5):
        one.reactor.run_once(RETRY_S)
    assert len(two.names()) == heard
