"""Descriptors of who started `guestnet run` or `guestnet up`: told of ready, and heard hang up."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guestnet.cli.run import GRACE_S
from lab.waiting import eventually
from runs import NAME, PATIENCE_S, Stage, as_root, left

pytestmark = pytest.mark.root
pytest_plugins = ("runs",)

WHO = pytest.mark.parametrize("who", ["user", "root"])
UP = "echo up; exec sleep 1000"


class Ends:
    """A pipe for each descriptor: ours are `told` and `held`, guestnet's `ready` and `exit`."""

    def __init__(self) -> None:
        self.told, self.ready = os.pipe()
        self.exit, self.held = os.pipe()
        os.set_blocking(self.told, False)

    @property
    def options(self) -> list[str]:
        return ["--ready-fd", str(self.ready), "--exit-fd", str(self.exit)]

    @property
    def theirs(self) -> list[int]:
        return [self.ready, self.exit]

    def started(self) -> None:
        for fd in self.theirs:
            os.close(fd)

    def hang_up(self) -> None:
        os.close(self.held)
        self.held = -1

    def close(self) -> None:
        for fd in (self.told, self.held):
            if fd >= 0:
                os.close(fd)


@contextlib.contextmanager
def run(stage: Stage, who: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Ends]]:
    ends = Ends()
    start = stage.popen if who == "user" else lambda *a, **how: as_root(stage, *a, **how)
    process = start(
        *ends.options, *arguments,
        pass_fds=ends.theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    ends.started()
    try:
        yield process, ends
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=PATIENCE_S)
        process.kill()
        process.communicate()
        ends.close()
        eventually(lambda: left(stage) == "")


def await_up(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"


# -- run -----------------------------------------------------------------------------------------


@WHO
def test_ready_is_told_before_the_command_begins(stage: Stage, who: str) -> None:
    """And then the descriptor is nobody's: who reads to its end is not kept waiting."""
    with run(stage, who, "--allow", NAME, "--", "sh", "-c", UP) as (process, ends):
        await_up(process)
        assert os.read(ends.told, 100) == b"1\n"
        assert os.read(ends.told, 100) == b""
        assert process.poll() is None


def test_nothing_is_told_where_there_is_no_network(stage: Stage) -> None:
    with run(stage, "user", "--policy", "allow@nonsense", "--", "true") as (process, ends):
        assert process.wait(PATIENCE_S) == 2
        assert os.read(ends.told, 100) == b""


def test_a_reader_that_lost_interest_is_no_error(stage: Stage) -> None:
    with run(stage, "user", "--", "true") as (process, ends):
        os.close(ends.told)
        ends.told = -1
        assert process.wait(PATIENCE_S) == 0


@WHO
def test_hanging_up_ends_it_as_sigterm_does(stage: Stage, who: str) -> None:
    script = "trap 'echo heard; exit 3' TERM; echo up; while :; do sleep 0.1; done"
    with run(stage, who, "--", "sh", "-c", script) as (process, ends):
        await_up(process)
        ends.hang_up()
        out, _err = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, out) == (3, b"heard\n")


def test_a_command_that_does_not_listen_is_ended(stage: Stage) -> None:
    with run(stage, "user", "--", "sh", "-c", f"trap '' TERM; {UP}") as (process, ends):
        await_up(process)
        ends.hang_up()
        assert process.wait(GRACE_S + PATIENCE_S) == 128 + signal.SIGKILL


def test_who_has_hung_up_before_gets_no_command(stage: Stage) -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        done = stage.popen(
            "--exit-fd", str(theirs.fileno()), "--", "echo", "up",
            pass_fds=[theirs.fileno()], stdout=subprocess.PIPE,
        )  # fmt: skip
    out, _err = done.communicate(timeout=PATIENCE_S)
    assert (done.returncode, out) == (128 + signal.SIGTERM, b"")


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_a_stream_socket_hangs_up_as_well(stage: Stage, family: socket.AddressFamily) -> None:
    with stage.world.site.enter():
        ours, theirs = socket.socketpair() if family == socket.AF_UNIX else tcp_pair()
    with ours, theirs:
        process = stage.popen(
            "--exit-fd", str(theirs.fileno()), "--", "sh", "-c", UP,
            pass_fds=[theirs.fileno()], stdout=subprocess.PIPE,
        )  # fmt: skip
        theirs.close()
        ours.sendall(b"what is written ends nothing")
        await_up(process)
        ours.close()
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 128 + signal.SIGTERM


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        return ours, server.accept()[0]


