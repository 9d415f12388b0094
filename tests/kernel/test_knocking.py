"""Guests' connections while nobody has answered them yet: they knock, and the other end decides.

What a guest gets to see of another end that is not there is in `test_nobody_there.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest

from ends import RESET
from guestnet.address import is_synthetic
from guestnet.host import Host
from guestnet.ruleset.names import DOOR_ADDRESSES
from lab import processes
from lab.addresses import ALLOWED, FORBIDDEN, RESOLVER, UPLINK
from lab.caller import AF, request
from lab.netns import Namespace
from lab.servers import BANNER
from lab.waiting import PATIENCE_S, eventually
from lab.world import World
from packets import TCP, Packet, checksum
from stage import Guest, GuestOf, Stage, at_once, of, refused

pytestmark = pytest.mark.root

Address = IPv4Address | IPv6Address

BOTH = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
NAME = ALLOWED.name
RTYPE = {4: "A", 6: "AAAA"}
#: A port of nobody's; one whose clients say a name first; and one that leads to the web server.
PLAIN, SPEAKING, WEB = 9000, 8443, 9080
PORTS = pytest.mark.parametrize("port", [PLAIN, SPEAKING], ids=["plain", "speaking"])
WORKERS = 2
#: SYNs of one that floods: more than are looked at, and more than it may have flows.
FLOOD = 30_000
_RST, _SYN_ACK = 0x04, 0x12
#: linux/sockios.h, ethtool.h
_SIOCETHTOOL, _SET_TX_CHECKSUM = 0x8946, 0x17
#: Room for three addresses (RFC 791).
_RECORD_ROUTE = bytes([7, 15, 4]) + bytes(13)
_WEB = f"""
table ip lab_web {{
  chain prerouting {{ type nat hook prerouting priority -100; tcp dport {WEB} dnat to :80; }}
}}
table ip6 lab_web {{
  chain prerouting {{ type nat hook prerouting priority -100; tcp dport {WEB} dnat to :80; }}
}}
"""


@pytest.fixture(scope="module", params=["by name", "relays_all", "rootless"])
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    state, rootless = tmp_path_factory.mktemp("knocking"), request.param == "rootless"
    with World() as world, contextlib.ExitStack() as stack:
        world.site.sysctl("ipv4.ping_group_range", "0 2147483647")
        world.internet.run(["nft", "-f", "-"], stdin=_WEB)
        if rootless:
            stack.enter_context(world.site.enter())
        site = None if rootless else world.site.path
        host = stack.enter_context(
            Host.open(
                state,
                site=site,
                rootless=rootless,
                relays_all=request.param == "relays_all",
                gateway_workers=WORKERS,
            )
        )
        host.create_network({"name": "plain", "dns": [str(a) for a in RESOLVER.addresses]})
        pools = {"ipv4": "10.99.0.0/16", "ipv6": "fd42:6d73:30::/48"}
        resolvers = [str(a) for a in RESOLVER.addresses]
        host.create_network({"name": "synthetic", "dns": resolvers, "synthetic": True, **pools})
        made = Stage(world, host, rootless=rootless)
        with made.guest(f"allow@{NAME}"):
            pass  # the gateway runs from the first guest on, and is no test's leftover
        yield made


def pids(host: Host) -> tuple[int, ...]:
    """The gateway's workers, as soon as all are ready."""
    gateway = host._relays.gateway
    assert gateway is not None
    eventually(lambda: all(worker.awaited for worker in gateway.workers))
    return gateway.pids


def descriptors(host: Host) -> list[int]:
    """How many each worker has open."""
    return [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids(host)]


def at_rest(host: Host) -> list[int]:
    """The same as soon as it does not change: what was closed before is gone."""
    found: list[list[int]] = []
    while len(found) < 4 or found[-1] != found[-4]:
        found.append(descriptors(host))
        time.sleep(0.02)
    return found[-1]


@contextlib.contextmanager
def rules(namespace: Namespace, *said: str) -> Iterator[None]:
    """What arrives in a namespace is subject to these."""
    text = "table inet lab {\nchain input {\ntype filter hook input priority 0\n"
    namespace.run(["nft", "-f", "-"], stdin=text + "\n".join(said) + "\n}\n}\n")
    try:
        yield
    finally:
        namespace.run(["nft", "delete", "table", "inet", "lab"])


