"""What guests reach, and what they do not: asked at the doors, seen at servers and uplink.

Every question that is put to the kernel here is put to `Host.explain` too, and both must agree.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

import pytest

from guestnet.host import Host
from guestnet.model import Attachment
from hostile import (
    PATIENCE_S,
    SILENCE_S,
    Answer,
    Door,
    Heard,
    all_of,
    answers,
    assert_none_open,
    assert_open,
    doors,
    flowing,
    knock,
    received,
)
from lab.addresses import (
    ALLOWED,
    FORBIDDEN,
    METADATA,
    METADATA_ALIBABA,
    METADATA_AZURE,
    PRIVATE,
    RESOLVER,
    ROUTER_IPV4,
    ROUTER_IPV6,
    SITE_IPV4,
    SITE_IPV6,
    Server,
)
from lab.capture import Capture
from lab.internet import Servers
from lab.netns import Namespace, veth
from lab.servers import BANNER, ECHO, HTTP
from lab.world import World

pytestmark = pytest.mark.root

Address = IPv4Address | IPv6Address

OPEN, REFUSED, SILENT = Answer.OPEN, Answer.REFUSED, Answer.SILENT
#: What a guest could send, but for the neighbour discovery that the site itself does.
TRAFFIC = "tcp or udp or icmp or (icmp6 and (ip6[40] == 128 or ip6[40] < 128))"
#: Our pools: nothing that bears such an address may be seen on the uplink.
POOLS = "net 172.16.0.0/12 or net fd42:6d73::/32"
NETWORKS = (
    {"name": "routed", "topology": "routed"},
    {"name": "bridge", "topology": "bridge", "ipv4": "172.30.0.0/24"},
    {
        "name": "shared",
        "topology": "bridge",
        "bridge": "fcbr1",
        "isolate": False,
        "ipv4": "172.29.0.0/24",
        "ipv6": "fd42:6d73:64::/64",
    },
)
#: guest: (network, policy). The neighbours would let everyone in, were the others let out.
GUESTS = {
    "routed-public": ("routed", "allow@public"),
    "bridge-public": ("bridge", "allow@public"),
    "routed-all": ("routed", "all"),
    "bridge-all": ("bridge", "all"),
    "routed-sealed": ("routed", None),
    "bridge-sealed": ("bridge", None),
    "routed-neighbour": ("routed", "allow:ingress@guests"),
    "bridge-neighbour": ("bridge", "allow:ingress@guests"),
    "shared-one": ("shared", "allow@public"),
    "shared-two": ("shared", None),
}
TOPOLOGIES = ("routed", "bridge")


@dataclass
class Town:
    """A site with three networks and their guests, servers on the host and on the neighbours."""

    world: World
    host: Host
    guests: dict[str, Namespace] = field(default_factory=dict)
    #: Servers on every address of the host and in the guests.
    at_home: list[Servers] = field(default_factory=list)

    def attach(self, guest: str, network: str, policy: str | None) -> Attachment:
        """Attach a guest of the town, whose namespace exists from the start."""
        namespace = self.guests[guest]
        return self.host.attach(guest, network=network, netns=namespace.path, policy=policy)

    def addresses_of(self, guest: str) -> list[Address]:
        """Both addresses of a guest."""
        found = self.host.attachment(guest)
        assert found.ipv4 is not None
        assert found.ipv6 is not None
        return [found.ipv4.ip, found.ipv6.ip]

    def knock(self, guest: str, wanted: Iterable[Door], *silence_s: float) -> dict[Door, Heard]:
        """Knock from a guest, and hold `explain` to what happened."""
        wanted = list(wanted)
        heard = knock(self.guests[guest], wanted, *silence_s)
        told = {
            str(door): self.host.explain(guest, door.policy_protocol, door.address, door.port)
            for door in wanted
        }
        happened = {str(door): each.answer is OPEN for door, each in heard.items()}
        assert {door: verdict.allowed for door, verdict in told.items()} == happened, {
            door: verdict.reason for door, verdict in told.items()
        }
        return heard

    def opens(self, guest: str, wanted: Iterable[Door]) -> None:
        """Every door opens, as `explain` says."""
        wanted = list(wanted)
        assert answers(self.knock(guest, wanted, PATIENCE_S)) == all_of(wanted, OPEN)

    def uplink(self, expression: str) -> Capture:
        """What passes the site's uplink from here on."""
        return self.world.capture(expression)

    def serve(self, namespace: Namespace, label: str, addresses: Iterable[Address]) -> None:
        """Play servers at addresses of the site or of a guest."""
        servers = [
            Server(
                f"{label} {address}",
                "home.example.test",
                address if isinstance(address, IPv4Address) else None,
                address if isinstance(address, IPv6Address) else None,
            )
            for address in addresses
        ]
        self.at_home.append(Servers(namespace, servers))

    def visited(self) -> list[str]:
        """Servers on the host and in guests at which anything arrived."""
        return [each.server for servers in self.at_home for each in servers.arrivals()]

    def forget(self) -> None:
        """Begin with empty logs, once the servers have written down what they accepted last."""
        time.sleep(0.05)
        for servers in (self.world.servers, *self.at_home):
            servers.forget()


