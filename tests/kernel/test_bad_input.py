"""What cannot be is refused with key, value and what would be right; nothing stays behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from guestnet.errors import (
    BusyError,
    ConfigError,
    ConflictError,
    GuestnetError,
    HostError,
    NotFoundError,
    PolicyError,
    PoolFullError,
)
from guestnet.host import Host
from guestnet.model import NetworkSpec
from hostile import assert_none_open, assert_open, doors
from lab.addresses import ALLOWED, ROUTER_IPV4, ROUTER_IPV6, SITE_IPV4, SITE_IPV6, UPLINK
from lab.netns import Namespace, veth
from lab.world import World

pytestmark = pytest.mark.root


@dataclass(frozen=True)
class Standing:
    """Everything that a refused request might have left: devices, rules, elements, leases."""

    links: list[str]
    inside: list[str]
    routes: list[str]
    tables: list[str]
    elements: dict[str, list[Any]]
    leases: list[tuple[str, str]]
    networks: list[str]

    @classmethod
    def of(cls, host: Host, world: World) -> Standing:
        """As it is once the background has finished."""
        host.reconcile()
        site = world.site
        routes = site.run(["ip", "route", "show", "table", "all"]).stdout
        ruleset = json.loads(site.run(["nft", "-j", "list", "ruleset"]).stdout)["nftables"]
        filled = [entry["set"] for entry in ruleset if "set" in entry and entry["set"].get("elem")]
        leases = [
            (lease.guest, lease.state.value)
            for lease in host._state.store.leases()
            if lease.state.value != "released"
        ]
        return cls(
            names(site),
            names(world.guest),
            # The uplink's own IPv6 comes to be in its time.
            sorted(line for line in routes.splitlines() if UPLINK not in line),
            sorted(f"{e['table']['family']} {e['table']['name']}" for e in ruleset if "table" in e),
            {f"{s['family']} {s['name']}": s["elem"] for s in filled},
            sorted(leases),
            [network.spec.name for network in host.networks()],
        )


def names(namespace: Namespace) -> list[str]:
    """The devices of a namespace."""
    listed = json.loads(namespace.run(["ip", "-j", "link"]).stdout)
    return sorted(entry["ifname"] for entry in listed)


@contextmanager
def unchanged(host: Host, world: World, before: Standing | None = None) -> Iterator[None]:
    """A block that leaves nothing behind; `before` is what stood, if that is known already."""
    before = before or Standing.of(host, world)
    yield
    assert Standing.of(host, world) == before


@dataclass(frozen=True)
class Crowded:
    """A site in which much is taken, and what stands there."""

    world: World
    host: Host
    standing: Standing

    def unchanged(self) -> AbstractContextManager[None]:
        """A block that leaves nothing behind."""
        return unchanged(self.host, self.world, self.standing)


def short(value: object) -> str:
    """A test's name for what it asks for."""
    if isinstance(value, dict):
        return ",".join(f"{key}={word}" for key, word in value.items())[:60]
    if isinstance(value, str | bytes):
        return ascii(value)[:24]
    return value.__name__ if isinstance(value, type) else ""


