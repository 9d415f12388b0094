"""Questions that come again are answered unread, and as if they had been read.

The resolver's own loop on real sockets of a namespace, with guests and an upstream beside it in the
same loop. A guest's share of what is told is used up throughout, as what is told is always read.
"""

from __future__ import annotations

import itertools
import random
import select
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestnet.dns import GRACE_S, Pins
from guestnet.flow.reactor import Reactor
from guestnet.gateway.asking import Asking
from guestnet.gateway.doorway import service
from guestnet.gateway.guests import Guest, Guests
from guestnet.gateway.messages import AddPins, Message, SetGuest, SetNetwork, SetPlaces
from guestnet.gateway.pinning import GUEST_PINS, Pinning
from guestnet.gateway.resolving import Resolving
from guestnet.gateway.secure import Secure
from guestnet.model import Decision
from guestnet.naming import HOST_ALIAS, Upstream
from lab.netns import Namespace

pytestmark = pytest.mark.root

PATIENCE_S = 20.0
UPSTREAM = IPv4Address("127.0.0.53")
LOW, OTHER, HIGH = "127.0.0.2", "127.0.0.3", "fd00::2"
#: Where the guests ask: two addresses of each family.
DOORS = {4: ("127.0.0.1", "127.0.0.99"), 6: ("::1", "fd00::99")}
POLICY = "allow@*.good.test:tcp:443,deny@public"
#: Of names below this the TTL is 2 s, and each answer has the next address.
TURNS = "turns.good.test"


class Reading(Resolving):
    """Counts the questions that are read."""

    read = 0

    def _answer(self, *arguments: object) -> float:
        self.read += 1
        return super()._answer(*arguments)  # type: ignore[arg-type]


class Resolver:
    """The gateway's resolver in this process, its upstream, and who asks."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.told: list[Decision] = []
        self.sent: list[Message] = []
        self.reactor = Reactor(on_error=self.failures.append)
        self.guests = Guests(Pins())
        self.pinning = Pinning(self.reactor, self.guests, self.sent.append)
        ((udp,), (tcp,)) = (service(kind, 1) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM))
        self.doors = (*udp, *tcp)
        self.port = udp[0].getsockname()[1]
        self.resolving = Reading(
            self.reactor, udp, tcp, self.guests,
            Asking(self.reactor, Secure(self.reactor)), self.pinning, self.told.append,
        )  # fmt: skip
        self.clients: dict[tuple[str, str], socket.socket] = {}
        self._turns = itertools.count(0x5DB8D801)
        self._sequence = itertools.count(1)
        self._upstream = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._upstream.bind((str(UPSTREAM), 53))
        self.reactor.add(self._upstream.fileno(), self._on_question, select.EPOLLIN)
        self.guests.set_places(SetPlaces(sequence=0, host=(), guests=()))
        self.guests.set_network(
            SetNetwork(
                sequence=0, network="default", upstreams=(Upstream(UPSTREAM),), records={},
                serve_stale_s=0, strip_ech=True, deny_encrypted_dns=True,
                relays_all=False,
            )
        )  # fmt: skip

    def close(self) -> None:
        for each in (*self.clients.values(), self._upstream):
            each.close()
        for door in self.doors:
            door.close()
        self.reactor.close()

    def guest(self, policy: str, *addresses: str, id: str = "vm") -> Guest:
        guest = self.guests.set_guest(
            SetGuest(
                sequence=next(self._sequence), guest=id, stay=sum(id.encode()), network="default",
                addresses=tuple(map(ip_address, addresses)),
                gateways=(IPv4Address("127.0.0.1"), IPv6Address("::1")), policy=policy,
                egress=(), synthetic=False,
            )
        )  # fmt: skip
        guest.share.per_second = 0
        return guest

    def _on_question(self, _events: int) -> None:
        """Names that begin with "no" do not exist, others have as many addresses as `big` says."""
        while True:
            try:
                wire, source = self._upstream.recvfrom(4096)
            except BlockingIOError:
                return
            query = dns.message.from_wire(wire)
            name, rtype = query.question[0].name, query.question[0].rdtype
            text = name.to_text().lower()
            reply = dns.message.make_response(query, recursion_available=True)
            if text.startswith("no"):
                reply.set_rcode(dns.rcode.NXDOMAIN)
            elif rtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
                if text.endswith(TURNS + "."):
                    found, ttl_s = [str(IPv4Address(next(self._turns)))], 2
                elif rtype == dns.rdatatype.A:
                    many = 60 if text.startswith("big") else 2
                    found, ttl_s = [f"93.184.216.{number}" for number in range(many)], 300
                else:
                    found, ttl_s = ["2606:2800:220:1::34"], 300
                kind = dns.rdatatype.to_text(rtype)
                reply.answer.append(dns.rrset.from_text(name, ttl_s, "IN", kind, *found))
            if not reply.answer:
                soa = "ns.good.test. root.good.test. 1 60 60 60 60"
                reply.authority.append(dns.rrset.from_text("good.test.", 60, "IN", "SOA", soa))
            self._upstream.sendto(reply.to_wire(), source)

    def until(self, done: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < deadline, "it did not happen"
            self.reactor.run_once(0.01)
            assert self.failures == []

    def send(self, wire: bytes, source: str = LOW, door: int = 0) -> socket.socket:
        version = ip_address(source).version
        to = DOORS[version][door]
        if (source, to) not in self.clients:
            family = socket.AF_INET if version == 4 else socket.AF_INET6
            made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            made.bind((source, 0))
            # Connected: it hears nothing that comes from any other address.
            made.connect((to, self.port))
            self.clients[source, to] = made
        client = self.clients[source, to]
        client.send(wire)
        return client

    def ask(self, wire: bytes, source: str = LOW, door: int = 0) -> bytes:
        """The answer; it has the question's id."""
        answer = self.receive(self.send(wire, source, door))
        assert answer[:2] == wire[:2]
        return answer

    def receive(self, client: socket.socket) -> bytes:
        self.until(lambda: select.select([client], [], [], 0)[0])
        return client.recv(65535)

    def unread(self, wire: bytes, source: str = LOW, door: int = 0) -> bytes:
        """The answer, as soon as one is given that was not read for it."""
        for _ in range(20):
            before = self.resolving.read
            answer = self.ask(random.randbytes(2) + wire[2:], source, door)
            if self.resolving.read == before:
                return answer
        raise AssertionError("each of them was read")

    def read(self, wire: bytes, source: str = LOW) -> bytes:
        """The answer of one that is read."""
        for guest in self.guests.all():
            guest.repeats.clear()
        before = self.resolving.read
        answer = self.ask(wire, source)
        assert self.resolving.read == before + 1
        return answer