@contextlib.contextmanager
def listening(world: World, address: Address, port: int) -> Iterator[socket.socket]:
    """A server of the test's own."""
    with world.internet.enter():
        where = (str(address), port)
        listener = socket.create_server(where, family=AF[address.version], backlog=4096)
    with listener:
        listener.settimeout(PATIENCE_S)
        yield listener


@contextlib.contextmanager
def asking(guest: Guest, address: Address, port: int) -> Iterator[socket.socket]:
    """A connection that is asked for, and not waited for."""
    with guest.namespace.enter():
        stream = socket.socket(AF[address.version], socket.SOCK_STREAM)
    with stream:
        stream.setblocking(False)
        assert stream.connect_ex((str(address), port)) == errno.EINPROGRESS
        yield stream


def outcome(stream: socket.socket) -> int:
    """What asking for a connection came to: an errno, or 0."""
    _, writable, _ = select.select([], [stream], [], PATIENCE_S)
    assert writable
    stream.settimeout(PATIENCE_S)
    return stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def is_dialled(host: Host, before: list[int], count: int = 1) -> bool:
    """Whether so many other ends are being dialled."""
    return sum(descriptors(host)) >= sum(before) + count


@contextlib.contextmanager
def raw(guest: Guest, version: int) -> Iterator[socket.socket]:
    """What sends whole IP packets as the guest."""
    with guest.namespace.enter():
        made = socket.socket(AF[version], socket.SOCK_RAW, socket.IPPROTO_RAW)
    with made:
        yield made


def send(wire: socket.socket, syn: Packet) -> None:
    (data,) = syn.ip_packets()
    wire.sendto(data, (str(syn.destination), 0))


# -- as without guestnet -----------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("url", ["http://{}/", "https://{}/", f"http://{{}}:{WEB}/"])
@pytest.mark.parametrize(
    "how", ["reject with tcp reset", "reject with icmpx host-unreachable", "drop"]
)
def test_where_one_family_leads_nowhere_clients_take_the_other(
    stage: Stage, guest_of: GuestOf, how: str, url: str, version: int
) -> None:
    """RFC 8305: they wait for the connection, and for nothing else."""
    guest = guest_of(f"allow@{NAME}")
    word = {4: "ip", 6: "ip6"}[version]
    closed = f"{word} daddr {of(ALLOWED, version)} tcp dport {{ 80, 443 }} {how}"
    with rules(stage.world.internet, closed):
        found = guest.curl(url.format(NAME))
    assert found["address"] == str(of(ALLOWED, 10 - version))


@BOTH
@PORTS
def test_connecting_fails_until_a_server_listens(
    stage: Stage, guest_of: GuestOf, port: int, version: int
) -> None:
    guest, address = guest_of(f"allow@{NAME}"), of(ALLOWED, version)
    guest.ask(NAME, RTYPE[version])
    for _ in range(2):
        for _ in range(3):
            with at_once(), pytest.raises(ConnectionRefusedError):
                guest.connect(address, port)
        with listening(stage.world, address, port), at_once():
            guest.connect(address, port).close()
    told = guest.told(6, kind="flow", reason="upstream: ECONNREFUSED")
    assert {(each.verdict, each.name) for each in told} == {("allow", NAME)}


@BOTH
@pytest.mark.parametrize("how", ["reject with tcp reset", "reject with icmpx host-unreachable"])
def test_a_name_s_own_address_leads_where_any_of_the_name_s_leads(
    stage: Stage, guest_of: GuestOf, how: str, version: int
) -> None:
    """The gateway tries them all before it answers."""
    guest = guest_of(f"allow@{NAME}", "synthetic")
    address = ip_address(guest.addresses(NAME, RTYPE[version])[0])
    assert is_synthetic(address)
    closed = [f"{word} daddr {{}} tcp dport {BANNER} {how}" for word in ("ip", "ip6")]
    both = [each.format(of(ALLOWED, v)) for each, v in zip(closed, (4, 6), strict=True)]
    with rules(stage.world.internet, *both), pytest.raises(OSError, match=r"refused|route to host"):
        guest.connect(address, BANNER)
    for one in both:
        with rules(stage.world.internet, one), guest.connect(address, BANNER) as stream:
            assert stream.recv(99) == f"220 {ALLOWED.label}\r\n".encode()


