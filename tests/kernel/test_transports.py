"""Transports on a real kernel: VMMs' sockets in place of the TAP."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP, Ether

from guestnet import FramePort, receive_tap
from guestnet.errors import BusyError, ConfigError, ConflictError, HostError
from guestnet.frames.transport import Transport
from guestnet.host import Host
from guestnet.model import Attachment, TransportInfo
from lab import processes
from lab.addresses import ALLOWED, METADATA
from lab.world import World

# The tests are no package; only mypy knows them as one.
if TYPE_CHECKING:
    from .hostile import assert_none_open, assert_open, doors, flowing
    from .vmmpeer import Line, Vmm, eventually
else:
    from hostile import assert_none_open, assert_open, doors, flowing
    from vmmpeer import Line, Vmm, eventually

pytestmark = pytest.mark.root

KINDS = ("stream", "stream-client", "dgram", "stream+vnet", "dgram+vnet")
#: The site itself may send to the guest.
OPEN = "allow@public,allow:ingress@host"
TRAFFIC = "tcp or udp or icmp or (icmp6 and (ip6[40] == 128 or ip6[40] < 128))"


class Scene:
    """A host in a world, and a directory for sockets."""

    def __init__(self, world: World, host: Host, directory: Path) -> None:
        self.world = world
        self.host = host
        self.directory = directory

    def attach(self, guest: str = "vm", kind: str = "stream", **options: Any) -> Attachment:
        options.setdefault("policy", "allow@public")
        text = f"{kind}:{self.directory}/{guest}.sock"
        return self.host.attach(guest, transport=text, **options)

    def info(self, guest: str = "vm") -> TransportInfo:
        found = self.host.transport(guest)
        assert found is not None
        return found

    def await_serving(self, guest: str = "vm") -> None:
        eventually(lambda: self.info(guest).serving, f"{guest} is not served")

    def await_connections(self, count: int) -> None:
        eventually(lambda: self.info().connections == count, f"there are no {count} connections")

    def line(self, attachment: Attachment, **options: Any) -> Line:
        """A VMM's end of an attachment's transport."""
        assert attachment.transport is not None
        return Line(Transport.parse(attachment.transport), **options)


def arp(attachment: Attachment) -> bytes:
    assert attachment.ipv4 is not None
    ask = ARP(hwsrc=attachment.mac, psrc=str(attachment.ipv4.ip), pdst=str(attachment.gateway_ipv4))
    return bytes(Ether(src=attachment.mac, dst="ff:ff:ff:ff:ff:ff") / ask)


def pings(attachment: Attachment, line: Line, *, header: bytes = b"") -> bool:
    assert attachment.ipv4 is not None
    token = os.urandom(8)
    line.send(header + arp(attachment))
    gateway = ""
    while frames := line.receive():
        for frame in frames:
            packet = Ether(frame[len(header) :])
            if ARP in packet and packet[ARP].op == 2 and not gateway:
                gateway = packet.src
                echo = IP(src=str(attachment.ipv4.ip), dst=str(ALLOWED.ipv4)) / ICMP() / token
                line.send(header + bytes(Ether(src=attachment.mac, dst=gateway) / echo))
            elif ICMP in packet and bytes(packet[ICMP].payload) == token:
                return True
    return False


@pytest.fixture
def scene(world: World, host: Host, tmp_path: Path) -> Scene:
    return Scene(world, host, tmp_path)


@pytest.fixture(params=KINDS)
def running(scene: Scene, request: pytest.FixtureRequest) -> Iterator[tuple[Scene, Vmm]]:
    """A guest with a TCP/IP of its own, behind each kind of transport."""
    attachment = scene.attach(kind=request.param)
    with scene.line(attachment) as line, Vmm(scene.world.guest, attachment, line) as vmm:
        yield scene, vmm


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


def test_the_next_process_serves_it_again(world: World, tmp_path: Path) -> None:
    kinds = ("stream", "dgram", "tap-fd")
    for _life in range(3):
        with Host.open(tmp_path / "state", site=world.site.path) as host:
            scene = Scene(world, host, tmp_path)
            for kind in kinds:
                attachment = scene.attach(kind, kind)
                if kind != "tap-fd":
                    with scene.line(attachment) as line:
                        assert pings(attachment, line)
                scene.await_serving(kind)
        assert sorted(path.name for path in tmp_path.glob("*.sock")) == [
            "dgram.sock",
            "stream.sock",
            "tap-fd.sock",
        ]
    with Host.open(tmp_path / "state", site=world.site.path) as host:
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


def test_detach_leaves_what_took_the_sockets_place(scene: Scene) -> None:
    scene.attach()
    path = scene.directory / "vm.sock"
    path.unlink()
    path.write_text("mine")
    assert scene.host.detach("vm")
    assert path.read_text() == "mine"


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hostile", "problem"),
    [
        (b"\0\0\0\0", "a frame of 0 bytes"),
        (b"\0\0\0\x0d" + bytes(13), "a frame of 13 bytes"),
        (b"\0\0\x05\xef", "a frame of 1519 bytes"),
        (b"\xff\xff\xff\xff", "a frame of 4294967295 bytes"),
        (b"GET / HTTP/1.1\r\n\r\n", "a frame of 1195725856 bytes"),
        (b"\0\0\0\x40half", "the stream ended 8 bytes into a frame"),
    ],
)
def test_a_malformed_stream_is_hung_up_on(scene: Scene, hostile: bytes, problem: str) -> None:
    attachment, other = scene.attach(), scene.attach("other")
    with scene.line(other) as neighbour:
        assert pings(other, neighbour)
        with scene.line(attachment) as line:
            line.socket.sendall(hostile)
            if "ended" in problem:
                line.socket.shutdown(socket.SHUT_WR)
            assert line.hung_up()
        eventually(lambda: problem in scene.info().problem)
        assert scene.info().malformed == 1
        assert (scene.info().restarts, scene.info("other").malformed) == (0, 0)
        with scene.line(attachment) as line:
            assert pings(attachment, line)
        assert pings(other, neighbour)


def test_malformed_datagrams_are_counted(scene: Scene) -> None:
    attachment = scene.attach(kind="dgram")
    with scene.line(attachment) as line:
        for hostile in (b"", b"x", bytes(13), bytes(1519), bytes(60_000)):
            line.socket.send(hostile)
        assert pings(attachment, line)
        eventually(lambda: scene.info().malformed == 5)


@pytest.mark.parametrize("kind", ["stream+vnet", "dgram+vnet"])
def test_headers_that_lie_are_counted(scene: Scene, kind: str) -> None:
    attachment = scene.attach(kind=kind)
    with scene.line(attachment) as line:
        for header in (
            bytes([1, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0]),  # a checksum beyond the frame
            bytes([0, 99]) + bytes(10),  # a segmentation that there is not
            bytes([0, 1]) + bytes(10),  # segments of no size
        ):
            line.send(header + bytes(60))
        line.send(bytes(12 + 4000))  # longer than the link, and not to be segmented
        assert pings(attachment, line, header=bytes(12))
        eventually(lambda: scene.info().malformed == 4)
    assert scene.info().restarts == 0


@pytest.mark.parametrize("kind", ["stream", "dgram", "stream+vnet"])
def test_a_vmm_that_never_reads(scene: Scene, kind: str) -> None:
    """The TAP's queue fills up and drops; the pump neither grows nor spins, and hears the VMM."""
    attachment = scene.attach(kind=kind, policy=OPEN)
    header = bytes(12) if kind.endswith("+vnet") else b""
    with scene.line(attachment) as line:
        line.send(header + arp(attachment))
        eventually(lambda: scene.info().connected)
        pid = scene.info().pid
        assert pid is not None
        before = memory_kib(pid)
        to_the_guest(scene, attachment, 4000)
        assert dropped(scene, attachment)
        assert memory_kib(pid) < before + 4096
        spent = cpu_ticks(pid)
        sent = scene.host.usage("vm").tx_packets
        for _ in range(20):
            line.send(header + arp(attachment))
        eventually(lambda: scene.host.usage("vm").tx_packets >= sent + 20)
        select_nothing(1.0)
        assert cpu_ticks(pid) - spent < 0.5 * os.sysconf("SC_CLK_TCK")
        # And when it reads again, it gets what the queue held, and all is as before.
        assert line.drain() >= 500
        assert pings(attachment, line, header=header)


