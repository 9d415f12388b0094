"""Relayed datagrams that go as one, that have no way for a while, and that are many.

What the kernel takes and gives as one (UDP_SEGMENT, UDP_GRO) arrives as what was sent.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from guestnet.gateway.exchange import Limits
from lab.addresses import ALLOWED, FORBIDDEN, ROUTER_IPV4, ROUTER_IPV6, SITE_IPV4, SITE_IPV6, UPLINK
from lab.netns import veth
from lab.servers import ECHO
from lab.waiting import eventually
from relaying import exchange, far, open_relaying
from stage import Guest, GuestOf, Stage, of

pytestmark = pytest.mark.root

Address = IPv4Address | IPv6Address

BOTH = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
#: linux/udp.h
UDP_SEGMENT = 103
#: A network whose links carry less than the internet's.
NARROW = {
    "name": "narrow", "mtu": 1280, "ipv4": "10.99.0.0/16", "ipv6": "fd42:6d73:30::/48",
}  # fmt: skip
#: A port of the far end's in no use else.
PORT = 6000


@pytest.fixture(scope="module", params=["root", "rootless"])
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    state = tmp_path_factory.mktemp("relayed")
    with open_relaying(state, rootless=request.param == "rootless") as made:
        made.host.create_network(NARROW)
        yield made


def send_as_one(udp: socket.socket, data: bytes, size: int, to: Any) -> None:
    """Datagrams of `size` bytes, and what is left, in one call."""
    said = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", size))]
    udp.sendmsg([data], said, 0, to)


def numbered(sizes: list[int]) -> list[bytes]:
    """Datagrams that differ, of these sizes."""
    return [bytes([number % 251 + 1]) * size for number, size in enumerate(sizes)]


# -- as one ------------------------------------------------------------------------------------


@BOTH
def test_what_is_sent_as_one_arrives_as_many(stage: Stage, guest_of: GuestOf, version: int) -> None:
    """Both ways; the last is shorter."""
    target = of(ALLOWED, version)
    sent = numbered([1000] * 40 + [10])
    with far(stage.world, target, PORT) as peer, guest_of("public").udp(version) as udp:
        for _again in range(3):
            send_as_one(udp, b"".join(sent), 1000, (str(target), PORT))
            heard = [peer.recvfrom(3000) for _ in sent]
            assert [data for data, _from in heard] == sent
            send_as_one(peer, b"".join(sent), 1000, heard[0][1])
            assert [udp.recv(3000) for _ in sent] == sent


@BOTH
def test_many_peers_ports_answer_with_many(stage: Stage, guest_of: GuestOf, version: int) -> None:
    """More than there are sockets for, a low one, and the gateway's own doors' among them."""
    gateway = stage.host._relays.gateway
    assert gateway is not None
    doors = gateway.doors
    target = of(ALLOWED, version)
    sent = numbered([1000] * 40 + [10])
    with guest_of("public").udp(version) as udp:
        for port in (443, doors.resolver_udp, *doors.relay_tcp, *range(PORT, PORT + 10)):
            with far(stage.world, target, port) as peer:
                udp.sendto(b"hello", (str(target), port))
                send_as_one(peer, b"".join(sent), 1000, peer.recvfrom(100)[1])
                heard = [udp.recvfrom(3000) for _ in sent]
            assert [data for data, _from in heard] == sent
            assert {source[:2] for _data, source in heard} == {(str(target), port)}


@BOTH
def test_answers_larger_than_the_guest_s_link(stage: Stage, version: int) -> None:
    target = of(ALLOWED, version)
    sent = numbered([1400] * 20)
    with (
        stage.guest("public", "narrow") as guest,
        far(stage.world, target, PORT) as peer,
        guest.udp(version) as udp,
    ):
        udp.sendto(b"hello", (str(target), PORT))
        send_as_one(peer, b"".join(sent), 1400, peer.recvfrom(100)[1])
        assert [udp.recv(3000) for _ in sent] == sent


@BOTH
def test_a_burst_of_all_sizes_arrives_as_it_was_sent(
    stage: Stage, guest_of: GuestOf, version: int
) -> None:
    target = of(ALLOWED, version)
    sent = numbered([700, 700, 700, 0, 700, 3, 700, 1400, 1400, 1, 1, 1, 0, 0, 3000, 700] * 3)
    with far(stage.world, target, PORT) as peer, guest_of("public").udp(version) as udp:
        for each in sent:
            udp.sendto(each, (str(target), PORT))
        heard = [peer.recvfrom(4000) for _ in sent]
        whole = [data for data in sent if len(data) < 2000]  # the others came in pieces
        assert [data for data, _from in heard if len(data) < 2000] == whole
        assert sorted(data for data, _from in heard) == sorted(sent)
        for each in sent:
            peer.sendto(each, heard[0][1])
        assert [udp.recv(4000) for _ in sent] == sent


@BOTH
def test_what_is_too_large_as_one_is_said_to_be(
    stage: Stage, guest_of: GuestOf, version: int
) -> None:
    """The path's MTU is smaller than the segments: the guest hears of it, and smaller ones pass."""
    target = of(ALLOWED, version)
    level, discover, mtu = (0, 10, 14) if version == 4 else (41, 23, 24)
    via = ROUTER_IPV4.ip if version == 4 else ROUTER_IPV6.ip
    stage.world.site.ip(f"route add {target} via {via} dev {UPLINK} mtu 1300")
    try:
        with far(stage.world, target, PORT) as peer, guest_of("public").udp(version) as udp:
            udp.setsockopt(level, discover, 2)  # IP_PMTUDISC_DO
            udp.connect((str(target), PORT))
            udp.sendmsg([b"x" * 14_000], [(17, UDP_SEGMENT, struct.pack("=H", 1400))])
            eventually(lambda: udp.getsockopt(level, mtu) == 1300)
            udp.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            sent = numbered([1200] * 10)
            udp.sendmsg([b"".join(sent)], [(17, UDP_SEGMENT, struct.pack("=H", 1200))])
            assert [peer.recv(3000) for _ in sent] == sent
    finally:
        stage.world.site.ip(f"route del {target}")


