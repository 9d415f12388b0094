"""Paths narrower than the guest's own link: segments are clamped, errors find their way back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

import pytest

from guestnet.host import Host
from lab.addresses import ALLOWED, SITE_IPV4, SITE_IPV6, Server
from lab.capture import Capture
from lab.netns import Namespace, veth
from lab.world import World

pytestmark = pytest.mark.root

#: The uplink's MTU, and that of a link behind the internet's router.
NARROW, NARROWER = 1400, 1290
FAR = Server("far", "far.example.test", IPv4Address("199.7.83.42"), IPv6Address("2606:4700::42"))
BIG = 3_000_000
#: Headers without options, which an MSS does not count (RFC 6691).
HEADERS = {4: 40, 6: 60}
TOPOLOGIES = ("routed", "bridge")


@pytest.fixture
def world() -> Iterator[World]:
    """A site whose uplink is narrower than Ethernet."""
    with World(mtu=NARROW) as made:
        yield made


@pytest.fixture
def far(world: World) -> Namespace:
    """A server as wide as Ethernet, behind a still narrower link between two routers."""
    middle, end = world.add_guest("middle"), world.add_guest("far")
    for namespace in (world.internet, middle, end):
        # A router whose own link-local address is still being checked solicits nobody.
        namespace.sysctl("ipv6.conf.default.accept_dad", 0)
    for router in (world.internet, middle):
        router.sysctl("ipv4.ip_forward", 1)
        router.sysctl("ipv6.conf.all.forwarding", 1)
    link(world.internet, "narrow0", middle, "narrow0", 5, NARROWER)
    link(middle, "wide0", end, "eth0", 6, 1500)
    for address in FAR.addresses:
        size = f"{address}/{address.max_prefixlen}"
        low = address.version == 4
        world.internet.ip(f"route add {size} via {'198.18.5.2' if low else '2001:2:5::2'}")
        middle.ip(f"route add {size} via {'198.18.6.2' if low else '2001:2:6::2'}")
        middle.ip(f"route add default via {'198.18.5.1' if low else '2001:2:5::1'}")
        end.ip(f"address add {size} dev lo")
        end.ip(f"route add default via {'198.18.6.1' if low else '2001:2:6::1'}")
    world.serve(end, FAR)
    return end


def link(
    left: Namespace, left_name: str, right: Namespace, right_name: str, number: int, mtu: int
) -> None:
    """A link with addresses of both families, .1 on its left and .2 on its right."""
    veth(left, left_name, right, right_name, mtu=mtu)
    for side, (namespace, name) in enumerate(((left, left_name), (right, right_name)), start=1):
        namespace.ip(
            f"address add 198.18.{number}.{side}/24 dev {name}",
            f"address add 2001:2:{number}::{side}/64 dev {name} nodad",
        )


def attach(world: World, host: Host, topology: str, mtu: int | None) -> None:
    """A guest whose own link is as wide as `mtu` says."""
    host.create_network({"name": topology, "topology": topology, "mtu": mtu})
    host.attach("vm", network=topology, netns=world.guest.path, policy="allow@public")


def url(address: object, path: str) -> str:
    host = f"[{address}]" if ":" in str(address) else address
    return f"http://{host}{path}"


def mss_of(capture: Capture) -> set[int]:
    """Maximum segment sizes that were announced."""
    return {
        value
        for packet in capture.packets()
        for name, value in packet["TCP"].options
        if name == "MSS"
    }


def transfer(guest: Namespace, address: object) -> None:
    """A big upload and a big download, both to the end.

    In this order: the server that has met the narrow path announces smaller segments ever after.
    """
    send = f"head -c {BIG} /dev/zero | curl -sS -m 8 --data-binary @- '{url(address, '/upload')}'"
    assert json.loads(guest.run(["sh", "-c", send]).stdout) == {"received": BIG}
    done = guest.run(["sh", "-c", f"curl -sS -m 8 '{url(address, f'/bytes/{BIG}')}' | wc -c"])
    assert int(done.stdout) == BIG


def ping(guest: Namespace, address: object, size: int, count: int = 1) -> str:
    """What `ping` says that may not fragment; `size` is that of the IP packet."""
    headers = 28 if ":" not in str(address) else 48
    command = ["ping", "-M", "do", "-c", str(count), "-i", "0.2", "-W", "1", "-s"]
    done = guest.run([*command, str(size - headers), str(address)], check=False)
    return done.stdout + done.stderr


class TestNarrowUplink:
    def test_a_network_has_the_uplink_s_mtu(self, world: World, host: Host) -> None:
        attach(world, host, "routed", None)
        assert host.attachment("vm").mtu == NARROW
        assert f"mtu {NARROW}" in world.guest.run(["ip", "link", "show", "eth0"]).stdout

    @pytest.mark.parametrize("topology", TOPOLOGIES)
    def test_segments_are_clamped_both_ways(self, world: World, host: Host, topology: str) -> None:
        attach(world, host, topology, 1500)
        synchronize = "tcp[13] & 2 != 0 or (ip6 and ip6[6] == 6 and ip6[53] & 2 != 0)"
        for address in ALLOWED.addresses:
            room = NARROW - HEADERS[address.version]
            with (
                world.capture(synchronize) as outside,
                Capture(world.guest, "eth0", synchronize) as inside,
            ):
                transfer(world.guest, address)
                assert mss_of(outside) == {room}
                # What the guest announced itself, and what it was told of the server.
                assert mss_of(inside) == {1500 - HEADERS[address.version], room}

    @pytest.mark.parametrize("topology", TOPOLOGIES)
    def test_the_host_tells_a_flow_s_very_first_packet_that_it_is_too_big(
        self, world: World, host: Host, topology: str
    ) -> None:
        attach(world, host, topology, 1500)
        for address in ALLOWED.addresses:
            said = ping(world.guest, address, 1500)
            assert f"mtu = {NARROW}" in said or f"mtu={NARROW}" in said
            assert " 0% packet loss" in ping(world.guest, address, NARROW)

    def test_nothing_too_big_leaves_in_pieces(self, world: World, host: Host) -> None:
        attach(world, host, "routed", 1500)
        with world.capture(f"ip[6:2] & 0x3fff != 0 and host {ALLOWED.ipv4}") as pieces:
            ping(world.guest, ALLOWED.ipv4, 1500)
            assert pieces.lines() == []

    def test_datagrams_that_may_be_cut_are(self, world: World, host: Host) -> None:
        attach(world, host, "routed", 1500)
        said = world.guest.run(["ping", "-M", "dont", "-c1", "-s2000", str(ALLOWED.ipv4)]).stdout
        assert " 0% packet loss" in said


class TestNarrowPathBeyond:
    @pytest.mark.parametrize("topology", TOPOLOGIES)
    @pytest.mark.parametrize("version", [4, 6])
    def test_big_transfers_complete(
        self, world: World, host: Host, far: Namespace, topology: str, version: int
    ) -> None:
        attach(world, host, topology, 1500)
        address = FAR.addresses[0 if version == 4 else 1]
        errors = "icmp[0] == 3 and icmp[1] == 4 or (icmp6 and ip6[40] == 2)"
        with Capture(world.guest, "eth0", errors) as told:
            transfer(world.guest, address)
            # The router's error came through both translations: to the guest, about its own packet.
            assert told.frames()
        route = world.guest.run(["ip", "route", "get", str(address)]).stdout
        assert f"mtu {NARROWER}" in route

    @pytest.mark.parametrize("topology", TOPOLOGIES)
    def test_discovery_by_datagrams(
        self, world: World, host: Host, far: Namespace, topology: str
    ) -> None:
        attach(world, host, topology, 1500)
        for address in FAR.addresses:
            said = ping(world.guest, address, NARROW, count=2)
            assert f"mtu = {NARROWER}" in said or f"mtu={NARROWER}" in said
            assert " 0% packet loss" in ping(world.guest, address, NARROWER)

    def test_other_errors_come_back_too(self, world: World, host: Host, far: Namespace) -> None:
        """Time exceeded and unreachable, from the host's gateway and from the router beyond it."""
        attach(world, host, "routed", None)
        gateway = host.attachment("vm").gateway_ipv4
        hops = [
            world.guest.run(
                ["ping", "-c1", "-W1", "-t", str(ttl), str(FAR.ipv4)], check=False
            ).stdout
            for ttl in (1, 2)
        ]
        assert [f"From {gateway}" in hops[0], "Time to live exceeded" in hops[0]] == [True, True]
        assert "From 45.66.77.1" in hops[1]
        script = (
            "import socket\n"
            f"for a in ('{ALLOWED.ipv4}', '{ALLOWED.ipv6}'):\n"
            "  family = socket.AF_INET6 if ':' in a else socket.AF_INET\n"
            "  s = socket.socket(family, socket.SOCK_DGRAM)\n"
            "  s.settimeout(2); s.connect((a, 9)); s.send(b'x')\n"
            "  try: s.recv(9)\n"
            "  except ConnectionRefusedError: print('refused')\n"
        )
        assert world.guest.run(["python3", "-c", script]).stdout.split() == ["refused", "refused"]


def test_the_guest_is_told_nothing_of_the_host_but_its_gateway(world: World, host: Host) -> None:
    """Errors that the host itself makes come from the gateway's address, not from the uplink's."""
    attach(world, host, "routed", 1500)
    with Capture(world.guest, "eth0", "icmp or icmp6") as told:
        for address in ALLOWED.addresses:
            ping(world.guest, address, 1500)
        sources = {str(p["IP" if "IP" in p else "IPv6"].src) for p in told.packets()}
    assert not sources & {str(SITE_IPV4.ip), str(SITE_IPV6.ip)}
