"""`guestnet run` with a VMM for its command: QEMU, and what else speaks a socket."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lab import processes, qemu
from lab.addresses import ALLOWED, FORBIDDEN, PRIVATE
from lab.image import Image, image
from lab.servers import ECHO
from lab.user import User
from lab.waiting import eventually
from runs import HOME, NAME, PATIENCE_S, Stage, as_root, find, left, url

pytestmark = pytest.mark.root
pytest_plugins = ("runs",)

NET = {
    "tap": "tap,id=net0,ifname={tap},script=no,downscript=no",
    "fd": "tap,id=net0,fd={fd}",
    "stream": "stream,id=net0,server=off,addr.type=unix,addr.path={stream}",
    "dgram": "dgram,id=net0,local.type=unix,local.path={dgram_local},"
    "remote.type=unix,remote.path={dgram}",
}
CARD = "virtio-net-pci,netdev=net0,mac={mac},host_mtu={mtu}"
TOLD = "{kernel_args} ip6={ipv6},{gateway6} dns={gateway}"


def places(stage: Stage) -> list[Path]:
    """Directories of the user's runs that are there."""
    return list((stage.user.home / "run").glob("guestnet-run-*"))


# -- any VMM ---------------------------------------------------------------------------------------

#: Says where its socket is and whose, asks for the gateway's MAC as its guest would, and says what
#: comes back; then it waits, if it is to.
VMM = """
import ipaddress, os, socket, struct, sys, time
kind, path, local, mac, ipv4, gateway, stay = sys.argv[1:]
seen = os.stat(os.path.dirname(path))
print(os.path.dirname(path), seen.st_uid == os.getuid(), oct(seen.st_mode & 0o777))
mac = bytes.fromhex(mac.replace(":", ""))
pack = lambda text: ipaddress.ip_interface(text).ip.packed
arp = struct.pack("!HHBBH", 1, 0x800, 6, 4, 1) + mac + pack(ipv4) + bytes(6) + pack(gateway)
header = bytes(12 if "vnet" in kind else 0)
frame = header + b"\\xff" * 6 + mac + b"\\x08\\x06" + arp
kind = kind.split("+")[0]
made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM if kind == "stream" else socket.SOCK_DGRAM)
made.settimeout(30)
if kind == "dgram":
    made.bind(local)
made.connect(path)
made.send(struct.pack("!I", len(frame)) + frame if kind == "stream" else frame)
answer = b""
while answer[12:14] != b"\\x08\\x06":
    if kind == "stream":
        size, = struct.unpack("!I", made.recv(4, socket.MSG_WAITALL))
        answer = made.recv(size, socket.MSG_WAITALL)[len(header):]
    else:
        answer = made.recv(70000)[len(header):]
print(answer[:6] == mac, answer[20:22] == b"\\0\\2", flush=True)
if stay:
    time.sleep(1000)
"""


def vmm(word: str, stay: str = "") -> list[str]:
    local = "{dgram_local}" if word.startswith("dgram") else ""
    words = [word, f"{{{word}}}", local, "{mac}", "{ipv4}", "{gateway}", stay]
    return [sys.executable, "-c", VMM, *words]


def started(stage: Stage, who: str, *arguments: str) -> subprocess.Popen[bytes]:
    how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if who == "user":
        return stage.popen(*arguments, **how)
    return as_root(stage, *(["--rootless"] if who == "rootless" else []), *arguments, **how)


@pytest.mark.parametrize("word", ["stream", "stream+vnet", "dgram", "dgram+vnet"])
@pytest.mark.parametrize("who", ["user", "root", "rootless"])
def test_a_socket_of_its_own(stage: Stage, who: str, word: str) -> None:
    """In a directory that is its user's alone, and goes with it."""
    process = started(stage, who, "--", *vmm(word))
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err.decode()
    where, *seen = out.decode().split()
    assert seen == ["True", "0o700", "True", "True"]
    assert not Path(where).exists()
    assert Path(where).parent == (stage.user.home / "run" if who == "user" else Path("/run"))