@pytest.fixture(scope="module")
def resolver() -> Iterator[Resolver]:
    with Namespace("repeats") as namespace:
        namespace.run(["ip", "link", "set", "lo", "up"])
        for address in (HIGH, DOORS[6][1]):
            namespace.run(["ip", "address", "add", f"{address}/128", "dev", "lo", "nodad"])
        with namespace.enter():
            made = Resolver()
            yield made
            made.close()


@pytest.fixture(autouse=True)
def nobody_yet(resolver: Resolver) -> None:
    for guest in resolver.guests.all():
        resolver.guests.forget(guest.id)
    resolver.resolving.forget_answers()
    resolver.told.clear()
    resolver.sent.clear()


def question(name: str, rtype: str = "A", **options: object) -> bytes:
    return dns.message.make_query(name, rtype, **options).to_wire()  # type: ignore[arg-type]


def addresses(wire: bytes) -> list[str]:
    return [item.to_text() for rrset in dns.message.from_wire(wire).answer for item in rrset]


def ttls(wire: bytes) -> set[int]:
    return {rrset.ttl for rrset in dns.message.from_wire(wire).answer}


def but_for_id_and_ttls(wire: bytes) -> tuple[bytes, str]:
    """What two answers to the same question must agree in, the letters of the question included."""
    message = dns.message.from_wire(wire)
    message.id = 0
    for section in (message.answer, message.authority, message.additional):
        for rrset in section:
            rrset.ttl = 0
    return message.question[0].name.to_wire() or b"", message.to_text()


def in_letters(name: str, bits: int) -> str:
    return "".join(c.upper() if bits >> i & 1 else c for i, c in enumerate(name))


questions = st.builds(
    lambda name, bits, rtype, flags, **edns: question(
        in_letters(name, bits), rtype, flags=flags, **edns
    ),
    st.sampled_from(["a.good.test", "b.good.test", "big.good.test", "no.good.test", "good.test",
                     "bad.test", HOST_ALIAS, "dns.google"]),
    st.integers(0, 2**16 - 1),
    st.sampled_from(["A", "AAAA", "MX", "HTTPS", "TXT", "ANY"]),
    st.sampled_from([0, int(dns.flags.RD), int(dns.flags.RD | dns.flags.CD), int(dns.flags.AD)]),
    use_edns=st.sampled_from([False, 0, 1]),
    payload=st.sampled_from([512, 700, 1232, 4096]),
    want_dnssec=st.booleans(),
)  # fmt: skip