def to_the_guest(scene: Scene, attachment: Attachment, count: int) -> None:
    """Datagrams from the site itself, as fast as they go."""
    assert attachment.ipv4 is not None
    with scene.world.site.enter():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        for _ in range(count):
            sender.sendto(bytes(1400), (str(attachment.ipv4.ip), 9))


def dropped(scene: Scene, attachment: Attachment) -> int:
    shown = scene.world.site.run(["ip", "-s", "-j", "link", "show", attachment.tap]).stdout
    return int(json.loads(shown)[0]["stats64"]["tx"]["dropped"])


def memory_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def select_nothing(seconds: float) -> None:
    with socket.socket(socket.AF_UNIX) as quiet:
        quiet.settimeout(seconds)
        quiet.bind("")
        quiet.listen(1)
        with pytest.raises(TimeoutError):
            quiet.accept()


# -- whose files and rights --------------------------------------------------------------------


def test_a_foreign_file_is_never_replaced(scene: Scene) -> None:
    path = scene.directory / "vm.sock"
    path.write_text("mine")
    with pytest.raises(ConflictError, match="replaces only what it made itself"):
        scene.attach()
    assert path.read_text() == "mine"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(1)
        for _alive in (True, False):
            with pytest.raises(ConflictError):
                scene.attach()
            assert path.is_socket()
            other.close()
    with pytest.raises(ConfigError, match="No such file"):
        scene.host.attach("vm", transport="stream:/nowhere/vm.sock")
    assert scene.host.attachments() == []
    assert "gn" not in scene.world.site.run(["ip", "-br", "link"]).stdout