@BOTH
def test_what_is_counted_is_what_went(stage: Stage, guest_of: GuestOf, version: int) -> None:
    target = of(ALLOWED, version)
    guest = guest_of("public")
    with far(stage.world, target, PORT) as peer, guest.udp(version) as udp:
        send_as_one(udp, b"u" * 20_500, 1000, (str(target), PORT))
        outside = {peer.recvfrom(3000)[1] for _ in range(21)}
        assert len(outside) == 1
        send_as_one(peer, b"d" * 10_250, 500, outside.pop())
        for _ in range(21):
            udp.recv(3000)
        stage.host.set_policy(guest.id, "none")
    ended = guest.decided(port=PORT)
    assert (ended.bytes_up, ended.bytes_down) == (20_500, 10_250)


@BOTH
@pytest.mark.parametrize("port", [1, 123, 1023])
def test_a_guest_s_low_port_is_any_port_outside(
    stage: Stage, guest_of: GuestOf, version: int, port: int
) -> None:
    """A gateway without rights has no low one, and a guest chooses none of the machine's."""
    target = of(ALLOWED, version)
    with far(stage.world, target, PORT) as peer, guest_of("public").udp(version, port) as udp:
        udp.sendto(b"from a low port", (str(target), PORT))
        data, outside = peer.recvfrom(100)
        assert data == b"from a low port"
        assert outside[1] > 1023
        peer.sendto(b"back", outside)
        assert udp.recv(100) == b"back"


# -- no way ------------------------------------------------------------------------------------