@settings(max_examples=60)
@given(asked=st.lists(questions, min_size=1, max_size=5), source=st.sampled_from([LOW, HIGH]))
def test_unread_answers_are_those_that_reading_gives(
    resolver: Resolver, asked: list[bytes], source: str
) -> None:
    resolver.guest(POLICY, LOW, HIGH)
    resolver.resolving.forget_answers()
    for _ in range(2):  # from upstream, and from the cache
        for wire in asked:
            resolver.ask(wire, source)
    again = [resolver.ask(random.randbytes(2) + wire[2:], source) for wire in asked]
    for wire, answer in zip(asked, again, strict=True):
        assert but_for_id_and_ttls(answer) == but_for_id_and_ttls(resolver.read(wire, source))
        assert answer[12:].startswith(wire[12 : wire.index(0, 12) + 1])


@pytest.mark.parametrize("source", [LOW, HIGH])
@pytest.mark.parametrize(
    ("name", "rcode"),
    [("a.good.test", 0), ("no.good.test", 3), ("bad.test", 3)],
)
def test_it_is_unread_and_comes_from_where_it_was_asked(
    resolver: Resolver, source: str, name: str, rcode: int
) -> None:
    resolver.guest(POLICY, LOW, HIGH)
    for door in (0, 1):
        answer = resolver.unread(question(in_letters(name, 0b1011)), source, door)
        assert answer[3] & 15 == rcode
        assert in_letters(name, 0b1011).split(".")[0].encode() in answer


def test_what_does_not_fit_is_cut_off_for_whom_it_does_not_fit(resolver: Resolver) -> None:
    resolver.guest(POLICY, LOW)
    small = question("big.good.test", use_edns=0, payload=512)
    large = question("big.good.test", use_edns=0, payload=1232)
    for _ in range(2):
        assert dns.message.from_wire(resolver.unread(small)).flags & dns.flags.TC
        assert len(addresses(resolver.unread(large))) == 60


def test_a_policy_holds_from_the_next_question_on(resolver: Resolver) -> None:
    resolver.guest(POLICY, LOW)
    wire = question("a.good.test")
    for _ in range(3):
        assert addresses(resolver.unread(wire))
        resolver.guest("allow@*.else.test", LOW)
        assert dns.message.from_wire(resolver.ask(wire)).rcode() == dns.rcode.NXDOMAIN
        resolver.unread(wire)
        resolver.guest(POLICY, LOW)
        assert addresses(resolver.ask(wire))


def test_new_places_are_looked_at(resolver: Resolver) -> None:
    """An address that was public and is the host's now."""
    resolver.guest(POLICY, LOW)
    wire = question("a.good.test")
    assert addresses(resolver.unread(wire))
    host = (IPv4Address("93.184.216.1"),)
    resolver.guests.set_places(SetPlaces(sequence=0, host=host, guests=()))
    resolver.resolving.forget_answers()
    assert dns.message.from_wire(resolver.ask(wire)).rcode() == dns.rcode.NXDOMAIN
    resolver.guests.set_places(SetPlaces(sequence=0, host=(), guests=()))


def test_each_guest_has_its_own(resolver: Resolver) -> None:
    resolver.guest(POLICY, LOW)
    resolver.guest("allow@*.else.test", OTHER, id="other")
    wire = question("a.good.test")
    for _ in range(3):
        assert addresses(resolver.unread(wire))
        refused = resolver.unread(wire, OTHER)
        assert dns.message.from_wire(refused).rcode() == dns.rcode.NXDOMAIN


def test_a_guest_that_is_gone_gets_nothing_of_it(resolver: Resolver) -> None:
    resolver.guest(POLICY, LOW)
    wire = question("a.good.test")
    resolver.unread(wire)
    resolver.guests.forget("vm")
    client = resolver.send(wire)
    resolver.guest("allow@*.else.test", OTHER, id="other")
    resolver.ask(wire, OTHER)  # came later, and is answered
    assert not select.select([client], [], [], 0)[0]


def test_ttls_count_down_and_then_it_is_asked_anew(resolver: Resolver) -> None:
    resolver.guest(POLICY, LOW)
    wire = question(TURNS)
    #: Before each address was first asked for, and after.
    since: dict[str, tuple[float, float]] = {}
    before = resolver.resolving.read
    asked = 0
    while len(since) < 3:
        now = time.monotonic()
        answer = resolver.ask(wire)
        asked += 1
        (address,), (ttl_s,) = addresses(answer), ttls(answer)
        after = time.monotonic()
        earliest, latest = since.setdefault(address, (now, after))
        if earliest != now:
            assert 2 - int(after - earliest) <= ttl_s <= 2 - int(now - latest)
            assert now - latest < 2.0
        assert address == max(since), "an answer from before"
    assert resolver.resolving.read - before < asked / 2


