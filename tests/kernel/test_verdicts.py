"""Show 6: what the kernel does to a packet and what `explain` says of it are one thing.

Random policies meet random packets. A guest's policy stands in the kernel; packets leave the guest,
or come to it from the internet, from other guests and from the host; the last hook before the wire
(or before the host's sockets) notes those that pass. Then `Host.explain` is asked about each.

Where the site relays every flow, what a guest sends passes if it is handed to the gateway, and
nothing of its own leaves by the uplink.
"""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from guestnet.host import Host
from guestnet.model import Attachment
from guestnet.policy import (
    FLOOR,
    Action,
    AnyTarget,
    Direction,
    DnsTarget,
    Group,
    GroupTarget,
    NetworkTarget,
    Policy,
    PortRange,
    Protocol,
    Rule,
    parse_policy,
)
from lab.addresses import ROUTER_IPV4, ROUTER_IPV6, SERVERS, SITE_IPV4, SITE_IPV6, UPLINK
from lab.netns import Namespace
from lab.world import World
from packets import ICMPV4, ICMPV6, OTHERS, TCP, UDP, Address, Packet, mark_of, marked

pytestmark = pytest.mark.root

Network = IPv4Network | IPv6Network

POLICIES = 20
EGRESS, FROM_OUTSIDE, FROM_HOST, FROM_EACH_ADDRESS = 100, 40, 15, 2

#: Resolvers on the internet, on the host, at a metadata service and on a private network.
DNS = ("8.8.8.8", "2001:4860:4860::8888", str(SITE_IPV4.ip), "168.63.129.16", "fd77::40")
#: What else the host has: a network inside the pool (as Docker's is), and a VPN no guest leaves by.
DOCKER, DOCKER6 = "172.17.0.1/16", "fd42:6d73:62:8000::1/64"
VPN, VPN6 = "100.66.0.2/16", "2620:77::2/64"


def words(text: str) -> list[str]:
    return text.split()


#: Where guests are.
POOLS = (IPv4Network("172.16.0.0/12"), IPv6Network("fd42:6d73:62::/47"))

SPECIAL = words("""
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 172.17.0.0/16
    192.0.0.0/24 192.0.2.0/24 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24
    203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 255.255.255.255/32 172.30.0.0/24
    169.254.169.254/32 169.254.169.252/32 169.254.170.2/32 169.254.42.42/32 100.100.100.200/32
    168.63.129.16/32 192.0.0.192/32 192.0.0.9/32 100.66.0.0/16 93.184.216.34/32 172.16.0.0/30
""")
SPECIAL6 = words("""
    ::/128 ::1/128 64:ff9b:1::/48 100::/64 2001::/23 2001:1::1/128 2001:3::/32 2001:4:112::/48
    2001:20::/28 2001:db8::/32 2002::/16 3fff::/20 5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8
    2000::/3 fd42:6d73:62::/48 fd42:6d73:62:8000::/64 fd42:6d73:63::/64 fd00:ec2::254/128
    fd20:ce::254/128 fd00:42::42/128 2606:2800:220:1::34/128 2620:77::/64 ff02::1/128 ff02::2/128
""")


def embedding(address: IPv4Address) -> list[IPv6Address]:
    """An IPv4 address as IPv4-mapped, -compatible, NAT64, 6to4 and Teredo."""
    value = int(address)
    return [
        IPv6Address(0xFFFF << 32 | value),
        IPv6Address(value),
        IPv6Address(0x64FF9B << 96 | value),
        IPv6Address(0x2002 << 112 | value << 80 | 1),
        IPv6Address(0x20010000 << 96 | 0x5_0000_0000_0000 | value ^ 0xFFFFFFFF),
    ]


def edges(texts: Sequence[str]) -> Iterator[Address]:
    """The first and last address of networks, and their neighbours outside."""
    for text in texts:
        network = ip_network(text)
        low, high = int(network.network_address), int(network.broadcast_address)
        kind = type(network.network_address)
        for value in (low - 1, low, low + 1, high - 1, high, high + 1):
            if 0 <= value < 2**network.max_prefixlen:
                yield kind(value)


