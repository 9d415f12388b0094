"""A guest that lies: frames with others' addresses, forged discovery, tags, odd types, odd packets.

Every attack is seen to leave the attacker's own interface, and then looked for wherever it could
turn up: on the uplink, at its neighbours, in the host's tables, in an answer. A last, honest packet
that does get through marks the moment when all before it was dealt with; so nothing seen is nothing
sent on. Meanwhile a neighbour pings through it all and must not lose a packet.

What the kernel does by itself on a routed device: it takes tags of VLAN 0 (priority tags) off
before any hook sees the frame, so such a frame is checked, and passed or dropped, like one without
a tag. Frames of other VLANs and of types that no protocol of the kernel's asked for reach nobody
there, and no rule sees or counts them. On a bridge both are dropped and counted.
"""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.l2 import ARP, GRE, LLC, SNAP, STP, Dot1AD, Dot1Q, Ether
from scapy.packet import Raw

from guestnet.address.derive import link_local
from guestnet.host import Host
from guestnet.model import Attachment
from hostile import BRIDGE_GROUP, BROADCAST, LINK_GROUP, LLDP_GROUP, Wire, assert_open, doors
from lab.addresses import ALLOWED, METADATA, PRIVATE, ROUTER_IPV4, SITE_IPV4, SITE_IPV6, Server
from lab.capture import Capture, Frame
from lab.internet import Servers
from lab.netns import Namespace
from lab.servers import ECHO
from lab.world import World

pytestmark = pytest.mark.root

KINDS = ("routed", "bridge", "shared")
ALLOWED_PACKED = ALLOWED.addresses[0].packed
STRANGER = "02:66:66:66:66:66"
ALL_NODES, ALL_NODES_MAC = "ff02::1", "33:33:00:00:00:01"


@dataclass(frozen=True)
class Player:
    """One guest: where it lives and what it was given."""

    namespace: Namespace
    attachment: Attachment
    gateway_mac: str

    @property
    def mac(self) -> str:
        return self.attachment.mac

    @property
    def ipv4(self) -> str:
        assert self.attachment.ipv4 is not None
        return str(self.attachment.ipv4.ip)

    @property
    def ipv6(self) -> str:
        assert self.attachment.ipv6 is not None
        return str(self.attachment.ipv6.ip)

    @property
    def link_local(self) -> str:
        return str(link_local(self.mac))

    @property
    def gateway_ipv4(self) -> str:
        return str(self.attachment.gateway_ipv4)

    @property
    def gateway_ipv6(self) -> str:
        return str(self.attachment.gateway_ipv6)

    def ether(self, to: str = "", **fields: Any) -> Any:
        """An honest Ethernet header, to the gateway unless told otherwise."""
        return Ether(**{"src": self.mac, "dst": to or self.gateway_mac, **fields})


@dataclass
class Stage:
    """Three networks with an attacker and an honest neighbour each."""

    world: World
    host: Host
    attackers: dict[str, Player] = field(default_factory=dict)
    neighbours: dict[str, Player] = field(default_factory=dict)
    #: What the host's tables say when nobody lies.
    believed: dict[str, list[str]] = field(default_factory=dict)
    host_servers: Servers | None = None


@dataclass(frozen=True)
class Attack:
    """What became of some frames."""

    #: Named counters that went up, and by how many packets.
    counted: dict[str, int]
    #: Frames on the uplink, at neighbours and back at the attacker, in tcpdump's words.
    leaks: list[str]


def spec_of(kind: str) -> dict[str, object]:
    if kind == "routed":
        return {"name": kind, "topology": "routed"}
    if kind == "bridge":
        return {"name": kind, "topology": "bridge"}
    return {
        "name": kind,
        "topology": "bridge",
        "isolate": False,
        "bridge": "fcbr1",
        "ipv4": "172.29.0.0/24",
        "ipv6": "fd42:6d73:64::/64",
    }


@contextlib.contextmanager
def built(state: Path, br_netfilter: bool) -> Iterator[Stage]:
    """A stage, with or without bridged frames shown to the IP firewall, as with Docker."""
    with World() as world, contextlib.ExitStack() as stack:
        for name in ("iptables", "ip6tables", "arptables"):
            with contextlib.suppress(FileNotFoundError):  # the module is not loaded
                world.site.sysctl(f"bridge.bridge-nf-call-{name}", int(br_netfilter))
        host = stack.enter_context(Host.open(state, site=world.site.path))
        made = Stage(world, host)
        for kind in KINDS:
            host.create_network({**spec_of(kind), "dns": []})
            made.attackers[kind] = enter(made, kind, "attacker", "allow@public")
            # It would let everyone in: what keeps the attacker out is nothing but its own place.
            made.neighbours[kind] = enter(
                made, kind, "neighbour", "allow@public,allow:ingress@any,allow:ingress@guests"
            )
        itself = Server("host", "host.example.test", SITE_IPV4.ip, SITE_IPV6.ip)
        made.host_servers = stack.enter_context(Servers(world.site, [itself]))
        made.believed = tables(world)
        yield made


@pytest.fixture(scope="module")
def plain_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with built(tmp_path_factory.mktemp("plain"), br_netfilter=False) as made:
        yield made


@pytest.fixture(scope="module")
def filtered_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with built(tmp_path_factory.mktemp("filtered"), br_netfilter=True) as made:
        yield made


@pytest.fixture(params=[*KINDS, "bridge, br_netfilter", "shared, br_netfilter"])
def place(
    request: pytest.FixtureRequest, plain_stage: Stage, filtered_stage: Stage
) -> tuple[Stage, str]:
    """A routed network, a bridge with isolation, and one without; bridges on both stages."""
    kind, _, br_netfilter = request.param.partition(", ")
    return filtered_stage if br_netfilter else plain_stage, kind


@pytest.fixture
def stage(place: tuple[Stage, str]) -> Stage:
    """The stage that the test's network is on."""
    return place[0]


@pytest.fixture
def kind(place: tuple[Stage, str]) -> str:
    """The attacker's network: one of `KINDS`."""
    return place[1]