def gateways(host: Host) -> list[Address]:
    """The host's addresses towards all guests."""
    found = {
        gateway
        for each in host.attachments()
        for gateway in (each.gateway_ipv4, each.gateway_ipv6)
        if gateway is not None
    }
    return sorted(found, key=str)


@pytest.fixture(scope="module")
def the_town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    state = tmp_path_factory.mktemp("town")
    with (
        World() as world,
        Host.open(state, site=world.site.path) as host,
        contextlib.ExitStack() as stack,
    ):
        town = Town(world, host)
        for spec in NETWORKS:
            host.create_network({**spec, "dns": [str(a) for a in RESOLVER.addresses]})
        for guest, (network, policy) in GUESTS.items():
            town.guests[guest] = world.add_guest(guest)
            town.attach(guest, network, policy)
        for guest in ("left", "right"):
            town.guests[guest] = world.add_guest(guest)
        town.serve(world.site, "host", [SITE_IPV4.ip, SITE_IPV6.ip, *gateways(host)])
        for guest in ("routed-neighbour", "bridge-neighbour", "shared-two"):
            town.serve(town.guests[guest], guest, town.addresses_of(guest))
        for servers in town.at_home:
            stack.callback(servers.stop)
        yield town


@pytest.fixture
def town(the_town: Town) -> Town:
    """The town, with nothing written down of what arrived before."""
    the_town.forget()
    return the_town


@pytest.fixture(params=TOPOLOGIES)
def topology(request: pytest.FixtureRequest) -> str:
    """routed, then bridge."""
    return str(request.param)


def assert_refused(town: Town, guest: str, wanted: Iterable[Door]) -> None:
    """Every TCP door refuses at once, the rest is silent, nothing leaves and nobody is visited."""
    wanted = list(wanted)
    with town.uplink(TRAFFIC) as uplink:
        heard = town.knock(guest, wanted)
        seen = uplink.lines()
    expected = {str(d): REFUSED if d.protocol == "tcp" else SILENT for d in wanted}
    assert answers(heard) == expected
    assert all(each.after_s < 1 for each in heard.values())
    assert seen == []
    assert (town.world.arrivals(), town.visited()) == ([], [])


