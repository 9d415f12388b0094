"""Transports on a real kernel: VMMs' sockets in place of the TAP, from attach to detach."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP, Ether

from guestnet import receive_tap
from guestnet.errors import BusyError
from guestnet.frames.transport import Transport
from guestnet.host import Host
from hostile import assert_none_open, assert_open, doors, flowing
from lab import processes
from lab.addresses import ALLOWED, METADATA
from lab.waiting import eventually
from lab.world import World
from transporting import KINDS, OPEN, TRAFFIC, Scene, answers_arp, arp, pings, to_the_guest
from vmmpeer import Line, Vmm

pytestmark = pytest.mark.root
pytest_plugins = ("transporting",)

# -- what passes -------------------------------------------------------------------------------


def test_its_policy_holds(running: tuple[Scene, Vmm]) -> None:
    scene, _vmm = running
    guest = scene.world.guest
    assert_open(guest, doors(ALLOWED.addresses))
    assert_none_open(guest, doors(METADATA.addresses))
    eventually(lambda: scene.info().connected)
    assert (scene.info().malformed, scene.info().refused) == (0, 0)


def test_megabytes_both_ways(running: tuple[Scene, Vmm]) -> None:
    scene, vmm = running
    size = 3_000_000
    for address in ALLOWED.addresses:
        with flowing(scene.world.guest, address, f"/bytes/{size}") as stream:
            total = 0
            while total < size:
                data = stream.recv(1 << 20)
                assert data
                total += len(data)
        with scene.world.guest.enter():
            stream = socket.create_connection((str(address), 80), timeout=20)
        with stream:
            head = f"POST /upload HTTP/1.1\r\nHost: lab\r\nContent-Length: {size}\r\n\r\n"
            stream.sendall(head.encode() + bytes(size))
            assert b"200" in stream.recv(1000)
    mtu, header = 1500, 12 if vmm.line.transport.vnet_hdr else 0
    # Large segments stay large where the header is there to say so.
    assert (vmm.largest > mtu + 14 + header) == bool(header)


def test_lies_end_at_the_tap(running: tuple[Scene, Vmm]) -> None:
    scene, vmm = running
    given = scene.host.attachment("vm")
    assert given.ipv4 is not None
    assert_open(scene.world.guest, doors(ALLOWED.addresses))
    header = bytes(12) if vmm.line.transport.vnet_hdr else b""
    gateway = scene.world.site.run(["cat", f"/sys/class/net/{given.tap}/address"]).stdout.strip()
    before = scene.host.counters()
    other4, other6 = "172.16.0.77", "fd42:6d73:62:77::2"
    echo4, echo6 = IP(dst=str(ALLOWED.ipv4)), IPv6(dst=str(ALLOWED.ipv6))
    with scene.world.capture(TRAFFIC) as uplink:
        for source, packet in (
            (given.mac, IP(src=other4, dst=echo4.dst) / ICMP()),
            (given.mac, IPv6(src=other6, dst=echo6.dst) / ICMPv6EchoRequest()),
            ("02:66:66:66:66:66", IP(src=str(given.ipv4.ip), dst=echo4.dst) / ICMP()),
        ):
            vmm.line.send(header + bytes(Ether(src=source, dst=gateway) / packet))
        # Whatever else was sent would have been sent before this arrives.
        assert_open(scene.world.guest, doors(ALLOWED.addresses[:1], tcp=None, udp=None))
        assert sum("echo request" in line for line in uplink.lines()) == 1
    after = scene.host.counters()
    assert after["inet/spoofed_ipv4"] > before["inet/spoofed_ipv4"]
    assert after["inet/spoofed_ipv6"] > before["inet/spoofed_ipv6"]


# -- ends and beginnings -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_vmm_that_comes_again(scene: Scene, kind: str) -> None:
    attachment = scene.attach(kind=kind)
    header = bytes(12) if kind.endswith("+vnet") else b""
    for count in (1, 2, 3):
        with scene.line(attachment) as line:
            assert pings(attachment, line, header=header)
            scene.await_connections(count)
        if not kind.startswith("dgram"):
            eventually(lambda: not scene.info().connected)


def test_datagrams_that_no_vmm_takes_lose_it(scene: Scene) -> None:
    attachment = scene.attach(kind="dgram", policy=OPEN)
    with scene.line(attachment) as line:
        assert pings(attachment, line)
        eventually(lambda: scene.info().peer == line.own)
    to_the_guest(scene, attachment, 10)
    eventually(lambda: not scene.info().connected)
    assert "sending to" in scene.info().problem


def test_a_greeting_is_not_a_frame(scene: Scene) -> None:
    attachment = scene.attach(kind="dgram")
    with scene.line(attachment, greeting=b"VFKT") as line:
        eventually(lambda: scene.info().connected)
        assert pings(attachment, line)
    assert scene.info().malformed == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_pump_that_is_killed(scene: Scene, kind: str) -> None:
    attachment = scene.attach(kind=kind)
    header = bytes(12) if kind.endswith("+vnet") else b""
    with scene.line(attachment) as line:
        assert pings(attachment, line, header=header)
        killed = scene.info().pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: scene.info().pid not in (None, killed))
        if kind.startswith("dgram"):
            # Nothing tells the VMM, and nothing has to: the socket is the same.
            assert pings(attachment, line, header=header)
        else:
            assert line.hung_up()
    with scene.line(attachment) as line:
        assert pings(attachment, line, header=header)
    eventually(lambda: scene.info().serving)
    assert scene.info().restarts == 1


def test_a_tap_that_is_deleted_and_made_anew(scene: Scene) -> None:
    attachment = scene.attach()
    with scene.line(attachment) as line:
        assert pings(attachment, line)
        scene.world.site.ip(f"link delete {attachment.tap}")
        assert line.hung_up()
    assert scene.host.reconcile().steps
    eventually(lambda: scene.info().serving, "the pump has the new TAP")
    with scene.line(attachment) as line:
        assert pings(attachment, line)


@pytest.mark.parametrize("relays_all", [False, True])
def test_the_next_process_serves_it_again(world: World, tmp_path: Path, relays_all: bool) -> None:
    kinds = ("stream", "dgram", "tap-fd")
    for _life in range(3):
        with Host.open(tmp_path / "state", site=world.site.path, relays_all=relays_all) as host:
            scene = Scene(world, host, tmp_path)
            for kind in kinds:
                attachment = scene.attach(kind, kind)
                if kind != "tap-fd":
                    with scene.line(attachment) as line:
                        line.send(arp(attachment))
                        assert line.receive()
                scene.await_serving(kind)
        assert sorted(path.name for path in tmp_path.glob("*.sock")) == [
            "dgram.sock",
            "stream.sock",
            "tap-fd.sock",
        ]
    with Host.open(tmp_path / "state", site=world.site.path, relays_all=relays_all) as host:
        for kind in kinds:
            host.detach(kind)
    assert list(tmp_path.glob("*.sock")) == []


def test_what_a_later_process_cannot_serve(world: World, tmp_path: Path) -> None:
    """It starts, says so, and serves it as soon as it can."""
    with Host.open(tmp_path / "state", site=world.site.path) as host:
        Scene(world, host, tmp_path).attach()
    path = tmp_path / "vm.sock"
    path.unlink()
    path.write_text("mine")
    with Host.open(tmp_path / "state", site=world.site.path) as host:
        scene = Scene(world, host, tmp_path)
        assert not scene.info().serving
        assert f"{path} exists" in scene.info().problem
        host.follow()
        assert path.read_text() == "mine"
        path.unlink()
        host.follow()
        attachment = host.attachment("vm")
        with scene.line(attachment) as line:
            assert pings(attachment, line)


@pytest.mark.parametrize("kind", [*KINDS, "tap-fd"])
def test_detach_removes_everything(scene: Scene, kind: str) -> None:
    attachment = scene.attach(kind=kind)
    pid = scene.info().pid
    path = scene.directory / "vm.sock"
    assert path.exists() == (kind != "stream-client")
    line = scene.line(attachment) if kind == "stream" else None
    assert scene.host.detach("vm")
    assert not path.exists()
    assert pid is None or processes.start_time(pid) is None
    if line is not None:
        with line:
            assert line.hung_up()
    scene.host.reconcile()
    assert attachment.tap not in scene.world.site.run(["ip", "-br", "link"]).stdout
    assert scene.attach(kind=kind).generation == attachment.generation + 1


def test_a_daemon_that_is_killed(world: World, tmp_path: Path) -> None:
    """Its pumps go with it; the next one takes the sockets up."""
    script = (
        "import sys\n"
        "from guestnet.host import Host\n"
        "with Host.open(sys.argv[1], site=sys.argv[2]) as host:\n"
        "    for kind in ('stream', 'dgram'):\n"
        "        path = f'{kind}:{sys.argv[3]}/{kind}.sock'\n"
        "        host.attach(kind, policy='allow@public', transport=path)\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    state = tmp_path / "state"
    daemon = subprocess.Popen(
        [sys.executable, "-c", script, str(state), str(world.site.path), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"ready\n"
    finally:
        daemon.kill()
        processes.stop(daemon)
    assert (tmp_path / "stream.sock").is_socket()
    with Host.open(state, site=world.site.path) as host:
        scene = Scene(world, host, tmp_path)
        for kind in ("stream", "dgram"):
            assert scene.info(kind).problem == ""
            with scene.line(host.attachment(kind)) as line:
                assert pings(host.attachment(kind), line)


def test_killed_as_its_socket_appears(world: World, tmp_path: Path) -> None:
    """Wherever in an attach that is: afterwards the socket is there if the guest is attached."""
    script = (
        "import sys\n"
        "from guestnet.host import Host\n"
        "with Host.open(sys.argv[1], site=sys.argv[2]) as host:\n"
        "    host.attach('vm', transport=f'stream:{sys.argv[3]}/vm.sock')\n"
        "    sys.stdin.read()\n"
    )
    state, path = tmp_path / "state", tmp_path / "vm.sock"
    for delay_s in (0.0, 0.0, 0.001, 0.005):
        owner = subprocess.Popen(
            [sys.executable, "-c", script, str(state), str(world.site.path), str(tmp_path)],
            stdin=subprocess.PIPE,
        )
        try:
            eventually(path.exists)
            time.sleep(delay_s)
        finally:
            owner.kill()
            processes.stop(owner)
        with reopened(state, world) as host:
            attached = [each.guest for each in host.attachments()]
            assert path.exists() == bool(attached)
            assert host.detach("vm") == bool(attached)
            assert not path.exists()
            host.reconcile()


def reopened(state: Path, world: World) -> Host:
    """The host, after a process was killed: what it was just starting may hold its lock yet."""
    opened: list[Host] = []

    def opens() -> bool:
        with contextlib.suppress(BusyError):
            opened.append(Host.open(state, site=world.site.path))
        return bool(opened)

    eventually(opens)
    return opened[0]


def test_detach_leaves_what_took_the_sockets_place(scene: Scene) -> None:
    scene.attach()
    path = scene.directory / "vm.sock"
    path.unlink()
    path.write_text("mine")
    assert scene.host.detach("vm")
    assert path.read_text() == "mine"


# -- many --------------------------------------------------------------------------------------


def test_a_hundred_guests(scene: Scene) -> None:
    count = 100
    made = [
        scene.attach(f"vm-{n}", "stream" if n % 2 else "dgram", policy="allow@public")
        for n in range(count)
    ]
    for attachment in made:
        with scene.line(attachment) as line:
            assert pings(attachment, line)
    assert all(scene.info(each.guest).restarts == 0 for each in made)
    for attachment in made:
        assert scene.host.detach(attachment.guest)
    assert list(scene.directory.glob("*.sock")) == []


@pytest.mark.parametrize("kind", ["stream+vnet", "dgram", "tap-fd"])
def test_in_a_rootless_site(tmp_path: Path, kind: str) -> None:
    """The TAP is in another process's namespace; the socket and the pump are here."""
    with Host.open(rootless=True, remember=False) as host:
        text = f"{kind}:{tmp_path}/vm.sock"
        attachment = host.attach("vm", policy="allow@public", transport=text)
        header = bytes(12) if kind.endswith("+vnet") else b""
        if kind == "tap-fd":
            with receive_tap(tmp_path / "vm.sock") as handed:
                assert answers_arp(handed.fds, attachment)
        else:
            with Line(Transport.parse(text)) as line:
                line.send(header + arp(attachment))
                [frame] = line.receive()
                assert Ether(frame[len(header) :])[ARP].hwdst == attachment.mac
    assert list(tmp_path.iterdir()) == []