@WHO
def test_the_command_does_not_get_them(stage: Stage, who: str) -> None:
    """But what else was left open, as ever."""
    reading, writing = os.pipe()
    script = "import os, sys; print([n for n in map(int, sys.argv[1:]) if is_open(n)])"
    program = f"def is_open(n):\n try: os.fstat(n); return True\n except OSError: pass\n{script}"
    command = ["--", sys.executable, "-c", f"import os\n{program}"]
    ends = Ends()
    start = stage.popen if who == "user" else lambda *a, **how: as_root(stage, *a, **how)
    process = start(
        *ends.options, *command, *map(str, [*ends.theirs, reading]),
        pass_fds=[*ends.theirs, reading], stdout=subprocess.PIPE,
    )  # fmt: skip
    ends.started()
    out, _err = process.communicate(timeout=PATIENCE_S)
    assert json.loads(out) == [reading]
    ends.close()
    os.close(reading)
    os.close(writing)


# -- descriptors that cannot be --------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--ready-fd", "--exit-fd"])
@pytest.mark.parametrize(("fd", "problem"), [(1, "standard streams"), (-1, "standard streams"),
    (99, "not open here"), (10**12, "not open here")])  # fmt: skip
def test_a_descriptor_that_is_not_there(stage: Stage, option: str, fd: int, problem: str) -> None:
    done = stage.run(option, str(fd), "--", "echo", "up")
    key = option.strip("-").replace("-", "_")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{key}={fd}: " in done.stderr
    assert problem in done.stderr


def test_a_descriptor_that_cannot_do_it(stage: Stage, tmp_path: Path) -> None:
    """Told before anything is made."""
    reading, writing = os.pipe()
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    datagrams = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for options, problem in (
        (["--ready-fd", str(reading)], "cannot be written to"),
        (["--exit-fd", str(file)], "never hangs up"),
        (["--exit-fd", str(datagrams[0].fileno())], "never hangs up"),
        (["--ready-fd", str(writing), "--exit-fd", str(writing)], "another"),
        (["--ready-fd", str(writing), "--ready-fd", "x"], "valid int"),
    ):
        process = stage.popen(
            *options, "--", "echo", "up",
            pass_fds=[reading, writing, file, datagrams[0].fileno()],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        out, err = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, out) == (2, b"")
        assert problem in err.decode()
    for fd in (reading, writing, file):
        os.close(fd)
    for each in datagrams:
        each.close()


# -- up ------------------------------------------------------------------------------------------


@WHO
def test_a_daemon_in_the_foreground(stage: Stage, who: str, tmp_path: Path) -> None:
    """Is ready when it answers; ends when its starter is gone, as told by SIGTERM."""
    ends = Ends()
    how: dict[str, Any] = {"pass_fds": ends.theirs, "stderr": subprocess.PIPE}
    options = ["up", "--foreground", *ends.options]
    guestnet = [sys.executable, "-P", "-m", "guestnet.cli"]
    if who == "user":
        process = stage.user.popen([*guestnet, *options], **how)
    else:
        guestnet += ["--state-dir", str(tmp_path / "state"), "--run-dir", str(tmp_path / "run")]
        process = stage.world.site.popen([*guestnet, *options], **how)
    ends.started()
    os.set_blocking(ends.told, True)
    assert os.read(ends.told, 100) == b"1\n"
    assert os.read(ends.told, 100) == b""
    ask = [*guestnet, "version", "--json"]
    said = stage.user.run(ask) if who == "user" else stage.world.site.run(ask)
    assert json.loads(said.stdout)["daemon"]["pid"] == process.pid
    ends.hang_up()
    _out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert not list((tmp_path / "run").glob("*.sock"))
    ends.close()


def test_a_daemon_whose_starter_is_gone_already(stage: Stage) -> None:
    """Unwinds, however far it came."""
    ours, theirs = socket.socketpair()
    ours.close()
    command = ["up", "--foreground", "--exit-fd", str(theirs.fileno())]
    process = stage.user.popen(
        [sys.executable, "-P", "-m", "guestnet.cli", *command],
        pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL,
    )  # fmt: skip
    theirs.close()
    assert process.wait(PATIENCE_S) == 0
    eventually(lambda: not stage.user.processes())
    assert not list(stage.user.home.rglob("*.sock"))


def test_a_daemon_in_the_background_takes_none(stage: Stage) -> None:
    done = stage.user.guestnet("up", "--exit-fd", "5")
    assert done.returncode == 2
    assert "exit_fd=5: goes with --foreground" in done.stderr
