"""What tests of `guestnet run` share: a user's machine in a world, and runs on it.

PYTEST_DONT_REWRITE: test modules import helpers from here before pytest loads its fixtures.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from lab import processes
from lab.addresses import ALLOWED, SITE_IPV4, SITE_IPV6, Server
from lab.internet import Servers
from lab.user import User
from lab.waiting import eventually
from lab.world import World

PATIENCE_S = 30.0
BOTH = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
NAME = ALLOWED.name
#: The user's own machine, which guests must not reach.
HOME = Server("home", "home.example.test", SITE_IPV4.ip, SITE_IPV6.ip)
LOOPBACK = Server("loopback", "loop.example.test", IPv4Address("127.0.0.1"), IPv6Address("::1"))
CURL = ("curl", "-sS", "-m", str(PATIENCE_S))


class Stage:
    def __init__(self, world: World, user: User, home: Servers) -> None:
        self.world, self.user, self.home = world, user, home

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.user.guestnet("run", *arguments)

    def told(self, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
        """The same, with the summary that it prints last."""
        done = self.run("--json", *arguments)
        return done, json.loads(done.stderr.splitlines()[-1])

    def popen(self, *arguments: str, **how: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "guestnet.cli", "run", *arguments]
        return self.user.popen(command, **how)


@pytest.fixture(scope="module")
def the_stage() -> Iterator[Stage]:
    with World() as world, User(world.site) as user:
        home = world.serve(world.site, HOME)
        loopback = world.serve(world.site, LOOPBACK)
        assert loopback.arrivals() == []
        yield Stage(world, user, home)


@pytest.fixture
def stage(the_stage: Stage) -> Iterator[Stage]:
    """The stage; whatever a test ran as the user is gone at its end, by itself."""
    the_stage.world.servers.forget()
    the_stage.home.forget()
    yield the_stage
    eventually(lambda: not the_stage.user.processes())


def url(server: Server, version: int) -> str:
    return f"http://[{server.ipv6}]/" if version == 6 else f"http://{server.ipv4}/"


@contextlib.contextmanager
def running(stage: Stage, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A run whose command is up: it has said so, or it is the process `sleep`."""
    process = stage.popen(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        if "sleep" in arguments:
            eventually(lambda: find(stage, "sleep", below=process.pid))
        else:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def find(stage: Stage, word: str, *, below: int) -> int | None:
    """The user's process whose command line begins with, or has as a module, that word."""
    for pid in stage.user.processes() - {below}:
        line = processes.command_line(pid).split()
        if line and (line[0] == word or any(part.endswith(word) for part in line[:4])):
            return pid
    return None


def tree(stage: Stage, module: str) -> list[int]:
    return [p for p in stage.user.processes() if f"-m {module} " in processes.command_line(p)]


def as_root(stage: Stage, *arguments: str, **how: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "guestnet.cli", "run", *arguments]
    return stage.world.site.popen(command, **how)


def left(stage: Stage) -> str:
    """What of a run stands on the machine."""
    tables = stage.world.site.run(["nft", "list", "tables"]).stdout
    devices = stage.world.site.run(["ip", "-br", "link", "show", "type", "veth"]).stdout
    gone = [line for line in devices.splitlines() if not line.startswith("up0")]
    states = [str(path) for path in Path("/run").glob("guestnet-run-*")]
    return "\n".join([tables.strip(), *gone, *states]).strip()