# --- policies -------------------------------------------------------------------------------------

_NETWORKS = words("""
    0.0.0.0/0 ::/0 1.1.1.0/24 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16
    169.254.169.254/32 168.63.129.16/32 172.16.0.0/12 172.16.0.6/32 172.16.0.0/29 172.30.0.0/24
    45.66.77.0/24 45.66.77.2/32 93.184.216.34/32 8.8.8.8/32 224.0.0.0/4 198.18.0.0/15 2000::/3
    2606:2800::/32 64:ff9b::/96 2002::/16 2001::/32 fc00::/7 fd42:6d73:62::/48 fd42:6d73:63::/64
    2a0a:1234::/64 2a0a:1234::2/128 fe80::/10 ::/96 ::ffff:0:0/96 2620:77::/64
""")
networks = st.sampled_from(_NETWORKS).map(
    lambda text: IPv6Network(text) if ":" in text else IPv4Network(text)
)
groups = st.sampled_from([group for group in Group if group is not Group.NONE])
targets = st.one_of(
    st.just(AnyTarget()),
    st.just(DnsTarget()),
    st.sampled_from(sorted(FLOOR)).map(GroupTarget),
    groups.map(GroupTarget),
    st.builds(GroupTarget, st.sampled_from(sorted(FLOOR)), networks),
    networks.map(NetworkTarget),
)
PORTS = (0, 1, 22, 53, 53, 53, 80, 443, 65535)
ranges = st.sampled_from(
    [PortRange(1, 65535), PortRange(53, 53), PortRange(80, 80), PortRange(50, 443),
     PortRange(65535, 65535)]
)  # fmt: skip


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    open_ports = tuple(draw(st.lists(ranges, max_size=2)))
    usable = [Protocol.TCP, Protocol.UDP] if open_ports else list(Protocol)
    protocols = tuple(draw(st.lists(st.sampled_from(usable), max_size=2)))
    action, direction = draw(st.sampled_from(Action)), draw(st.sampled_from(Direction))
    return Rule(action, direction, draw(targets), protocols, open_ports)


policies = st.builds(
    Policy,
    st.lists(rules(), max_size=6).map(tuple),
    st.sampled_from(Action),
    st.sampled_from(Action),
)


# --- the stage ------------------------------------------------------------------------------------

LAST_MARK = 0xFFFF
#: Runs behind everything: priority 300 is after guestnet's chains and after NAT. It keys what
#: passes by destination and mark (IPv4's identification, the low half of IPv6's flow label), but
#: not what the gateway, as uid nobody, sends for guests, nor answers.
WITNESS = """
table inet witness {
  set passed4 { typeof ip daddr . @nh,32,16; size 65536; flags dynamic; }
  set passed6 { typeof ip6 daddr . @nh,16,16; size 65536; flags dynamic; }
  counter last { }
  counter left { }
  chain arrive {
    type filter hook prerouting priority -1000;
    meta nfproto ipv4 @nh,32,16 LAST_MARK counter name last
  }
  chain note {
    ct direction reply return
    meta skuid 65534 return
    ct state invalid,untracked meta nfproto ipv4 update @passed4 { ip daddr . @nh,32,16 } return
    ct state invalid,untracked meta nfproto ipv6 update @passed6 { ip6 daddr . @nh,16,16 } return
    meta nfproto ipv4 update @passed4 { ct original ip daddr . @nh,32,16 }
    meta nfproto ipv6 update @passed6 { ct original ip6 daddr . @nh,16,16 }
  }
  chain input { type filter hook input priority 300; jump note; }
  chain postrouting {
    type filter hook postrouting priority 300;
    oifname UPLINK ct original ip saddr != SITE_IPV4 counter name left
    oifname UPLINK ct original ip6 saddr != { SITE_IPV6, fe80::/10, :: } counter name left
    jump note
  }
}
"""


