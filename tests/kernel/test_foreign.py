"""guestnet beside other tools' firewalls: guests work, and nothing of others' is touched."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from guestnet.host import Host
from hostile import assert_none_open, assert_open, doors
from lab.addresses import ALLOWED, PRIVATE, SITE_IPV4, SITE_IPV6, Server
from lab.internet import Servers
from lab.netns import Namespace
from lab.servers import ECHO
from lab.world import World

pytestmark = pytest.mark.root

#: As iptables-nft and Docker leave it: default drop, their own devices let through, chains between.
DOCKER = """
table ip filter {
  counter seen { packets 7 bytes 420 }
  chain DOCKER-USER {
    return
  }
  chain STAGE-2 {
    oifname "docker0" counter drop
    return
  }
  chain DOCKER-ISOLATION-STAGE-1 {
    iifname "docker0" oifname != "docker0" counter jump STAGE-2
    return
  }
  chain DOCKER { }
  chain FORWARD {
    type filter hook forward priority filter; policy drop;
    counter jump DOCKER-USER
    counter jump DOCKER-ISOLATION-STAGE-1
    oifname "docker0" ct state related,established counter accept
    oifname "docker0" counter jump DOCKER
    iifname "docker0" oifname != "docker0" counter accept
  }
  chain INPUT { type filter hook input priority filter; policy accept; }
}
table ip nat {
  chain DOCKER {
    iifname "docker0" counter return
    tcp dport 8080 counter dnat to 172.17.0.2:80
  }
  chain PREROUTING {
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local counter jump DOCKER
  }
  chain POSTROUTING {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr 172.17.0.0/16 oifname != "docker0" counter masquerade
  }
}
"""
#: As firewalld ends its forward chain.
FIREWALLD = """
table inet firewalld {
  set trusted { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 } }
  quota spent { over 10 mbytes }
  limit slow { rate 400/minute }
  chain filter_FORWARD {
    type filter hook forward priority filter + 10; policy accept;
    ct state established,related accept
    iifname "lo" accept
    ip saddr @trusted accept
    ct state invalid drop
    reject with icmpx type admin-prohibited
  }
}
"""
#: As ufw has IPv6.
UFW6 = """
table ip6 filter {
  chain ufw6-before-forward { }
  chain FORWARD {
    type filter hook forward priority filter; policy drop;
    counter jump ufw6-before-forward
  }
}
"""
#: What says nothing about unknown traffic is left alone altogether.
OPEN_MINDED = """
table inet watcher {
  map names { type ipv4_addr : mark; elements = { 192.0.2.1 : 0x7 } }
  chain watch {
    type filter hook forward priority -5; policy accept;
    counter
    tcp dport 6667 drop
  }
  chain early { type filter hook prerouting priority -200; policy accept; meta mark set 0; }
}
"""
FOREIGN = {"docker": DOCKER, "firewalld": FIREWALLD, "ufw6": UFW6, "open-minded": OPEN_MINDED}
#: The forward chains that would drop guests' traffic.
DROPPING = ("ip filter FORWARD", "inet firewalld filter_FORWARD", "ip6 filter FORWARD")

_TABLE = re.compile(r"^table (\w+) (\S+) \{.*?^\}\n", re.DOTALL | re.MULTILINE)
_OURS = re.compile(r'.* accept comment "guestnet"\n')


def install(site: Namespace, text: str) -> None:
    """Load an nft ruleset in the site."""
    site.run(["nft", "-f", "-"], stdin=text)


def foreign_rules(site: Namespace) -> str:
    """Every table that is not ours, without our accepts, as nft -s writes it."""
    listed = site.run(["nft", "-s", "list", "ruleset"]).stdout
    tables = (match for match in _TABLE.finditer(listed) if match[2] != "guestnet")
    return _OURS.sub("", "".join(match[0] for match in tables))


def our_accepts(site: Namespace) -> list[str]:
    """Our rules in tables of others, each with its chain, as `family table chain: rule`."""
    listed = json.loads(site.run(["nft", "-j", "list", "ruleset"]).stdout)["nftables"]
    found = []
    for entry in listed:
        rule = entry.get("rule")
        if rule is None or rule["table"] == "guestnet" or rule.get("comment") != "guestnet":
            continue
        match = rule["expr"][0]["match"]
        way, device = match["left"]["meta"]["key"], match["right"]
        found.append(f"{rule['family']} {rule['table']} {rule['chain']}: {way} {device}")
    return found


@pytest.fixture
def beside(world: World) -> World:
    """A world in whose site four other tools have their rules."""
    install(world.site, "".join(FOREIGN.values()))
    return world


ALLOWED_DOORS = doors(ALLOWED.addresses)
#: What of them Docker's IPv4 table takes away from guests.
DOCKER_S_DOORS = [door for door in ALLOWED_DOORS if door.address.version == 4]


class TestGuestsWork:
    @pytest.mark.parametrize("topology", ["routed", "bridge"])
    def test_beside_all_of_them(self, beside: World, host: Host, topology: str) -> None:
        host.create_network({"name": "default", "topology": topology})
        host.attach("vm", netns=beside.guest.path, policy="allow@public")
        assert_open(beside.guest, ALLOWED_DOORS)
        private = doors(PRIVATE.addresses)
        assert_none_open(beside.guest, private)

    def test_a_policy_that_lets_in_works_too(self, beside: World, host: Host) -> None:
        host.create_network({"name": "default"})
        other = beside.add_guest()
        host.attach("one", netns=beside.guest.path, policy="allow@guests")
        two = host.attach("two", netns=other.path, policy="allow:ingress@guests")
        assert two.ipv4 is not None
        assert two.ipv6 is not None
        wanted = doors([two.ipv4.ip, two.ipv6.ip], tcp=None, udp=None)
        assert_open(beside.guest, wanted)

    def test_a_device_named_by_its_owner_is_let_through(self, beside: World, host: Host) -> None:
        host.create_network({"name": "default"})
        host.attach("vm", netns=beside.guest.path, tap="mine0", policy="allow@public")
        assert_open(beside.guest, ALLOWED_DOORS)
        named = [rule for rule in our_accepts(beside.site) if rule.endswith("mine0")]
        assert len(named) == 2 * len(DROPPING)


class TestForeignRulesSurvive:
    def test_byte_by_byte_through_everything(self, beside: World, host: Host) -> None:
        before = foreign_rules(beside.site)
        assert before.count("chain") > 12
        host.create_network({"name": "default"})
        host.create_network({"name": "bridge", "topology": "bridge"})
        assert foreign_rules(beside.site) == before
        for _ in range(2):
            host.attach("vm", netns=beside.guest.path, policy="allow@public", tap="mine0")
            assert foreign_rules(beside.site) == before
            host.detach("vm")
            host.reconcile()
            assert foreign_rules(beside.site) == before
        host.follow()
        assert foreign_rules(beside.site) == before
        host.remove_network("bridge")
        host.remove_network("default")
        listed = beside.site.run(["nft", "-s", "list", "ruleset"]).stdout
        assert listed == before  # now there is nothing of ours to leave out

    def test_the_accepts_are_as_few_as_can_be(self, beside: World, host: Host) -> None:
        host.create_network({"name": "default"})
        expected = {f"{chain}: {way} gn*" for chain in DROPPING for way in ("iifname", "oifname")}
        assert sorted(our_accepts(beside.site)) == sorted(expected)
        host.reconcile()
        host.follow()
        assert sorted(our_accepts(beside.site)) == sorted(expected)

    def test_counters_and_quotas_of_others_keep_their_counts(
        self, beside: World, host: Host
    ) -> None:
        host.create_network({"name": "default"})
        host.reconcile()
        listed = beside.site.run(["nft", "list", "counter", "ip", "filter", "seen"]).stdout
        assert "packets 7 bytes 420" in listed

    def test_our_accepts_open_nothing_for_others(self, beside: World, host: Host) -> None:
        """Traffic between two devices of nobody's still meets the foreign drop."""
        host.create_network({"name": "default"})
        other = beside.add_guest("other")
        beside.site.ip(f"link add other0 type veth peer name eth0 netns {other.name}")
        beside.site.ip("address add 192.0.2.1/24 dev other0", "link set other0 up")
        other.ip(
            "address add 192.0.2.2/24 dev eth0",
            "link set eth0 up",
            "route add default via 192.0.2.1",
        )
        beside.site.run(["nft", "delete", "table", "inet", "firewalld"])
        with beside.capture("src host 192.0.2.2") as uplink:
            assert_none_open(other, doors([ALLOWED.addresses[0]]))
            assert uplink.lines() == []