def test_one_path_has_one_guest(scene: Scene) -> None:
    scene.attach("vm")
    with pytest.raises(ConflictError):
        scene.host.attach("other", transport=f"stream:{scene.directory}/vm.sock")
    with pytest.raises(ConflictError, match="is attached with transport"):
        scene.attach("vm", kind="dgram")
    assert scene.attach("vm") == scene.host.attachment("vm")


@pytest.mark.parametrize(
    ("options", "owner", "mode"),
    [
        ({}, (0, 0), 0o600),
        ({"owner": 12345}, (12345, 0), 0o600),
        ({"owner": 12345, "group": 54321}, (12345, 54321), 0o660),
        ({"group": 54321}, (0, 54321), 0o660),
    ],
)
@pytest.mark.parametrize("kind", ["stream", "dgram", "tap-fd"])
def test_whose_the_socket_is(
    scene: Scene, kind: str, options: dict[str, Any], owner: tuple[int, int], mode: int
) -> None:
    scene.attach(kind=kind, **options)
    seen = (scene.directory / "vm.sock").stat()
    assert (seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode)) == (*owner, mode)


@pytest.fixture
def theirs() -> Iterator[Path]:
    """A directory of another user, who can get there."""
    with tempfile.TemporaryDirectory(prefix="gn-theirs-") as made:
        os.chown(made, 12345, 12345)
        yield Path(made)


def test_a_directory_of_the_owner_s(scene: Scene, theirs: Path) -> None:
    with pytest.raises(ConfigError, match="belongs to uid 12345"):
        scene.host.attach("vm", transport=f"stream:{theirs}/vm.sock")
    scene.host.attach("vm", transport=f"stream:{theirs}/vm.sock", owner=12345)
    assert (theirs / "vm.sock").stat().st_uid == 12345
    assert scene.host.detach("vm")
    assert list(theirs.iterdir()) == []


def test_a_directory_that_others_write_to(scene: Scene, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(ConfigError, match="can be written to by others"):
        scene.host.attach("vm", transport=f"stream:{shared}/vm.sock")
    shared.chmod(0o1777)
    scene.host.attach("vm", transport=f"stream:{shared}/vm.sock")


@pytest.mark.parametrize(
    ("kind", "options", "uid", "capabilities"),
    [
        ("stream", {}, 65534, 0),
        ("stream", {"owner": 12345}, 65534, 0),
        ("stream-client", {}, 65534, 0),
        # CAP_DAC_OVERRIDE: it may answer at root's sockets, and can open no file at all.
        ("dgram", {}, 65534, 1 << 1),
        ("dgram", {"owner": 12345}, 12345, 0),
    ],
)
def test_a_pump_has_no_rights(
    scene: Scene, kind: str, options: dict[str, Any], uid: int, capabilities: int
) -> None:
    scene.attach(kind=kind, **options)
    eventually(lambda: scene.info().serving)
    pid = scene.info().pid
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
    assert status["Uid"] == [str(uid)] * 4
    assert status["Gid"] == ["65534"] * 4
    assert status["Groups"] == []
    for name in ("CapPrm", "CapEff"):
        assert int(status[name][0], 16) == capabilities
    for name in ("CapInh", "CapAmb"):
        assert int(status[name][0], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])
    held = sorted(os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir())
    kinds = [each.partition(":")[0] for each in held]
    log = os.readlink("/proc/self/fd/2").partition(":")[0]
    assert set(kinds) <= {"/dev/null", "/dev/net/tun", "socket", "anon_inode", log}
    assert kinds.count("/dev/net/tun") == 1