@contextlib.contextmanager
def without_a_way(stage: Stage) -> Iterator[None]:
    """The machine has lost its network; it is back, as it was, with the block's end."""
    site = stage.world.site
    site.ip(f"link set {UPLINK} down")
    try:
        yield
    finally:
        site.ip(
            f"link set {UPLINK} up",
            f"address replace {SITE_IPV6} dev {UPLINK} nodad",
            f"route replace default via {ROUTER_IPV4.ip} dev {UPLINK}",
            f"route replace default via {ROUTER_IPV6.ip} dev {UPLINK}",
        )


@BOTH
def test_the_machine_loses_its_network_and_has_it_again(
    stage: Stage, guest_of: GuestOf, version: int
) -> None:
    guest = guest_of("public")
    target = of(ALLOWED, version)
    with guest.udp(version) as udp:
        udp.setsockopt(*((0, 11) if version == 4 else (41, 25)), 1)  # IP_RECVERR
        udp.connect((str(target), ECHO))
        udp.send(b"before")
        assert udp.recv(100) == b"before"
        with without_a_way(stage):
            udp.send(b"lost")
            with pytest.raises(OSError, match="unreachable"):
                udp.recv(100)
        assert eventually(lambda: heard(udp, b"after"))


def heard(udp: socket.socket, data: bytes) -> bool:
    """Whether a datagram is sent and comes back soon; neighbours are looked for anew."""
    udp.settimeout(0.5)
    with contextlib.suppress(OSError):
        udp.send(data)
        return udp.recv(100) == data
    return False


@BOTH
def test_an_uplink_that_is_made_anew(stage: Stage, guest_of: GuestOf, version: int) -> None:
    """The device of that name is another: the guest hears that there was no way, and goes on."""
    guest = guest_of("public")
    site, internet = stage.world.site, stage.world.internet
    with guest.udp(version) as udp:
        udp.connect((str(of(ALLOWED, version)), ECHO))
        udp.send(b"before")
        assert udp.recv(100) == b"before"
        site.ip(f"link delete {UPLINK}")
        veth(internet, "site0", site, UPLINK)
        for namespace, device, own in (
            (internet, "site0", (ROUTER_IPV4, ROUTER_IPV6)),
            (site, UPLINK, (SITE_IPV4, SITE_IPV6)),
        ):
            namespace.ip(*(f"address add {each} dev {device}" for each in own[:1]))
            namespace.ip(*(f"address add {each} dev {device} nodad" for each in own[1:]))
        site.ip(*(f"route add default via {each.ip}" for each in (ROUTER_IPV4, ROUTER_IPV6)))
        assert eventually(lambda: heard(udp, b"after"))


@BOTH
def test_a_peer_without_a_way_changes_nothing_for_others(
    stage: Stage, guest_of: GuestOf, version: int
) -> None:
    """The endpoint stays the port outside that it was."""
    target, away = of(ALLOWED, version), of(FORBIDDEN, version)
    stage.world.site.ip(f"route add prohibit {away}")
    try:
        with far(stage.world, target, PORT) as peer, guest_of("public").udp(version) as udp:
            udp.sendto(b"one", (str(target), PORT))
            outside = peer.recvfrom(100)[1]
            udp.sendto(b"nowhere", (str(away), PORT))
            udp.sendto(b"two", (str(target), PORT))
            assert peer.recvfrom(100) == (b"two", outside)
    finally:
        stage.world.site.ip(f"route del prohibit {away}")