#: The same of connections that go no further than to the gateway, which lets them in, or does not.
KNOCKS = """
add set inet guestnet passed4 { typeof ip daddr . @nh,32,16; size 65536; flags dynamic; }
add set inet guestnet passed6 { typeof ip6 daddr . @nh,16,16; size 65536; flags dynamic; }
insert rule inet guestnet knocked meta nfproto ipv4 update @passed4 { ip daddr . @nh,32,16 }
insert rule inet guestnet knocked meta nfproto ipv6 update @passed6 { ip6 daddr . @nh,16,16 }
"""


@dataclass(frozen=True)
class Disagreement:
    """A packet of which the kernel and `explain` do not think the same."""

    guest: str
    direction: Direction
    packet: Packet
    passed: bool
    said: str

    def __str__(self) -> str:
        did = "lets pass" if self.passed else "drops"
        return (
            f"{self.direction} of {self.guest}: the kernel {did} {self.packet}; "
            f"explain says {self.said}"
        )


class Wire:
    """A raw socket on one interface that sends frames to one station."""

    def __init__(self, namespace: Namespace, interface: str, station: str) -> None:
        with namespace.enter():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._socket.bind((interface, 0))
        own = self._socket.getsockname()[4]
        self._to_and_from = bytes.fromhex(station.replace(":", "")) + own

    def send(self, packet: Packet) -> None:
        kind = b"\x08\x00" if packet.version == 4 else b"\x86\xdd"
        for part in packet.ip_packets():
            self._socket.send(self._to_and_from + kind + part)

    def close(self) -> None:
        self._socket.close()


class RawSockets:
    """Sends packets from a namespace itself, whole from the IP header on (raw(7), IPV6_HDRINCL)."""

    _IPV6_HDRINCL = 36

    def __init__(self, namespace: Namespace) -> None:
        with namespace.enter():
            self._ipv4 = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
            self._ipv6 = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._ipv6.setsockopt(socket.IPPROTO_IPV6, self._IPV6_HDRINCL, 1)

    def __enter__(self) -> RawSockets:
        return self

    def __exit__(self, *_: object) -> None:
        self._ipv4.close()
        self._ipv6.close()

    def send(self, packet: Packet) -> None:
        for part in packet.ip_packets():
            if packet.version == 4:
                self._ipv4.sendto(part, (str(packet.destination), 0))
            else:
                self._ipv6.sendto(part, (str(packet.destination), 0))


#: The policies of guests that stay.
NEIGHBOURS = {
    "open": "default_ingress=allow,allow:any@guests",
    "web": "allow:any@guests:tcp:80",
    "sealed": "none",
}


