"""Real VMs on TAPs of guestnet's, booted from nothing but what `guestnet show` says of them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

import pytest

from guestnet import vmm
from guestnet.host import Host
from guestnet.model import Attachment
from lab.addresses import (
    ALLOWED,
    METADATA,
    METADATA_ALIBABA,
    METADATA_AZURE,
    PRIVATE,
    RESOLVER,
    SITE_IPV4,
    SITE_IPV6,
    Server,
)
from lab.capture import Capture
from lab.internet import Servers
from lab.netns import Namespace
from lab.qemu import Guest, address_args
from lab.servers import ECHO
from lab.world import World

pytestmark = [pytest.mark.root, pytest.mark.guest]

Address = IPv4Address | IPv6Address

TOPOLOGIES = ("routed", "bridge")
#: What guests could send, but for the neighbour discovery that the site itself does.
TRAFFIC = "tcp or udp or icmp or (icmp6 and (ip6[40] == 128 or ip6[40] < 128))"


@dataclass
class Street:
    """A routed and a bridge network, a VM on each, and neighbours who would let everyone in."""

    world: World
    host: Host
    vms: dict[str, Guest] = field(default_factory=dict)
    attachments: dict[str, Attachment] = field(default_factory=dict)
    #: Servers on the host and in the neighbours.
    at_home: list[Servers] = field(default_factory=list)

    def serve(self, namespace: Namespace, addresses: Iterable[Address]) -> None:
        """Play servers at addresses of the site or of a neighbour."""
        servers = [
            Server(
                f"home {address}",
                "home.example.test",
                address if isinstance(address, IPv4Address) else None,
                address if isinstance(address, IPv6Address) else None,
            )
            for address in addresses
        ]
        self.at_home.append(Servers(namespace, servers))

    def arrived(self) -> list[str]:
        """Whatever reached any server, in words."""
        every = (self.world.servers, *self.at_home)
        return [f"{a.kind} {a.address} {a.port}" for each in every for a in each.arrivals()]

    def forget(self) -> None:
        """Begin with empty logs."""
        for servers in (self.world.servers, *self.at_home):
            servers.forget()

    def addresses(self, attachment: Attachment) -> list[Address]:
        """Both addresses of a guest."""
        assert attachment.ipv4 is not None
        assert attachment.ipv6 is not None
        return [attachment.ipv4.ip, attachment.ipv6.ip]


def boot(site: Namespace, attachment: Attachment) -> Guest:
    """A VM as its owner would start it: QEMU's arguments and the kernel's, as guestnet says them.

    The kernel's own argument has no IPv6 (nfsroot.rst); the lab's init has one for it.
    """
    net_args = vmm.render(attachment, "qemu").data
    assert isinstance(net_args, list)
    kernel_args = vmm.render(attachment, "kernel-args").text
    more = address_args(
        ipv6=attachment.ipv6,
        gateway_ipv6=attachment.gateway_ipv6,
        mtu=attachment.mtu,
        dns=attachment.dns,
    )
    return Guest(site, net_args, f"{kernel_args} {more}")


@pytest.fixture(scope="module")
def the_street(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    state = tmp_path_factory.mktemp("street")
    with (
        World() as world,
        Host.open(state, site=world.site.path) as host,
        contextlib.ExitStack() as stack,
    ):
        street = Street(world, host)
        own: list[Address] = [SITE_IPV4.ip, SITE_IPV6.ip]
        for topology in TOPOLOGIES:
            host.create_network(
                {
                    "name": topology,
                    "topology": topology,
                    "dns": [str(a) for a in RESOLVER.addresses],
                }
            )
            made = host.attach(f"vm-{topology}", network=topology, policy="allow@public")
            street.attachments[topology] = made
            house = world.add_guest(f"{topology}-neighbour")
            neighbour = host.attach(
                f"neighbour-{topology}",
                network=topology,
                netns=house.path,
                policy="allow:ingress@any,allow:ingress@guests",
            )
            street.attachments[f"{topology} neighbour"] = neighbour
            street.serve(house, street.addresses(neighbour))
            for each in (made, neighbour):
                own += [g for g in (each.gateway_ipv4, each.gateway_ipv6) if g is not None]
        street.serve(world.site, dict.fromkeys(own))
        for servers in street.at_home:
            stack.callback(servers.stop)
        with ThreadPoolExecutor() as pool:
            booting = {
                topology: pool.submit(boot, world.site, street.attachments[topology])
                for topology in TOPOLOGIES
            }
            for topology, future in booting.items():
                street.vms[topology] = future.result()
                stack.callback(street.vms[topology].stop)
        yield street


@pytest.fixture
def street(the_street: Street) -> Street:
    """The street, with nothing written down of what arrived before."""
    the_street.forget()
    return the_street


@pytest.fixture(params=TOPOLOGIES)
def topology(request: pytest.FixtureRequest) -> str:
    """routed, then bridge."""
    return str(request.param)


def url(address: Address) -> str:
    return f"http://[{address}]/" if address.version == 6 else f"http://{address}/"


def attempts(addresses: Iterable[Address]) -> str:
    """A script that tries TCP, UDP and ICMP with every address at once, and tells what answered."""
    lines = []
    for address in addresses:
        lines += [
            # busybox's wget ends badly when it is given a limit of its own.
            f"(timeout 2 wget -qO /dev/null '{url(address)}' && echo tcp {address}) 2>/dev/null &",
            f"(ping -c 1 -W 2 {address} >/dev/null 2>&1 && echo icmp {address}) &",
            # One datagram to the echo port; whether it arrives is for the server to say.
            f"timeout 1 tftp -g -r x -l /dev/null {address} {ECHO} >/dev/null 2>&1 &",
        ]
    return "\n".join([*lines, "wait"])


class TestReach:
    def test_the_vm_has_what_it_was_given(self, street: Street, topology: str) -> None:
        vm, given = street.vms[topology], street.attachments[topology]
        shown = vm.run("ip address show dev eth0").output
        assert given.mac in shown
        assert f"inet {given.ipv4} " in shown
        assert f"inet6 {given.ipv6} " in shown
        assert f"mtu {given.mtu} " in shown

    def test_allowed_servers_by_tcp_udp_and_icmp_over_both_families(
        self, street: Street, topology: str
    ) -> None:
        vm = street.vms[topology]
        for address, site in zip(ALLOWED.addresses, (SITE_IPV4.ip, SITE_IPV6.ip), strict=True):
            assert vm.run(f"ping -c 1 -W 3 {address}").ok
            page = json.loads(vm.run(f"wget -qO- '{url(address)}'").output)
            assert (page["server"], page["client"]) == ("allowed", str(site))
        for resolver in RESOLVER.addresses:
            told = vm.run(f"nslookup {ALLOWED.name} {resolver}")
            assert told.ok
            assert str(ALLOWED.ipv4) in told.output
            assert str(ALLOWED.ipv6) in told.output
        clients = {a.client for a in street.world.arrivals(kind="dns")}
        assert clients == {str(SITE_IPV4.ip), str(SITE_IPV6.ip)}

    def test_a_megabyte_there_and_back(self, street: Street, topology: str) -> None:
        for address in ALLOWED.addresses:
            command = f"head -c 1000000 /dev/zero | nc {address} {ECHO} | wc -c"
            echoed = street.vms[topology].run(command, timeout_s=20)
            assert echoed.output.strip() == "1000000"

    def test_the_attempts_are_real(self, street: Street, topology: str) -> None:
        """What is about to fail against others gets through to those who are allowed."""
        answered = street.vms[topology].run(attempts(ALLOWED.addresses), timeout_s=20)
        expected = {
            f"{kind} {address}" for kind in ("tcp", "icmp") for address in ALLOWED.addresses
        }
        assert set(answered.output.splitlines()) == expected
        arrived = {a.address for a in street.world.arrivals(ALLOWED, kind="udp", port=ECHO)}
        assert arrived == {str(address) for address in ALLOWED.addresses}

    def test_nothing_else(self, street: Street, topology: str) -> None:
        """Not the host by any address, not metadata, not other guests, not private ranges."""
        gateways = {
            g for a in street.attachments.values() for g in (a.gateway_ipv4, a.gateway_ipv6)
        }
        targets: list[Address] = [SITE_IPV4.ip, SITE_IPV6.ip, *(g for g in gateways if g)]
        for server in (METADATA, METADATA_AZURE, METADATA_ALIBABA, PRIVATE):
            targets += server.addresses
        for name, attachment in street.attachments.items():
            if name != topology:
                targets += street.addresses(attachment)
        targets += [IPv4Address("172.17.0.2"), IPv6Address("fd42:6d73:62:777::2")]
        with street.world.capture(TRAFFIC) as uplink:
            answered = street.vms[topology].run(attempts(targets), timeout_s=20)
            assert answered.output == ""
            assert uplink.lines() == []
        assert street.arrived() == []
        for target in targets:
            for protocol, port in (("tcp", 80), ("udp", 7), ("icmpv4", None)):
                kind = protocol if target.version == 4 else protocol.replace("v4", "v6")
                assert not street.host.explain(f"vm-{topology}", kind, target, port).allowed

    def test_a_refusal_is_quick(self, street: Street, topology: str) -> None:
        vm, target = street.vms[topology], url(METADATA.addresses[0])
        started = time.monotonic()
        refused = vm.run(f"wget -qO- '{target}'")
        assert "refused" in refused.output
        assert time.monotonic() - started < 1

    def test_both_are_counted(self, street: Street) -> None:
        for topology in TOPOLOGIES:
            usage = street.host.usage(f"vm-{topology}")
            assert usage.rx_bytes > 0
            assert usage.tx_bytes > 0


class TestLies:
    """With the tools of a guest's own kernel; frames made by hand are in tests/kernel."""

    def test_another_s_address(self, street: Street, topology: str) -> None:
        vm = street.vms[topology]
        other = street.attachments[f"{topology} neighbour"]
        assert other.ipv4 is not None
        assert other.ipv6 is not None
        counter = ("inet" if topology == "routed" else "bridge", "/spoofed_ipv")
        before = street.host.counters()
        with street.world.capture(TRAFFIC) as uplink:
            for address, target in ((other.ipv4.ip, ALLOWED.ipv4), (other.ipv6.ip, ALLOWED.ipv6)):
                size = address.max_prefixlen
                said = vm.run(
                    f"ip address add {address}/{size} dev eth0\n"
                    f"ping -c 1 -W 1 -I {address} {target}; said=$?\n"
                    f"ip address del {address}/{size} dev eth0; exit $said"
                )
                assert not said.ok
            assert uplink.lines() == []
        after = street.host.counters()
        for version in ("4", "6"):
            name = "".join((*counter, version))
            assert after[name] > before[name]

    def test_another_mac(self, street: Street, topology: str) -> None:
        vm, given = street.vms[topology], street.attachments[topology]
        with street.world.capture(TRAFFIC) as uplink:
            said = vm.run(
                "ip link set eth0 down; ip link set eth0 address 02:66:66:66:66:66\n"
                f"ip link set eth0 up; ip -4 route add default via {given.gateway_ipv4}\n"
                f"ping -c 1 -W 1 {ALLOWED.ipv4}; said=$?\n"
                f"ip link set eth0 down; ip link set eth0 address {given.mac}\n"
                f"ip link set eth0 up; ip -4 route add default via {given.gateway_ipv4}\n"
                f"ip -6 address add {given.ipv6} dev eth0\n"
                f"ip -6 route add default via {given.gateway_ipv6}\n"
                "exit $said"
            )
            assert not said.ok
            assert uplink.lines() == []
        for address in ALLOWED.addresses:
            # The new link-local address is still being checked at first.
            tried = f"for n in 1 2 3; do ping -c 1 -W 1 {address} && exit; done; false"
            assert vm.run(tried).ok

    @pytest.mark.parametrize("tag", [5, 4094])
    def test_a_vlan(self, street: Street, topology: str, tag: int) -> None:
        vm, given = street.vms[topology], street.attachments[topology]
        with (
            street.world.capture(TRAFFIC) as uplink,
            Capture(street.world.site, given.tap) as on_the_tap,
        ):
            said = vm.run(
                f"vconfig add eth0 {tag}; ip link set eth0.{tag} up\n"
                f"ip address add {given.ipv4} dev eth0.{tag}\n"
                f"ip route replace {ALLOWED.ipv4} via {given.gateway_ipv4} dev eth0.{tag}\n"
                f"ping -c 1 -W 1 {ALLOWED.ipv4}; said=$?; ip link del eth0.{tag}; exit $said"
            )
            assert not said.ok
            tagged = [f for f in on_the_tap.frames() if f.data[12:14] == b"\x81\x00"]
            assert tagged  # it did try
            assert not any(frame.outgoing for frame in tagged)
            assert uplink.lines() == []