class TestAllowed:
    @pytest.mark.parametrize("kind", ["public", "all"])
    def test_the_server_is_reached_and_sees_the_site(
        self, town: Town, topology: str, kind: str
    ) -> None:
        wanted = doors(ALLOWED.addresses)
        with town.uplink(POOLS) as uplink:
            town.opens(f"{topology}-{kind}", wanted)
            assert uplink.lines() == []  # masquerade left no address of a pool on the wire
        clients = {(a.kind, a.client) for a in town.world.arrivals(ALLOWED)}
        sites = (str(SITE_IPV4.ip), str(SITE_IPV6.ip))
        assert clients == {(kind, site) for kind in ("tcp", "udp") for site in sites}

    def test_all_opens_what_is_above_the_floor(self, town: Town, topology: str) -> None:
        wanted = doors((*PRIVATE.addresses, *FORBIDDEN.addresses, *RESOLVER.addresses))
        town.opens(f"{topology}-all", wanted)

    def test_names_resolve_where_the_policy_says_dns(self, town: Town, topology: str) -> None:
        with attached(town, "left", topology, "allow@dns"):
            wanted = doors(RESOLVER.addresses, tcp=53, udp=None, icmp=False)
            town.opens("left", wanted)
            town.forget()
            assert_refused(town, "left", doors(RESOLVER.addresses, tcp=80))


class TestRefused:
    @pytest.mark.parametrize("server", [PRIVATE], ids=lambda server: server.label)
    def test_private_to_a_guest_with_public(
        self, town: Town, topology: str, server: Server
    ) -> None:
        assert_refused(town, f"{topology}-public", doors(server.addresses))

    @pytest.mark.parametrize("kind", ["public", "all"])
    def test_every_metadata_service(self, town: Town, topology: str, kind: str) -> None:
        services = [
            address
            for server in (METADATA, METADATA_AZURE, METADATA_ALIBABA)
            for address in server.addresses
        ]
        assert_refused(town, f"{topology}-{kind}", doors(services))

    @pytest.mark.parametrize("kind", ["public", "all"])
    def test_every_address_of_the_host(self, town: Town, topology: str, kind: str) -> None:
        own = [SITE_IPV4.ip, SITE_IPV6.ip, *gateways(town.host)]
        assert len(own) > 2 * len(NETWORKS)
        assert_refused(town, f"{topology}-{kind}", doors(own))

    @pytest.mark.parametrize("kind", ["public", "all"])
    def test_guests_that_would_let_it_in(self, town: Town, topology: str, kind: str) -> None:
        other = "bridge" if topology == "routed" else "routed"
        targets = town.addresses_of(f"{other}-neighbour")
        if topology == "routed":
            targets += town.addresses_of("routed-neighbour")
        targets += town.addresses_of("shared-two")
        assert_refused(town, f"{topology}-{kind}", doors(targets))

    def test_an_isolated_neighbour_on_the_bridge_is_not_even_found(self, town: Town) -> None:
        wanted = doors(town.addresses_of("bridge-neighbour"))
        heard = town.knock("bridge-all", wanted, SILENCE_S, SILENCE_S)
        assert answers(heard) == all_of(wanted, SILENT)  # no neighbour: no one to reset either
        assert town.visited() == []

    @pytest.mark.parametrize("kind", ["public", "all"])
    def test_addresses_of_pools_that_nobody_has(self, town: Town, topology: str, kind: str) -> None:
        free = ["172.17.0.2", "172.31.255.254", "fd42:6d73:62:777::2", "172.29.0.77"]
        free += ["fd42:6d73:64::4d"]
        if topology == "routed":
            free += ["172.30.0.77", "fd42:6d73:63::4d"]
        assert_refused(town, f"{topology}-{kind}", doors(map(ip_address, free)))

    def test_broadcast_and_anycast_of_the_host_s_own_link(self, town: Town, topology: str) -> None:
        """Public addresses all of them, but the host itself takes what is sent there."""
        broadcast, anycast = SITE_IPV4.network.broadcast_address, SITE_IPV6.network.network_address
        assert_refused(
            town, f"{topology}-public", doors([broadcast, anycast], tcp=None, icmp=False)
        )

    def test_a_sealed_guest_reaches_nothing(self, town: Town, topology: str) -> None:
        targets = [*ALLOWED.addresses, *RESOLVER.addresses, *PRIVATE.addresses]
        targets += [*METADATA.addresses, SITE_IPV4.ip, SITE_IPV6.ip, *gateways(town.host)]
        targets += [ROUTER_IPV4.ip, ROUTER_IPV6.ip]
        assert_refused(town, f"{topology}-sealed", doors(targets))