@pytest.mark.parametrize("session", ["", "/nowhere"])
def test_without_a_session_it_is_among_temporary_files(stage: Stage, session: str) -> None:
    (temporary := stage.user.home / "tmp").mkdir(exist_ok=True)
    os.chown(temporary, stage.user.uid, stage.user.uid)
    environ = {"XDG_RUNTIME_DIR": session, "TMPDIR": str(temporary)}
    process = stage.popen("--", *vmm("dgram"), environ=environ, stdout=subprocess.PIPE)
    out, _err = process.communicate(timeout=PATIENCE_S)
    assert Path(out.decode().split()[0]).parent == temporary
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("who", "whom"),
    [(who, whom) for who in ("user", "root") for whom in ("parent", "child", "command")]
    + [("user", "agent")],
)
def test_kill_9_leaves_no_socket(stage: Stage, who: str, whom: str) -> None:
    process = started(stage, who, "--", *vmm("dgram", "stay"))
    assert process.stdout is not None
    where = Path(process.stdout.readline().decode().split()[0])
    assert process.stdout.readline() == b"True True\n"
    (child,) = processes.children(process.pid)
    victims = {"parent": process.pid, "child": child, "command": the_command(process.pid)}
    victim = victims.get(whom) or find(stage, "rootless.agent", below=process.pid)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    process.communicate(timeout=PATIENCE_S)
    ended = {"parent": -signal.SIGKILL, "agent": 7}.get(whom, 128 + signal.SIGKILL)
    assert process.returncode == ended
    eventually(lambda: not where.exists())
    eventually(lambda: left(stage) == "")


def the_command(run: int) -> int:
    """The last of a line of processes: run, launch, init, command."""
    below = processes.children(run)
    while below:
        launch = [pid for pid in below if "guestnet.cli" in processes.command_line(pid)]
        run = (launch or sorted(below))[-1]
        below = processes.children(run)
    return run


def test_a_path_that_is_too_long_for_a_socket(stage: Stage) -> None:
    directory = stage.user.home / "run" / ("d" * 90)
    directory.mkdir()
    os.chown(directory, stage.user.uid, stage.user.uid)
    environ = {"XDG_RUNTIME_DIR": str(directory)}
    process = stage.popen("--", *vmm("stream"), environ=environ, stderr=subprocess.PIPE)
    _out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert f"{directory}/guestnet-run-" in err.decode()
    assert "at most 107 bytes" in err.decode()
    assert list(directory.iterdir()) == []
    directory.rmdir()


@pytest.mark.parametrize("who", ["user", "root"])
def test_a_vmm_that_takes_its_directory_away(stage: Stage, who: str) -> None:
    process = started(stage, who, "--", "sh", "-c", 'rm -r "$(dirname $0)"; exit 3', "{stream}")
    _out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 3, err.decode()
    eventually(lambda: left(stage) == "")


def test_words_that_contradict_each_other(stage: Stage) -> None:
    done = stage.run("--", "echo", "{stream}", "{tap}")
    assert (done.returncode, done.stdout) == (2, "")
    assert "{tap} and {stream}" in done.stderr
    assert places(stage) == []


def test_without_tun_the_remedy_is_told(stage: Stage) -> None:
    """A socket's frames go through a TAP as well."""
    with User(stage.world.site, tun=False) as user:
        for word in ("{tap}", "{stream}", "{dgram}"):
            done = user.guestnet("run", "--", "echo", word)
            assert (done.returncode, done.stdout) == (7, "")
            assert "chmod 0666 /dev/net/tun" in done.stderr
        assert not user.processes()
        assert list((user.home / "run").iterdir()) == []


def test_a_vmm_gets_a_tap_by_name_or_open(stage: Stage) -> None:
    """Without any right over the namespace that it is in."""
    opened = (
        "import fcntl, os, struct, sys; "
        "fd = os.open('/dev/net/tun', os.O_RDWR) if sys.argv[1] == 'name' else int(sys.argv[2]); "
        "request = struct.pack('16sH22x', sys.argv[2].encode()[:15], 0x1002); "
        "sys.argv[1] == 'name' and fcntl.ioctl(fd, 0x400454CA, request); "
        "print(struct.unpack('16sH22x', fcntl.ioctl(fd, 0x800454D2, bytes(40)))[0].strip(b'\\0'))"
    )
    for how, word in (("name", "{tap}"), ("open", "{fd}")):
        done = stage.run("--", sys.executable, "-c", opened, how, word, "{mac}")
        assert done.stdout == "b'gn1-0'\n", done.stderr
    done = stage.run("--", "ip", "link", "set", "{tap}", "down")
    assert "not permitted" in done.stderr


# -- QEMU ------------------------------------------------------------------------------------------