def enter(stage: Stage, kind: str, role: str, policy: str) -> Player:
    """Attach one player, whose own stack then keeps quiet on the wire."""
    namespace = stage.world.add_guest(f"{kind[:2]}-{role[:2]}")
    for key in ("accept_dad", "router_solicitations", "accept_ra"):
        namespace.sysctl(f"ipv6.conf.default.{key}", 0)
    attachment = stage.host.attach(
        f"{kind}-{role}", network=kind, netns=namespace.path, policy=policy
    )
    device = attachment.tap
    if kind != "routed":
        device = stage.host.network(kind).spec.bridge or ""
    listed = json.loads(stage.world.site.run(["ip", "-j", "link", "show", "dev", device]).stdout)
    player = Player(namespace, attachment, listed[0]["address"])
    know_gateway(player)
    return player


def know_gateway(player: Player) -> None:
    """Spare a guest the questions that would otherwise stand between the frames of a test."""
    player.namespace.ip(
        *(
            f"neighbour replace {gateway} lladdr {player.gateway_mac} dev eth0 nud permanent"
            for gateway in (player.gateway_ipv4, player.gateway_ipv6)
        )
    )


@pytest.fixture
def me(stage: Stage, kind: str) -> Player:
    """The attacker."""
    return stage.attackers[kind]


@pytest.fixture
def her(stage: Stage, kind: str) -> Player:
    """The honest guest beside the attacker."""
    return stage.neighbours[kind]