@contextlib.contextmanager
def attached(town: Town, guest: str, network: str, policy: str | None) -> Iterator[Attachment]:
    """One of the town's spare guests, attached for a while."""
    try:
        yield town.attach(guest, network, policy)
    finally:
        town.host.detach(guest)


@contextlib.contextmanager
def serving(town: Town, guest: str) -> Iterator[None]:
    """Servers in a guest, for a while."""
    town.serve(town.guests[guest], guest, town.addresses_of(guest))
    try:
        yield
    finally:
        town.at_home.pop().stop()


class TestBetweenGuests:
    @pytest.mark.parametrize(
        ("source", "target"),
        [("routed", "routed"), ("routed", "bridge"), ("bridge", "routed"), ("bridge", "shared")],
    )
    def test_it_takes_the_policies_of_both(self, town: Town, source: str, target: str) -> None:
        out, into = "allow@guests", "allow:ingress@guests"
        with attached(town, "right", target, None), serving(town, "right"):
            wanted = doors(town.addresses_of("right"))
            town.host.detach("right")  # its servers stay, for it gets its addresses back
            for egress, ingress in ((None, into), (out, None), (out, into)):
                with (
                    attached(town, "left", source, egress),
                    attached(town, "right", target, ingress),
                ):
                    if (egress, ingress) != (out, into):
                        assert_refused(town, "left", wanted)
                        continue
                    town.opens("left", wanted)
                    seen_from = {each.client for each in town.at_home[-1].arrivals()}
                    assert seen_from == {str(a) for a in town.addresses_of("left")}

    def test_a_pool_s_address_that_nobody_has_leads_nowhere(
        self, town: Town, topology: str
    ) -> None:
        """The default route would lead to whoever has that address in a private network."""
        free = map(ip_address, ("172.17.0.2", "172.31.0.77", "fd42:6d73:62:777::2"))
        with attached(town, "left", topology, "allow@guests"):
            assert_refused(town, "left", doors(free))

    def test_an_outsider_with_an_address_of_a_pool_is_no_guest(
        self, town: Town, topology: str
    ) -> None:
        """A machine beside the host that routes by it, from an address that no guest has."""
        forged = (ip_address("172.17.0.2"), ip_address("fd42:6d73:62:777::2"))
        outside = town.world.internet
        with attached(town, "left", topology, "allow:ingress@guests"), serving(town, "left"):
            targets = town.addresses_of("left")
            outside.ip(*(f"address add {address} dev site0 nodad" for address in forged))
            try:
                for target, via, address in zip(
                    targets, (SITE_IPV4.ip, SITE_IPV6.ip), forged, strict=True
                ):
                    outside.ip(f"route add {target} via {via} src {address}")
                assert_none_open(outside, doors(targets))
            finally:
                outside.ip(*(f"route del {target}" for target in targets))
                outside.ip(*(f"address del {address} dev site0" for address in forged))
            assert town.visited() == []
            for address in forged:
                assert not town.host.explain("left", "udp", address, ECHO, "ingress").allowed

    def test_the_other_way_stays_closed(self, town: Town) -> None:
        with (
            attached(town, "left", "routed", "allow@guests"),
            attached(town, "right", "routed", "allow:ingress@guests"),
            serving(town, "left"),
        ):
            assert_refused(town, "right", doors(town.addresses_of("left")))

    def test_a_narrowed_rule_opens_that_guest_only(self, town: Town) -> None:
        with attached(town, "right", "routed", "allow:ingress@guests") as right:
            assert right.ipv4 is not None
            policy = f"allow@guests={right.ipv4.ip}:tcp:{HTTP}"
            with attached(town, "left", "routed", policy), serving(town, "right"):
                wanted = Door("tcp", right.ipv4.ip, HTTP)
                town.opens("left", [wanted])
                town.forget()
                others = doors(town.addresses_of("routed-neighbour"))
                others += doors(town.addresses_of("right"), tcp=BANNER)
                assert_refused(town, "left", others)

    def test_without_isolation_guests_meet_at_layer_2(self, town: Town) -> None:
        wanted = doors(town.addresses_of("shared-two"))  # which is sealed to everyone else
        town.opens("shared-one", wanted)
        for door in doors(town.addresses_of("shared-one")):
            verdict = town.host.explain(
                "shared-two", door.policy_protocol, door.address, door.port, "ingress"
            )
            assert (verdict.allowed, verdict.text) == (True, "isolate=false")

    def test_isolation_holds_by_way_of_the_gateway_too(self, town: Town) -> None:
        """A guest that routes to its neighbour through the host gets what `explain` says."""
        with (
            attached(town, "left", "bridge", "allow@guests") as left,
            attached(town, "right", "bridge", "allow:ingress@guests"),
            serving(town, "right"),
        ):
            targets = town.addresses_of("right")
            town.guests["left"].ip(
                f"route add {targets[0]}/32 via {left.gateway_ipv4} dev eth0",
                f"route add {targets[1]}/128 via {left.gateway_ipv6} dev eth0",
            )
            town.knock("left", doors(targets), SILENCE_S, SILENCE_S)
            assert town.visited() == []  # not even one way