class _Run:
    """Starts VMMs by `guestnet run`, and keeps what it says."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.process: subprocess.Popen[bytes] = None  # type: ignore[assignment]

    def popen(self, argv: Any, **how: Any) -> subprocess.Popen[bytes]:
        how["stderr"] = subprocess.PIPE
        self.process = self._stage.popen("--allow", NAME, "--json", "--", *argv, **how)
        return self.process

    def ended(self) -> dict[str, Any]:
        """Its summary, once its command has ended."""
        _out, err = self.process.communicate(timeout=PATIENCE_S)
        told = json.loads(err.splitlines()[-1])
        assert told["status"] == self.process.returncode
        return dict(told)


@pytest.fixture(scope="module")
def the_image(the_stage: Stage) -> Image:
    """The image where the user may read it."""
    made, home = image(), the_stage.user.home
    kept = replace(
        made,
        kernel=Path(shutil.copy(made.kernel, home / "kernel")),
        initramfs=Path(shutil.copy(made.initramfs, home / "initramfs")),
    )
    for path in (kept.kernel, kept.initramfs):
        path.chmod(0o644)
    return kept


@contextlib.contextmanager
def booted(stage: Stage, the_image: Image, way: str) -> Iterator[tuple[qemu.Guest, _Run]]:
    run = _Run(stage)
    net = ["-netdev", NET[way], "-device", CARD]
    uid = stage.user.uid
    with qemu.Guest(run, net, TOLD, guest_image=the_image, owner=uid) as vm:
        yield vm, run


def fetch(vm: qemu.Guest, target: str, name: str = NAME) -> qemu.Result:
    return vm.run(f"timeout 10 wget -qO- --header 'Host: {name}' '{target}'", timeout_s=20)


@pytest.mark.guest
@pytest.mark.parametrize("way", list(NET))
def test_a_qemu_guest(stage: Stage, the_image: Image, way: str) -> None:
    with booted(stage, the_image, way) as (vm, run):
        given = vm.run("ip address show dev eth0").output
        assert "inet 172.16.0.2/30" in given
        assert "inet6 fd42:6d73:62::2/64" in given
        told = vm.run(f"nslookup {NAME}", timeout_s=20).output
        assert all(str(address) in told for address in ALLOWED.addresses)
        for version in (4, 6):
            page = json.loads(fetch(vm, url(ALLOWED, version)).output)
            assert (page["server"], page["host"]) == ("allowed", NAME)
            for server in (FORBIDDEN, HOME, PRIVATE):
                assert not fetch(vm, url(server, version), server.name).ok
        assert "NXDOMAIN" in vm.run(f"nslookup {FORBIDDEN.name}", timeout_s=20).output
        run.process.terminate()
        summary = run.ended()
    names, addresses = (
        {(d["verdict"], d["kind"], d[key]) for d in summary["decisions"]}
        for key in ("name", "address")
    )
    assert {("allow", "flow", NAME), ("deny", "dns", FORBIDDEN.name)} <= names
    assert {("deny", "flow", str(address)) for address in FORBIDDEN.addresses} <= addresses
    assert summary["status"] == 0  # QEMU's, when it is asked to end
    for server in (FORBIDDEN, PRIVATE):
        assert stage.world.arrivals(server) == []
    assert stage.home.arrivals() == []
    assert places(stage) == []


def busy(vm: qemu.Guest) -> None:
    """Have frames go both ways for as long as it lives."""
    assert vm.run(f"nslookup {NAME}", timeout_s=20).ok
    loop = f"while :; do head -c 9999999 /dev/zero | nc {ALLOWED.ipv4} {ECHO}; done"
    assert vm.run(f"({loop}) >/dev/null 2>&1 &").ok
    before = traffic(vm)
    eventually(lambda: all(now > then for now, then in zip(traffic(vm), before, strict=True)))


def traffic(vm: qemu.Guest) -> tuple[int, int]:
    """Bytes that came in and went out."""
    counters = "/sys/class/net/eth0/statistics/rx_bytes /sys/class/net/eth0/statistics/tx_bytes"
    received, sent = vm.run(f"cat {counters}").output.split()
    return int(received), int(sent)


@pytest.mark.guest
@pytest.mark.parametrize("way", ["stream", "dgram"])
def test_kill_9_between_frames(stage: Stage, the_image: Image, way: str) -> None:
    """Of the pump: another takes its place. Of the VMM: that is the end."""
    with booted(stage, the_image, way) as (vm, run):
        busy(vm)
        first = eventually(lambda: find(stage, "guestnet.pump", below=run.process.pid))
        os.kill(first, signal.SIGKILL)
        second = eventually(lambda: find(stage, "guestnet.pump", below=first))
        if way == "dgram":
            eventually(lambda: fetch(vm, url(ALLOWED, 4)).ok)
            busy(vm)
        else:
            # This QEMU does not connect again. Nothing else is affected.
            assert not fetch(vm, url(ALLOWED, 4)).ok
            assert run.process.poll() is None
        assert second in stage.user.processes()
        os.kill(the_command(run.process.pid), signal.SIGKILL)
        summary = run.ended()
    assert summary["status"] == 128 + signal.SIGKILL
    assert not stage.user.processes()
    assert places(stage) == []