@BOTH
@pytest.mark.parametrize(
    ("server", "port"), [(ALLOWED, PLAIN), (FORBIDDEN, BANNER), (FORBIDDEN, PLAIN)]
)
def test_what_is_denied_at_once_is_refused(
    stage: Stage, guest_of: GuestOf, server: object, port: int, version: int
) -> None:
    guest = guest_of(f"allow@{NAME}:tcp:80+{BANNER}")
    guest.ask(NAME, RTYPE[version])
    with at_once(), pytest.raises(ConnectionRefusedError):
        guest.connect(of(server, version), port)
    told = guest.decided(kind="flow", port=port)
    assert (told.verdict, told.rule, told.address) == (
        "deny",
        "default_egress=deny",
        of(server, version),
    )
    assert guest.arrivals(port=port) == []


@BOTH
def test_who_is_denied_for_what_it_says_has_said_nothing_outside(
    stage: Stage, guest_of: GuestOf, version: int
) -> None:
    guest, address = guest_of(f"allow@{NAME}:tcp:8080"), of(ALLOWED, version)
    guest.ask(NAME, RTYPE[version])
    with (
        listening(stage.world, address, 8080) as listener,
        guest.connect(address, 8080) as stream,
    ):
        far, _ = listener.accept()
        with far, refused():
            far.settimeout(PATIENCE_S)
            stream.sendall(request(FORBIDDEN.name))
            assert far.recv(1) == b""
            stream.recv(1)
    told = guest.decided_once(kind="flow")
    assert (told.verdict, told.rule, told.name) == ("deny", "default_egress=deny", FORBIDDEN.name)
    assert (told.bytes_up, told.bytes_down) == (0, 0)


@BOTH
@pytest.mark.parametrize("end", ["closed", "reset"])
def test_a_server_that_speaks_and_leaves_before_the_guest_is_there(
    stage: Stage, guest_of: GuestOf, end: str, version: int
) -> None:
    guest, address = guest_of(f"allow@{NAME}"), of(ALLOWED, version)
    guest.ask(NAME, RTYPE[version])
    with listening(stage.world, address, PLAIN) as listener:
        silenced = rules(guest.namespace, f"tcp sport {PLAIN} drop")
        with silenced, asking(guest, address, PLAIN) as stream:
            far, _ = listener.accept()
            far.sendall(b"220 and bye\r\n")
            if end == "reset":
                far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            far.close()
            guest.namespace.run(["nft", "flush", "table", "inet", "lab"])
            stream.settimeout(PATIENCE_S)
            assert select.select([], [stream], [], PATIENCE_S)[1]
            assert stream.recv(99) == b"220 and bye\r\n"
            if end == "closed":
                assert stream.recv(99) == b""
            else:
                with pytest.raises(ConnectionResetError):
                    stream.recv(99)


@BOTH
@pytest.mark.parametrize("offload", [0, 1])
def test_sums_may_be_left_to_the_card(
    stage: Stage, guest_of: GuestOf, offload: int, version: int
) -> None:
    """The device of a guest's namespace takes them, as a TAP with a virtio header does."""
    guest, address = guest_of(f"allow@{NAME}"), of(ALLOWED, version)
    with guest.namespace.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        value = ctypes.create_string_buffer(struct.pack("=II", _SET_TX_CHECKSUM, offload))
        request = struct.pack("16sP16x", b"eth0", ctypes.addressof(value))
        fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
    guest.ask(NAME, RTYPE[version])
    with guest.connect(address, BANNER) as stream:
        assert stream.recv(99) == f"220 {ALLOWED.label}\r\n".encode()
    with pytest.raises(ConnectionRefusedError):
        guest.connect(address, PLAIN)


def test_options_of_ipv4_stay_with_the_guest(stage: Stage, guest_of: GuestOf) -> None:
    """A connection is one of its own outside, and its guest is not asked by which way."""
    guest = guest_of(f"allow@{NAME}")
    guest.ask(NAME)
    with guest.namespace.enter(), socket.socket() as stream:
        stream.settimeout(PATIENCE_S)
        stream.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, _RECORD_ROUTE)
        stream.connect((str(ALLOWED.ipv4), BANNER))
        assert stream.recv(99) == f"220 {ALLOWED.label}\r\n".encode()