class TestHost:
    def test_a_rule_opens_one_port_of_the_host(self, town: Town, topology: str) -> None:
        own: list[IPv4Address | IPv6Address] = [SITE_IPV4.ip, SITE_IPV6.ip]
        with attached(town, "left", topology, f"allow@host:tcp:{HTTP}"):
            wanted = doors(own, udp=None, icmp=False)
            town.opens("left", wanted)
            town.forget()
            assert_refused(town, "left", doors(own, tcp=BANNER))
            assert_refused(town, "left", doors(ALLOWED.addresses))

    def test_the_host_enters_by_the_rule_that_names_it(self, town: Town, topology: str) -> None:
        with (
            attached(town, "left", topology, f"allow:ingress@host:tcp:{BANNER}") as left,
            serving(town, "left"),
        ):
            targets = town.addresses_of("left")
            heard = knock(town.world.site, doors(targets) + doors(targets, tcp=BANNER))
            for door, each in heard.items():
                by = left.gateway_ipv4 if door.address.version == 4 else left.gateway_ipv6
                assert by is not None
                verdict = town.host.explain("left", door.policy_protocol, by, door.port, "ingress")
                allowed = door.port == BANNER
                closed = REFUSED if door.protocol == "tcp" else SILENT
                assert (verdict.allowed, each.answer) == (allowed, OPEN if allowed else closed)

    def test_the_host_does_not_enter_a_sealed_guest(self, town: Town, topology: str) -> None:
        wanted = doors(town.addresses_of(f"{topology}-sealed"))
        with Capture(town.guests[f"{topology}-sealed"], "eth0", TRAFFIC) as inside:
            heard = knock(town.world.site, wanted)
            assert inside.lines() == []
        assert {each.answer for each in heard.values()} == {REFUSED, SILENT}

    def test_a_flow_from_outside_enters_by_its_rule_and_is_answered(
        self, town: Town, topology: str
    ) -> None:
        """The internet has a route to this one guest: its answers keep its own address."""
        with (
            attached(town, "left", topology, f"allow:ingress@public:tcp:{HTTP}"),
            serving(town, "left"),
        ):
            targets = town.addresses_of("left")
            ways = [
                f"route {{}} {address}/{address.max_prefixlen} via {via}"
                for address, via in zip(targets, (SITE_IPV4.ip, SITE_IPV6.ip), strict=True)
            ]
            town.world.internet.ip(*(way.format("add") for way in ways))
            try:
                heard = knock(town.world.internet, doors(targets))
            finally:
                town.world.internet.ip(*(way.format("del") for way in ways))
            closed = {"tcp": OPEN, "udp": SILENT, "icmp": SILENT}
            assert answers(heard) == {str(door): closed[door.protocol] for door in heard}