class Stage:
    """A site with guest `g` under the policy in question, and others with policies that stay."""

    def __init__(
        self, world: World, state: Path, network: dict[str, object], relays_all: bool
    ) -> None:
        self.world = world
        self.relays_all = relays_all
        self._exit = ExitStack()
        world.site.ip(
            "link add docker0 type bridge", f"address add {DOCKER} dev docker0",
            f"address add {DOCKER6} dev docker0 nodad", "link set docker0 up",
            "link add vpn0 type bridge", f"address add {VPN} dev vpn0",
            f"address add {VPN6} dev vpn0 nodad", "link set vpn0 up",
            "route add blackhole 198.19.0.0/16", "route add unreachable 2620:78::/32",
        )  # fmt: skip
        witness = WITNESS.replace("LAST_MARK", str(LAST_MARK)).replace("UPLINK", f'"{UPLINK}"')
        for name, address in (("SITE_IPV4", SITE_IPV4), ("SITE_IPV6", SITE_IPV6)):
            witness = witness.replace(name, str(address.ip))
        world.site.run(["nft", "-f", "-"], stdin=witness)
        opened = Host.open(state, site=str(world.site.path), relays_all=relays_all)
        self.host = self._exit.enter_context(opened)
        self.host.create_network({"name": "net", "dns": DNS, "rest_s": 0, **network})
        self.guest = self.host.attach("g", network="net", netns=str(world.guest.path))
        self.others = {name: self._add(name, "net", text) for name, text in NEIGHBOURS.items()}
        world.site.run(["nft", "-f", "-"], stdin=KNOCKS)
        # The default pools: the bridge's lies inside the routed one.
        other = "routed" if network["topology"] == "bridge" else "bridge"
        self.host.create_network({"name": "far", "topology": other})
        self.others["far"] = self._add("far", "far", NEIGHBOURS["open"])
        uplink = json.loads(world.site.run(["ip", "-j", "link", "show", UPLINK]).stdout)
        self.outside = Wire(world.internet, "site0", uplink[0]["address"])
        self._exit.callback(self.outside.close)
        self._raw = self._exit.enter_context(RawSockets(world.site))

    def close(self) -> None:
        self._exit.close()

    @contextmanager
    def wire(self, namespace: Namespace, attachment: Attachment) -> Iterator[Wire]:
        """A guest's way to its gateway."""
        wire = Wire(namespace, "eth0", self._station(attachment))
        try:
            yield wire
        finally:
            wire.close()

    def owner(self, address: Address) -> str:
        """The other guest that has an address."""
        for name, (attachment, _wire) in self.others.items():
            if address in attachment.addresses:
                return name
        raise LookupError(str(address))

    def neighbours_send(self, packet: Packet) -> None:
        """Send as the guest whose address the packet bears."""
        _attachment, wire = self.others[self.owner(packet.source)]
        wire.send(packet)

    def host_sends(self, packet: Packet) -> None:
        """Send from the host itself; a packet that its output filter drops fails at once."""
        with suppress(PermissionError):
            self._raw.send(packet)

    def _add(self, name: str, network: str, policy: str) -> tuple[Attachment, Wire]:
        namespace = self.world.add_guest(name)
        attachment = self.host.attach(
            name, network=network, netns=str(namespace.path), policy=policy
        )
        return attachment, self._exit.enter_context(self.wire(namespace, attachment))

    def _station(self, attachment: Attachment) -> str:
        """The MAC of a guest's gateway."""
        device = "fcbr0" if attachment.topology == "bridge" else attachment.tap
        shown = self.world.site.run(["ip", "-j", "link", "show", device]).stdout
        return str(json.loads(shown)[0]["address"])

    # -- a new policy ---------------------------------------------------------------------------

    def put(self, policy: Policy) -> None:
        """Give guest `g` another policy: it keeps its address."""
        self.host.detach("g")
        before = self.guest
        self.guest = self.host.attach(
            "g", network="net", netns=str(self.world.guest.path), policy=str(policy)
        )
        assert (self.guest.ipv4, self.guest.ipv6) == (before.ipv4, before.ipv6)

    # -- asking the kernel ----------------------------------------------------------------------

    def watch(self, send: Callable[[Packet], None], packets: Sequence[Packet]) -> list[bool]:
        """Which of the packets passed."""
        self._flush()
        self._send(send, packets)
        passed = {
            (ip_address(element["concat"][0]), int(element["concat"][1]))
            for table in ("witness", "guestnet")
            for version in (4, 6)
            for element in self._elements(table, f"passed{version}")
        }
        return [(packet.destination, packet.mark) in passed for packet in packets]

    def _send(self, send: Callable[[Packet], None], packets: Sequence[Packet]) -> None:
        with one_processor():
            for packet in packets:
                send(packet)
            if send == self.host_sends:
                return  # nothing to wait for: sent is passed or dropped
            # A processor works its packets off in order: the last says that all others are done.
            source = next(packet.source for packet in packets if packet.version == 4)
            if send == self.outside.send:
                source = ROUTER_IPV4.ip  # the packets' own may be one that nobody outside has
            send(Packet(source, IPv4Address("192.0.2.2"), UDP, mark=LAST_MARK))
        self._wait_for_the_last()

    def _elements(self, table: str, name: str) -> list[dict[str, list[str]]]:
        listed = self.world.site.run(["nft", "-j", "list", "set", "inet", table, name]).stdout
        for entry in json.loads(listed)["nftables"]:
            if "set" in entry:
                found: list[dict[str, list[str]]] = entry["set"].get("elem", [])
                return found
        raise LookupError(name)

    def _flush(self) -> None:
        """No flow is established, no packet was noted."""
        sets = [(t, n) for t in ("witness", "guestnet") for n in ("passed4", "passed6")]
        flushes = "".join(f"flush set inet {table} {name}\n" for table, name in sets)
        self.world.site.run(["nft", "-f", "-"], stdin=f"{flushes}reset counter inet witness last\n")
        forget_all_flows(self.world.site)

    def count(self, name: str) -> int:
        """What a counter of the witness says."""
        listed = self.world.site.run(["nft", "-j", "list", "counter", "inet", "witness", name])
        return int(json.loads(listed.stdout)["nftables"][1]["counter"]["packets"])

    def _wait_for_the_last(self) -> None:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            if self.count("last"):
                return
        raise TimeoutError("the packets did not arrive")

    # -- asking explain -------------------------------------------------------------------------

    def explain(self, guest: str, direction: Direction, packet: Packet) -> tuple[bool, str]:
        peer = packet.destination if direction is Direction.EGRESS else packet.source
        names = {TCP: "tcp", UDP: "udp", ICMPV4: "icmpv4", ICMPV6: "icmpv6"}
        protocol = names.get(packet.protocol, "any")
        port = packet.port if packet.protocol in (TCP, UDP) else None
        verdict = self.host.explain(guest, protocol, peer, port, direction)
        return verdict.allowed, f"{verdict.action} by {verdict.text}"