def test_every_question_is_told_or_counted(resolver: Resolver) -> None:
    guest = resolver.guest(POLICY, LOW)
    guest.share.per_second = 5
    wires = [question("a.good.test"), question("bad.test")]
    for number in range(400):
        resolver.ask(question(HOST_ALIAS))  # is not told
        resolver.ask(wires[number % 2])
    told = [each for each in resolver.told if each.guest == "vm"]
    assert len(told) + sum(each.omitted for each in told) + guest.share.omitted == 400
    assert resolver.resolving.read > 0
    assert 5 <= len(told) < 400


def test_a_pin_that_made_room_is_learnt_again(resolver: Resolver) -> None:
    guest = resolver.guest(POLICY, LOW)
    wire = question("a.good.test")
    address = ip_address(addresses(resolver.unread(wire))[0])
    pins, now = resolver.guests.pins, resolver.reactor.now()
    for number in range(1024):
        pins.learn(guest.id, f"n{number}.good.test", [(address, now + 60)], now)
    assert not pins.is_pinned(guest.id, "a.good.test", address, now)
    resolver.ask(wire)
    assert pins.is_pinned(guest.id, "a.good.test", address, now)


def test_pins_are_renewed_while_it_is_asked(resolver: Resolver) -> None:
    """It is read once a second at least, and so among the names that were learnt last."""
    guest = resolver.guest(POLICY, LOW)
    wire = question("a.good.test")
    resolver.unread(wire)
    address = ip_address(addresses(resolver.unread(wire))[0])
    pins, now = resolver.guests.pins, resolver.reactor.now()
    for number in range(1023):
        pins.learn(guest.id, f"n{number}.good.test", [(address, now + 60)], now)
    read = resolver.resolving.read
    resolver.until(lambda: resolver.ask(wire) and resolver.resolving.read > read)
    pins.learn(guest.id, "one-more.good.test", [(address, now + 60)], now)
    assert pins.is_pinned(guest.id, "a.good.test", address, now)


def test_pins_stand_in_the_kernel_before_it_is_given_again(resolver: Resolver) -> None:
    policy = "allow@*.good.test:udp:7"
    wire = question("a.good.test")
    for _ in range(2):  # the second time for the policy that is told anew: its sets may be empty
        resolver.guest(policy, LOW)
        resolver.sent.clear()
        client = resolver.send(wire)
        resolver.until(lambda: resolver.sent)
        (report,) = resolver.sent
        assert isinstance(report, AddPins)
        assert not select.select([client], [], [], 0)[0]
        resolver.pinning.stand(report.sequence)
        resolver.receive(client)
        resolver.unread(wire)
        assert resolver.sent == [report]


def test_a_guest_has_its_share_of_the_pins_in_the_kernel(resolver: Resolver) -> None:
    guest = resolver.guest("allow@*.good.test:udp:7", LOW)
    problems: list[str] = []
    now = resolver.reactor.now()

    def pin(number: int) -> None:
        address = IPv4Address(0x40000000 + number)
        until = resolver.reactor.now() + 60
        resolver.pinning.pin(guest, "a.good.test", [(address, until)], problems.append)
        for report in resolver.sent:
            assert isinstance(report, AddPins)
            resolver.pinning.stand(report.sequence)
        resolver.sent.clear()

    for number in range(GUEST_PINS):
        pin(number)
    assert problems == [""] * GUEST_PINS
    pin(GUEST_PINS)
    pin(0)  # one that stands may be renewed
    pin(GUEST_PINS)
    assert problems[-3:] == ["too many addresses at a time", "", "too many addresses at a time"]
    # As if the time of some were past.
    guest.standing.update(dict.fromkeys(list(guest.standing)[:2], now - GRACE_S))
    guest.pins_due_at = now
    for number in range(GUEST_PINS, GUEST_PINS + 3):
        pin(number)
    assert problems[-3:] == ["", "", "too many addresses at a time"]


def test_memory_is_bounded(resolver: Resolver) -> None:
    from guestnet.gateway import repeats

    many = [resolver.guest(POLICY, f"127.0.1.{number}", id=f"vm-{number}") for number in range(20)]
    kept = repeats.Repeats()
    for number in range(60_000):
        asked = number.to_bytes(4, "big") * 8
        kept.keep(many[number % len(many)], asked, bytes(600), 10.0, 0.0)
        if number % 1000 == 0:
            assert all(len(guest.repeats) <= repeats.GUEST_REPEATS for guest in many)
            entries = sum(len(guest.repeats) for guest in many)
            assert entries * 600 < repeats.ALL_REPEATS_BYTES
    assert any(guest.repeats for guest in many)
    kept.clear()
    assert not any(guest.repeats for guest in many)