class TestDetach:
    def test_an_established_flow_is_cut_both_ways_at_once(self, town: Town, topology: str) -> None:
        tap = town.attach("left", topology, "allow@public").tap
        with flowing(
            town.guests["left"], ip_address(str(ALLOWED.ipv4)), f"/bytes/{1 << 30}"
        ) as download:
            assert received(download, 0.1) > 1 << 20
            port = download.getsockname()[1]
            # What is under test is the cut, not the deletion of the device that follows it.
            with town.host._reaper._clearing:
                town.host.detach("left")
                with (
                    town.uplink(f"tcp src port {port}") as out,
                    Capture(town.world.site, tap, f"src host {ALLOWED.ipv4}") as into,
                ):
                    received(download, 0.1)  # what the guest's own buffers still held
                    assert received(download, 0.5) == 0
                    assert into.lines() == []
                    assert out.lines() == []

    def test_whoever_comes_back_gets_the_same_address(self, town: Town, topology: str) -> None:
        first = town.attach("left", topology, None)
        town.host.detach("left")
        second = town.attach("left", topology, None)
        town.host.detach("left")
        assert (second.ipv4, second.ipv6, second.slot) == (first.ipv4, first.ipv6, first.slot)
        assert second.generation > first.generation

    def test_a_late_detach_does_not_harm_the_next(self, town: Town) -> None:
        first = town.attach("left", "routed", "allow@public")
        town.host.detach("left")
        with attached(town, "left", "routed", "allow@public"):
            assert not town.host.detach("left", first.generation)
            wanted = doors(ALLOWED.addresses)
            town.opens("left", wanted)

    def test_the_next_holder_of_an_address_sees_no_old_flow(
        self, town: Town, topology: str
    ) -> None:
        old = town.attach("left", topology, "allow@public")
        assert old.ipv4 is not None
        assert old.ipv6 is not None
        old_addresses = town.addresses_of("left")
        wanted = doors(ALLOWED.addresses)
        town.opens("left", wanted)
        assert all(flows(town, address) for address in old_addresses)
        town.host.detach("left")
        town.host.reconcile()  # waits for what goes on in the background
        assert not any(flows(town, address) for address in old_addresses)
        new = town.host.attach(
            "right",
            network=topology,
            netns=town.guests["right"].path,
            ipv4=old.ipv4.ip,
            policy="allow@public",
        )
        assert (new.ipv4, new.ipv6) == (old.ipv4, old.ipv6)
        assert not any(flows(town, address) for address in old_addresses)
        ports = {(a.client, a.client_port) for a in town.world.arrivals(ALLOWED, kind="udp")}
        with Capture(town.guests["right"], "eth0", "udp") as inside:
            assert len(ports) == 2
            for client, port in ports:
                reply_to(town.world.internet, ALLOWED, client, port)
            time.sleep(0.1)
            assert inside.lines() == []
        town.host.detach("right")


def flows(town: Town, address: Address) -> list[str]:
    """Conntrack entries in which an address takes part."""
    listed = town.world.site.run(
        ["conntrack", "-L", "-f", "ipv4" if address.version == 4 else "ipv6"]
    )
    return [line for line in listed.stdout.splitlines() if f"={address} " in line]


def reply_to(namespace: Namespace, server: Server, client: str, port: int) -> None:
    """A late datagram of a server's echo port; the server itself still holds the socket."""
    source = server.ipv4 if ":" not in client else server.ipv6
    family = socket.AF_INET if ":" not in client else socket.AF_INET6
    with namespace.enter(), socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sender.bind((str(source), 0))
        sender.sendto(b"late", (client, port))


