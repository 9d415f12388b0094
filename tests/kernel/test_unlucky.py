"""An ordinary user's guestnet on machines that lack something, as containers do, or are full.

Each says what is in the way and what to do, and leaves nothing; or it works all the same.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from lab.addresses import ALLOWED
from lab.user import User
from lab.waiting import eventually
from lab.world import World
from mine import Mine

pytestmark = pytest.mark.root

NAME = ALLOWED.name
CLI = (sys.executable, "-P", "-m", "guestnet.cli")
FETCH = ("run", "--allow", NAME, "--", "curl", "-sS", "-m", "20", f"http://{NAME}/")
OPEN = """
import sys, guestnet
try: guestnet.Host.open(rootless=True, remember=False)
except guestnet.HostError as error: sys.exit(str(error))
"""
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def the_user() -> Iterator[User]:
    with World() as world, User(world.site) as made:
        yield made


@pytest.fixture
def user(the_user: User) -> Iterator[User]:
    """A user of a machine with a network; whatever a test ran is gone at its end, by itself."""
    yield the_user
    eventually(lambda: not the_user.processes())


def changed(user: User, mounts: str, *command: str) -> Done:
    """Run a command as the user on a machine that was changed: in a mount namespace of its own."""
    again = f'exec unshare -U --map-user={user.uid} --map-group={user.uid} "$@"'
    return user.run(["unshare", "-Urm", "sh", "-ec", f"{mounts}\n{again}", "sh", *command])


def prepared(user: User, prepare: str, *command: str) -> Done:
    return user.run(["sh", "-c", f'{prepare}; exec "$@"', "sh", *command])


def findings(done: Done) -> dict[str, Any]:
    return {each["check"]: each for each in json.loads(done.stdout)}


def fetched(done: Done) -> bool:
    assert "Traceback" not in done.stderr
    return done.returncode == 0 and json.loads(done.stdout)["server"] == "allowed"


# -- containers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_a_seccomp_filter_forbids_namespaces(user: User, number: int) -> None:
    filtered = [sys.executable, "-m", "lab.container", str(number)]
    for command in ((*CLI, *FETCH), (*CLI, "up"), (sys.executable, "-c", OPEN)):
        done = user.run([*filtered, *command])
        assert done.returncode in (7, 1), done
        assert errno.errorcode[number] in done.stderr
        assert "--security-opt seccomp=" in done.stderr
        assert "Traceback" not in done.stderr
        eventually(lambda: not user.processes())
    doctor = user.run([*filtered, *CLI, "doctor", "--json"])
    assert doctor.returncode == 1
    assert "--security-opt seccomp=" in findings(doctor)["rootless site"]["detail"]


def test_a_container_s_settings_cannot_be_written(user: User) -> None:
    """Guests do not reach each other; all else works."""
    mounts = "mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys"
    for version in ("-4", "-6"):
        done = changed(user, mounts, *CLI, *FETCH, version)
        assert fetched(done)
        assert done.stderr.count("\n") == 1  # what was reached, and nothing else
    found = findings(changed(user, mounts, *CLI, "doctor", "--json"))
    assert found["settings"]["status"] == "warning"
    assert "systempaths=unconfined" in found["settings"]["remedy"]


def test_root_of_a_container_is_not_root_of_its_network(user: User) -> None:
    container = ["unshare", "-Urmpf", "--mount-proc"]
    doctor = user.run([*container, *CLI, "doctor", "--json"])
    assert doctor.returncode == 1
    assert "--rootless" in findings(doctor)["privileges"]["remedy"]
    for command in (FETCH, ("up",)):
        done = user.run([*container, *CLI, *command])
        assert done.returncode == 7, done
        assert "EACCES" in done.stderr
        assert "Traceback" not in done.stderr
    assert fetched(user.run([*container, *CLI, "run", "--rootless", *FETCH[1:]]))


@pytest.mark.parametrize("mounts", [
    pytest.param("mount -t tmpfs none /sys", id="no sysfs"),
    pytest.param(
        "for at in /tmp /var/tmp /dev/shm; do mount --bind $at $at; "
        "mount -o remount,bind,ro $at; done; cd /", id="nowhere to write",
    ),
    pytest.param("mount --bind /tmp /tmp; mount -o remount,bind,noexec,nosuid /tmp", id="noexec"),
])  # fmt: skip
def test_what_is_not_needed(user: User, mounts: str) -> None:
    if "noexec" in mounts and sys.executable.startswith("/tmp"):
        pytest.skip("this Python is in /tmp")
    assert fetched(changed(user, mounts, *CLI, *FETCH))


def test_without_a_list_of_protocols(user: User) -> None:
    """As in small images: libnftables has the names from there."""
    done = changed(user, "mount -t tmpfs none /etc; touch /etc/passwd", *CLI, *FETCH)
    assert done.returncode == 7
    assert "no /etc/protocols; install the package netbase" in done.stderr


@pytest.mark.parametrize(
    ("mounts", "reason"),
    [
        ("mount -t tmpfs none /dev/net", "modprobe tun"),
        ("mount -t tmpfs none /dev/net; touch /dev/net/tun", "is not the device"),
    ],
    ids=["absent", "a file"],
)
def test_no_tap_device(user: User, mounts: str, reason: str) -> None:
    """Programs need none; a VMM's owner is told why there is none."""
    assert fetched(changed(user, mounts, *CLI, *FETCH))
    for word in ("{tap}", "{fd}", "{kernel_args}"):
        done = changed(user, mounts, *CLI, "run", "--", "true", word)
        assert done.returncode == 7
        assert "/dev/net/tun" in done.stderr
        assert reason in done.stderr
    found = findings(changed(user, mounts, *CLI, "doctor", "--json"))
    assert found["tun"]["status"] == "warning"