class TestOthersRestart:
    def test_after_a_restart_of_docker_guests_come_back_by_themselves(
        self, beside: World, host: Host
    ) -> None:
        host.create_network({"name": "default"})
        host.attach("vm", netns=beside.guest.path, policy="allow@public")
        # Docker flushes its chain and writes it anew; its policy stays.
        beside.site.run(["nft", "flush", "chain", "ip", "filter", "FORWARD"])
        assert_none_open(beside.guest, DOCKER_S_DOORS)
        before = foreign_rules(beside.site)
        host.follow()
        assert_open(beside.guest, ALLOWED_DOORS)
        assert foreign_rules(beside.site) == before

    def test_one_that_is_started_later_is_noticed(self, world: World, host: Host) -> None:
        host.create_network({"name": "default"})
        host.attach("vm", netns=world.guest.path, policy="allow@public")
        assert_open(world.guest, ALLOWED_DOORS)
        install(world.site, DOCKER)
        assert_none_open(world.guest, DOCKER_S_DOORS)
        host.follow()
        assert_open(world.guest, ALLOWED_DOORS)

    def test_one_that_goes_is_forgotten(self, beside: World, host: Host) -> None:
        host.create_network({"name": "default"})
        beside.site.run(["nft", "delete", "table", "ip", "filter"])
        host.follow()
        assert not any(rule.startswith("ip filter") for rule in our_accepts(beside.site))

    def test_doctor_tells_of_it(self, beside: World, host: Host) -> None:
        host.create_network({"name": "default"})
        found = {
            f.detail.split(" drops")[0]: f for f in host.doctor() if f.check == "foreign filter"
        }
        assert set(found) == set(DROPPING)
        assert {finding.status for finding in found.values()} == {"ok"}
        beside.site.run(["nft", "flush", "chain", "ip", "filter", "FORWARD"])
        statuses = [f for f in host.doctor() if "ip filter FORWARD" in f.detail]
        assert [(f.status, bool(f.remedy)) for f in statuses] == [("warning", True)]

    def test_a_flush_of_everything_is_repaired(self, beside: World, host: Host) -> None:
        host.create_network({"name": "default"})
        host.attach("vm", netns=beside.guest.path, policy="allow@public")
        assert_open(beside.guest, ALLOWED_DOORS)
        beside.site.run(["nft", "flush", "ruleset"])
        assert_none_open(beside.guest, ALLOWED_DOORS)  # at least there is no masquerade
        host.reconcile()
        assert_open(beside.guest, ALLOWED_DOORS)

    def test_flows_that_began_without_our_rules_end_with_the_repair(
        self, beside: World, host: Host
    ) -> None:
        """Others' rules keep conntrack going meanwhile, so such a flow would be established."""
        host.create_network({"name": "default"})
        host.attach("vm", netns=beside.guest.path, policy="allow@public")
        home = Server("home", "home.example.test", SITE_IPV4.ip, SITE_IPV6.ip)
        with Servers(beside.site, [home]), beside.guest.enter():
            beside.site.run(["nft", "delete", "table", "inet", "guestnet"])
            with socket.create_connection((str(SITE_IPV4.ip), ECHO), timeout=1) as flow:
                flow.sendall(b"no rule stops me")
                assert flow.recv(99) == b"no rule stops me"
                host.reconcile()
                with pytest.raises(OSError):  # noqa: PT011, PT012 - reset or silence, at either
                    flow.sendall(b"nor now")
                    assert flow.recv(99) == b""


