"""Every flow of a guest among the decisions: forwarded ones, refused ones, and floods of both.

One stage for the whole module; each test attaches guests of its own to it. Nothing is waited for
but decisions, and these with patience: the machine is shared.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from guestnet.gateway.doorway import Doorway
from guestnet.gateway.worker import WAITING_BYTES, Worker
from guestnet.host import Host
from guestnet.model import Decision
from guestnet.ruleset.telling import REFUSALS_PER_SECOND
from lab.addresses import ALLOWED, METADATA, PRIVATE, RESOLVER, SITE_IPV4, SITE_IPV6
from lab.servers import ECHO
from lab.waiting import PATIENCE_S, eventually
from lab.world import World
from stage import Guest, GuestOf, Stage, of

pytestmark = pytest.mark.root

Address = IPv4Address | IPv6Address

PUBLIC = "allow@dns,allow@public"
FAMILIES = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
ACCOUNTING = ("netfilter.nf_conntrack_acct", "netfilter.nf_conntrack_timestamp")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    state = tmp_path_factory.mktemp("decisions")
    with World() as world, Host.open(state, site=world.site.path) as host:
        dns = [str(address) for address in RESOLVER.addresses]
        host.create_network({"name": "plain", "dns": dns, "rest_s": 0})
        host.create_network({"name": "bridge", "topology": "bridge", "dns": dns})
        made = Stage(world, host)
        with made.guest("allow@allowed.example.test"):
            pass  # the gateway runs from the first guest on, and is no test's leftover
        yield made


# -- flows that pass ---------------------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("network", ["plain", "bridge"])
def test_a_connection_is_told_when_it_begins_and_when_it_ended(
    stage: Stage, guest_of: GuestOf, network: str, version: int
) -> None:
    guest = guest_of("deny@10.0.0.0/8,allow@public:tcp:80", network=network)
    peer = of(ALLOWED, version)
    with guest.connect(peer, 80) as stream:
        begun = guest.decided_once(event="begin")  # while it lives
        assert (begun.guest, begun.network, begun.kind) == (guest.id, network, "flow")
        assert (begun.direction, begun.protocol) == ("egress", "tcp")
        assert (begun.address, begun.port) == (peer, 80)
        assert (begun.verdict, begun.rule_index) == ("allow", 1)
        assert begun.rule == "allow@public:tcp:80"
        assert (begun.bytes_up, begun.bytes_down, begun.duration_s) == (0, 0, 0)
        stream.sendall(b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")
        while stream.recv(65536):
            pass
    assert not guest.decisions(event="end")
    stage.host.detach(guest.id)
    ended = guest.decided_once(event="end")
    assert ended.flow == begun.flow
    assert ended.bytes_up > 100
    assert ended.bytes_down > 200  # with the headers of IP
    assert 0 < ended.duration_s < 60
    changing = ("time", "event", "bytes_up", "bytes_down", "duration_s", "omitted")
    assert replace(ended, **{key: getattr(begun, key) for key in changing}) == begun


@FAMILIES
def test_datagrams_and_pings_are_flows_too(guest_of: GuestOf, version: int) -> None:
    guest = guest_of(f"{PUBLIC},allow@host:icmpv4+icmpv6")
    peer = of(ALLOWED, version)
    with guest.udp(version) as sock:
        sock.sendto(b"hello", (str(peer), ECHO))
        sock.settimeout(PATIENCE_S)
        assert sock.recv(100) == b"hello"
        sock.sendto(b"again", (str(peer), ECHO))
        assert sock.recv(100) == b"again"
    assert guest.addresses("allowed.example.test", server=str(of(RESOLVER, version)))
    guest.ping(peer)
    gateway = getattr(guest.attachment, f"gateway_ipv{version}")
    guest.ping(gateway)
    icmp = f"icmpv{version}"
    assert guest.decided_once(event="begin", protocol="udp", port=ECHO).rule == "allow@public"
    assert guest.decided_once(event="begin", protocol="udp", port=53).rule == "allow@dns"
    assert guest.decided_once(event="begin", protocol=icmp, address=peer, port=0).rule_index == 1
    to_host = guest.decided_once(event="begin", protocol=icmp, address=gateway)
    assert to_host.rule == "allow@host:icmpv4+icmpv6"


@FAMILIES
def test_a_flow_to_a_guest_is_told_as_such(stage: Stage, guest_of: GuestOf, version: int) -> None:
    guest = guest_of("allow:ingress@host:tcp:8080")
    with guest.listen(8080), stage.world.site.enter():
        for port in (8080, 8081):
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection((str(guest.own(version)), port), timeout=5).close()
    begun = guest.decided_once(verdict="allow", event="begin")
    assert (begun.direction, begun.protocol, begun.port) == ("ingress", "tcp", 8080)
    assert begun.address == getattr(guest.attachment, f"gateway_ipv{version}")
    assert begun.rule == "allow:ingress@host:tcp:8080"
    refused = guest.decided_once(verdict="deny")
    assert (refused.direction, refused.port, refused.rule) == ("ingress", 8081, "floor: host")


@FAMILIES
def test_a_flow_between_guests_is_told_of_both(guest_of: GuestOf, version: int) -> None:
    asker = guest_of("allow@guests")
    answerer = guest_of("allow:ingress@guests:tcp:8080")
    with answerer.listen(8080):
        asker.connect(answerer.own(version), 8080).close()
        with pytest.raises(ConnectionRefusedError):
            asker.connect(answerer.own(version), 8081)
    out, in_ = asker.decided_once(event="begin"), answerer.decided_once(event="begin")
    assert (out.direction, out.address, out.rule) == (
        "egress", answerer.own(version), "allow@guests",
    )  # fmt: skip
    assert (in_.direction, in_.address) == ("ingress", asker.own(version))
    assert in_.flow == out.flow
    refused = asker.decided_once(verdict="deny")
    assert (refused.direction, refused.port) == ("egress", 8081)
    assert refused.rule == answerer.decided_once(verdict="deny").rule == "floor: guests"


@FAMILIES
def test_what_the_gateway_relays_is_told_once(guest_of: GuestOf, version: int) -> None:
    guest = guest_of("allow@allowed.example.test:tcp:80,allow@10.0.0.0/8:tcp:7")
    peer = of(ALLOWED, version)
    name = "allowed.example.test"
    assert guest.addresses(name, "A" if version == 4 else "AAAA") == [str(peer)]
    assert guest.http(peer, name)["server"] == "allowed"
    guest.connect(of(PRIVATE, 4), ECHO).close()
    assert guest.decided_once(event="begin").address == PRIVATE.ipv4  # later, and forwarded
    relayed = guest.decided_once(kind="flow", address=peer)
    assert (relayed.name, relayed.event, relayed.flow) == (name, None, None)
    assert len(guest.decisions()) == 3


@FAMILIES
def test_datagrams_under_a_rule_by_name_bear_the_name(guest_of: GuestOf, version: int) -> None:
    rule = "allow@allowed.example.test:udp:7"
    guest = guest_of(rule)
    peer = of(ALLOWED, version)
    with guest.udp(version) as sock:
        sock.sendto(b"unasked", (str(peer), ECHO))
        assert guest.decided_once(verdict="deny", address=peer).name == ""
        assert guest.addresses("allowed.example.test", "A" if version == 4 else "AAAA")
        sock.sendto(b"hello", (str(peer), ECHO))
        sock.settimeout(PATIENCE_S)
        assert sock.recv(100) == b"hello"
    begun = guest.decided_once(event="begin")
    assert (begun.name, begun.rule) == ("allowed.example.test", rule)


def test_what_a_policy_would_deny_is_told_in_report_mode(guest_of: GuestOf) -> None:
    guest = guest_of("mode=report")
    with guest.udp(4) as sock:
        sock.sendto(b"hello", (str(ALLOWED.ipv4), ECHO))
        begun = guest.decided_once(event="begin")
    assert (begun.verdict, begun.rule) == ("allow", "mode=report")
    assert "default_egress=deny" in begun.reason


def test_the_next_guest_of_an_address_is_not_blamed(stage: Stage, guest_of: GuestOf) -> None:
    former = guest_of(PUBLIC)
    with former.connect(of(ALLOWED, 4), 80):
        begun = former.decided_once(event="begin")
        stage.host.detach(former.id)
        stage.host._reaper.drain()
        later = guest_of(PUBLIC, ipv4=str(former.own(4)))
    assert former.decided_once(event="end").flow == begun.flow
    assert later.own(4) == former.own(4)
    assert later.decisions() == []


# -- refusals ----------------------------------------------------------------------------------


@FAMILIES
def test_what_is_refused_says_by_which_rule(stage: Stage, guest_of: GuestOf, version: int) -> None:
    peer = of(ALLOWED, version)
    first = f"deny@{peer}:tcp:81" if version == 4 else f"deny@[{peer}]:tcp:81"
    guest = guest_of(f"{first},{PUBLIC},allow@private:tcp:81")
    closed = {
        (peer, 81): (first, 0),
        (of(PRIVATE, version), 80): ("default_egress=deny", None),
        (of(METADATA, version), 80): ("floor: metadata", None),
        (SITE_IPV4.ip if version == 4 else SITE_IPV6.ip, 22): ("floor: host", None),
    }
    for address, port in closed:
        with pytest.raises(ConnectionRefusedError):
            guest.connect(address, port)
    for (address, port), (rule, index) in closed.items():
        told = guest.decided_once(address=address, port=port)
        assert (told.verdict, told.protocol, told.direction) == ("deny", "tcp", "egress")
        assert (told.rule, told.rule_index, told.event, told.flow) == (rule, index, None, None)
        explained = stage.host.explain(guest.id, "tcp", address, port)
        assert told.reason == explained.reason


@FAMILIES
def test_what_has_no_way_out_is_refused_as_that(
    stage: Stage, guest_of: GuestOf, version: int
) -> None:
    """Allowed, but the host routes it to an interface by which guests do not leave."""
    guest = guest_of("allow@private:udp")
    target = IPv4Address("10.99.0.9") if version == 4 else IPv6Address("fd99::9")
    site = stage.world.site
    site.ip("link add aside type veth peer name beyond", "link set aside up", "link set beyond up")
    site.ip(f"route add {target} dev aside")
    try:
        stage.host.follow()
        with guest.udp(version) as sock:
            sock.sendto(b"hello", (str(target), 9))
        told = guest.decided_once(address=target)
    finally:
        site.ip("link del aside")
    assert (told.verdict, told.rule) == ("deny", "egress")
    assert "aside" in told.reason


@FAMILIES
@pytest.mark.parametrize("network", ["plain", "bridge"])
def test_who_claims_anothers_address_is_told_by_the_device(
    guest_of: GuestOf, network: str, version: int
) -> None:
    victim, liar = guest_of(PUBLIC, network=network), guest_of(PUBLIC, network=network)
    claimed, peer = victim.own(version), of(ALLOWED, version)
    nodad = "" if version == 4 else " nodad"
    liar.ping(peer)  # it knows the gateway's MAC, and asks for it under no other address
    liar.namespace.ip(f"address add {claimed}/{claimed.max_prefixlen} dev lo{nodad}")
    liar.ping(peer, "-I", str(claimed))
    told = liar.decided_once(rule="identity")
    assert (told.verdict, told.protocol, told.address) == ("deny", f"icmpv{version}", peer)
    assert f"from {claimed}" in told.reason
    assert not victim.decisions()


@FAMILIES
def test_repeated_refusals_are_counted_in_the_next(guest_of: GuestOf, version: int) -> None:
    guest = guest_of("none")
    with guest.udp(version) as sock:
        for _ in range(20):
            sock.sendto(b"hello", (str(of(ALLOWED, version)), 9))
        guest.decided_once(port=9)
        time.sleep(1.1)  # the kernel is asked for what it left out once a second
        sock.sendto(b"hello", (str(of(ALLOWED, version)), 10))
        assert guest.decided_once(port=10).omitted == 19
    assert len(guest.decisions()) == 2


# -- floods ------------------------------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("policy", [PUBLIC, "none"], ids=["passing", "refused"])
def test_who_floods_is_bounded_and_drowns_nobody(
    stage: Stage, guest_of: GuestOf, policy: str, version: int
) -> None:
    flooder, other = guest_of(policy), guest_of(PUBLIC)
    peer, number = of(ALLOWED, version), 5000
    watch = stage.host.watch(flooder.id)
    began = time.monotonic()
    with flooder.udp(version) as sock:
        for port in range(10000, 10000 + number):
            sock.sendto(b"x", (str(peer), port))
    other.connect(peer, 80).close()
    took = time.monotonic() - began
    assert other.decided_once(event="begin").address == peer
    stage.host._flows.settle()
    time.sleep(1.1)
    with flooder.udp(version) as sock:
        sock.sendto(b"x", (str(peer), 9))
    eventually(lambda: flooder.decisions(port=9))
    told = [decision for decision in iter(watch.poll, None) if decision.event != "end"]
    watch.close()
    print(f"{len(told)} told of {number} in {took:.2f} s")
    assert Counter(decision.port for decision in told).most_common(1)[0][1] == 1
    assert len(told) <= 250 + 100 * (took + 1)
    assert len(told) + sum(decision.omitted for decision in told) == number + 1


def test_what_came_too_fast_to_be_read_is_counted(stage: Stage, guest_of: GuestOf) -> None:
    """The host's own flows, which have no share, while nobody reads."""
    guest = guest_of(PUBLIC)
    with stage.world.site.enter():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock, stage.host._lock:
        for port in range(1, 30001):
            sock.sendto(b"x", (str(ALLOWED.ipv4), port))

    def told() -> bool:
        guest.connect(of(ALLOWED, 4), 80).close()  # the first of these may be lost as well
        # Whose decision comes next is told: an earlier test's flow may end meanwhile.
        return any(decision.omitted > 1000 for decision in stage.host.decisions())

    eventually(told)