@BOTH
def test_a_flow_goes_on_by_another_uplink(stage: Stage, guest_of: GuestOf, version: int) -> None:
    """The way out is another interface now, as from one wireless network to the next."""
    site, internet = stage.world.site, stage.world.internet
    target = of(ALLOWED, version)
    near, router = ("45.66.88.2", "45.66.88.1") if version == 4 else ("2a0a:88::2", "2a0a:88::1")
    size, nodad = (24, "") if version == 4 else (64, "nodad")
    with far(stage.world, target, PORT) as peer, guest_of("public").udp(version) as udp:
        udp.sendto(b"one", (str(target), PORT))
        assert peer.recvfrom(100)[0] == b"one"
        veth(internet, "site1", site, "up1")
        try:
            internet.ip(f"address add {router}/{size} dev site1 {nodad}")
            site.ip(f"address add {near}/{size} dev up1 {nodad}", f"link set {UPLINK} down")
            site.ip(f"route replace default via {router} dev up1")
            stage.host.follow()
            udp.sendto(b"two", (str(target), PORT))
            data, outside = peer.recvfrom(100)
            assert (data, outside[0]) == (b"two", near)
            peer.sendto(b"back", outside)
            assert udp.recv(100) == b"back"
        finally:
            site.ip("link delete up1")
            with without_a_way(stage):
                pass
            stage.host.follow()


@BOTH
def test_a_flow_goes_on_from_another_address(stage: Stage, guest_of: GuestOf, version: int) -> None:
    """Nothing is bound to the address that the machine had when the flow began."""
    site = stage.world.site
    target = of(ALLOWED, version)
    old = SITE_IPV4 if version == 4 else SITE_IPV6
    new = f"{old.ip + 7}/{old.network.prefixlen}"
    via = ROUTER_IPV4.ip if version == 4 else ROUTER_IPV6.ip
    route = f"route replace default via {via} dev {UPLINK}"
    nodad = "" if version == 4 else "nodad"
    with far(stage.world, target, PORT) as peer, guest_of("public").udp(version) as udp:
        udp.sendto(b"one", (str(target), PORT))
        first = peer.recvfrom(100)[1]
        site.ip(f"address del {old} dev {UPLINK}", f"address add {new} dev {UPLINK} {nodad}", route)
        try:
            udp.sendto(b"two", (str(target), PORT))
            data, second = peer.recvfrom(100)
            assert data == b"two"
            assert (second[0], second[1]) == (str(old.ip + 7), first[1])
            peer.sendto(b"back", second)
            assert udp.recv(100) == b"back"
        finally:
            back = f"address add {old} dev {UPLINK} {nodad}"
            site.ip(f"address del {new} dev {UPLINK}", back, route)


# -- many --------------------------------------------------------------------------------------


def flows_of(guest: Guest, version: int, count: int, to: Address) -> None:
    """One datagram of each of so many endpoints."""
    for port in range(10_000, 10_000 + count):
        with guest.udp(version, port) as udp:
            udp.sendto(b"x", (str(to), ECHO))


@BOTH
def test_ten_thousand_endpoints_of_one_guest(stage: Stage, guest_of: GuestOf, version: int) -> None:
    """They are capped, told so, and cost a bounded number of descriptors; others go on."""
    greedy, other = guest_of("public"), guest_of("public")
    gateway = stage.host._relays.gateway
    assert gateway is not None
    target = of(ALLOWED, version)
    with other.udp(version) as udp:
        assert exchange(udp, b"before", target) == b"before"
        before = [len(os.listdir(f"/proc/{pid}/fd")) for pid in gateway.pids]
        flows_of(greedy, version, 10_000, of(FORBIDDEN, version))
        assert exchange(udp, b"during", target) == b"during"
        held = [len(os.listdir(f"/proc/{pid}/fd")) for pid in gateway.pids]
        cap = Limits.within(files_of(gateway.pids[0])).guest
        assert max(now - then for now, then in zip(held, before, strict=True)) <= cap + 16
        with other.udp(version) as new:
            assert exchange(new, b"a new one", target) == b"a new one"
    assert greedy.decided(rule="limit: exchanges").reason.startswith(f"at most {cap}")


def files_of(pid: int) -> int:
    """How many descriptors a process may have."""
    (line,) = (
        each
        for each in Path(f"/proc/{pid}/limits").read_text().splitlines()
        if each.startswith("Max open files")
    )
    return int(line.split()[3])