class TestNetworks:
    @pytest.mark.parametrize(
        ("spec", "error", "words"),
        [
            ({"ipv4": "10.1.2.0/31"}, ConfigError, ["ipv4", "10.1.2.0/31", "/1 to /30"]),
            ({"ipv4": "10.1.2.0/32"}, ConfigError, ["ipv4", "/1 to /30"]),
            ({"ipv4": "0.0.0.0/0"}, ConfigError, ["ipv4", "0.0.0.0/0", "/1 to /30"]),
            ({"topology": "bridge", "ipv4": "10.0.0.0/7"}, ConfigError, ["ipv4", "/8 to /30"]),
            ({"ipv6": "fd00:1::/65"}, ConfigError, ["ipv6", "fd00:1::/65", "to /64"]),
            ({"topology": "bridge", "ipv6": "fd00:1::/127"}, ConfigError, ["ipv6", "to /120"]),
            ({"ipv4": "10.1.2.3/24"}, ConfigError, ["ipv4", "10.1.2.3/24", "10.1.2.0/24"]),
            ({"ipv6": "fd00::1/64"}, ConfigError, ["ipv6", "host bits", "fd00::/64"]),
            ({"ipv4": "10.1.2.0"}, ConfigError, ["ipv4", "prefix length", "10.1.2.0/24"]),
            ({"ipv4": "10.1.2.0/33"}, ConfigError, ["ipv4", "10.1.2.0/33"]),
            ({"ipv4": "ten/8"}, ConfigError, ["ipv4", "ten/8"]),
            ({"ipv4": "fd00::/64"}, ConfigError, ["ipv4", "fd00::/64"]),
            ({"ipv4": None, "ipv6": None}, ConfigError, ["ipv4", "ipv6"]),
            ({"topology": "mesh"}, ConfigError, ["topology", "mesh", "routed", "bridge"]),
            ({"gateway": "10.0.0.1"}, ConfigError, ["gateway", "bridge"]),
            (
                {"topology": "bridge", "ipv4": "10.9.0.0/24", "gateway": "10.8.0.1"},
                ConfigError,
                ["gateway", "10.8.0.1", "10.9.0.0/24"],
            ),
            (
                {"topology": "bridge", "ipv4": "10.9.0.0/24", "gateway": "10.9.0.255"},
                ConfigError,
                ["gateway", "broadcast", "10.9.0.0/24"],
            ),
            (
                {"topology": "bridge", "ipv4": "10.9.0.0/24", "gateway": "10.9.0.0"},
                ConfigError,
                ["gateway", "network"],
            ),
            ({"egress": "nope0"}, ConfigError, ["egress", "nope0", "no such interface"]),
            ({"egress": []}, ConfigError, ["egress", "auto"]),
            ({"egress": ["auto", "up0"]}, ConfigError, ["egress", "auto"]),
            ({"egress": "a/b"}, ConfigError, ["egress", "a/b"]),
            ({"mtu": 67}, ConfigError, ["mtu", "67", "68"]),
            ({"mtu": 65536}, ConfigError, ["mtu", "65536", "65535"]),
            ({"mtu": 1000}, ConfigError, ["mtu", "1000", "1280", "ipv6"]),
            ({"mtu": "big"}, ConfigError, ["mtu", "big"]),
            ({"bridge": "br0"}, ConfigError, ["bridge", "br0"]),
            (
                {"topology": "bridge", "bridge": "much-too-long-0"[:16] + "x"},
                ConfigError,
                ["bridge", "15"],
            ),
            ({"name": "Upper"}, ConfigError, ["name", "Upper", "lower-case"]),
            ({"name": ""}, ConfigError, ["name"]),
            ({"name": "../x"}, ConfigError, ["name", "../x"]),
            ({"policy": "allow@publik"}, PolicyError, ["publik", "public"]),
            ({"dns": ["8.8.8"]}, ConfigError, ["dns", "8.8.8"]),
            ({"rest_s": -1}, ConfigError, ["rest_s", "-1"]),
            ({"colour": "red"}, ConfigError, ["colour"]),
            (
                {"topology": "bridge", "bridge": "free0", "ipv4": "45.66.77.0/24"},
                ConflictError,
                ["ipv4", "45.66.77.0/24", UPLINK],
            ),
            (
                {"topology": "bridge", "bridge": "free0", "ipv6": "2a0a:1234::/64"},
                ConflictError,
                ["ipv6", "2a0a:1234::/64", UPLINK],
            ),
            ({"ipv4": "45.66.77.0/26"}, ConflictError, ["ipv4", "45.66.77.0/26", UPLINK]),
            ({"ipv4": "172.20.0.0/16"}, ConflictError, ["ipv4", "standing", "172.20.0.0/16"]),
            ({"name": "standing", "mtu": 1300}, ConflictError, ["standing", "remove it first"]),
            ({"topology": "bridge"}, ConflictError, ["bridge", "fcbr0", "bridged"]),
            ({"topology": "bridge", "bridge": UPLINK}, ConflictError, ["bridge", UPLINK, "veth"]),
            ({"topology": "bridge", "bridge": "lo"}, ConflictError, ["bridge", "lo"]),
            ({"topology": "bridge", "bridge": "alien0"}, ConflictError, ["bridge", "alien0"]),
        ],
        ids=short,
    )
    def test_refused(
        self,
        crowded: Crowded,
        spec: dict[str, object],
        error: type[GuestnetError],
        words: list[str],
    ) -> None:
        host = crowded.host
        free = {"ipv4": "10.9.0.0/24", "ipv6": "fd77:9::/64"}
        with crowded.unchanged(), pytest.raises(error) as caught:
            host.create_network({"name": "new", **free, **spec})
        assert type(caught.value) is error
        assert [word for word in words if word not in str(caught.value)] == []

    def test_the_environment_s_mistakes_name_their_variable(self) -> None:
        for variable, value, words in (
            ("GUESTNET_SUBNET", "10.1.2.3/24", "10.1.2.0/24"),
            ("GUESTNET_SUBNET6", "fd00::/65", "64"),
            ("GUESTNET_MTU", "12", "68"),
            ("GUESTNET_MTU", "", "empty"),
            ("GUESTNET_BRIDGE", "a b", "letters"),
            ("GUESTNET_EGRESS", "up0,", "interface"),
        ):
            with pytest.raises(ConfigError) as caught:
                NetworkSpec.from_env({variable: value}, name="default")
            assert variable in str(caught.value)
            assert words in str(caught.value)

    def test_a_network_with_guests_is_not_removed(self, crowded: Crowded) -> None:
        host = crowded.host
        with crowded.unchanged(), pytest.raises(ConflictError, match="resident"):
            host.remove_network("standing")
        with pytest.raises(NotFoundError, match=r"nowhere.*standing"):
            host.remove_network("nowhere")


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowded]:
    """A site with a network of two guests, a bridge of someone else's, and a foreign TAP."""
    state = tmp_path_factory.mktemp("crowded")
    with World() as world, Host.open(state, site=world.site.path) as host:
        world.site.ip("link add alien0 type bridge", "tuntap add dev alien-tap mode tap")
        host.create_network({"name": "standing", "ipv4": "172.20.0.0/24", "rest_s": 0})
        host.create_network(
            {"name": "bridged", "topology": "bridge", "ipv4": "172.30.0.0/24", "rest_s": 0}
        )
        host.attach("resident", network="standing", tap="resident0")
        host.attach("neighbour", network="bridged", mac="02:00:00:00:00:77")
        world.guest.ip("link add other0 type bridge")
        yield Crowded(world, host, Standing.of(host, world))