# -- the machine -------------------------------------------------------------------------------


def test_what_is_measured_is_turned_off_again(world: World, tmp_path: Path) -> None:
    for key, former in zip(ACCOUNTING, (0, 1), strict=True):
        world.site.sysctl(key, former)
    with Host.open(tmp_path / "state", site=world.site.path) as host:
        host.create_network({"name": "default"})
        assert [world.site.sysctl(key) for key in ACCOUNTING] == ["1", "1"]
        host.remove_network("default")
    assert [world.site.sysctl(key) for key in ACCOUNTING] == ["0", "1"]


@FAMILIES
def test_where_all_is_relayed_it_is_told_once_too(
    world: World, tmp_path: Path, version: int
) -> None:
    with Host.open(tmp_path / "state", site=world.site.path, relays_all=True) as host:
        host.create_network({"name": "default", "dns": [str(a) for a in RESOLVER.addresses]})
        attached = host.attach("vm", netns=world.guest.path, policy="allow@public")
        guest = Guest(Stage(world, host), attached, world.guest)
        peer = of(ALLOWED, version)
        guest.say(peer, ECHO, b"hello")
        with guest.udp(version) as sock:
            sock.settimeout(PATIENCE_S)
            sock.sendto(b"hello", (str(peer), ECHO))
            assert sock.recv(100) == b"hello"
        with pytest.raises(ConnectionRefusedError):
            guest.connect(of(PRIVATE, version), 80)
        assert guest.decided_once(verdict="deny").rule == "default_egress=deny"
        host._flows.settle()
        host.detach("vm")
        host._reaper.drain()
        assert guest.decided_once(protocol="udp").event is None
        assert guest.decided_once(protocol="tcp", verdict="allow").event is None


