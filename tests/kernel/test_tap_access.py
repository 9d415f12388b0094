"""Who may have a TAP: one that is held is left alone, and an owner needs no privileges."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from guestnet.errors import BusyError, ConflictError, NotFoundError
from guestnet.kernel.tap import Tap, attach, holders, ioctl
from guestnet.kernel.tap.ioctl import Ioctl, TunFlag
from tapns import ip, link, make_persistent, names

pytest_plugins = ("tapns",)
pytestmark = [pytest.mark.root, pytest.mark.usefixtures("tap_netns")]

MAC = "02:6d:73:00:00:01"
#: An unprivileged user and group of no particular name.
UID, GID = 61_234, 61_235

# -- a TAP that someone holds is left alone ----------------------------------------------------

HOLDER = """
import sys, time
from guestnet.kernel.tap import Tap
tap = Tap.open(sys.argv[1], queues=int(sys.argv[2]), persistent=sys.argv[3] == "persistent")
tap.set_ip("10.0.0.1/24")
tap.bring_up()
print("ready", flush=True)
sys.stdin.readline()
print(tap.mtu, tap.mac, tap.is_up, flush=True)
"""


@pytest.fixture
def holder() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Another process that holds a TAP."""
    started: list[subprocess.Popen[str]] = []

    def start(name: str, queues: int = 1, kind: str = "passing") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, name, str(queues), kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.communicate(timeout=10)