def test_a_guest_does_not_choose_the_way_of_what_is_written_for_it(
    stage: Stage, guest_of: GuestOf
) -> None:
    """Where the host takes source routes; its own would go by no policy."""
    guest = guest_of(f"allow@{NAME}")
    guest.ask(NAME)
    for each in ("all", "lo"):
        stage.world.site.sysctl(f"ipv4.conf.{each}.accept_source_route", 1)
    (plain,) = Packet(guest.own(4), of(ALLOWED, 4), TCP, PLAIN, 30_000, "syn").ip_packets()
    head = bytearray(b"\x47" + plain[1:20] + bytes([131, 7, 4]) + of(FORBIDDEN, 4).packed + b"\0")
    head[2:4] = struct.pack("!H", len(plain) + 8)
    head[10:12] = bytes(2)
    head[10:12] = struct.pack("!H", checksum(bytes(head)))
    elsewhere = f"ip daddr {FORBIDDEN.ipv4} counter drop"
    with (
        guest.namespace.enter(),
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as heard,
        listening(stage.world, of(ALLOWED, 4), PLAIN),
        raw(guest, 4) as wire,
        rules(stage.world.internet, elsewhere),
    ):
        heard.settimeout(PATIENCE_S)
        wire.sendto(bytes(head) + plain[20:], (str(ALLOWED.ipv4), 0))
        assert segment(heard.recv(4096), 4)[3] == 30_001
        listed = stage.world.internet.run(["nft", "list", "table", "inet", "lab"]).stdout
        assert "counter packets 0" in listed


@BOTH
def test_the_doors_themselves_are_no_way_in(stage: Stage, guest_of: GuestOf, version: int) -> None:
    """Not even if a policy allows their addresses."""
    address = DOOR_ADDRESSES[version]
    guest = guest_of(f"allow@{address}" if version == 4 else f"allow@[{address}]")
    gateway = stage.host._relays.gateway
    assert gateway is not None
    for port in gateway.doors.relay_tcp:
        with at_once(), pytest.raises(ConnectionRefusedError):
            guest.connect(address, port)
    assert {each.verdict for each in guest.told(WORKERS, kind="flow")} == {"deny"}


# -- who asks again, or does not wait ----------------------------------------------------------


@BOTH
def test_a_request_that_is_repeated_is_dialled_once_and_answered_as_it_was_last(
    stage: Stage, guest_of: GuestOf, version: int
) -> None:
    guest, address = guest_of(f"allow@{NAME}"), of(ALLOWED, version)
    guest.ask(NAME, RTYPE[version])
    syns = [
        Packet(guest.own(version), address, TCP, PLAIN, mark, "syn")
        for mark in (30_000, 30_000, 90_000, 150_000)  # one port, three sequence numbers
    ]
    with (
        guest.namespace.enter(),
        socket.socket(AF[version], socket.SOCK_RAW, socket.IPPROTO_TCP) as heard,
        listening(stage.world, address, PLAIN) as listener,
        raw(guest, version) as wire,
    ):
        heard.settimeout(PATIENCE_S)
        before = at_rest(stage.host)
        with rules(stage.world.internet, f"tcp dport {PLAIN} drop"):
            send(wire, syns[0])
            eventually(lambda: is_dialled(stage.host, before))
            for syn in syns[1:]:
                send(wire, syn)
        answer = segment(heard.recv(4096), version)
        while answer[5] != _SYN_ACK:
            answer = segment(heard.recv(4096), version)
        assert answer[0] == PLAIN
        assert answer[3] == syns[-1].mark + 1
        listener.accept()[0].close()
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()


def segment(data: bytes, version: int) -> tuple[int, ...]:
    """(source port, port, number, acknowledged, size, flags) of what a raw socket heard."""
    at = (data[0] & 15) * 4 if version == 4 else 0
    return struct.unpack_from("!HHIIBB", data, at)


