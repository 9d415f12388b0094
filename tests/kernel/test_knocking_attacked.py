"""Who knocks comes in as himself, nobody else comes in, and nobody else's packets are touched."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from guestnet.flow.packets import tcp
from guestnet.host import Host
from guestnet.ruleset.names import DOOR_ADDRESSES, MARK_WORKER
from lab.addresses import ALLOWED, FORBIDDEN, RESOLVER, SITE_IPV4, SITE_IPV6, UPLINK
from lab.caller import AF, PATIENCE_S, body, request
from lab.netns import Namespace
from lab.world import World
from stage import Guest, Stage, of, refused

pytestmark = pytest.mark.root

Address = IPv4Address | IPv6Address

FAMILIES = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
NETWORK = {"name": "plain", "dns": [str(a) for a in RESOLVER.addresses]}
#: The gateway is asked about every connection, and about nothing first.
ASKED = "deny@never.example.test,public"
ROUNDS = 20


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One worker, whose door all flows share; and two ways out, so that it dials without one."""
    state = tmp_path_factory.mktemp("knocking")
    with World() as world, Host.open(state, site=world.site.path, gateway_workers=1) as host:
        world.site.ip("link add more0 type veth peer name more1", "link set more0 up")
        host.create_network(NETWORK | {"egress": [UPLINK, "more0"]})
        made = Stage(world, host)
        with made.guest(ASKED):
            pass  # the gateway runs from the first guest on, and is no test's leftover
        yield made


def beginning(guest: Guest, version: int, port: int, to: Address, door: int) -> socket.socket:
    """A connection from a port of choice, which is not waited for."""
    with guest.namespace.enter():
        made = socket.socket(AF[version], socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((str(guest.own(version)), port))
    made.setblocking(False)
    made.connect_ex((str(to), door))
    return made


@FAMILIES
def test_a_port_that_is_used_twice_leads_to_two_servers(stage: Stage, version: int) -> None:
    servers = (ALLOWED, FORBIDDEN)
    with stage.guest(ASKED) as guest:
        for port in range(20_000, 20_000 + ROUNDS):
            with contextlib.ExitStack() as stack:
                made = [
                    stack.enter_context(beginning(guest, version, port, of(each, version), 80))
                    for each in servers
                ]
                for each, server in zip(made, servers, strict=True):
                    assert select.select([], [each], [], PATIENCE_S)[1]
                    each.settimeout(PATIENCE_S)
                    address = of(server, version)
                    each.sendall(request(f"[{address}]" if version == 6 else str(address)))
                    assert body(each)["server"] == server.label
        assert len(guest.told(2 * ROUNDS, kind="flow", reason="finished")) == 2 * ROUNDS


@FAMILIES
def test_the_address_of_the_doors_is_the_hosts(stage: Stage, version: int) -> None:
    """Where the worker could be sent to it: the host's own services are there."""
    rules = "deny@one.test,allow@host:tcp:1,deny@two.test,allow@0.0.0.0/0,allow@[::/0]"
    with stage.world.site.enter():
        service = socket.create_server(("", 0), family=AF[version])
    with service, stage.guest(rules) as guest:
        with refused():
            guest.connect(DOOR_ADDRESSES[version], service.getsockname()[1])
        assert not select.select([service], [], [], 0)[0]
        assert guest.decided(kind="flow").rule == "floor: host"


@FAMILIES
@pytest.mark.parametrize("mark", [0xCAD0, 0x1DF, 0x7FFFFFD0], ids=hex)
def test_marks_of_others_are_left_alone(stage: Stage, mark: int, version: int) -> None:
    with stage.guest(ASKED), stage.world.site.enter():
        made = socket.socket(AF[version], socket.SOCK_STREAM)
    with made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        made.settimeout(PATIENCE_S)
        made.connect((str(of(ALLOWED, version)), 80))


def as_a_worker(site: Namespace, source: Address, port: int, to: Address) -> None:
    """Send a request for a connection in somebody's name, as a worker's socket could."""
    syn = tcp(struct.pack("!HHIIBBHHH", port, 80, 1, 0, 5 << 4, 2, 64000, 0, 0), source, to)
    with site.enter():
        made = socket.socket(AF[to.version], socket.SOCK_RAW, socket.IPPROTO_RAW)
    with made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK_WORKER)
        if to.version == 6:
            made.setsockopt(socket.IPPROTO_IPV6, 36, 1)  # IPV6_HDRINCL
        made.sendto(syn, (str(DOOR_ADDRESSES[to.version]), 0))


@FAMILIES
def test_a_worker_lets_nobody_in_but_who_knocked(stage: Stage, version: int) -> None:
    """Or it had the connections that the host itself or other guests are about to open."""
    site = SITE_IPV4.ip if version == 4 else SITE_IPV6.ip
    to = of(ALLOWED, version)
    with stage.guest(ASKED) as guest, stage.guest("public") as other:
        for each in (guest, other):
            each.connect(to, 443).close()
        for source in (site, other.own(version)):
            with pytest.raises(PermissionError):
                as_a_worker(stage.world.site, source, 44_001, to)
        as_a_worker(stage.world.site, guest.own(version), 44_002, to)


def test_where_ipv6_is_turned_off_names_are_reached_by_ipv4(tmp_path: Path) -> None:
    with World() as world:
        for each in ("all", "default"):
            world.site.sysctl(f"ipv6.conf.{each}.disable_ipv6", "1")
        with Host.open(tmp_path, site=world.site.path) as host:
            host.create_network(NETWORK | {"ipv6": None})
            with Stage(world, host).guest(ASKED) as guest:
                assert guest.http(of(ALLOWED, 4), ALLOWED.name)["server"] == ALLOWED.label
            host.remove_network("plain")


@FAMILIES
def test_what_others_translate_on_the_way_out_does_not_concern_guests_doors(
    stage: Stage, version: int
) -> None:
    """As where services have addresses that a proxy's rules lead elsewhere."""
    word = "ip" if version == 4 else "ip6"
    there = of(FORBIDDEN, version)
    led = f"{word} daddr {of(ALLOWED, version)} meta l4proto tcp dnat to {there}"
    with stage.guest(ASKED) as guest:
        chain = f"add chain {word} led o {{ type nat hook output priority -100; }}"
        stage.world.site.run(["nft", f"add table {word} led; {chain}; add rule {word} led o {led}"])
        try:
            found = guest.http(of(ALLOWED, version), ALLOWED.name)
        finally:
            stage.world.site.run(["nft", f"delete table {word} led"])
    assert found["server"] == FORBIDDEN.label


@FAMILIES
def test_what_is_said_while_it_is_dialled_is_said_to_the_guest(stage: Stage, version: int) -> None:
    """From a router so near that its error is there before connect(2) has returned."""
    refusing = "add rule inet near i tcp dport 4242 reject with icmpx type host-unreachable"
    chain = "add chain inet near i { type filter hook input priority 0; }"
    internet = stage.world.internet
    internet.run(["nft", f"add table inet near; {chain}; {refusing}"])
    try:
        with stage.guest(ASKED) as guest, pytest.raises(OSError, match="No route"):
            guest.connect(of(ALLOWED, version), 4242)
    finally:
        internet.run(["nft", "delete table inet near"])
