"""Transports in the hands of hostile VMMs, and whose files and rights are which."""

from __future__ import annotations

import json
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guestnet.errors import ConfigError, ConflictError
from guestnet.model import Attachment
from lab.waiting import eventually
from transporting import OPEN, Scene, arp, pings, to_the_guest

pytestmark = pytest.mark.root
pytest_plugins = ("transporting",)

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