class TestGuests:
    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"network": "nowhere"}, NotFoundError, ["network", "nowhere", "standing"]),
            ({"network": "../x"}, ConfigError, ["network", "../x"]),
            ({"ipv4": "172.20.0.1"}, ConfigError, ["ipv4", "172.20.0.1", "172.20.0.2"]),
            ({"ipv4": "172.21.0.2"}, ConfigError, ["ipv4", "172.21.0.2", "172.20.0.0/24"]),
            ({"ipv4": "172.20.0.2"}, ConflictError, ["ipv4", "172.20.0.2", "resident"]),
            ({"ipv4": "172.20.0.2.5"}, ConfigError, ["ipv4", "172.20.0.2.5"]),
            (
                {"ipv4": "172.20.0.6", "ipv6": "fd42:6d73:62:9::2"},
                ConflictError,
                ["ipv6", "62:1::2"],
            ),
            ({"ipv6": "fd42:6d73:62:1::3"}, ConfigError, ["ipv6", "fd42:6d73:62:1::2"]),
            ({"network": "bridged", "ipv4": "172.30.0.1"}, ConfigError, ["ipv4", "gateway"]),
            ({"network": "bridged", "ipv4": "172.30.0.255"}, ConfigError, ["ipv4", "broadcast"]),
            (
                {"network": "bridged", "mac": "02:00:00:00:00:77"},
                ConflictError,
                ["mac", "neighbour"],
            ),
            ({"mac": "01:00:00:00:00:01"}, ConfigError, ["mac", "unicast"]),
            ({"mac": "00:00:00:00:00:00"}, ConfigError, ["mac", "zero"]),
            ({"mac": "02:00:00:00:00"}, ConfigError, ["mac", "02:6d:73:00:00:02"]),
            ({"mtu": 67}, ConfigError, ["mtu", "67", "68"]),
            ({"mtu": 65536}, ConfigError, ["mtu", "65536"]),
            ({"mtu": 1279}, ConfigError, ["mtu", "1279", "1280"]),
            ({"tap": "resident0"}, ConflictError, ["tap", "resident0", "resident"]),
            ({"tap": "alien-tap"}, ConflictError, ["tap", "alien-tap"]),
            ({"tap": UPLINK}, ConflictError, ["tap", UPLINK]),
            ({"tap": "lo"}, ConflictError, ["tap", "lo"]),
            ({"tap": "fcbr0"}, ConflictError, ["tap", "fcbr0"]),
            ({"tap": "0123456789abcdef"}, ConfigError, ["tap", "15"]),
            ({"tap": "a/b"}, ConfigError, ["tap", "a/b"]),
            ({"tap": "a b"}, ConfigError, ["tap"]),
            ({"tap": "tap%d"}, ConfigError, ["tap", "tap%d"]),
            ({"tap": ".."}, ConfigError, ["tap"]),
            ({"tap": ""}, ConfigError, ["tap"]),
            ({"netns": "no-such-namespace"}, ConfigError, ["netns", "no-such-namespace"]),
            ({"netns": "/no/such/file"}, ConfigError, ["netns", "/no/such/file", "no such"]),
            ({"netns": "absent"}, ConfigError, ["netns", "`ip netns add absent`"]),
            ({"netns": "/etc/passwd"}, ConfigError, ["netns", "/etc/passwd"]),
            ({"netns": "/proc/self/ns/uts"}, ConfigError, ["netns", "/proc/self/ns/uts"]),
            ({"netns": ""}, ConfigError, ["netns"]),
            ({"netns": "SITE"}, ConfigError, ["netns", "namespace"]),
            ({"netns": "GUEST", "guest_interface": "other0"}, ConflictError, ["other0"]),
            ({"netns": "GUEST", "guest_interface": "lo"}, ConflictError, ["lo"]),
            ({"netns": "GUEST", "guest_interface": "x" * 16}, ConfigError, ["guest_interface"]),
            ({"netns": "GUEST", "tap": "alien-tap"}, ConflictError, ["alien-tap"]),
            ({"netns": "GUEST", "owner": 1000}, ConfigError, ["owner"]),
            ({"netns": "GUEST", "queues": 2}, ConfigError, ["queues"]),
            ({"queues": 0}, ConfigError, ["queues", "0"]),
            ({"queues": 257}, ConfigError, ["queues", "257"]),
            ({"owner": -1}, ConfigError, ["owner", "-1"]),
            ({"owner": 1 << 32}, ConfigError, ["owner"]),
            ({"policy": "allow@"}, PolicyError, ["policy", "^"]),
            ({"policy": "allow@public:tcp:99999"}, PolicyError, ["65535"]),
            ({"policy": "alow@public"}, PolicyError, ["allow"]),
            ({"colour": "red"}, ConfigError, ["colour"]),
        ],
        ids=short,
    )
    def test_refused(
        self,
        crowded: Crowded,
        options: dict[str, Any],
        error: type[GuestnetError],
        words: list[str],
    ) -> None:
        world, host = crowded.world, crowded.host
        places = {"SITE": str(world.site.path), "GUEST": str(world.guest.path)}
        options = {"network": "standing", **options}
        if "netns" in options:
            options["netns"] = places.get(options["netns"], options["netns"])
        with crowded.unchanged(), pytest.raises(error) as caught:
            host.attach("new", **options)
        assert type(caught.value) is error
        assert [word for word in words if word not in str(caught.value)] == []

    def test_a_pipe_is_not_waited_for(self, world: World, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        inside = (
            "host.create_network({'name': 'default'})\n"
            f"host.attach('vm', netns='{tmp_path}/pipe')\n"
        )
        told = told_by(None, tmp_path / "state", str(world.site.path), inside)
        assert told["kind"] == "ConfigError"
        assert "pipe" in told["text"]

    @pytest.mark.parametrize(
        "guest", ["", "x" * 256, "é" * 128, "\udcff", "nul\0", None, 7, b"bytes"], ids=short
    )
    def test_ids_that_are_none(self, crowded: Crowded, guest: Any) -> None:
        host = crowded.host
        with crowded.unchanged():
            for call in (host.attach, host.detach):
                with pytest.raises(ConfigError, match="guest"):
                    call(guest)

    @pytest.mark.parametrize(
        "guest",
        [
            "../../etc/passwd",
            "a;reboot",
            "$(reboot)",
            "new\nline",
            "quote'\"`",
            '"; flush ruleset; "',
            "%s%n",
            "-rf",
            " ",
            "é" * 127,
            "x" * 255,
            "\u202eevil",
            "{}",
        ],
        ids=short,
    )
    def test_ids_that_look_dangerous_are_just_text(self, crowded: Crowded, guest: str) -> None:
        host = crowded.host
        with crowded.unchanged():
            made = host.attach(guest, network="bridged")
            assert made.guest == guest
            assert made.tap.startswith("gn")
            assert host.attachment(guest) == made
            assert host.usage(guest).guest == guest
            assert host.detach(guest)

    def test_ids_alike_in_their_first_15_bytes_do_not_collide(self, crowded: Crowded) -> None:
        host = crowded.host
        twins = [f"the-same-beginning-{n}" for n in range(4)]
        with crowded.unchanged():
            for network in ("bridged", "standing"):
                made = [host.attach(guest, network=network) for guest in twins]
                assert len({each.tap for each in made}) == len(twins)
                assert len({each.mac for each in made}) == len(twins)
                assert len({each.ipv4 for each in made}) == len(twins)
                for guest in twins:
                    host.detach(guest)

    def test_attaching_twice(self, crowded: Crowded) -> None:
        world, host = crowded.world, crowded.host
        first = host.attachment("resident")
        with crowded.unchanged():
            assert host.attach("resident", network="standing") == first
            assert host.attach("resident", network="standing", tap="resident0") == first
            for options, key in (
                ({"network": "bridged"}, "network"),
                ({"mac": "02:00:00:00:00:09"}, "mac"),
                ({"mtu": 1400}, "mtu"),
                ({"tap": "other0"}, "tap"),
                ({"ipv4": "172.20.0.6"}, "ipv4"),
                ({"policy": "allow@public"}, "policy"),
                ({"netns": world.guest.path}, "netns"),
                ({"queues": 2}, "queues"),
            ):
                with pytest.raises(ConflictError, match=f"{key}=.*detach it first"):
                    host.attach("resident", **{"network": "standing", **options})

    def test_detaching_the_unknown_succeeds_and_says_so(self, crowded: Crowded) -> None:
        host = crowded.host
        with crowded.unchanged():
            assert host.detach("nobody") is False
            assert host.detach("resident", generation=10**9) is False
            for ask in (host.attachment, host.usage):
                with pytest.raises(NotFoundError, match="nobody"):
                    ask("nobody")
            with pytest.raises(NotFoundError, match="nobody"):
                host.explain("nobody", "tcp", "1.1.1.1", 80)

    @pytest.mark.parametrize(
        ("question", "key"),
        [
            (("tcp", "1.1.1.1", None), "port"),
            (("tcp", "1.1.1.1", 65536), "port"),
            (("tcp", "1.1.1", 80), "address"),
            (("tcpp", "1.1.1.1", 80), "protocol"),
            (("tcp", "1.1.1.1", 80, "sideways"), "direction"),
        ],
    )
    def test_questions_that_no_packet_asks(
        self, crowded: Crowded, question: tuple[Any, ...], key: str
    ) -> None:
        host = crowded.host
        with pytest.raises(ConfigError, match=key):
            host.explain("resident", *question)

    @pytest.mark.parametrize("topology", ["routed", "bridge"])
    def test_a_full_pool_says_how_many_it_holds(
        self, world: World, host: Host, topology: str
    ) -> None:
        spec = {"name": "small", "topology": topology, "ipv4": "10.9.0.0/30", "ipv6": None}
        host.create_network(spec)
        host.attach("first", network="small")
        with unchanged(host, world), pytest.raises(PoolFullError) as caught:
            host.attach("second", network="small")
        for word in ("small", "all 1 ", "10.9.0.0/30", "larger pool"):
            assert word in str(caught.value)
        host.detach("first")
        assert host.attach("second", network="small").guest == "second"


class TestTheKernelRefuses:
    """Truly: by what it is asked, or by what was taken away from under it."""

    def test_a_namespace_without_ipv6(self, world: World, host: Host) -> None:
        world.guest.sysctl("ipv6.conf.all.disable_ipv6", 1)
        world.guest.sysctl("ipv6.conf.default.disable_ipv6", 1)
        host.create_network({"name": "default"})
        with unchanged(host, world), pytest.raises(HostError) as caught:
            host.attach("vm", netns=world.guest.path)
        assert "eth0" in str(caught.value)
        assert caught.value.errno != 0

    def test_a_larger_mtu_than_a_tap_can_have(self, world: World, host: Host) -> None:
        host.create_network({"name": "default"})
        with unchanged(host, world), pytest.raises(HostError, match=r"EINVAL.*mtu"):
            host.attach("vm", mtu=65535)

    def test_our_table_is_gone(self, world: World, host: Host) -> None:
        host.create_network({"name": "default"})
        live = host.attach("live", netns=world.guest.path, policy="allow@public")
        world.site.run(["nft", "delete", "table", "inet", "guestnet"])
        before = names(world.site)
        for policy in ("allow@public", "allow@private"):  # installed already, and new
            with pytest.raises(HostError, match=r"nft.*guestnet|nft policy"):
                host.attach("vm", policy=policy)
            assert names(world.site) == before
            assert [each.guest for each in host.attachments()] == ["live"]
        assert host.reconcile().steps
        assert host.attachment("live") == live
        made = host.attach("vm", policy="allow@private")
        assert made.tap in names(world.site)
        wanted = doors(ALLOWED.addresses)
        assert_open(world.guest, wanted)

    def test_a_policy_that_failed_once_is_installed_the_next_time(
        self, world: World, host: Host
    ) -> None:
        """After another tool restored the tables from a copy of its own."""
        host.create_network({"name": "default"})
        copy = world.site.run(["nft", "list", "table", "inet", "guestnet"]).stdout
        world.site.run(["nft", "delete", "table", "inet", "guestnet"])
        with pytest.raises(HostError):
            host.attach("vm", netns=world.guest.path, policy="allow@public")
        world.site.run(["nft", "-f", "-"], stdin=copy)
        host.attach("vm", netns=world.guest.path, policy="allow@public")
        wanted = doors(ALLOWED.addresses)
        assert_open(world.guest, wanted)

    def test_the_guest_s_namespace_goes_first(self, world: World, host: Host) -> None:
        """A detach of a guest whose namespace is gone with its veth."""
        host.create_network({"name": "default"})
        before = Standing.of(host, world)
        brief = world.add_guest("brief")
        made = host.attach("vm", netns=brief.path)
        brief.delete()
        for _ in range(100):
            if made.tap not in names(world.site):
                break
        else:
            pytest.fail("the kernel kept the veth")
        assert host.usage("vm").rx_bytes == 0
        assert host.detach("vm")
        assert Standing.of(host, world) == before

    def test_the_tap_is_deleted_by_hand(self, world: World, host: Host) -> None:
        host.create_network({"name": "default"})
        before = Standing.of(host, world)
        made = host.attach("vm")
        world.site.ip(f"link delete {made.tap}")
        assert host.reconcile().steps
        assert made.tap in names(world.site)
        world.site.ip(f"link delete {made.tap}")
        assert host.detach("vm")
        assert Standing.of(host, world) == before

    def test_a_foreign_device_under_a_name_that_we_would_choose(
        self, world: World, host: Host
    ) -> None:
        host.create_network({"name": "default"})
        world.site.ip("link add gn1-0 type bridge")
        with unchanged(host, world), pytest.raises(ConflictError, match=r"tap='gn1-0'.*exists"):
            host.attach("vm")
        shown = world.site.run(["ip", "-d", "link", "show", "gn1-0"]).stdout
        assert "bridge" in shown
        assert "group default" in shown


#: Runs what a test says in a process of its own, and tells what became of it in JSON.
_SCRIPT = """
import json, os, resource, sys
from pathlib import Path
from guestnet.errors import GuestnetError
from guestnet.host import Host
state, site, before, inside = sys.argv[1:]
told = {}
try:
    exec(before)
    with Host.open(state, site=site or None) as host:
        exec(inside)
except GuestnetError as error:
    told = {"kind": type(error).__name__, "text": str(error)}
print(json.dumps(told))
"""


def told_by(
    namespace: Namespace | None,
    state: Path,
    site: str,
    inside: str,
    *,
    before: str = "",
    wrapper: tuple[str, ...] = (),
) -> dict[str, str]:
    """What a process of its own, perhaps wrapped by another, says that guestnet raised."""
    argv = [*wrapper, sys.executable, "-c", _SCRIPT, str(state), site, before, inside]
    if namespace is not None:
        argv = namespace.argv(argv)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


class TestTheMachineLacks:
    def test_dev_net_tun(self, world: World, tmp_path: Path) -> None:
        hidden = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net; exec "$@"', "-")
        inside = (
            "host.create_network({'name': 'default'})\n"
            "host.attach('vm-ns', netns=os.environ['GUEST'])\n"
            "host.attach('vm')"
        )
        os.environ["GUEST"] = str(world.guest.path)
        try:
            told = told_by(None, tmp_path, str(world.site.path), inside, wrapper=hidden)
        finally:
            del os.environ["GUEST"]
        assert told["kind"] == "HostError"
        for word in ("/dev/net/tun", "ENOENT", "modprobe tun"):
            assert word in told["text"]
        with Host.open(tmp_path, site=world.site.path) as host:
            # A namespace guest needs no TAP.
            assert [each.guest for each in host.attachments()] == ["vm-ns"]
            assert [name for name in names(world.site) if name.startswith("gn")] == ["gn1-0"]

    def test_root(self, namespace: Namespace, tmp_path: Path) -> None:
        tmp_path.chmod(0o777)
        for directory in tmp_path.parents:
            if directory.owner() == "root" and directory.name.startswith("pytest"):
                directory.chmod(0o755)
        nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        told = told_by(
            namespace, tmp_path / "state", "", "host.create_network({'name': 'x'})", wrapper=nobody
        )
        assert told["kind"] == "HostError"
        assert "root" in told["text"] or "CAP_NET_ADMIN" in told["text"]
        assert names(namespace) == ["lo"]
        assert namespace.run(["nft", "list", "ruleset"]).stdout == ""

    def test_the_capability(self, namespace: Namespace, tmp_path: Path) -> None:
        """Root in a container that may not configure networks."""
        bounded = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
        told = told_by(
            namespace, tmp_path, "", "host.create_network({'name': 'x'})", wrapper=bounded
        )
        assert told["kind"] == "HostError"
        assert "EPERM" in told["text"] or "not permitted" in told["text"]
        assert "root" in told["text"] or "CAP_NET_ADMIN" in told["text"]
        assert namespace.run(["nft", "list", "ruleset"]).stdout == ""
        with namespace.enter(), Host.open(tmp_path) as host:
            assert host.networks() == []

    def test_descriptors(self, world: World, tmp_path: Path) -> None:
        """Each limit of open files ends in an error of ours, and in nothing else."""
        inside = (
            "host.create_network({'name': 'default'})\n"
            "used = len(os.listdir('/proc/self/fd')) - 1\n"
            "failed = 0\n"
            "for room in range(6):\n"
            "    resource.setrlimit(resource.RLIMIT_NOFILE, (used + room, 4096))\n"
            "    try:\n"
            "        host.attach('vm', netns=os.environ['GUEST'])\n"
            "        break\n"
            "    except GuestnetError as error:\n"
            "        failed += 1\n"
            "        told['text'] = str(error)\n"
            "    finally:\n"
            "        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))\n"
            "    left = [each for each in host._state.store.leases() if each.state != 'released']\n"
            "    assert left == [], left\n"
            "    assert host.reconcile().steps == ()\n"
            "assert failed > 0\n"
            "host.detach('vm')\n"
        )
        os.environ["GUEST"] = str(world.guest.path)
        try:
            told = told_by(None, tmp_path, str(world.site.path), inside)
        finally:
            del os.environ["GUEST"]
        assert "EMFILE" in told["text"] or "unable to open" in told["text"]
        assert names(world.guest) == ["lo"]

    def test_room_on_the_disk(self, world: World, tmp_path: Path) -> None:
        """The store cannot grow: the attach fails, and the kernel has nothing of it."""
        inside = (
            "host.create_network({'name': 'default'})\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))\n"
            "try:\n"
            "    for n in range(50):\n"
            "        host.attach(f'vm-{n}')\n"
            "finally:\n"
            "    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
        )
        told = told_by(None, tmp_path, str(world.site.path), inside)
        assert told["kind"] == "HostError"
        assert "guestnet.db" in told["text"]
        with Host.open(tmp_path, site=world.site.path) as host:
            assert host.reconcile().steps == ()
            taps = {each.tap for each in host.attachments()}
            assert taps == {name for name in names(world.site) if name.startswith("gn")}

    def test_a_store_that_can_be_read(self, world: World, tmp_path: Path) -> None:
        (tmp_path / "guestnet.db").write_bytes(b"this is no database" * 100)
        with pytest.raises(HostError, match=r"guestnet\.db.*not a database"):
            Host.open(tmp_path, site=world.site.path)
        file = tmp_path / "file"
        file.write_text("")
        with pytest.raises(HostError, match="file"):
            Host.open(file, site=world.site.path)
        # Nothing is held by what could not be opened.
        with Host.open(tmp_path / "other", site=world.site.path):
            pass


class TestOneOwner:
    def test_a_second_one_in_this_process_is_told_who_it_is(
        self, world: World, host: Host, tmp_path: Path, namespace: Namespace
    ) -> None:
        me = f"pid {os.getpid()} "
        with pytest.raises(BusyError) as caught:
            Host.open(tmp_path / "state", site=namespace.path)
        assert me in str(caught.value)
        assert str(tmp_path / "state") in str(caught.value)
        with pytest.raises(
            BusyError, match=r"network namespace.*another|namespace of its own"
        ) as caught:
            Host.open(tmp_path / "other", site=world.site.path)
        assert me in str(caught.value)
        assert host.networks() == []

    def test_a_second_process_is_told_who_the_first_is(
        self, world: World, host: Host, tmp_path: Path, namespace: Namespace
    ) -> None:
        for state, site in (("state", namespace.path), ("other", world.site.path)):
            told = told_by(None, tmp_path / state, str(site), "")
            assert told["kind"] == "BusyError"
            assert f"pid {os.getpid()} " in told["text"]
        assert host.networks() == []

    def test_the_next_one_may_when_the_first_is_gone(self, world: World, tmp_path: Path) -> None:
        for _ in range(3):
            with Host.open(tmp_path, site=world.site.path):
                pass
        assert told_by(None, tmp_path, str(world.site.path), "os._exit") == {}
        with Host.open(tmp_path, site=world.site.path):
            pass

    def test_threads_may_attach_the_same_guest_at_once(self, world: World, host: Host) -> None:
        host.create_network({"name": "default"})
        made, errors = [], []

        def attach() -> None:
            try:
                made.append(host.attach("vm", policy="allow@public"))
            except GuestnetError as error:
                errors.append(error)

        threads = [threading.Thread(target=attach) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len({each.generation for each in made}) == 1


class TestTheMachineChanges:
    def test_the_egress_interface_vanishes_and_returns(self, world: World, host: Host) -> None:
        host.create_network({"name": "default"})
        host.attach("vm", netns=world.guest.path, policy="allow@public")
        wanted = doors(ALLOWED.addresses)
        assert_open(world.guest, wanted)
        world.site.ip(f"link delete {UPLINK}")
        host.follow()
        assert host.network("default").egress == ()
        assert_none_open(world.guest, wanted)
        verdict = host.explain("vm", "tcp", str(ALLOWED.ipv4), 80)
        assert (verdict.allowed, verdict.text) == (False, "egress")
        found = [f for f in host.doctor() if f.check == "egress"]
        assert [(f.status, "default" in f.detail, bool(f.remedy)) for f in found] == [
            ("warning", True, True)
        ]
        restore_uplink(world)
        host.follow()
        assert host.network("default").egress == (UPLINK,)
        assert_open(world.guest, wanted)

    def test_a_named_egress_interface_vanishes_and_returns(self, world: World, host: Host) -> None:
        """Nobody has to call anything: what is named is waited for."""
        host.create_network({"name": "default", "egress": UPLINK})
        host.attach("vm", netns=world.guest.path, policy="allow@public")
        wanted = doors(ALLOWED.addresses)
        world.site.ip(f"link delete {UPLINK}")
        assert_none_open(world.guest, wanted)
        found = [f for f in host.doctor() if f.check == "egress"]
        assert [(f.status, UPLINK in f.detail, bool(f.remedy)) for f in found] == [
            ("error", True, True)
        ]
        other = world.add_guest("other")
        assert host.attach("vm-2", netns=other.path).mtu == 1500  # meanwhile, too
        restore_uplink(world)
        assert_open(world.guest, wanted)

    def test_a_route_appears_over_the_pool(self, world: World, host: Host) -> None:
        host.create_network({"name": "default"})
        other = world.add_guest("other")
        live = host.attach("live", netns=world.guest.path, policy="allow@public")
        assert str(live.ipv4) == "172.16.0.2/30"
        world.site.ip(f"route add 172.16.0.0/15 via {ROUTER_IPV4.ip}")
        world.site.ip(f"route add fd42:6d73:62:3::/64 via {ROUTER_IPV6.ip}")
        next_one = host.attach("next", netns=other.path, policy="allow@public")
        assert str(next_one.ipv4) == "172.18.0.2/30"
        skipped = host.network("default").skipped
        assert {(part.pool, UPLINK in part.reason) for part in skipped} == {
            ("172.16.0.0/15", True),
            ("fd42:6d73:62:3::/64", True),
        }
        # The one that lives there stays, and reaches what it did: old flows and new ones.
        assert host.attachment("live") == live
        wanted = doors(ALLOWED.addresses)
        assert_open(world.guest, wanted)
        assert_open(other, wanted)
        found = [f for f in host.doctor() if f.check == "overlap"]
        assert [("live" in f.detail, "172.16.0.0/15" in f.detail) for f in found] == [(True, True)]
        assert host.detach("live")
        again = host.attach("live", netns=world.guest.path, policy="allow@public")
        assert again.ipv4 is not None
        assert str(again.ipv4.ip).startswith("172.18.")

    def test_a_guest_in_what_the_host_now_uses_is_still_a_guest(
        self, world: World, host: Host
    ) -> None:
        """It must not become part of `private` for others."""
        host.create_network({"name": "default"})
        other = world.add_guest("other")
        live = host.attach("live", netns=world.guest.path, policy="allow:ingress@guests")
        assert live.ipv4 is not None
        world.site.ip(f"route add 172.16.0.0/15 via {ROUTER_IPV4.ip}")
        host.attach("next", netns=other.path, policy="allow@private")
        wanted = doors([live.ipv4.ip], tcp=None, udp=None)
        assert_none_open(other, wanted)
        assert not host.explain("next", "icmpv4", live.ipv4.ip).allowed

    def test_a_pool_that_the_host_uses_up_is_refused(self, world: World, host: Host) -> None:
        world.site.ip(f"route add 10.8.0.0/14 via {ROUTER_IPV4.ip}")
        with unchanged(host, world), pytest.raises(ConflictError, match=r"10\.8\.0\.0/14"):
            host.create_network({"name": "new", "ipv4": "10.9.0.0/24", "ipv6": None})

    def test_a_pool_that_is_used_up_later_is_full_and_says_why(
        self, world: World, host: Host
    ) -> None:
        host.create_network({"name": "new", "ipv4": "10.9.0.0/24", "ipv6": None})
        world.site.ip(f"route add 10.8.0.0/14 via {ROUTER_IPV4.ip}")
        with pytest.raises(PoolFullError, match="64 more are skipped: the host uses them"):
            host.attach("vm", network="new")


def restore_uplink(world: World) -> None:
    """Give the site its uplink again."""
    veth(world.internet, "site0", world.site, UPLINK)
    world.internet.ip(
        f"address add {ROUTER_IPV4} dev site0", f"address add {ROUTER_IPV6} dev site0 nodad"
    )
    world.site.ip(
        f"address add {SITE_IPV4} dev {UPLINK}",
        f"address add {SITE_IPV6} dev {UPLINK} nodad",
        f"route add default via {ROUTER_IPV4.ip} dev {UPLINK}",
        f"route add default via {ROUTER_IPV6.ip} dev {UPLINK}",
    )


def test_hostile_names_reach_no_shell(world: World, host: Host, tmp_path: Path) -> None:
    """The one name that a guest's owner chooses for the kernel is checked before it is used."""
    host.create_network({"name": "default"})
    for tap in ("a;touch x", "$(touch x)", "`id`", "a\nb", 'x" accept; #', "gn*", "a\0b", "é"):
        with pytest.raises(ConfigError, match="tap"):
            host.attach("vm", tap=tap)
    assert not (tmp_path / "x").exists()
    assert socket.if_nameindex()