@contextmanager
def one_processor() -> Iterator[None]:
    """Stay on one processor: what this thread sends is received and forwarded there, in order."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def forget_all_flows(namespace: Namespace) -> None:
    """IPCTNL_MSG_CT_DELETE without a tuple (linux/netfilter/nfnetlink_conntrack.h)."""
    body = struct.pack("=IHHII", 20, 1 << 8 | 2, 0x5, 1, 0) + bytes(4)
    with namespace.enter(), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netlink:
        netlink.settimeout(5)
        netlink.send(body)
        (code,) = struct.unpack_from("=i", netlink.recv(4096), 16)
        assert code == 0, code


NETWORKS: dict[str, dict[str, object]] = {
    "routed": {"topology": "routed"},
    "bridge": {"topology": "bridge"},
    "shared": {"topology": "bridge", "isolate": False},
}


@pytest.fixture(params=[*NETWORKS, "relayed"])
def stage(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> Iterator[Stage]:
    relayed = request.param == "relayed"
    network = NETWORKS["routed" if relayed else request.param]
    made = Stage(world, tmp_path / "state", network, relayed)
    try:
        yield made
    finally:
        made.close()


# --- packets --------------------------------------------------------------------------------------


class Dice:
    """Random packets of a seed, about the addresses that matter on a stage."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.random = random.Random(seed)
        self.stage = stage
        own = [stage.guest, *(attachment for attachment, _wire in stage.others.values())]
        places: list[Address] = [SITE_IPV4.ip, SITE_IPV6.ip, ip_address(VPN.partition("/")[0])]
        places += [ROUTER_IPV4.ip, ROUTER_IPV6.ip, *map(ip_address, DNS)]
        places += [IPv4Address(DOCKER[:-3]), IPv6Address(DOCKER6[:-3]), IPv4Address("1.1.1.1")]
        places += [address for server in SERVERS for address in server.addresses]
        for each in own:
            for interface, gateway in (
                (each.ipv4, each.gateway_ipv4),
                (each.ipv6, each.gateway_ipv6),
            ):
                assert interface is not None
                assert gateway is not None
                places += [interface.ip, gateway, interface.ip + 1]
        #: Drawn equally often: resolvers and gateways, the addresses that someone has, and the
        #: edges of all networks.
        self.kinds = ([*map(ip_address, DNS), *self._gateways(own)], places,
                      [*edges(SPECIAL), *edges(SPECIAL6)])  # fmt: skip
        self.hosts: list[Address] = [
            SITE_IPV4.ip,
            SITE_IPV6.ip,
            IPv4Address(DOCKER[:-3]),
            IPv6Address(DOCKER6[:-3]),
        ]

    @staticmethod
    def _gateways(guests: Sequence[Attachment]) -> list[Address]:
        found = [gateway for each in guests for gateway in (each.gateway_ipv4, each.gateway_ipv6)]
        return [gateway for gateway in found if gateway is not None]

    def address(self, version: int) -> Address:
        """An address that someone has, an edge, or either of them embedded in IPv6."""
        while True:
            found = self.random.choice(self.random.choice(self.kinds))
            if version == 6 and isinstance(found, IPv4Address):
                return self.random.choice(embedding(found))
            if found.version == version:
                return found

    def flow(self, source: Address, destination: Address) -> Packet:
        """A packet of any protocol, in a dress that suits it."""
        version = source.version
        icmp = ICMPV4 if version == 4 else ICMPV6
        protocol = self.random.choice((TCP, TCP, TCP, UDP, UDP, UDP, icmp, icmp, ICMPV4, ICMPV6,
                                       self.random.choice(OTHERS)))  # fmt: skip
        dresses = ["plain"] * 6
        if protocol == TCP:
            dresses.append("ack")
        if protocol in (UDP, icmp):
            dresses.append("fragments")
        if version == 6:
            dresses += ["hop-by-hop", "options"]
        return Packet(source, destination, protocol, port=self.random.choice(PORTS),
                      dress=self.random.choice(dresses))  # fmt: skip

    def egress(self) -> list[Packet]:
        """From the guest to anyone."""
        packets: list[Packet] = []
        while len(packets) < EGRESS:
            source = self._own(self.random.choice((4, 6)))
            target = self.address(source.version)
            if target != source:
                packets.append(self.flow(source, target))
        relayed = self.stage.relays_all
        return [each for each in marked(packets) if not (relayed and each.is_timestamp)]

    def from_outside(self) -> list[Packet]:
        """From the internet to the guest. Nobody there has an address of the host or of a guest."""
        packets: list[Packet] = []
        while len(packets) < FROM_OUTSIDE:
            target = self._own(self.random.choice((4, 6)))
            source = self.address(target.version)
            if not self._is_ours(source):
                packets.append(self.flow(source, target))
        return marked(packets)

    def _own(self, version: int) -> Address:
        interface = self.stage.guest.ipv4 if version == 4 else self.stage.guest.ipv6
        assert interface is not None
        return interface.ip

    def _is_ours(self, address: Address) -> bool:
        vpn = ip_network(VPN, strict=False)
        # Nobody sends from a link's broadcast addresses: the kernel takes no such packet.
        used = {vpn.network_address, vpn.broadcast_address}
        used |= {ip_address(text.partition("/")[0]) for text in (VPN, VPN6)}
        return address in {*self.hosts, *used} or any(address in pool for pool in POOLS)

    def from_host(self) -> list[Packet]:
        """From the host, by any of its addresses, to the guest."""
        addresses: list[Address] = [*self.hosts, *self._gateways([self.stage.guest])]
        packets: list[Packet] = []
        while len(packets) < FROM_HOST:
            source = self.random.choice(addresses)
            packet = self.flow(source, self._own(source.version))
            if packet.dress != "fragments":  # the host's own stack would put them together
                packets.append(packet)
        return marked(packets)

    def from_guests(self) -> list[Packet]:
        """From the other guests to the guest."""
        packets: list[Packet] = []
        for attachment, _wire in self.stage.others.values():
            for interface in (attachment.ipv4, attachment.ipv6):
                assert interface is not None
                target = self._own(interface.version)
                packets += [self.flow(interface.ip, target) for _ in range(FROM_EACH_ADDRESS)]
        return marked(packets)