class TestFromTheFirstPacketOn:
    def test_a_namespace_guest_is_ready_when_attach_returns(
        self, town: Town, topology: str
    ) -> None:
        """While devices are deleted the kernel's workers are late, and would lose its packets."""
        late: dict[str, Heard] = {}
        for n in range(12):
            with attached(town, "left", topology, "allow@public"):
                heard = town.knock("left", doors(ALLOWED.addresses), PATIENCE_S)
            late |= {f"{door}, attach {n}": h for door, h in heard.items() if h.after_s > 0.5}
        assert late == {}

    @pytest.mark.parametrize("wrong", ["mtu 1400", "address 02:00:00:00:00:99", "down"])
    def test_a_live_device_that_is_set_right_keeps_both_families(
        self, town: Town, wrong: str
    ) -> None:
        with attached(town, "left", "routed", "allow@public") as left:
            town.opens("left", doors(ALLOWED.addresses))
            town.world.site.ip(f"link set {left.tap} {wrong}")
            assert any(left.tap in step for step in town.host.reconcile().steps)
            # Everything is asked for anew, as by a VM that boots again.
            town.guests["left"].ip("neighbour flush dev eth0 nud all")
            town.opens("left", doors(ALLOWED.addresses))


class TestErrorsOfGuests:
    def test_a_guest_s_own_errors_get_out(self, town: Town, topology: str) -> None:
        """A closed port says so to whoever may knock there."""
        policy = "allow:ingress@host:udp:9,allow:ingress@guests:udp:9"
        with (
            attached(town, "left", topology, policy),
            attached(town, "right", "routed", "allow@guests:udp:9"),
        ):
            closed = doors(town.addresses_of("left"), tcp=None, udp=9, icmp=False)
            for namespace in (town.world.site, town.guests["right"]):
                heard = knock(namespace, closed, PATIENCE_S)
                assert answers(heard) == all_of(closed, REFUSED)


class TestCounters:
    def test_a_guest_s_traffic_and_refusals_are_counted(self, town: Town, topology: str) -> None:
        guest = f"{topology}-public"
        before, refused = town.host.usage(guest), town.host.counters()["inet/refused"]
        wanted = doors(PRIVATE.addresses)
        assert_refused(town, guest, wanted)
        after = town.host.usage(guest)
        assert after.refused - before.refused == len(wanted)
        assert town.host.counters()["inet/refused"] - refused == len(wanted)
        size = 1 << 20
        with flowing(
            town.guests[guest], ip_address(str(ALLOWED.ipv4)), f"/bytes/{size}"
        ) as download:
            assert received(download, 0.2) > size
        last = town.host.usage(guest)
        assert last.rx_bytes - after.rx_bytes > size > last.tx_bytes - after.tx_bytes > 0
        assert last.rx_packets > after.rx_packets
        assert last.refused == after.refused

    def test_refusals_at_the_target_are_the_target_s(self, town: Town) -> None:
        with attached(town, "left", "routed", "allow@guests"):
            before = town.host.usage("routed-sealed").refused
            wanted = doors(town.addresses_of("routed-sealed"))
            assert_refused(town, "left", wanted)
            assert town.host.usage("routed-sealed").refused - before == len(wanted)
            assert town.host.usage("left").refused == 0


@pytest.fixture
def second_uplink(world: World) -> str:
    """`up1`, another way to the internet, which the private servers' IPv4 address is routed by."""
    veth(world.internet, "site1", world.site, "up1")
    world.internet.ip("address add 198.18.0.1/24 dev site1")
    world.site.ip(
        "address add 198.18.0.2/24 dev up1",
        f"route add {PRIVATE.ipv4}/32 via 198.18.0.1 dev up1",
    )
    return "up1"