def test_a_host_that_is_opened_again_goes_on_telling(world: World, tmp_path: Path) -> None:
    with Host.open(tmp_path / "state", site=world.site.path) as host:
        host.create_network({"name": "default"})
        attached = host.attach("vm", netns=world.guest.path, policy="none")
        guest = Guest(Stage(world, host), attached, world.guest)
        with guest.udp(4) as sock:
            for _ in range(500):
                sock.sendto(b"x", (str(ALLOWED.ipv4), 9))
        guest.decided_once(port=9)
    with Host.open(tmp_path / "state", site=world.site.path) as host:
        guest = Guest(Stage(world, host), host.attachment("vm"), world.guest)
        time.sleep(5 / REFUSALS_PER_SECOND)  # until there is a share for one more
        with pytest.raises(ConnectionRefusedError):
            guest.connect(of(ALLOWED, 4), 80)
        assert guest.decided_once(port=80).omitted == 0  # what was left out before is not told now


def test_a_gateway_that_is_not_heard_counts_what_it_leaves_out(world: World) -> None:
    """What a guest had left out before is in what is left out."""
    ours, theirs = socket.socketpair()
    with world.site.enter():
        (doorway,) = Doorway.open(1)
    worker = Worker(theirs, doorway, 1, None, {})
    one = Decision(
        time=0.0, guest="vm", network="plain", kind="flow", protocol="udp", port=9,
        verdict="deny", rule="none", reason="x" * 2048, omitted=1,
    )  # fmt: skip
    told = 2 * WAITING_BYTES // len(one.reason)
    try:
        ours.setblocking(False)
        for _ in range(told):
            worker.tell(one)
        heard = b""

        def hear() -> int:
            """How many lines came so far."""
            nonlocal heard
            worker.reactor.run_once(0.01)
            with contextlib.suppress(BlockingIOError):
                while True:
                    heard += ours.recv(1 << 20)
            return heard.count(b"\n")

        # All that waited, and nothing after it.
        room = eventually(lambda: (before := hear()) and hear() == before and before)
        worker.tell(one)
        eventually(lambda: hear() == room + 1)
        decisions = [json.loads(line)["decision"] for line in heard.splitlines()]
        assert len(decisions) < told
        assert sum(1 + each["omitted"] for each in decisions) == 2 * (told + 1)
    finally:
        worker.reactor.close()
        doorway.close()
        ours.close()
        theirs.close()