def disagreements(stage: Stage, policy: Policy, seed: int) -> Iterator[Disagreement]:
    """Put a policy, send what the seed says, and ask about each packet."""
    stage.put(policy)
    dice = Dice(stage, seed)
    with stage.wire(stage.world.guest, stage.guest) as wire:
        left = stage.count("left")
        yield from compare(stage, Direction.EGRESS, "g", wire.send, dice.egress())
        if stage.relays_all:
            assert stage.count("left") == left, "packets of the guest's own left by the uplink"
    yield from compare(stage, Direction.INGRESS, "g", stage.outside.send, dice.from_outside())
    yield from compare(stage, Direction.INGRESS, "g", stage.host_sends, dice.from_host())
    packets = dice.from_guests()
    passed = stage.watch(stage.neighbours_send, packets)
    for packet, did in zip(packets, passed, strict=True):
        # Both have a say between guests, and the question may be asked from either end.
        yield from asked(stage, Direction.EGRESS, stage.owner(packet.source), packet, did)
        yield from asked(stage, Direction.INGRESS, "g", packet, did)


def compare(
    stage: Stage,
    direction: Direction,
    guest: str,
    send: Callable[[Packet], None],
    packets: list[Packet],
) -> Iterator[Disagreement]:
    for packet, passed in zip(packets, stage.watch(send, packets), strict=True):
        yield from asked(stage, direction, guest, packet, passed)