class TestEgress:
    def test_an_allowed_address_behind_another_interface_is_not_reached(
        self, world: World, host: Host, second_uplink: str
    ) -> None:
        host.create_network({"name": "default", "egress": "up0"})
        host.attach("vm", netns=world.guest.path, policy="allow@private")
        elsewhere, here = doors([ip_address(str(PRIVATE.ipv4))]), doors([ip_address("fd77::40")])
        with world.capture(TRAFFIC, interface=second_uplink) as capture:
            heard = knock(world.guest, elsewhere + here)
            assert capture.lines() == []
        expected = {"tcp": REFUSED, "udp": SILENT, "icmp": SILENT}
        assert answers({d: heard[d] for d in elsewhere}) == {
            str(d): expected[d.protocol] for d in elsewhere
        }
        assert answers({d: heard[d] for d in here}) == all_of(here, OPEN)
        for door in elsewhere + here:
            verdict = host.explain("vm", door.policy_protocol, door.address, door.port)
            assert verdict.allowed is (door in here)
            assert door in here or verdict.text == "egress"

    def test_both_interfaces_serve_a_network_that_names_both(
        self, world: World, host: Host, second_uplink: str
    ) -> None:
        host.create_network({"name": "default", "egress": ["up0", second_uplink]})
        host.attach("vm", netns=world.guest.path, policy="allow@private")
        wanted = doors(PRIVATE.addresses)
        assert_open(world.guest, wanted)
        assert {a.client for a in world.arrivals(PRIVATE)} == {"198.18.0.2", str(SITE_IPV6.ip)}

    def test_an_established_flow_does_not_move_to_another_interface(
        self, world: World, host: Host, second_uplink: str
    ) -> None:
        """A VPN that comes up must not get the tail of what left by the uplink before."""
        host.create_network({"name": "default", "egress": "up0"})
        host.attach("vm", netns=world.guest.path, policy="allow@public")
        with world.guest.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flow:
            flow.settimeout(2)
            flow.connect((str(ALLOWED.ipv4), ECHO))
            flow.send(b"first")
            assert flow.recv(99) == b"first"
            world.site.ip(f"route add {ALLOWED.ipv4}/32 via 198.18.0.1 dev {second_uplink}")
            with world.capture("udp", interface=second_uplink) as capture:
                flow.send(b"second")
                time.sleep(0.1)
                assert capture.lines() == []

    def test_the_default_route_may_move(self, world: World, host: Host, second_uplink: str) -> None:
        host.create_network({"name": "default", "ipv6": None})
        host.attach("vm", netns=world.guest.path, policy="allow@public")
        wanted = doors([ip_address(str(ALLOWED.ipv4))])
        assert_open(world.guest, wanted)
        world.site.ip(f"route replace default via 198.18.0.1 dev {second_uplink}")
        assert_none_open(world.guest, wanted)
        host.follow()
        assert second_uplink in host.network("default").egress
        world.servers.forget()
        assert_open(world.guest, wanted)
        assert {each.client for each in world.arrivals(ALLOWED)} == {"198.18.0.2"}


def test_the_pools_of_this_page_are_those_of_its_filter(the_town: Town) -> None:
    wide = (ip_network("172.16.0.0/12"), ip_network("fd42:6d73::/32"))
    for info in the_town.host.networks():
        for pool in (info.spec.ipv4, info.spec.ipv6):
            assert pool is not None
            assert any(pool.version == w.version and pool.subnet_of(w) for w in wide)  # type: ignore[arg-type]


def test_state_survives_a_second_opening(world: World, tmp_path: Path) -> None:
    """Guests work while nobody has the host open, and are the same afterwards."""
    wanted = doors(ALLOWED.addresses)
    with Host.open(tmp_path / "state", site=world.site.path) as host:
        first = host.attach("vm", netns=world.guest.path, policy="allow@public")
    assert_open(world.guest, wanted)
    with Host.open(tmp_path / "state", site=world.site.path) as host:
        assert host.attachment("vm") == first
        assert host.reconcile().steps == ()
        assert_open(world.guest, wanted)