@dataclass(frozen=True)
class Machine:
    """All of a namespace's network configuration, as its own tools tell it."""

    links: str
    addresses: str
    routes: str
    rules: str
    neighbours: str
    ruleset: str
    sysctls: dict[str, str]

    @classmethod
    def of(cls, site: Namespace) -> Machine:
        """As it is now."""

        def told(*command: str) -> str:
            return site.run(list(command)).stdout

        routes = told("ip", "route", "show", "table", "all")
        routes += told("ip", "-6", "route", "show", "table", "all")
        return cls(
            re.sub(r" allmulti \d+| gso_max_\w+ \d+| numtxqueues.*", "", told("ip", "-d", "link")),
            re.sub(r"valid_lft .*", "", told("ip", "address")),
            re.sub(r" expires \d+sec", "", routes),
            told("ip", "rule") + told("ip", "-6", "rule"),
            "\n".join(
                sorted(
                    f"{entry['dst']} {entry['dev']}"
                    for entry in json.loads(told("ip", "-j", "neigh"))
                    if entry["dev"] != "up0"
                )
            ),
            told("nft", "-s", "list", "ruleset"),
            dict(sysctls(site)),
        )


def sysctls(site: Namespace) -> Iterator[tuple[str, str]]:
    """Every setting below net/ that can be read, but for those of devices that come and go."""
    with site.enter():
        for root in ("ipv4", "ipv6", "core", "bridge"):
            for path in sorted(Path("/proc/sys/net", root).rglob("*")):
                try:
                    yield str(path), path.read_text()
                except OSError:
                    continue