def asked(
    stage: Stage, direction: Direction, guest: str, packet: Packet, passed: bool
) -> Iterator[Disagreement]:
    allowed, said = stage.explain(guest, direction, packet)
    if allowed != passed:
        yield Disagreement(guest, direction, packet, passed, said)


def minimal(stage: Stage, policy: Policy, seed: int) -> tuple[Policy, Disagreement] | None:
    """The policy without the rules that do not matter, and the first packet in dispute."""
    found = next(disagreements(stage, policy, seed), None)
    if found is None:
        return None
    for index in reversed(range(len(policy.rules))):
        fewer = replace(policy, rules=policy.rules[:index] + policy.rules[index + 1 :])
        again = next(disagreements(stage, fewer, seed), None)
        if again is not None:
            policy, found = fewer, again
    return policy, found


# --- the tests ------------------------------------------------------------------------------------


def test_the_kernel_and_explain_agree(stage: Stage) -> None:
    @settings(
        max_examples=POLICIES,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(policies, st.integers(0, 2**32))
    def check(policy: Policy, seed: int) -> None:
        found = minimal(stage, policy, seed)
        assert found is None, f"under `{found[0]}`, {found[1]}"

    check()


def ask(stage: Stage, policy: str, *packets: Packet) -> list[tuple[bool, bool]]:
    """Whether the guest's packets pass, and whether explain says so."""
    stage.put(parse_policy(policy))
    sent = marked(list(packets))
    with stage.wire(stage.world.guest, stage.guest) as wire:
        passed = stage.watch(wire.send, sent)
    return [
        (did, stage.explain("g", Direction.EGRESS, packet)[0])
        for did, packet in zip(passed, sent, strict=True)
    ]


def to(stage: Stage, address: Address, protocol: int, port: int = 0) -> Packet:
    """A packet of the guest's."""
    own = stage.guest.ipv4 if address.version == 4 else stage.guest.ipv6
    assert own is not None
    return Packet(own.ip, address, protocol, port)


BOTH_PASS, BOTH_DENY = (True, True), (False, False)


@pytest.mark.parametrize("stage", NETWORKS, indirect=True)
def test_what_the_witness_sees_is_what_leaves_by_the_wire(stage: Stage) -> None:
    stage.put(parse_policy("public"))
    packets = Dice(stage, 1).egress()
    elsewhere: set[Network] = {SITE_IPV4.network, SITE_IPV6.network, *POOLS}
    with (
        stage.world.capture("ip or ip6") as capture,
        stage.wire(stage.world.guest, stage.guest) as wire,
    ):
        # Before the first packet goes by the router, its MAC must be known.
        for router in (ROUTER_IPV4, ROUTER_IPV6):
            stage.world.site.run(["ping", "-c1", str(router.ip)])
        passed = stage.watch(wire.send, packets)
        left = {mark_of(frame.data) for frame in capture.frames() if frame.outgoing}
    assert any(passed)
    for packet, did in zip(packets, passed, strict=True):
        if not any(packet.destination in network for network in elsewhere):
            assert ((packet.version, packet.mark) in left) == did, str(packet)


@pytest.mark.parametrize(
    "policy",
    [
        "allow@dns:tcp",
        "allow@dns:udp:53",
        "allow@dns:icmpv4",
        "default_egress=allow,deny@dns:udp",
        "default_egress=allow,deny@dns:any:80",
    ],
)
def test_a_rule_for_resolvers_keeps_its_protocols_and_ports(stage: Stage, policy: str) -> None:
    answers = ask(stage, policy, *(to(stage, ip_address(resolver), protocol, 53)
                                   for resolver in DNS for protocol in (TCP, UDP)))  # fmt: skip
    assert set(answers) <= {BOTH_PASS, BOTH_DENY}


@pytest.mark.parametrize("policy", ["all", "allow@host=127.0.0.0/8,allow@host=[::1]"])
def test_loopback_stays_loopback_in_every_disguise(stage: Stage, policy: str) -> None:
    packets = [to(stage, each, UDP, 53) for each in embedding(IPv4Address("127.0.0.1"))]
    packets += [to(stage, ip_address(each), UDP, 53) for each in ("127.0.0.1", "::1")]
    assert ask(stage, policy, *packets) == [BOTH_DENY] * len(packets)


def test_icmp_of_the_other_family_is_no_flow(stage: Stage) -> None:
    packets = [to(stage, ip_address("1.1.1.1"), ICMPV6), to(stage, SERVERS[0].addresses[1], ICMPV4)]
    assert set(ask(stage, "all", *packets)) <= {BOTH_PASS, BOTH_DENY}


def test_broadcast_and_anycast_addresses_of_links_are_no_way_out(stage: Stage) -> None:
    packets = [to(stage, each, UDP, 53) for each in (
        SITE_IPV4.network.broadcast_address, SITE_IPV4.network.network_address,
        SITE_IPV6.network.network_address)]  # fmt: skip
    for answer in ask(stage, "all", *packets):
        assert answer in (BOTH_PASS, BOTH_DENY)


def test_guests_between_each_other(stage: Stage) -> None:
    others = [attachment for attachment, _wire in stage.others.values()]
    for policy in ("allow@guests", "none"):
        for other in others:
            assert other.ipv4 is not None
            assert other.ipv6 is not None
            answers = ask(stage, policy, to(stage, other.ipv4.ip, TCP, 80),
                          to(stage, other.ipv6.ip, UDP, 80))  # fmt: skip
            assert set(answers) <= {BOTH_PASS, BOTH_DENY}, f"{policy} to {other.guest}"


@pytest.mark.parametrize("disguise", [False, True], ids=["host", "guest"])
def test_nobody_outside_is_the_host_or_another_guest(stage: Stage, disguise: bool) -> None:
    stage.put(parse_policy("allow:ingress@host,allow:ingress@guests"))
    other, _wire = stage.others["open"]
    packets = []
    for own, theirs, host in (
        (stage.guest.ipv4, other.ipv4, SITE_IPV4.ip),
        (stage.guest.ipv6, other.ipv6, SITE_IPV6.ip),
    ):
        assert own is not None
        assert theirs is not None
        packets.append(Packet(theirs.ip if disguise else host, own.ip, UDP, 80))
    assert stage.watch(stage.outside.send, marked(packets)) == [False, False]