def test_a_datagram_vmm_of_another_user(scene: Scene, theirs: Path) -> None:
    """Its pump is that user too, so that it may answer at the VMM's socket."""
    attachment = scene.host.attach(
        "vm", policy="allow@public", transport=f"dgram:{theirs}/vm.sock", owner=12345
    )
    with scene.line(attachment) as line:
        os.chown(line.own, 12345, 12345)
        os.chmod(line.own, 0o600)
        assert pings(attachment, line)


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
                os.write(handed.fds[0], arp(attachment))
                assert answers_arp(handed.fds, 0)
        else:
            with Line(Transport.parse(text)) as line:
                line.send(header + arp(attachment))
                [frame] = line.receive()
                assert Ether(frame[len(header) :])[ARP].hwdst == attachment.mac
    assert list(tmp_path.iterdir()) == []


# -- the TAP itself ----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "queues"), [("tap-fd", 1), ("tap-fd+vnet", 1), ("tap-fd", 3)])
def test_the_tap_is_handed_over(scene: Scene, kind: str, queues: int) -> None:
    attachment = scene.attach(kind=kind, queues=queues)
    path = scene.directory / "vm.sock"
    with receive_tap(path) as handed:
        facts = handed.facts
        assert (facts.tap, facts.mac, facts.mtu) == (attachment.tap, attachment.mac, 1500)
        assert (facts.queues, facts.vnet_hdr) == (queues, kind.endswith("+vnet"))
        assert facts.offload == (("csum", "tso4", "tso6") if facts.vnet_hdr else ())
        assert len(handed.fds) == queues
        assert not any(os.get_inheritable(fd) for fd in handed.fds)
        header = bytes(12) if facts.vnet_hdr else b""
        os.write(handed.fds[0], header + arp(attachment))
        assert answers_arp(handed.fds, len(header))
        with pytest.raises(BusyError):
            receive_tap(path)
    with receive_tap(path) as handed:
        assert len(handed.fds) == queues
    scene.await_connections(2)


def answers_arp(fds: tuple[int, ...], skip: int) -> bool:
    while ready := select.select(fds, [], [], 5)[0]:
        for fd in ready:
            packet = Ether(os.read(fd, 70_000)[skip:])
            if ARP in packet and packet[ARP].op == 2:
                return True
    return False


def test_a_command_becomes_the_vmm(scene: Scene) -> None:
    attachment = scene.attach(kind="tap-fd", queues=2)
    script = (
        "import os,sys; [os.fstat(int(n)) for n in sys.argv[1].split(':')]; print(*sys.argv[2:])"
    )
    command = [
        *(sys.executable, "-m", "guestnet.cli", "with-tap", f"{scene.directory}/vm.sock", "--"),
        *(sys.executable, "-c", script, "{fds}", "{mac}", "{mtu}", "{tap}"),
    ]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said.split() == [attachment.mac, "1500", attachment.tap]
    missing = subprocess.run([*command[:6], "/no/such"], check=False, capture_output=True)
    assert missing.returncode == 127


def test_nobody_to_hand_over(scene: Scene) -> None:
    with pytest.raises(HostError, match="connect"):
        receive_tap(scene.directory / "vm.sock")
    attachment = scene.attach(kind="tap-fd")
    scene.world.site.ip(f"link delete {attachment.tap}")
    with pytest.raises(HostError, match="there is no interface of this name"):
        receive_tap(scene.directory / "vm.sock")


# -- in this process ---------------------------------------------------------------------------


@pytest.mark.parametrize("vnet_hdr", [False, True])
def test_a_port_in_this_process(scene: Scene, vnet_hdr: bool) -> None:
    attachment = scene.host.attach("vm", policy="allow@public")

    async def talk() -> None:
        with scene.world.site.enter():
            port = FramePort.open(attachment, vnet_hdr=vnet_hdr)
        async with port:
            assert port.mtu == 1500
            await port.send(arp(attachment))
            while True:
                frame = (await port.recv_with_header())[1] if vnet_hdr else await port.recv()
                if ARP in Ether(frame):
                    break

    asyncio.run(asyncio.wait_for(talk(), 20))


@pytest.mark.parametrize("vnet_hdr", [False, True])
def test_a_port_that_is_lent(scene: Scene, vnet_hdr: bool) -> None:
    attachment = scene.host.attach("vm", policy="allow@public")
    with scene.world.site.enter():
        port = FramePort.open(attachment, vnet_hdr=vnet_hdr)
    with port:
        lent = port.lend()
        line = Line.of(lent)
        with line:
            assert pings(attachment, line, header=bytes(12) if vnet_hdr else b"")
            with pytest.raises(ConfigError, match="is lent already"):
                port.lend()
            port.close()
            assert line.hung_up()


def test_a_port_is_for_vms_that_open_their_tap(scene: Scene) -> None:
    with pytest.raises(ConfigError, match="transport"):
        FramePort.open(scene.attach())