@pytest.mark.parametrize("existing", ["attach", "refuse", "require"])
@pytest.mark.parametrize("kind", ["persistent", "passing"])
@pytest.mark.parametrize(("theirs", "ours"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_a_held_tap_is_busy_and_keeps_working(
    holder: Callable[..., subprocess.Popen[str]], existing: Any, kind: str, theirs: int, ours: int
) -> None:
    process = holder("gn0", theirs, kind)
    before = link("gn0")
    with pytest.raises(BusyError) as caught:
        Tap.open("gn0", mac=MAC, mtu=900, vnet_hdr=True, queues=ours, existing=existing)
    assert f"pid {process.pid} (python" in caught.value.holder
    with pytest.raises(BusyError):
        Tap.delete("gn0")
    assert link("gn0") == before
    out, _ = process.communicate("\n", timeout=10)
    assert out == f"1500 {before['address']} True\n"


def test_a_tap_of_this_process_is_busy_too() -> None:
    with Tap.open("gn0"), pytest.raises(BusyError, match="this process"):
        Tap.open("gn0")


def test_a_disabled_queue_still_holds() -> None:
    with Tap.open("gn0", queues=2) as tap:
        tap.enable_queue(0, False)
        tap.enable_queue(1, False)
        with pytest.raises(BusyError):
            Tap.open("gn0")


def test_an_unknown_holder_is_said_to_be_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "find_holders", lambda _name: [])
    with Tap.open("gn0"), pytest.raises(BusyError, match="cannot be seen from here"):
        Tap.open("gn0")


def test_a_holder_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    process = tmp_path / "77"
    (process / "fd").mkdir(parents=True)
    (process / "fdinfo").mkdir()
    (process / "fd" / "3").symlink_to("/dev/net/tun")
    (process / "fdinfo" / "3").write_text("pos:\t0\niff:\tgn0\n")
    (process / "comm").write_bytes(b"\x1b[2Jvmm\xff\n")
    [found] = holders.find_holders("gn0", tmp_path)
    assert str(found) == "pid 77 (?[2Jvmm\N{REPLACEMENT CHARACTER})"


def test_of_two_who_come_at_once_to_a_multi_queue_tap_this_one_withdraws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_persistent("gn0", queues=2)
    rivals: list[Tap] = []
    look = attach._look

    def look_then_lose(*arguments: Any) -> Any:
        found = look(*arguments)
        if not rivals:
            rivals.append(None)  # type: ignore[arg-type]
            rivals[0] = Tap.open("gn0")
        return found

    monkeypatch.setattr(attach, "_look", look_then_lose)
    with pytest.raises(BusyError):
        Tap.open("gn0", mtu=900)
    assert link("gn0")["linkinfo"]["info_data"]["numqueues"] == 1
    assert rivals[0].mtu == 1500
    rivals[0].close()


def test_a_name_taken_between_look_and_creation_is_not_shared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = 0
    look = attach._look

    def look_then_lose(*arguments: Any) -> Any:
        nonlocal looks
        found = look(*arguments)
        looks += 1
        if looks == 1:
            ip("tuntap", "add", "dev", "gn0", "mode", "tap")
        return found

    monkeypatch.setattr(attach, "_look", look_then_lose)
    with pytest.raises(ConflictError, match="exists already"):
        Tap.open("gn0", existing="refuse")


def test_a_required_tap_that_vanishes_after_the_look_is_not_made_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_persistent("gn0")
    look = attach._look

    def look_then_lose(*arguments: Any) -> Any:
        found = look(*arguments)
        ip("link", "delete", "gn0")
        return found

    monkeypatch.setattr(attach, "_look", look_then_lose)
    with pytest.raises(NotFoundError):
        Tap.open("gn0", existing="require")
    assert names() == {"lo"}


def test_who_slips_into_a_new_multi_queue_tap_does_not_share_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    intruders: list[int] = []

    def intrude(*_arguments: Any) -> None:
        fd = os.open(attach.TUN_PATH, os.O_RDWR)
        intruders.append(fd)
        flags = TunFlag.TAP | TunFlag.NO_PI | TunFlag.MULTI_QUEUE
        ioctl.by_pointer(fd, Ioctl.TUNSETIFF, ioctl.pack_flags("gn0", flags), "gn0")

    monkeypatch.setattr(attach, "_set_link", intrude)
    with pytest.raises(BusyError):
        Tap.open("gn0", queues=2)
    os.close(intruders[0])
    assert names() == {"lo"}


# -- owners ------------------------------------------------------------------------------------


@pytest.fixture
def open_tun(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A /dev/net/tun that every user may open, as most distributions have it."""
    directory = Path(tempfile.mkdtemp(prefix="guestnet-tun-"))
    directory.chmod(0o755)
    os.mknod(directory / "tun", 0o020666, os.makedev(10, 200))
    (directory / "tun").chmod(0o666)
    monkeypatch.setattr(attach, "TUN_PATH", str(directory / "tun"))
    yield
    shutil.rmtree(directory)


def unprivileged(uid: int, gid: int, work: Callable[[], str]) -> str:
    """Run `work` in a child without privileges; its result, or its error."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            text = work()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(write_end, text.encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as stream:
        text = stream.read().decode()
    os.waitpid(child, 0)
    return text


def attach_gn0() -> str:
    with Tap.open("gn0", existing="require", mac=MAC, vnet_hdr=True) as tap:
        return f"attached {tap.name} {tap.mac}"


@pytest.mark.usefixtures("open_tun")
@pytest.mark.parametrize(
    ("access", "allowed", "forbidden"),
    [
        ({"owner": UID}, [(UID, 1), (UID, GID)], [(1, GID), (1, 1)]),
        ({"group": GID}, [(1, GID), (UID, GID)], [(UID, 1), (1, 1)]),
        ({"owner": UID, "group": GID}, [(UID, GID)], [(1, 1)]),
        ({}, [], [(UID, GID), (1, 1)]),
    ],
)
def test_only_its_owner_attaches_without_privileges(
    access: dict[str, int], allowed: list[tuple[int, int]], forbidden: list[tuple[int, int]]
) -> None:
    make_persistent("gn0", **access)
    for uid, gid in allowed:
        assert unprivileged(uid, gid, attach_gn0) == f"attached gn0 {MAC}"
    for uid, gid in forbidden:
        answer = unprivileged(uid, gid, attach_gn0)
        assert answer.startswith("HostError: TUNSETIFF gn0: EPERM")
        assert "owner" in answer


@pytest.mark.usefixtures("open_tun")
def test_its_owner_deletes_it_without_privileges() -> None:
    make_persistent("gn0", owner=UID)
    assert "EPERM" in unprivileged(1, 1, lambda: str(Tap.delete("gn0")))
    assert unprivileged(UID, GID, lambda: str(Tap.delete("gn0"))) == "True"
    assert names() == {"lo"}


@pytest.mark.usefixtures("open_tun")
def test_creating_without_privileges_says_what_is_missing() -> None:
    answer = unprivileged(UID, GID, lambda: Tap.open("gn0").name)
    assert answer.startswith("HostError: TUNSETIFF gn0: EPERM")
    assert "CAP_NET_ADMIN" in answer


@pytest.mark.usefixtures("open_tun")
def test_a_device_node_that_may_not_be_opened_says_so() -> None:
    Path(attach.TUN_PATH).chmod(0o600)
    answer = unprivileged(UID, GID, lambda: Tap.open("gn0").name)
    assert answer.startswith("HostError: open ")
    assert "EACCES" in answer
    assert "may not open it" in answer


def test_the_largest_uid_is_an_owner() -> None:
    with Tap.open("gn0", owner=2**32 - 2):
        assert link("gn0")["linkinfo"]["info_data"]["user"] in (2**32 - 2, str(2**32 - 2))