# -- how it is called ------------------------------------------------------------------------------


@pytest.mark.parametrize("prepare", [
    "unset HOME", "export HOME=/nonexistent TMPDIR=/nonexistent", "unset XDG_RUNTIME_DIR PATH",
    "mkdir -p gone; cd gone; rmdir ../gone", "export LC_ALL=xx_YY.KOI8-R",
    "trap '' PIPE HUP INT TERM CHLD",
])  # fmt: skip
def test_strange_surroundings(user: User, prepare: str) -> None:
    assert fetched(prepared(user, prepare, *CLI, *FETCH))


def test_little_of_everything(user: User) -> None:
    limits = ("--nproc=30", "--nofile=64", "--memlock=0")
    assert fetched(user.run(["prlimit", *limits, *CLI, *FETCH]))


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ("nproc=3", "ulimit -u"),  # not enough to begin with
        ("nproc=10", "EAGAIN"),  # nor, by chance, for this thread or that process
        ("nofile=20", "EMFILE"),
        ("fsize=0", "EFBIG"),
    ],
)
def test_too_little_of_something(user: User, limit: str, reason: str) -> None:
    done = user.run(["prlimit", f"--{limit}", *CLI, *FETCH])
    assert done.returncode == 7, done
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_no_room_for_the_process_that_clears_away(user: User) -> None:
    """Nothing was begun, and nothing is left."""
    elsewhere = "export TMPDIR=$HOME; unset XDG_RUNTIME_DIR"
    run = (*CLI, "run", "--", "true", "{stream}")
    done = prepared(user, elsewhere, "prlimit", "--nproc=1", *run)
    assert (done.returncode, "EAGAIN" in done.stderr) == (7, True), done
    assert "Traceback" not in done.stderr
    assert not list(user.home.glob("guestnet-run-*"))


def test_a_user_without_a_home(user: User) -> None:
    """Of whom nothing is known: a container's that runs as any number."""
    for command in (("up",), ("ls",), ("doctor",)):
        done = prepared(user, "unset HOME XDG_RUNTIME_DIR", *CLI, *command)
        assert done.returncode == 2
        assert "HOME" in done.stderr
        assert "XDG_" in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors(user: User, closed: str) -> None:
    """The next socket must not be in their place, nor what is told go to another of them."""
    command = f'"$0" "$@" > page {closed}' if closed != ">&-" else '"$0" "$@" >&-'
    done = user.run(["sh", "-c", command, *CLI, "run", "--json", *FETCH[1:]])
    assert done.returncode == 0
    if closed == "<&-":
        assert json.loads((user.home / "page").read_text())["server"] == "allowed"
    if closed == "2>&-":
        assert json.loads((user.home / "page").read_text())["server"] == "allowed"
    if closed == ">&-":
        assert json.loads(done.stderr)["decisions"]


def test_a_daemon_started_with_them_closed(mine: Mine) -> None:
    done = mine.user.run(["sh", "-c", '"$0" "$@" <&- >&- 2>&-', *CLI, "up"])
    assert done.returncode == 0
    mine.say("attach", "box", "--netns", "new", "--policy", f"allow@{NAME}")
    assert "server" in mine.say("exec", "box", "--", "curl", "-sS", f"http://{NAME}/")


# -- several at once -------------------------------------------------------------------------------


def test_ups_race(mine: Mine) -> None:
    """One of them starts the daemon; each says which process it is."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [mine.user.popen([*CLI, "up", "--json"], **pipes) for _ in range(4)]
    told = [(*each.communicate(timeout=60), each.returncode) for each in started]
    pid = mine.up()
    for out, err, status in told:
        assert status in (0, 6)
        assert f"pid {pid} " in err.decode() if status else json.loads(out)["pid"] == pid
    assert sum(not status and json.loads(out)["started"] for out, _err, status in told) == 1


def test_runs_at_once_and_beside_a_daemon(mine: Mine) -> None:
    mine.up()
    mine.say("attach", "box", "--netns", "new", "--policy", f"allow@{NAME}")
    started = [mine.user.popen([*CLI, *FETCH], stdout=subprocess.PIPE) for _ in range(10)]
    for each in started:
        out, _err = each.communicate(timeout=120)
        assert json.loads(out)["server"] == "allowed"
    assert "server" in mine.say("exec", "box", "--", "curl", "-sS", f"http://{NAME}/")


# -- the disk --------------------------------------------------------------------------------------


def test_a_full_disk(user: User) -> None:
    full = user.home / "full"
    full.mkdir(exist_ok=True)
    os.chown(full, user.uid, user.uid)
    for used in (40, 56):
        mounts = f"mount -t tmpfs -o size=64k none {full}; head -c {used}K /dev/zero > {full}/used"
        state = f"--state-dir={full}/state"
        done = changed(user, mounts, *CLI, state, "up")
        assert done.returncode == 7, done
        assert str(full) in done.stderr
        assert "disk" in done.stderr  # is full, or its I/O failed: sqlite's words
    assert fetched(changed(user, mounts, *CLI, *FETCH))  # has no use for it


def test_the_state_is_removed_under_it(mine: Mine) -> None:
    """It goes on, and so does the next one."""
    mine.up()
    mine.say("attach", "box", "--netns", "new", "--policy", f"allow@{NAME}")
    shutil.rmtree(mine.user.home / ".local")
    mine.say("attach", "other", "--netns", "new")
    assert "server" in mine.say("exec", "box", "--", "curl", "-sS", f"http://{NAME}/")
    mine.say("detach", "other")
    mine.say("down")
    mine.up()
    assert mine.json("ls") == []