class TestLeaving:
    """Removing the last network leaves the machine as it was before the first."""

    def live(self, world: World, host: Host) -> None:
        host.create_network({"name": "default"})
        host.create_network({"name": "bridge", "topology": "bridge"})
        other = world.add_guest()
        host.attach("vm", netns=world.guest.path, policy="allow@public")
        host.attach("vm-2", netns=other.path, network="bridge", policy="allow@public,allow@host")
        host.attach("vm-3")
        host.attach("vm-4", network="bridge", tap="mine0", mac="02:00:00:00:00:01")
        assert_open(world.guest, ALLOWED_DOORS)
        assert_open(other, ALLOWED_DOORS)
        for guest in ("vm", "vm-2", "vm-3", "vm-4"):
            assert host.detach(guest)
        host.remove_network("bridge")
        host.remove_network("default")

    def test_everything_of_ours_is_gone(self, beside: World, host: Host) -> None:
        before = Machine.of(beside.site)
        self.live(beside, host)
        assert Machine.of(beside.site) == before

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("ipv4.conf.all.accept_redirects", 0),
            ("ipv4.conf.up0.forwarding", 1),
            ("ipv6.conf.up0.forwarding", 1),
            ("ipv4.conf.default.forwarding", 1),
            ("ipv6.conf.up0.accept_ra", 0),
        ],
    )
    def test_settings_that_follow_forwarding_come_back_too(
        self, world: World, host: Host, key: str, value: int
    ) -> None:
        """The kernel resets several settings when the one switch of forwarding is turned."""
        world.site.sysctl(key, value)
        before = Machine.of(world.site).sysctls
        self.live(world, host)
        after = Machine.of(world.site).sysctls
        assert {k: (before[k], after[k]) for k in before if after.get(k) != before[k]} == {}

    def test_forwarding_that_was_on_stays_on(self, world: World, host: Host) -> None:
        world.site.sysctl("ipv4.ip_forward", 1)
        world.site.sysctl("ipv6.conf.all.forwarding", 1)
        self.live(world, host)
        assert world.site.sysctl("ipv4.ip_forward") == "1"
        assert world.site.sysctl("ipv6.conf.all.forwarding") == "1"

    def test_a_setting_of_a_device_that_is_gone_is_let_go(self, world: World, host: Host) -> None:
        world.site.sysctl("ipv6.conf.up0.accept_ra", 1)
        host.create_network({"name": "default"})
        assert world.site.sysctl("ipv6.conf.up0.accept_ra") == "2"
        world.site.ip("link delete up0")
        host.remove_network("default")
        assert world.site.sysctl("ipv4.ip_forward") == "0"
        assert world.site.sysctl("ipv6.conf.all.forwarding") == "0"
        assert world.site.run(["nft", "list", "ruleset"]).stdout == ""

    def test_even_after_a_death_between(self, world: World, tmp_path: Path, host: Host) -> None:
        """What was before is remembered across processes."""
        host.close()
        before = Machine.of(world.site)
        with Host.open(tmp_path / "other", site=world.site.path) as first:
            first.create_network({"name": "default"})
        with Host.open(tmp_path / "other", site=world.site.path) as second:
            second.remove_network("default")
        assert Machine.of(world.site) == before