def test_who_is_let_in_and_does_not_come_leaves_nothing(stage: Stage, guest_of: GuestOf) -> None:
    """One has closed its socket meanwhile, one never finishes the handshake."""
    guest, before = guest_of(f"allow@{NAME}"), descriptors(stage.host)
    with contextlib.ExitStack() as stack:
        listeners = []
        for version in (4, 6):
            address, dialling = of(ALLOWED, version), descriptors(stage.host)
            guest.ask(NAME, RTYPE[version])
            listeners.append(stack.enter_context(listening(stage.world, address, PLAIN)))
            wire = stack.enter_context(raw(guest, version))
            silenced = rules(stage.world.internet, f"tcp dport {PLAIN} drop")
            with silenced, asking(guest, address, PLAIN):
                eventually(partial(is_dialled, stage.host, dialling))
            if version == 4:
                deaf = f"tcp sport {PLAIN} tcp dport 31024 drop"
                stack.enter_context(rules(guest.namespace, deaf))
            send(wire, Packet(guest.own(version), address, TCP, PLAIN, 30_000, "syn"))
        for listener in listeners:
            for _ in range(2):
                far, _ = listener.accept()
                with far:
                    far.settimeout(PATIENCE_S)
                    assert far.recv(1) == b""
        told = guest.told(4, kind="flow")
    assert {(each.verdict, each.reason) for each in told} == {("allow", "the client is gone")}
    eventually(lambda: sum(descriptors(stage.host)) <= sum(before))


@BOTH
def test_connections_from_one_port_come_to_their_own_ends(
    stage: Stage, guest_of: GuestOf, version: int
) -> None:
    """All at once: at the gateway's door some would be the same, had not the kernel changed one."""
    guest = guest_of(f"allow@{NAME},allow@{FORBIDDEN.name}")
    for name in (NAME, FORBIDDEN.name):
        guest.ask(name, RTYPE[version])
    servers = {ALLOWED.label: of(ALLOWED, version), FORBIDDEN.label: of(FORBIDDEN, version)}
    with contextlib.ExitStack() as stack:
        streams: list[tuple[str, socket.socket]] = []
        before = at_rest(stage.host)
        with rules(stage.world.internet, f"tcp dport {BANNER} drop"):
            for port in range(41_000, 41_012):
                for label, address in servers.items():
                    with guest.namespace.enter():
                        stream = stack.enter_context(socket.socket(AF[version]))
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    stream.bind((str(guest.own(version)), port))
                    stream.setblocking(False)
                    assert stream.connect_ex((str(address), BANNER)) == errno.EINPROGRESS
                    streams.append((label, stream))
            eventually(lambda: is_dialled(stage.host, before, len(streams)))
        assert [outcome(stream) for _, stream in streams] == [0] * len(streams)
        heard = [(label, stream.recv(99).decode()) for label, stream in streams]
    assert heard == [(label, f"220 {label}\r\n") for label, _ in streams]


@BOTH
def test_what_belongs_to_no_connection_is_reset(
    stage: Stage, guest_of: GuestOf, version: int
) -> None:
    guest, address = guest_of(f"allow@{NAME}"), of(ALLOWED, version)
    guest.ask(NAME, RTYPE[version])
    with (
        guest.namespace.enter(),
        socket.socket(AF[version], socket.SOCK_RAW, socket.IPPROTO_TCP) as heard,
        raw(guest, version) as wire,
    ):
        heard.settimeout(PATIENCE_S)
        send(wire, Packet(guest.own(version), address, TCP, BANNER, 30_000, "ack"))
        answer = segment(heard.recv(4096), version)
    assert (answer[0], answer[1], answer[5]) == (BANNER, 31_024, _RST)
    assert guest.arrivals(port=BANNER) == []