@contextlib.contextmanager
def pinging(player: Player) -> Iterator[None]:
    """A guest that pings an allowed server all the while, and must not lose an answer."""
    ping = player.namespace.popen(
        ["ping", "-q", "-i", "0.01", "-W", "1", str(ALLOWED.ipv4)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield
    finally:
        time.sleep(0.02)
        ping.send_signal(signal.SIGINT)
        output = ping.communicate(timeout=5)[0].decode()
    sent, got = (int(part.split()[0]) for part in output.split("---\n")[1].split(",")[:2])
    assert sent - got <= 1, output  # the last may have been under way
    assert got > 0


def tables(world: World) -> dict[str, list[str]]:
    """What the host believes of its guests' links: neighbours and forwarding entries."""
    ours = ("gn", "fcbr")
    found = {}
    for name, command in (("neighbours", ["ip", "-j", "neigh"]), ("fdb", ["bridge", "-j", "fdb"])):
        listed = json.loads(world.site.run(command).stdout)
        found[name] = sorted(
            f"{entry.get('dst', '')} {entry.get('lladdr', '')} {entry.get('mac', '')} {device}"
            for entry in listed
            if (device := entry.get("dev", entry.get("ifname", ""))).startswith(ours)
        )
    return found


def attack(stage: Stage, kind: str, frames: Iterable[Any], *, settle_s: float = 0.0) -> Attack:
    """Send frames as the attacker of a network, and look for them everywhere else."""
    world, me = stage.world, stage.attackers[kind]
    packed = [bytes(frame) for frame in frames]
    token = secrets.token_hex(8).encode()
    last = (
        me.ether()
        / IP(src=me.ipv4, dst=str(ALLOWED.ipv4))
        / UDP(sport=40000, dport=ECHO)
        / Raw(token)
    )
    assert stage.host_servers is not None
    stage.host_servers.forget()
    before = stage.host.counters()
    with contextlib.ExitStack() as stack:
        stack.enter_context(pinging(stage.neighbours[kind]))
        watch = {
            "uplink": stack.enter_context(world.capture()),
            "attacker": stack.enter_context(Capture(me.namespace, "eth0")),
        }
        for name, player in stage.neighbours.items():
            watch[f"{name} neighbour"] = stack.enter_context(Capture(player.namespace, "eth0"))
        with Wire(me.namespace) as wire:
            wire.send(*packed, last)
        wait_for(token, watch["uplink"])
        time.sleep(settle_s)
        seen = {name: capture.frames() for name, capture in watch.items()}
    sent = [frame.data for frame in seen["attacker"] if frame.outgoing]
    assert not [f.hex() for f in packed if not was_sent(f, sent)], "a frame did not leave"
    leaks = [
        f"{name}: {frame.data.hex()}"
        for name, found in seen.items()
        for frame in found
        if is_leak(name, frame, token)
    ]
    assert stage.host_servers is not None
    leaks += [f"host: {a.kind} {a.client} {a.detail}" for a in stage.host_servers.arrivals()]
    assert tables(world) == stage.believed
    after = stage.host.counters()
    counted = {name: after[name] - count for name, count in before.items() if after[name] != count}
    counted.pop("inet/unleased", None)  # the guests' own multicast
    return Attack(counted, leaks)


def was_sent(frame: bytes, sent: list[bytes]) -> bool:
    """Whether a frame was seen leaving; of a fragment the IP header may be another by now.

    A capture shares its bytes with the packet, and fragments are cut anew where they stand.
    """
    return frame in sent or (
        is_fragment(frame) and any(len(s) == len(frame) and s[34:] == frame[34:] for s in sent)
    )


def is_fragment(frame: bytes) -> bool:
    """Whether a frame is a fragment of an IPv4 packet."""
    return frame[12:14] == b"\x08\x00" and frame[20:22] not in (b"\0\0", b"\x40\0", b"")


def is_leak(where: str, frame: Frame, token: bytes = b"no token") -> bool:
    """Whether a frame has no business being where it was seen."""
    if token in frame.data or is_multicast_report(frame.data) or is_ping(frame.data):
        return False
    if where == "uplink":
        return not is_discovery(frame.data)
    return not frame.outgoing


def is_ping(data: bytes) -> bool:
    """An echo request or reply between a pinging neighbour and its server."""
    ends = data[26:30], data[30:34]
    return data[12:14] == b"\x08\x00" and data[23:24] == b"\x01" and ALLOWED_PACKED in ends


def is_discovery(data: bytes) -> bool:
    """ARP and neighbour discovery, which the site does on its uplink for itself."""
    kind = data[12:14]
    return kind == b"\x08\x06" or (
        kind == b"\x86\xdd" and data[20:21] == b"\x3a" and b"\x85" <= data[54:55] <= b"\x88"
    )


def is_multicast_report(data: bytes) -> bool:
    """MLD (RFC 3810), which kernels send when they please."""
    return data[12:14] == b"\x86\xdd" and data[:6] == bytes.fromhex("333300000016")


def wait_for(token: bytes, capture: Capture, timeout_s: float = 3.0) -> None:
    """Wait for the frame that bears `token`."""
    deadline = time.monotonic() + timeout_s
    while not any(token in frame.data for frame in capture.frames()):
        assert time.monotonic() < deadline, "the honest packet did not get through"
        time.sleep(0.005)


def expect(kind: str, counter: str, count: int) -> dict[str, int]:
    """A counter of the table that checks identity on a network of this kind."""
    family = "bridge" if kind != "routed" else "arp" if counter == "spoofed_arp" else "inet"
    return {f"{family}/{counter}": count} if count else {}


def assert_stopped(stage: Stage, kind: str, frames: list[Any], counted: dict[str, int]) -> None:
    """Nothing comes of the frames, and the counters say so."""
    became = attack(stage, kind, frames)
    assert became.leaks == []
    assert became.counted == counted


def udp(payload: str = "spoofed") -> Any:
    """A datagram to an echo port, which every server of the stage would answer."""
    return UDP(sport=40001, dport=ECHO) / Raw(payload.encode())


class TestSourceAddresses:
    def test_ipv4(self, stage: Stage, kind: str, me: Player, her: Player) -> None:
        to = str(ALLOWED.ipv4)
        liars = [her.ipv4, me.gateway_ipv4, str(SITE_IPV4.ip), str(ROUTER_IPV4.ip), "8.8.8.8"]
        liars += [str(IPv4Address(me.ipv4) + 8), "255.255.255.255", "224.0.0.1", "127.0.0.1"]
        frames = [me.ether() / IP(src=source, dst=to) / udp() for source in liars]
        frames += [me.ether() / IP(src=her.ipv4, dst=target) / udp() for target in targets(me, her)]
        assert_stopped(stage, kind, frames, expect(kind, "spoofed_ipv4", len(frames)))

    def test_ipv6(self, stage: Stage, kind: str, me: Player, her: Player) -> None:
        to = str(ALLOWED.ipv6)
        liars = [her.ipv6, her.link_local, me.gateway_ipv6, str(SITE_IPV6.ip), "2001:4860::8"]
        liars += [str(IPv6Address(me.ipv6) + 1), "::1", f"::ffff:{me.ipv4}", "ff02::1", "fe80::1"]
        frames = [me.ether() / IPv6(src=source, dst=to) / udp() for source in liars]
        frames += [
            me.ether() / IPv6(src=her.ipv6, dst=target) / udp()
            for target in (str(SITE_IPV6.ip), her.ipv6, me.gateway_ipv6)
        ]
        became = attack(stage, kind, frames)
        assert became.leaks == []
        # The kernel itself takes a multicast or loopback source for no packet at all.
        wanted = {len(frames) - 2, len(frames) - 1, len(frames)}
        assert sum(became.counted.values()) in wanted
        assert set(became.counted) == set(expect(kind, "spoofed_ipv6", 1))

    @pytest.mark.parametrize("whose", ["stranger", "neighbour", "gateway", "broadcast"])
    def test_mac(self, stage: Stage, kind: str, me: Player, her: Player, whose: str) -> None:
        macs = {"stranger": STRANGER, "neighbour": her.mac, "gateway": me.gateway_mac}
        macs["broadcast"] = BROADCAST
        header = me.ether(src=macs[whose])
        frames = [
            header / IP(src=me.ipv4, dst=str(ALLOWED.ipv4)) / udp(),
            header / IP(src=her.ipv4, dst=str(ALLOWED.ipv4)) / udp(),
            header / IPv6(src=me.ipv6, dst=str(ALLOWED.ipv6)) / udp(),
            header / IPv6(src=her.ipv6, dst=str(ALLOWED.ipv6)) / udp(),
        ]
        became = attack(stage, kind, frames)
        assert became.leaks == []
        if kind == "routed" or whose in ("stranger", "neighbour"):
            expected = expect(kind, "spoofed_ipv4", 2) | expect(kind, "spoofed_ipv6", 2)
            assert became.counted == expected
        # A bridge itself drops frames that claim to be from itself or from a group.

    def test_no_address_yet(self, stage: Stage, kind: str, me: Player) -> None:
        """What booting guests send is no forgery, and gets nowhere all the same."""
        discover = (
            UDP(sport=68, dport=67) / BOOTP(op=1) / DHCP(options=[("message-type", 1), "end"])
        )
        frames = [
            me.ether(BROADCAST) / IP(src="0.0.0.0", dst="255.255.255.255") / discover,
            me.ether() / IP(src="0.0.0.0", dst=str(ALLOWED.ipv4)) / udp(),
            me.ether() / IPv6(src="::", dst=str(ALLOWED.ipv6)) / udp(),
        ]
        assert_stopped(stage, kind, frames, {})


def targets(me: Player, her: Player) -> list[str]:
    """Where a forged source would do harm: the host by each of its names, and the neighbour."""
    return [str(SITE_IPV4.ip), me.gateway_ipv4, her.ipv4, her.gateway_ipv4]


class TestArp:
    def test_claims_of_others_addresses(
        self, stage: Stage, kind: str, me: Player, her: Player
    ) -> None:
        frames = []
        for claimed in (me.gateway_ipv4, her.ipv4, str(SITE_IPV4.ip)):
            for op in (1, 2):
                for to, known in ((BROADCAST, "00:00:00:00:00:00"), (her.mac, her.mac)):
                    said = ARP(op=op, hwsrc=me.mac, psrc=claimed, hwdst=known, pdst=her.ipv4)
                    frames.append(me.ether(to) / said)
            frames.append(me.ether(BROADCAST) / ARP(op=1, hwsrc=me.mac, psrc=claimed, pdst=claimed))
        became = attack(stage, kind, frames)
        assert became.leaks == []
        # A routed device's own ARP layer does not look at frames for another MAC.
        seen = [f for f in frames if kind != "routed" or f.dst == BROADCAST]
        assert became.counted == expect(kind, "spoofed_arp", len(seen))

    def test_lies_about_macs(self, stage: Stage, kind: str, me: Player, her: Player) -> None:
        mine: dict[str, Any] = {"op": 2, "psrc": me.ipv4, "pdst": me.gateway_ipv4}
        frames = [
            me.ether(BROADCAST) / ARP(hwsrc=her.mac, **mine),
            me.ether(BROADCAST) / ARP(hwsrc=STRANGER, **mine),
            me.ether(BROADCAST) / ARP(hwsrc=me.gateway_mac, **mine),
            me.ether(BROADCAST, src=STRANGER) / ARP(hwsrc=me.mac, **mine),
            me.ether(BROADCAST, src=her.mac) / ARP(hwsrc=her.mac, **(mine | {"psrc": her.ipv4})),
        ]
        assert_stopped(stage, kind, frames, expect(kind, "spoofed_arp", len(frames)))

    def test_no_answers_for_addresses_that_are_elsewhere(
        self, stage: Stage, kind: str, me: Player, her: Player
    ) -> None:
        """The questions are honest; the host says nothing about its other addresses."""
        asked = [str(SITE_IPV4.ip), str(ALLOWED.ipv4), "127.0.0.1"]
        asked += [stage.neighbours[k].gateway_ipv4 for k in KINDS if k != kind]
        if kind == "routed":
            asked += [her.ipv4, her.gateway_ipv4]
        frames = [
            me.ether(BROADCAST) / ARP(op=1, hwsrc=me.mac, psrc=me.ipv4, pdst=target)
            for target in asked
        ]
        became = attack(stage, kind, frames, settle_s=0.05)
        assert (unshared(kind, became.leaks), became.counted) == ([], {})

    def test_cut_short_and_misshapen(
        self, stage: Stage, kind: str, me: Player, her: Player
    ) -> None:
        forged = bytes(me.ether(BROADCAST) / ARP(op=2, hwsrc=me.mac, psrc=her.ipv4, pdst=me.ipv4))
        frames: list[Any] = [forged[:size] for size in (14, 20, 22, 28, 31, 38)]
        frames += [
            me.ether(BROADCAST) / ARP(op=2, hwlen=0, plen=4, hwsrc=me.mac, psrc=her.ipv4),
            me.ether(BROADCAST) / ARP(op=2, hwtype=6, hwsrc=me.mac, psrc=her.ipv4, pdst=her.ipv4),
            me.ether(BROADCAST) / ARP(op=2, ptype=0x86DD, hwsrc=me.mac, psrc=her.ipv4),
            me.ether(BROADCAST, type=0x8035) / ARP(op=4, hwsrc=her.mac, psrc=her.ipv4),
        ]
        assert attack(stage, kind, frames).leaks == []

    def test_probes_before_use(self, stage: Stage, kind: str, me: Player, her: Player) -> None:
        """RFC 5227: a guest must not make a neighbour believe that its address is taken."""
        frames = [
            me.ether(BROADCAST) / ARP(op=1, hwsrc=me.mac, psrc="0.0.0.0", pdst=target)
            for target in (her.ipv4, me.gateway_ipv4)
        ]
        assert_stopped(stage, kind, frames, {})


def advertisement(target: str, mac: str, **flags: int) -> Any:
    """A neighbour advertisement that asks to be believed."""
    bits: dict[str, Any] = {"R": 1, "S": 0, "O": 1} | flags
    said = ICMPv6ND_NA(tgt=target, **bits)
    return said / ICMPv6NDOptDstLLAddr(lladdr=mac)


class TestNeighbourDiscovery:
    def test_advertisements_of_others_addresses(
        self, stage: Stage, kind: str, me: Player, her: Player
    ) -> None:
        claimed = [her.ipv6, her.link_local, me.gateway_ipv6, str(SITE_IPV6.ip), "fe80::1"]
        frames = [
            header / advertisement(target, me.mac)
            for target in claimed
            for source in (me.ipv6, me.link_local)
            for header in (
                me.ether(ALL_NODES_MAC) / IPv6(src=source, dst=ALL_NODES, hlim=255),
                me.ether(her.mac) / IPv6(src=source, dst=her.ipv6, hlim=255),
            )
        ]
        became = attack(stage, kind, frames)
        assert became.leaks == []
        seen = [f for f in frames if kind != "routed" or f.dst == ALL_NODES_MAC]
        assert became.counted == expect(kind, "forged_discovery", len(seen))

    def test_with_others_addresses_as_source(
        self, stage: Stage, kind: str, me: Player, her: Player
    ) -> None:
        frames = []
        for source in (her.ipv6, her.link_local, me.gateway_ipv6):
            header = me.ether(ALL_NODES_MAC) / IPv6(src=source, dst=ALL_NODES, hlim=255)
            frames += [
                header / advertisement(source, me.mac),
                header / ICMPv6ND_NS(tgt=me.gateway_ipv6) / ICMPv6NDOptSrcLLAddr(lladdr=me.mac),
            ]
        assert_stopped(stage, kind, frames, expect(kind, "spoofed_ipv6", len(frames)))

    def test_duplicate_detection_of_others_addresses(
        self, stage: Stage, kind: str, me: Player, her: Player
    ) -> None:
        header = me.ether(ALL_NODES_MAC) / IPv6(src="::", dst=ALL_NODES, hlim=255)
        frames = [header / ICMPv6ND_NS(tgt=target) for target in (her.ipv6, me.gateway_ipv6)]
        frames += [header / advertisement(target, me.mac) for target in (her.ipv6, her.link_local)]
        assert_stopped(stage, kind, frames, {})

    def test_routers(self, stage: Stage, kind: str, me: Player, her: Player) -> None:
        router = ICMPv6ND_RA(routerlifetime=9000) / ICMPv6NDOptPrefixInfo(prefix="2001:db8::")
        turn = ICMPv6ND_Redirect(tgt=me.link_local, dst=str(ALLOWED.ipv6))
        frames = [
            me.ether(to) / IPv6(src=source, dst=dst, hlim=255) / message
            for source in (me.link_local, me.ipv6)
            for to, dst in ((ALL_NODES_MAC, ALL_NODES), (ALL_NODES_MAC, her.ipv6))
            for message in (router, turn)
        ]
        assert_stopped(stage, kind, frames, expect(kind, "forged_discovery", len(frames)))
        listed = her.namespace.run(["ip", "-6", "route"]).stdout
        assert "2001:db8::" not in listed
        assert her.link_local not in listed

    def test_behind_extension_headers(
        self, stage: Stage, kind: str, me: Player, her: Player
    ) -> None:
        """RFC 7113 is the list of ways around a guard against router advertisements."""
        header = me.ether(ALL_NODES_MAC) / IPv6(src=me.link_local, dst=ALL_NODES, hlim=255)
        frames = []
        for message in (ICMPv6ND_RA(routerlifetime=9000), advertisement(her.ipv6, me.mac)):
            frames += [
                header / IPv6ExtHdrDestOpt(options=PadN(optdata=b"\0" * 4)) / message,
                header / IPv6ExtHdrHopByHop(options=PadN(optdata=b"\0" * 4)) / message,
                header / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / message,
                header / IPv6ExtHdrFragment(offset=0, m=0, id=7) / message,
            ]
            frames += fragmented(header, message, 8)
            frames += fragmented(header, IPv6ExtHdrDestOpt() / message, 8)
        became = attack(stage, kind, frames)
        # The later pieces of what has lost its first one are nothing.
        assert [leak for leak in became.leaks if not is_later_fragment(leak)] == []

    def test_no_answers_for_addresses_that_are_elsewhere(
        self, stage: Stage, kind: str, me: Player, her: Player
    ) -> None:
        asked = [str(SITE_IPV6.ip), str(ALLOWED.ipv6), "::1"]
        if kind == "routed":
            asked += [her.ipv6, her.gateway_ipv6]
        frames = [
            me.ether(ALL_NODES_MAC)
            / IPv6(src=me.ipv6, dst=ALL_NODES, hlim=255)
            / ICMPv6ND_NS(tgt=target)
            / ICMPv6NDOptSrcLLAddr(lladdr=me.mac)
            for target in asked
        ]
        became = attack(stage, kind, frames, settle_s=0.05)
        assert (unshared(kind, became.leaks), became.counted) == ([], {})


def is_later_fragment(leak: str) -> bool:
    """Whether a leak is a fragment without the beginning of what it belongs to."""
    packet = Ether(bytes.fromhex(leak.partition(": ")[2]))
    return IPv6ExtHdrFragment in packet and packet[IPv6ExtHdrFragment].offset > 0


def fragmented(header: Any, message: Any, size: int) -> list[Any]:
    """An IPv6 packet cut into fragments of `size` bytes, however small (RFC 8200 section 4.5)."""
    whole = bytes((header / message)[IPv6])
    first, data = whole[6], whole[40:]
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return [
        header
        / IPv6ExtHdrFragment(nh=first, offset=n * size // 8, m=n + 1 < len(pieces), id=77)
        / Raw(piece)
        for n, piece in enumerate(pieces)
    ]


class TestLinkLayer:
    @pytest.mark.parametrize("tags", [(5,), (0, 5), (5, 0), (4095,)], ids=str)
    def test_vlan_tags(
        self, stage: Stage, kind: str, me: Player, her: Player, tags: tuple[int, ...]
    ) -> None:
        frames = []
        for to in (me.gateway_mac, BROADCAST, her.mac):
            header = me.ether(to)
            for position, tag in enumerate(tags):
                outer = position == 0 and len(tags) > 1
                header = header / (Dot1AD(vlan=tag) if outer else Dot1Q(vlan=tag))
            frames += [
                header / IP(src=me.ipv4, dst=str(ALLOWED.ipv4)) / udp(),
                header / IP(src=her.ipv4, dst=str(SITE_IPV4.ip)) / udp(),
                header / IPv6(src=me.ipv6, dst=str(ALLOWED.ipv6)) / udp(),
                header / ARP(op=2, hwsrc=me.mac, psrc=me.gateway_ipv4, pdst=her.ipv4),
                header / ARP(op=1, hwsrc=me.mac, psrc=me.ipv4, pdst=me.gateway_ipv4),
            ]
        counted = {} if kind == "routed" else {"bridge/foreign_ethertype": len(frames)}
        assert_stopped(stage, kind, frames, counted)

    def test_priority_tags_hide_nothing(
        self, stage: Stage, kind: str, me: Player, her: Player
    ) -> None:
        for header in (
            me.ether() / Dot1Q(vlan=0, prio=7),
            me.ether() / Dot1AD(vlan=0) / Dot1Q(vlan=0),
        ):
            frames = [
                header / IP(src=her.ipv4, dst=str(ALLOWED.ipv4)) / udp(),
                header / IPv6(src=her.ipv6, dst=str(ALLOWED.ipv6)) / udp(),
            ]
            if kind == "routed":
                counted = {"inet/spoofed_ipv4": 1, "inet/spoofed_ipv6": 1}
            else:
                counted = {"bridge/foreign_ethertype": 2}
            assert_stopped(stage, kind, frames, counted)

    def test_an_honest_packet_with_a_priority_tag(
        self, stage: Stage, kind: str, me: Player
    ) -> None:
        packet = IP(src=me.ipv4, dst=str(ALLOWED.ipv4)) / udp("priority")
        became = attack(stage, kind, [me.ether() / Dot1Q(vlan=0, prio=7) / packet], settle_s=0.05)
        if kind == "routed":  # the kernel took the tag off: there and back, like any other
            assert len(became.leaks) == 3
            assert became.counted == {}
        else:
            assert became.leaks == []
            assert became.counted == {"bridge/foreign_ethertype": 1}

    def test_other_ethertypes(self, stage: Stage, kind: str, me: Player, her: Player) -> None:
        types = [0x88B5, 0x88B6, 0x8863, 0x8864, 0x888E, 0x88CC, 0x8847, 0x8848, 0x88A2, 0x88E5]
        types += [0x8035, 0x809B, 0x8137, 0x88CA, 0x893A, 0x8902, 0x9000, 0x4305, 0xFFFF, 0x0600]
        inner = bytes(IP(src=me.ipv4, dst=str(ALLOWED.ipv4)) / udp())
        frames = [
            me.ether(to, type=number) / Raw(inner)
            for number in types
            for to in (me.gateway_mac, BROADCAST, her.mac)
        ]
        counted = {} if kind == "routed" else {"bridge/foreign_ethertype": len(frames)}
        assert_stopped(stage, kind, frames, counted)

    def test_ieee_802_3_frames(self, stage: Stage, kind: str, me: Player, her: Player) -> None:
        packet = IP(src=me.ipv4, dst=str(ALLOWED.ipv4)) / udp()
        hello = LLC(dsap=0x42, ssap=0x42, ctrl=3) / STP()
        frames = []
        for to in (me.gateway_mac, BROADCAST, her.mac, BRIDGE_GROUP):
            for body in (hello, LLC() / SNAP(code=0x0800) / packet):
                frames.append(me.ether(to, type=len(body)) / body)
        counted = {} if kind == "routed" else {"bridge/foreign_ethertype": len(frames)}
        assert_stopped(stage, kind, frames, counted)

    @pytest.mark.parametrize("group", [BRIDGE_GROUP, LINK_GROUP, LLDP_GROUP])
    def test_groups_that_a_bridge_does_not_forward(
        self, stage: Stage, kind: str, me: Player, her: Player, group: str
    ) -> None:
        """A bridge hands such frames to the port itself, beside the hooks of bridged ones."""
        header = me.ether(group)
        frames = [me.ether(group, type=0x88CC) / Raw(b"\x02\x07\x04lldp\0\0")]
        for source4, source6, sport in (
            (me.ipv4, me.ipv6, 41001),
            (her.ipv4, her.ipv6, 41002),
            (str(ROUTER_IPV4.ip), "2a0a:1234::1", 41003),
        ):
            for service in (
                UDP(sport=sport, dport=ECHO) / Raw(b"beside"),
                TCP(sport=sport, dport=80),
            ):
                frames += [
                    header / IP(src=source4, dst=str(SITE_IPV4.ip)) / service,
                    header / IPv6(src=source6, dst=str(SITE_IPV6.ip)) / service,
                    header / IP(src=source4, dst=str(PRIVATE.ipv4)) / service,
                ]
            frames.append(header / IP(src=source4, dst=me.gateway_ipv4) / ICMP())
            frames.append(header / IPv6(src=source6, dst=me.gateway_ipv6) / ICMPv6EchoRequest())
        frames.append(header / ARP(op=1, hwsrc=me.mac, psrc=her.ipv4, pdst=me.gateway_ipv4))
        became = attack(stage, kind, frames, settle_s=0.05)
        # Refusing with a reset is an answer, and an honest one; and without isolation neighbours
        # hear what is sent to groups.
        leaks = [leak for leak in became.leaks if not is_reset_to(leak, me)]
        assert (unshared(kind, leaks) if group == BRIDGE_GROUP else leaks) == []

    def test_runts_and_nonsense(self, stage: Stage, kind: str, me: Player, her: Player) -> None:
        whole4 = bytes(me.ether(BROADCAST) / IP(src=her.ipv4, dst=her.ipv4) / udp())
        whole6 = bytes(me.ether(ALL_NODES_MAC) / IPv6(src=her.ipv6, dst=her.ipv6) / udp())
        frames = [whole[:size] for whole in (whole4, whole6) for size in range(14, 60, 3)]
        # A version, header length or total length that is not so.
        for at, value in ((14, 0x65), (14, 0x41), (14, 0x4F), (16, 0xFF), (17, 1)):
            forged = bytearray(whole4)
            forged[at] = value
            frames.append(bytes(forged))
        dice = random.Random(2)
        for _ in range(200):
            body = dice.randbytes(dice.randrange(0, 120))
            kind_of = dice.choice([b"\x08\x00", b"\x86\xdd", b"\x08\x06", dice.randbytes(2)])
            to = dice.choice([BROADCAST, her.mac, me.gateway_mac]).replace(":", "")
            frames.append(
                bytes.fromhex(to) + bytes.fromhex(me.mac.replace(":", "")) + kind_of + body
            )
        assert attack(stage, kind, frames).leaks == []

    def test_frames_larger_than_the_mtu(
        self, stage: Stage, kind: str, me: Player, her: Player
    ) -> None:
        big = UDP(sport=40001, dport=ECHO) / Raw(bytes(4000))
        me.namespace.ip("link set eth0 mtu 9000")
        try:
            with Capture(her.namespace, "eth0") as beside, Wire(me.namespace) as wire:
                for to, target in ((me.gateway_mac, str(ALLOWED.ipv4)), (BROADCAST, her.ipv4)):
                    with pytest.raises(OSError, match="buffer space"):  # ENOBUFS: the pair drops it
                        wire.send(me.ether(to) / IP(src=me.ipv4, dst=target) / big)
                assert not any(len(frame.data) > 2000 for frame in beside.frames())
        finally:
            me.namespace.ip("link set eth0 mtu 1500")


def is_reset_to(leak: str, me: Player) -> bool:
    """Whether a leak is a TCP reset that came back to the attacker's own address."""
    where, _, data = leak.partition(": ")
    if where != "attacker":
        return False
    packet = Ether(bytes.fromhex(data))
    mine = (IP in packet and packet[IP].dst == me.ipv4) or (
        IPv6 in packet and packet[IPv6].dst == me.ipv6
    )
    return mine and TCP in packet and "R" in str(packet[TCP].flags)


class TestDhcp:
    def test_a_guest_is_no_dhcp_server(
        self, stage: Stage, kind: str, me: Player, her: Player
    ) -> None:
        options = [("message-type", 2), ("server_id", me.ipv4), ("router", me.ipv4), "end"]
        offer = BOOTP(
            op=2, yiaddr=her.ipv4, siaddr=me.ipv4, chaddr=bytes.fromhex(her.mac.replace(":", ""))
        )
        reply = UDP(sport=67, dport=68) / offer / DHCP(options=options)
        frames = [
            me.ether(BROADCAST) / IP(src=me.ipv4, dst="255.255.255.255") / reply,
            me.ether(her.mac) / IP(src=me.ipv4, dst=her.ipv4) / reply,
            me.ether(ALL_NODES_MAC)
            / IPv6(src=me.link_local, dst=ALL_NODES)
            / UDP(sport=547, dport=546)
            / Raw(b"\x07\0\0\x01"),
        ]
        assert unshared(kind, attack(stage, kind, frames).leaks) == []


def unshared(kind: str, leaks: list[str]) -> list[str]:
    """Leaks without those that a network without isolation is for: neighbours hear each other."""
    if kind != "shared":
        return leaks
    return [leak for leak in leaks if not leak.startswith(("shared neighbour", "attacker"))]


@pytest.fixture
def narrow(stage: Stage, kind: str) -> Iterator[Player]:
    """The attacker, for now allowed UDP to the echo port of public addresses and nothing else."""
    guest = f"{kind}-attacker"
    known = stage.attackers[kind]

    def again(policy: str) -> Player:
        stage.host.detach(guest)
        attachment = stage.host.attach(
            guest, network=kind, netns=known.namespace.path, policy=policy
        )
        assert attachment.ipv4 == known.attachment.ipv4
        stage.believed = tables(stage.world)  # a new device, so a new MAC of the host's end
        player = Player(known.namespace, attachment, known.gateway_mac)
        know_gateway(player)
        return player

    stage.attackers[kind] = again(f"allow@public:udp:{ECHO}")
    yield stage.attackers[kind]
    stage.attackers[kind] = again("allow@public")


class TestPacketsThatHideTheirPort:
    """The policy allows one UDP port; these packets would all be for another one."""

    def test_ipv4_fragments(self, stage: Stage, kind: str, narrow: Player) -> None:
        me = narrow
        bad = bytes(UDP(sport=40001, dport=9, len=40, chksum=0) / Raw(b"x" * 32))
        good = bytes(UDP(sport=40001, dport=ECHO, len=40, chksum=0) / Raw(b"x" * 32))
        header = IP(src=me.ipv4, dst=str(ALLOWED.ipv4), proto=17)

        def piece(ident: int, offset: int, data: bytes, more: bool) -> Any:
            flags = "MF" if more else 0
            cut = header.copy()
            cut.id, cut.frag, cut.flags = ident, offset // 8, flags
            return me.ether() / cut / Raw(data)

        frames = [
            # Cut as small as can be.
            *(piece(1, at, bad[at : at + 8], at < 32) for at in range(0, 40, 8)),
            # The rest before the beginning.
            piece(2, 8, bad[8:], False),
            piece(2, 0, bad[:8], True),
            # A second beginning over the first (RFC 3128, RFC 5722).
            piece(3, 0, bad[:16], True),
            piece(3, 0, good[:16], True),
            piece(3, 16, bad[16:], False),
            # An allowed beginning whose end lies over it.
            piece(4, 0, good[:24], True),
            piece(4, 8, b"\0\x09" * 12, False),
            # No beginning at all.
            piece(5, 8, bad[8:], False),
        ]
        became = attack(stage, kind, frames)
        assert became.leaks == []

    def test_ipv6_fragments_and_extension_headers(
        self, stage: Stage, kind: str, narrow: Player
    ) -> None:
        me = narrow
        header = me.ether() / IPv6(src=me.ipv6, dst=str(ALLOWED.ipv6))
        bad = UDP(sport=40001, dport=9) / Raw(b"hidden" * 6)
        pad = PadN(optdata=b"\0" * 4)
        frames = [
            header / IPv6ExtHdrHopByHop(options=pad) / bad,
            header / IPv6ExtHdrDestOpt(options=pad) / bad,
            header / IPv6ExtHdrFragment(offset=0, m=0, id=3) / bad,
            header / IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(m=0, id=4) / bad,
            header / IPv6ExtHdrRouting(type=0, addresses=[str(ALLOWED.ipv6)], segleft=0) / bad,
            header / IPv6ExtHdrRouting(type=4, addresses=[], segleft=0) / bad,
            *fragmented(header, bad, 8),
            *fragmented(header, IPv6ExtHdrDestOpt() / bad, 8),
        ]
        became = attack(stage, kind, frames)
        assert became.leaks == []

    def test_fragments_do_not_join_a_neighbour_s_datagram(
        self, stage: Stage, kind: str, me: Player, her: Player
    ) -> None:
        """With a forged source, the end of a datagram waits for the beginning that she sends."""
        header = IP(src=her.ipv4, dst=str(ALLOWED.ipv4), proto=17, id=4711)
        whole = bytes(UDP(sport=40002, dport=ECHO, len=40, chksum=0) / Raw(b"honest--" * 4))
        end, first, rest = header.copy(), header.copy(), header.copy()
        end.frag, first.flags, rest.frag = 2, "MF", 2
        with (
            stage.world.capture(f"ip and dst host {ALLOWED.ipv4} and not icmp") as uplink,
            Wire(me.namespace) as mine,
            Wire(her.namespace) as hers,
        ):
            mine.send(me.ether() / end / Raw(b"forged!!" * 3))
            time.sleep(0.02)
            hers.send(her.ether() / first / Raw(whole[:16]))
            time.sleep(0.02)
            hers.send(her.ether() / rest / Raw(whole[16:]))
            time.sleep(0.1)
            # Put together and perhaps cut again, it is what she sent.
            seen = b"".join(frame.data[34:] for frame in uplink.frames())
        assert seen[8:] == b"honest--" * 4

    def test_an_honest_fragmented_datagram_arrives(
        self, stage: Stage, kind: str, narrow: Player
    ) -> None:
        script = (
            "import socket\n"
            f"for a in ('{ALLOWED.ipv4}', '{ALLOWED.ipv6}'):\n"
            "  family = socket.AF_INET6 if ':' in a else socket.AF_INET\n"
            "  s = socket.socket(family, socket.SOCK_DGRAM)\n"
            f"  s.settimeout(3); s.sendto(bytes(5000), (a, {ECHO})); print(len(s.recv(9999)))\n"
        )
        assert narrow.namespace.run(["python3", "-c", script]).stdout.split() == ["5000", "5000"]
        stage.world.servers.forget()


class TestPacketsThatHideTheirDestination:
    def test_source_routes(self, stage: Stage, kind: str, me: Player, her: Player) -> None:
        """By way of the host or of an allowed server to where the guest may not go."""
        frames = []
        for via in (me.gateway_ipv4, str(SITE_IPV4.ip), str(ALLOWED.ipv4)):
            for end in (str(METADATA.ipv4), str(PRIVATE.ipv4), her.ipv4):
                for option in (131, 137):  # loose and strict, RFC 791
                    route = IPOption(bytes([option, 7, 4]) + IPv4Address(end).packed + b"\0")
                    frames.append(
                        me.ether() / IP(src=me.ipv4, dst=via, options=[route]) / udp("routed")
                    )
        became = attack(stage, kind, frames)
        assert became.leaks == []

    def test_routing_headers(self, stage: Stage, kind: str, me: Player, her: Player) -> None:
        """RFC 5095 takes type 0 out of IPv6; by way of the host nothing gets anywhere."""
        frames = [
            me.ether()
            / IPv6(src=me.ipv6, dst=via)
            / IPv6ExtHdrRouting(type=0, addresses=[end], segleft=1)
            / udp("routed")
            for via in (me.gateway_ipv6, str(SITE_IPV6.ip))
            for end in (str(METADATA.ipv6), str(PRIVATE.ipv6), her.ipv6)
        ]
        became = attack(stage, kind, frames)
        assert became.leaks == []

    def test_tunnels_to_the_host_are_not_opened(
        self, stage: Stage, kind: str, me: Player, her: Player
    ) -> None:
        inner = IP(src=me.ipv4, dst=str(PRIVATE.ipv4)) / udp("tunnelled")
        inner6 = IPv6(src=me.ipv6, dst=str(PRIVATE.ipv6)) / udp("tunnelled")
        frames = []
        for to in (me.gateway_ipv4, str(SITE_IPV4.ip)):
            outer = me.ether() / IP(src=me.ipv4, dst=to)
            frames += [outer / inner, outer / inner6, outer / GRE() / inner]
        for to in (me.gateway_ipv6, str(SITE_IPV6.ip)):
            outer = me.ether() / IPv6(src=me.ipv6, dst=to)
            frames += [outer / inner, outer / inner6]
        became = attack(stage, kind, frames)
        assert became.leaks == []

    def test_errors_about_a_neighbour_s_flow(
        self, stage: Stage, kind: str, me: Player, her: Player
    ) -> None:
        """An ICMP error passes as related to a flow; it has to be a flow of the guest's own."""
        inner = IP(src=str(ALLOWED.ipv4), dst=her.ipv4) / UDP(sport=ECHO, dport=40404)
        inner6 = IPv6(src=str(ALLOWED.ipv6), dst=her.ipv6) / UDP(sport=ECHO, dport=40404)
        with her.namespace.enter():
            for address in ALLOWED.addresses:
                open_flow(str(address), 40404)
        frames = []
        for code in (1, 3, 4):
            frames.append(
                me.ether()
                / IP(src=me.ipv4, dst=str(ALLOWED.ipv4))
                / ICMP(type=3, code=code, nexthopmtu=600)
                / Raw(bytes(inner / Raw(b"secret of the guest")))
            )
        too_big = b"\x02\0\0\0\0\0\x05\x00" + bytes(inner6 / Raw(b"secret"))
        frames.append(
            me.ether()
            / IPv6(src=me.ipv6, dst=str(ALLOWED.ipv6), nh=58)
            / Raw(icmpv6_summed(me.ipv6, str(ALLOWED.ipv6), too_big))
        )
        with (
            stage.world.capture("icmp[0] == 3 or (icmp6 and ip6[40] < 128)") as errors,
            Wire(me.namespace) as wire,
        ):
            wire.send(*frames)
            time.sleep(0.1)
            assert errors.lines() == []


def open_flow(address: str, port: int) -> None:
    """One datagram from a port of one's choice."""
    import socket

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.bind(("", port))
        sender.settimeout(2)
        sender.sendto(b"flow", (address, ECHO))
        sender.recv(99)


def icmpv6_summed(source: str, destination: str, message: bytes) -> bytes:
    """An ICMPv6 message with its checksum (RFC 4443 section 2.3)."""
    from scapy.layers.inet6 import in6_chksum

    checksum: Any = in6_chksum
    total: int = checksum(58, IPv6(src=source, dst=destination), message)
    return message[:2] + total.to_bytes(2, "big") + message[4:]


class TestFloods:
    COUNT = 4000

    def test_of_broadcasts_and_multicasts(
        self, stage: Stage, kind: str, me: Player, her: Player
    ) -> None:
        honest = [
            me.ether(BROADCAST) / ARP(op=1, hwsrc=me.mac, psrc=me.ipv4, pdst=me.gateway_ipv4),
            me.ether(BROADCAST) / IP(src=me.ipv4, dst="255.255.255.255") / udp(),
            me.ether("01:00:5e:00:00:fb") / IP(src=me.ipv4, dst="224.0.0.251") / udp(),
            me.ether(ALL_NODES_MAC) / IPv6(src=me.ipv6, dst=ALL_NODES) / udp(),
        ]
        packed = [bytes(frame) for frame in honest]
        assert stage.host_servers is not None
        with (
            pinging(her),
            Capture(her.namespace, "eth0") as beside,
            stage.world.capture() as uplink,
            Wire(me.namespace) as wire,
        ):
            for n in range(self.COUNT):
                wire.send(packed[n % len(packed)])
            if kind != "shared":
                assert not [f for f in beside.frames() if is_leak("beside", f)]
            assert not [f for f in uplink.frames() if is_leak("uplink", f)]

    def test_of_forgeries(self, stage: Stage, kind: str, me: Player, her: Player) -> None:
        dice = random.Random(3)
        forged = [
            bytearray(bytes(me.ether() / IP(src=f"8.8.8.{n}", dst=str(SITE_IPV4.ip)) / udp()))
            for n in range(100)
        ]
        arp = bytearray(bytes(me.ether(BROADCAST) / ARP(op=2, hwsrc=me.mac, psrc="1.2.3.4")))
        before = stage.host.counters()
        with pinging(her), Wire(me.namespace) as wire:
            for n in range(self.COUNT // 2):
                frame = forged[n % len(forged)]
                frame[6:12] = b"\x02" + dice.randbytes(5)
                arp[28:32] = dice.randbytes(4)
                wire.send(bytes(frame), bytes(arp))
            time.sleep(0.1)
        after = stage.host.counters()
        counted = sum(after[name] - before[name] for name in after if "spoofed" in name)
        assert counted == self.COUNT
        assert tables(stage.world) == stage.believed

    def test_and_everyone_is_well_afterwards(self, stage: Stage, kind: str) -> None:
        for player in (stage.attackers[kind], stage.neighbours[kind]):
            assert_open(player.namespace, doors(ALLOWED.addresses))
        assert stage.host.reconcile().steps == ()


def test_the_named_counters_are_all_there(plain_stage: Stage) -> None:
    names = {name.partition("/")[2] for name in plain_stage.host.counters()}
    wanted = {"spoofed_ipv4", "spoofed_ipv6", "spoofed_arp", "forged_discovery"}
    assert wanted | {"foreign_ethertype", "refused", "unleased", "invalid"} <= names