class TestEnd:
    """Last on this page: it takes the network from under the VMs."""

    def test_detach_cuts_a_running_vm_off(self, street: Street, topology: str) -> None:
        vm, given = street.vms[topology], street.attachments[topology]
        assert vm.run(f"ping -c 1 -W 2 {ALLOWED.ipv4}").ok
        assert street.host.detach(f"vm-{topology}")
        with street.world.capture(TRAFFIC) as uplink:
            assert not vm.run(f"ping -c 1 -W 1 {ALLOWED.ipv4}").ok
            assert not vm.run(f"ping -c 1 -W 1 {ALLOWED.ipv6}").ok
            assert uplink.lines() == []
        street.host.reconcile()
        assert given.tap not in street.world.site.run(["ip", "-br", "link"]).stdout

    def test_the_next_vm_on_the_same_lease_works(self, street: Street) -> None:
        again = street.host.attach("vm-routed", network="routed", policy="allow@public")
        given = street.attachments["routed"]
        assert (again.tap, again.mac, again.ipv4, again.ipv6) == (
            given.tap,
            given.mac,
            given.ipv4,
            given.ipv6,
        )
        with boot(street.world.site, again) as vm:
            for address in ALLOWED.addresses:
                assert vm.run(f"ping -c 1 -W 3 {address}").ok
        street.host.detach("vm-routed")