# -- who asks for very many --------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("end", ["silent", "open"])
def test_a_flood_of_requests_is_bounded_and_nobody_else_s_harm(
    stage: Stage, guest_of: GuestOf, end: str, version: int
) -> None:
    """Where the other end is silent they wait, else they are let in and never come."""
    other = guest_of(f"allow@{NAME}")
    address = of(ALLOWED, version)
    before = at_rest(stage.host)
    most = list(before)
    with (
        listening(stage.world, address, PLAIN),
        rules(stage.world.internet, f"tcp dport {PLAIN} {'drop' if end == 'silent' else 'accept'}"),
    ):
        with (
            stage.guest(f"allow@{NAME}:tcp:{PLAIN}") as flooder,
            rules(flooder.namespace, f"tcp sport {PLAIN} drop"),
        ):
            flooder.ask(NAME, RTYPE[version])
            flood = threading.Thread(target=flood_from, args=(flooder, address))
            flood.start()
            fetched = 0
            while flood.is_alive() or fetched < 20:
                assert other.http(address, NAME)["server"] == ALLOWED.label
                fetched += 1
                most = list(map(max, most, descriptors(stage.host)))
            flood.join()
            told = flooder.decided(kind="flow", rule="limit: flows")
            assert told.verdict == "deny"
            assert other.http(address, NAME)["server"] == ALLOWED.label
        (share,) = (int(word) for word in told.reason.split() if word.isdigit())
        assert sum(most) > sum(before) + share // 2
        assert all(now <= then + share + 32 for then, now in zip(before, most, strict=True))
        eventually(lambda: sum(descriptors(stage.host)) <= sum(before) + 4)
    assert other.http(address, NAME)["server"] == ALLOWED.label


def flood_from(guest: Guest, address: Address) -> None:
    """Ask for as many connections, each from another port or with another number."""
    with raw(guest, address.version) as wire:
        for mark in range(FLOOD):
            with contextlib.suppress(BlockingIOError, OSError):
                send(wire, Packet(guest.own(address.version), address, TCP, PLAIN, mark, "syn"))


# -- the gateway's end -------------------------------------------------------------------------


@pytest.fixture
def own(world: World, tmp_path: Path) -> Iterator[Stage]:
    """A stage of the test's own."""
    with Host.open(tmp_path / "state", site=world.site.path, gateway_workers=WORKERS) as host:
        host.create_network({"name": "plain", "dns": [str(a) for a in RESOLVER.addresses]})
        yield Stage(world, host)


@BOTH
@PORTS
def test_who_waits_while_the_gateway_is_killed_gets_in_by_the_next(
    own: Stage, port: int, version: int
) -> None:
    address = of(ALLOWED, version)
    with own.guest(f"allow@{NAME}") as guest, listening(own.world, address, port) as listener:
        guest.ask(NAME, RTYPE[version])
        before = at_rest(own.host)
        with contextlib.ExitStack() as stack:
            with rules(own.world.internet, f"tcp dport {port} drop"):
                stream = stack.enter_context(asking(guest, address, port))
                eventually(lambda: is_dialled(own.host, before))
                now = descriptors(own.host)
                (number,) = (i for i in range(WORKERS) if now[i] > before[i])
                killed = pids(own.host)[number]
                os.kill(killed, signal.SIGKILL)
                eventually(lambda: not processes.start_time(killed))
            assert outcome(stream) == 0
            stream.sendall(request(NAME))
            far, _ = listener.accept()
            with far:
                far.settimeout(PATIENCE_S)
                assert far.recv(4096) == request(NAME)


@BOTH
def test_who_waits_while_the_host_is_closed_is_refused_at_once(own: Stage, version: int) -> None:
    address, namespace = of(ALLOWED, version), own.world.guest
    attached = own.host.attach("vm", netns=namespace.path, network="plain", policy=f"allow@{NAME}")
    guest = Guest(own, attached, namespace)
    guest.ask(NAME, RTYPE[version])
    before = at_rest(own.host)
    with (
        rules(own.world.internet, f"tcp dport {PLAIN} drop"),
        asking(guest, address, PLAIN) as stream,
    ):
        eventually(lambda: is_dialled(own.host, before))
        own.host.close()
        with at_once():
            assert outcome(stream) == errno.ECONNREFUSED
    for server in (ALLOWED, FORBIDDEN):
        with at_once(), pytest.raises(ConnectionRefusedError):
            guest.connect(of(server, version), PLAIN)


def test_a_host_that_looks_where_packets_come_from(own: Stage) -> None:
    """By a strict reverse-path filter (RFC 3704), as some distributions have it on."""
    for each in ("all", "default", "lo", UPLINK):
        own.world.site.sysctl(f"ipv4.conf.{each}.rp_filter", 1)
    with own.guest(f"allow@{NAME}") as guest:
        guest.ask(NAME)
        with guest.connect(of(ALLOWED, 4), BANNER) as stream:
            assert stream.recv(99) == f"220 {ALLOWED.label}\r\n".encode()
        with pytest.raises(ConnectionRefusedError):
            guest.connect(of(ALLOWED, 4), PLAIN)
