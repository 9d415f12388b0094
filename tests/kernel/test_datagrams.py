"""Datagrams and pings where a site relays every flow: as they are forwarded, but for one address.

What arrives at the far servers, what comes back and from whom, what does not, and where it ends.
Times and caps are tried on the doors themselves, with rules of their own and no host.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from guestnet.flow.inward import Inward
from guestnet.gateway.answers import Way
from guestnet.host import Host
from guestnet.kernel.mmsg import NAME_BYTES, Sender
from guestnet.kernel.steering import TABLE
from hostile import Answer, Door, answers, assert_open, doors, knock
from lab.addresses import (
    ALLOWED,
    FORBIDDEN,
    METADATA,
    PRIVATE,
    RESOLVER,
    ROUTER_IPV4,
    ROUTER_IPV6,
    SITE_IPV4,
    SITE_IPV6,
    UPLINK,
)
from lab.caller import AF
from lab.servers import ECHO
from lab.waiting import PATIENCE_S, eventually
from lab.world import World
from relaying import exchange, far, is_silent, open_relaying
from stage import GuestOf, Stage, of

pytestmark = pytest.mark.root

Address = IPv4Address | IPv6Address
#: A port at which nobody listens.
NOBODY = 9999
#: asm-generic/socket.h
SO_DETACH_FILTER = 27
BOTH = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with open_relaying(tmp_path_factory.mktemp("relayed")) as made:
        yield made


# -- what is allowed works ---------------------------------------------------------------------


def test_all_that_is_public_answers_and_nothing_else(guest_of: GuestOf) -> None:
    guest = guest_of("public")
    assert_open(guest.namespace, doors(ALLOWED.addresses))
    closed = doors((*PRIVATE.addresses, *METADATA.addresses, SITE_IPV4.ip, SITE_IPV6.ip))
    heard = answers(knock(guest.namespace, closed))
    for door in closed:
        refused = Answer.REFUSED if door.protocol == "tcp" else Answer.SILENT
        assert heard[str(door)] is refused, door


def test_nothing_leaves_by_itself(stage: Stage, guest_of: GuestOf) -> None:
    guest = guest_of("all")
    site = {SITE_IPV4.ip, SITE_IPV6.ip, ROUTER_IPV4.ip, ROUTER_IPV6.ip}
    with stage.world.capture("ip or ip6") as capture:
        assert_open(guest.namespace, doors((*ALLOWED.addresses, *PRIVATE.addresses)))
        sent = [frame for frame in capture.frames() if frame.outgoing]
    assert sent
    for frame in sent:
        raw = frame.data[14:]
        version = raw[0] >> 4
        source = ip_address(raw[12:16] if version == 4 else raw[8:24])
        assert source in site or source.is_link_local


@BOTH
@pytest.mark.parametrize("size", [1, 1200, 1472, 5000, 65000])
def test_a_datagram_of_any_size(guest_of: GuestOf, version: int, size: int) -> None:
    guest = guest_of("public")
    data = bytes(index % 251 for index in range(size))
    with guest.udp(version) as udp:
        assert exchange(udp, data, of(ALLOWED, version)) == data


@BOTH
def test_an_empty_datagram(stage: Stage, guest_of: GuestOf, version: int) -> None:
    guest = guest_of("public")
    target = of(ALLOWED, version)
    with far(stage.world, target, 5000) as peer, guest.udp(version) as udp:
        udp.sendto(b"", (str(target), 5000))
        data, outside = peer.recvfrom(100)
        assert data == b""
        peer.sendto(b"", outside)
        assert udp.recvfrom(100)[0] == b""


@BOTH
def test_an_endpoint_is_one_port_outside_whoever_it_talks_to(
    stage: Stage, guest_of: GuestOf, version: int
) -> None:
    guest = guest_of("public")
    began = time.monotonic()
    with guest.udp(version) as udp, guest.udp(version) as other:
        for server in (ALLOWED, FORBIDDEN, RESOLVER):
            exchange(udp, b"one", of(server, version))
        exchange(other, b"two", of(ALLOWED, version))
    found = [a for a in stage.world.arrivals(kind="udp", port=ECHO) if a.at_s >= began]
    ports = [arrival.client_port for arrival in found]
    assert len(found) == 4
    assert len(set(ports[:3])) == 1
    assert ports[3] != ports[0]


@BOTH
def test_only_a_peer_that_was_sent_to_is_heard(
    stage: Stage, guest_of: GuestOf, version: int
) -> None:
    guest = guest_of("public")
    address, stranger = of(ALLOWED, version), of(FORBIDDEN, version)
    with (
        far(stage.world, address, 5001) as peer,
        far(stage.world, address, 5002) as same_host,
        far(stage.world, stranger, 5001) as other_host,
        guest.udp(version) as udp,
    ):
        udp.sendto(b"hello", (str(address), 5001))
        data, outside = peer.recvfrom(100)
        assert data == b"hello"
        for wrong in (same_host, other_host):
            wrong.sendto(b"forged", outside)
        peer.sendto(b"right", outside)
        assert udp.recv(100) == b"right"
        assert is_silent(udp)
        udp.sendto(b"you too", (str(stranger), 5001))
        assert other_host.recvfrom(100) == (b"you too", outside)
        other_host.sendto(b"now", outside)
        assert udp.recvfrom(100)[0] == b"now"


@BOTH
def test_guests_with_the_same_ports(stage: Stage, guest_of: GuestOf, version: int) -> None:
    guests = [guest_of("public") for _ in range(3)]
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(guest.udp(version, port=4444)) for guest in guests]
        for number, udp in enumerate(sockets):
            udp.sendto(b"guest %d" % number, (str(of(ALLOWED, version)), ECHO))
        for number, udp in enumerate(sockets):
            assert udp.recv(100) == b"guest %d" % number
            assert is_silent(udp)


@BOTH
def test_a_ping_answers_with_what_was_sent(guest_of: GuestOf, version: int) -> None:
    guest = guest_of("public")
    target = str(of(ALLOWED, version))
    shown = guest.namespace.run(["ping", "-c3", "-i0.2", "-W5", "-s1000", "-p5a", target]).stdout
    assert "3 received" in shown
    assert "duplicates" not in shown
    assert "wrong data" not in shown
    assert guest.attachment is not None


def test_the_gateway_is_the_resolver(guest_of: GuestOf) -> None:
    guest = guest_of("allow@dns")
    asked = ["+short", "+tries=1", "+time=10", ALLOWED.name]
    for resolver in (guest.attachment.gateway_ipv4, guest.attachment.gateway_ipv6):
        assert resolver in guest.attachment.dns
        for how in ("+notcp", "+tcp"):
            shown = guest.namespace.run(["dig", f"@{resolver}", how, *asked]).stdout
            assert shown.strip() == str(ALLOWED.ipv4)
    others = doors(RESOLVER.addresses, tcp=None, udp=53, icmp=False)
    assert set(answers(knock(guest.namespace, others)).values()) == {Answer.SILENT}
    sealed = guest_of("none")
    argv = ["dig", f"@{sealed.attachment.gateway_ipv4}", *asked]
    assert sealed.namespace.run(argv).stdout.strip() == ""


def test_other_resolvers_are_peers_like_any(guest_of: GuestOf) -> None:
    guest = guest_of("public")
    for resolver in RESOLVER.addresses:
        argv = ["dig", f"@{resolver}", "+short", "+tries=1", "+time=10", ALLOWED.name]
        assert guest.namespace.run(argv).stdout.strip() == str(ALLOWED.ipv4)
        assert guest.namespace.run([*argv, "+tcp"]).stdout.strip() == str(ALLOWED.ipv4)


# -- names -------------------------------------------------------------------------------------


@BOTH
def test_datagrams_follow_the_pins(guest_of: GuestOf, version: int) -> None:
    guest = guest_of(f"allow@{ALLOWED.name}")
    target = of(ALLOWED, version)
    with guest.udp(version) as udp:
        udp.sendto(b"too early", (str(target), ECHO))
        assert is_silent(udp)
        kind = "A" if version == 4 else "AAAA"
        argv = ["dig", "@1.1.1.1", "+short", "+tries=1", "+time=10", ALLOWED.name, kind]
        assert guest.namespace.run(argv).stdout.strip() == str(target)
        assert exchange(udp, b"now", target) == b"now"
        assert_open(guest.namespace, [Door("icmp", target)])
        udp.sendto(b"another", (str(of(FORBIDDEN, version)), ECHO))
        assert is_silent(udp)


# -- errors ------------------------------------------------------------------------------------


@BOTH
def test_a_closed_port_says_so(guest_of: GuestOf, version: int) -> None:
    guest = guest_of("public")
    with guest.udp(version) as udp:
        udp.connect((str(of(ALLOWED, version)), NOBODY))
        udp.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            udp.recv(100)


@BOTH
def test_a_path_that_is_too_small_says_so(stage: Stage, guest_of: GuestOf, version: int) -> None:
    """What the guest sends whole is never cut up here: its own discovery learns the size."""
    guest = guest_of("public")
    target = of(ALLOWED, version)
    level, discover, mtu = (0, 10, 14) if version == 4 else (41, 23, 24)
    try:
        stage.world.site.ip(f"route add {target} via {at_router(version)} dev {UPLINK} mtu 1300")
        with guest.udp(version) as udp:
            udp.setsockopt(level, discover, 2)  # IP_PMTUDISC_DO
            udp.connect((str(target), ECHO))
            udp.send(b"x" * 1400)
            eventually(lambda: udp.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            eventually(lambda: udp.getsockopt(level, mtu) == 1300)
            with pytest.raises(OSError, match="too long"):
                udp.send(b"x" * 1400)
            udp.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # what the error message left
            udp.setsockopt(level, discover, 0)  # in pieces, if the sender says so
            udp.send(b"y" * 1400)
            assert udp.recv(2000) == b"y" * 1400
    finally:
        stage.world.site.ip(f"route del {target}")


def at_router(version: int) -> Address:
    return ROUTER_IPV4.ip if version == 4 else ROUTER_IPV6.ip


# -- ends --------------------------------------------------------------------------------------


@BOTH
def test_another_policy_cuts_at_once(stage: Stage, guest_of: GuestOf, version: int) -> None:
    guest = guest_of("public")
    target = of(ALLOWED, version)
    with far(stage.world, target, 5003) as peer, guest.udp(version) as udp:
        udp.sendto(b"in", (str(target), 5003))
        outside = peer.recvfrom(100)[1]
        stage.host.set_policy(guest.id, "private")
        assert guest.decided(protocol="udp").reason == "the policy was changed"
        peer.sendto(b"late", outside)
        udp.sendto(b"once more", (str(target), 5003))
        assert is_silent(udp)
        assert is_silent(peer)
        stage.host.set_policy(guest.id, "public")
        assert exchange(udp, b"again", target) == b"again"


@BOTH
def test_what_both_policies_allow_goes_on(stage: Stage, guest_of: GuestOf, version: int) -> None:
    guest = guest_of("public")
    target = of(ALLOWED, version)
    with far(stage.world, target, 5004) as peer, guest.udp(version) as udp:
        udp.sendto(b"before", (str(target), 5004))
        outside = peer.recvfrom(100)[1]
        stage.host.set_policy(guest.id, "public,private")
        peer.sendto(b"unasked", outside)
        assert udp.recv(100) == b"unasked"
        udp.sendto(b"after", (str(target), 5004))
        assert peer.recvfrom(100) == (b"after", outside)


@BOTH
def test_a_guest_that_is_gone_hears_nothing(stage: Stage, version: int) -> None:
    target = of(ALLOWED, version)
    with far(stage.world, target, 5005) as peer:
        with stage.guest("public") as guest, guest.udp(version) as udp:
            udp.sendto(b"x" * 77, (str(target), 5005))
            outside = peer.recvfrom(100)[1]
        flow = guest.decided(protocol="udp", port=5005)
        assert (flow.verdict, flow.bytes_up, flow.bytes_down) == ("allow", 77, 0)
        peer.sendto(b"late", outside)  # whoever has that port next must not get it
        peer.setblocking(False)
        with pytest.raises(OSError):  # noqa: PT011 - refused, or nothing there
            peer.recv(100)


def test_a_gateway_that_dies_loses_nothing_for_long(world: World, tmp_path: Path) -> None:
    opened = Host.open(tmp_path / "state", site=world.site.path, relays_all=True)
    with (
        opened as host,
        Stage(world, host).guest("public", "default") as guest,
        guest.udp(4) as udp,
    ):
        gateway = host._relays.gateway
        assert gateway is not None
        assert exchange(udp, b"before", of(ALLOWED, 4)) == b"before"
        first = gateway.pids
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: len(gateway.pids) == len(first) and not set(gateway.pids) & set(first))
        udp.settimeout(1)

        def again() -> bool:
            with contextlib.suppress(TimeoutError):
                return bool(exchange(udp, b"after", of(ALLOWED, 4)) == b"after")
            return False

        assert eventually(again)


# -- a gateway that was taken over ---------------------------------------------------------------


@BOTH
def test_what_the_gateway_holds_sends_answers_only(
    stage: Stage, guest_of: GuestOf, version: int
) -> None:
    """Not to others, and to a guest only in a flow that it began, whatever it lets in itself."""
    guest = guest_of("public,allow:ingress@any")
    gateway = stage.host._relays.gateway
    assert gateway is not None
    doorway = gateway._handed.doorways[0]
    target, stranger = of(ALLOWED, version), of(FORBIDDEN, version)

    def packet_of(to: Address) -> bytes:
        head = IP(src=str(stranger), dst=str(to)) if version == 4 else IPv6(src=stranger, dst=to)
        return bytes(head / UDP(sport=5006, dport=5006) / b"forged")

    def answer_to(to: Address) -> None:
        inward = Inward(stranger, 5006, to, 5006)
        way = Way(inward)
        sender = Sender(from_udp.fileno(), version, len(way.to) - NAME_BYTES[version])
        sender.put(inward.datagrams([b"forged"]), way.to)
        sender.flush()

    raw = [e for e in (*doorway.answer, *doorway.echo) if e.family == AF[version]]
    (door,) = (each for each in doorway.relay_udp if each.family == AF[version])
    (from_udp,) = (each for each in doorway.answer_udp if each.family == AF[version])
    with far(stage.world, target, 5006) as peer, guest.udp(version, 5006) as udp:
        for to, hears in ((target, peer), (guest.own(version), udp)):
            for each in raw:
                if version == 4:  # which needs no rights
                    each.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
                with contextlib.suppress(OSError):
                    each.sendto(packet_of(to), (str(to), 0))
            with contextlib.suppress(OSError):
                door.sendto(b"forged", (str(to), 5006))
            answer_to(to)
            assert is_silent(hears)
        # The same socket is heard where the guest has begun.
        udp.sendto(b"hello", (str(stranger), 5006))
        guest_sees = packet_of(guest.own(version))

        def is_heard(send: Callable[[], object]) -> bool:
            send()
            return not is_silent(udp) and udp.recv(100) == b"forged"

        out, to_guest = doorway.answer[version == 6], (str(guest.own(version)), 0)
        assert eventually(lambda: is_heard(lambda: out.sendto(guest_sees, to_guest)))
        assert eventually(lambda: is_heard(lambda: answer_to(guest.own(version))))


@BOTH
def test_what_answers_datagrams_hears_none(stage: Stage, guest_of: GuestOf, version: int) -> None:
    """Neither guests' nor the machine's own, whatever its holder makes of it."""
    guest = guest_of("public")
    gateway = stage.host._relays.gateway
    assert gateway is not None
    made = gateway._handed.doorways[0].answer_udp
    (out,) = (each for each in made if each.family == AF[version])
    with pytest.raises(PermissionError):
        out.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
    with guest.udp(version) as udp:
        exchange(udp, b"heard by the peer alone", of(ALLOWED, version))
    with pytest.raises(BlockingIOError):
        out.recv(100)


# -- beside it ---------------------------------------------------------------------------------


def test_guests_reach_each_other_as_their_policies_say(guest_of: GuestOf) -> None:
    asking = guest_of("allow@guests:udp")
    open_one = guest_of("allow:ingress@guests:udp:7000")
    sealed = guest_of("none")
    for version in (4, 6):
        with open_one.udp(version, 7000) as there, asking.udp(version) as udp:
            udp.sendto(b"hello", (str(open_one.own(version)), 7000))
            data, source = there.recvfrom(100)
            assert (data, source[0]) == (b"hello", str(asking.own(version)))
            there.sendto(b"back", source)
            assert udp.recv(100) == b"back"
        with sealed.udp(version, 7000) as there, asking.udp(version) as udp:
            udp.sendto(b"hello", (str(sealed.own(version)), 7000))
            assert is_silent(there)


def test_what_the_host_opens_to_a_guest_is_answered(stage: Stage, guest_of: GuestOf) -> None:
    guest = guest_of("allow:ingress@host:udp:7001")
    for version in (4, 6):
        with stage.world.site.enter():
            udp = socket.socket(AF[version], socket.SOCK_DGRAM)
        with udp, guest.udp(version, 7001) as there:
            udp.settimeout(PATIENCE_S)
            udp.sendto(b"hello", (str(guest.own(version)), 7001))
            data, source = there.recvfrom(100)
            there.sendto(data, source)
            assert udp.recv(100) == b"hello"


def test_nothing_of_the_routing_is_left(tmp_path: Path) -> None:
    with World() as world:
        rules = world.site.run(["ip", "rule"]).stdout
        with Host.open(tmp_path / "state", site=world.site.path, relays_all=True) as host:
            host.attach("g", netns=str(world.guest.path), policy="public")
            shown = json.loads(world.site.run(["ip", "-j", "rule"]).stdout)
            assert [each["fwmark"] for each in shown if each["priority"] == 231] == ["0xe7"]
            host.reconcile()
            assert json.loads(world.site.run(["ip", "-j", "rule"]).stdout) == shown
            host.detach("g")
            host.remove_network("default")
            assert world.site.run(["ip", "rule"]).stdout == rules
            for words in (["ip"], ["ip", "-6"]):
                shown = world.site.run([*words, "route", "show", "table", "all"]).stdout
                assert str(TABLE) not in shown
