"""The architecture, held: a room imports only from below it; a pure one, nothing of the world."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "guestnet"

#: From the ground up: what each room may import of guestnet. Its own modules are always allowed.
FLOORS: dict[str, set[str]] = {
    "errors": set(),
    "directories": {"errors"},
    "frames": {"errors"},
    "naming": {"errors"},
    "model": {"errors", "frames", "naming"},
    "policy": {"errors", "naming", "model"},
    "address": {"errors", "model"},
    "ruleset": {"errors", "model", "policy", "address"},
    "plan": {"errors", "model", "policy", "address", "ruleset"},
    "store": {"errors", "model", "address", "plan"},
    "kernel": {"errors", "frames", "model", "ruleset", "plan"},
    "vmm": {"errors", "frames", "model"},
    "dns": {"errors"},
    "flow": {"errors"},
    "gateway": {
        *("errors", "naming", "model", "policy", "address", "ruleset", "kernel", "dns", "flow"),
    },
    "pump": {"errors", "frames", "model", "kernel"},
}
FLOORS["host"] = set(FLOORS)
FLOORS["settings"] = {"errors", "directories", "model", "policy"}
FLOORS["client"] = {"errors", "model", "policy", "vmm", "settings"}
FLOORS["daemon"] = {*FLOORS["host"], "host", "settings"}
FLOORS["cli"] = {*FLOORS["daemon"], "client", "daemon"}
#: The package's front: it may show anything, but no room may reach things through it.
FRONT = {"__init__", "__main__"}

PURE = {"naming", "policy", "address", "ruleset", "plan", "dns", "frames"}
#: Of a room whose loops own sockets, the files that read what guests wrote.
PURE_FILES = {
    "flow/first.py",
    "flow/hello.py",
    "flow/http.py",
    "flow/inward.py",
    "flow/requests.py",
    "flow/spoken.py",
}
#: Time, randomness, the machine: they arrive in a pure room as arguments.
WORLD = {
    *("asyncio", "ctypes", "fcntl", "http", "multiprocessing", "os", "pathlib", "random"),
    *("secrets", "select", "selectors", "shutil", "signal", "socket", "sqlite3", "ssl"),
    *("subprocess", "tempfile", "threading", "time", "urllib"),
}

MODULES = sorted(SOURCE.rglob("*.py"))


def room(file: Path, source: Path = SOURCE) -> str:
    """`policy/match.py` stands in room policy, `host.py` in room host."""
    return file.relative_to(source).parts[0].removesuffix(".py")


def imports(file: Path, text: str, source: Path = SOURCE) -> Iterator[str]:
    """Every module that a file imports, wherever in it, by its absolute name.

    `from x import y` yields both `x` and `x.y`: y may be a module.
    """
    package = ("guestnet", *file.relative_to(source).parts[:-1])
    for node in ast.walk(ast.parse(text, str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def violations(file: Path, text: str, source: Path = SOURCE) -> list[str]:
    """What a file imports that its room may not, in words."""
    here = room(file, source)
    if here in FRONT:
        return []
    if here not in FLOORS:
        return [f"{here} is no room of this house: give it a floor in FLOORS"]
    found = []
    for name in imports(file, text, source):
        top, _, inner = name.partition(".")
        if top == "guestnet":
            there = inner.partition(".")[0]
            if there in FLOORS and there not in FLOORS[here] | {here}:
                found.append(f"{here} may not import {there}")
            elif there not in FLOORS and name != "guestnet":
                found.append(f"{here} may not import {name}: no room, or the package's front")
        elif top in WORLD and (here in PURE or str(file.relative_to(source)) in PURE_FILES):
            found.append(f"{here} is pure and may not import {top}")
    return found


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_a_room_imports_only_from_below(file: Path) -> None:
    assert violations(file, file.read_text()) == []


def test_every_floor_stands_on_lower_ones() -> None:
    below: set[str] = set()
    for name, allowed in FLOORS.items():
        assert allowed <= below, name
        below.add(name)


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        ("policy/match.py", "import os", "policy is pure and may not import os"),
        ("policy/match.py", "from os import path", "policy is pure and may not import os"),
        ("plan/diff.py", "import os.path as p", "plan is pure and may not import os"),
        ("plan/diff.py", "def f():\n    import time", "plan is pure and may not import time"),
        ("flow/hello.py", "import socket", "flow is pure and may not import socket"),
        ("dns/question.py", "import socket", "dns is pure and may not import socket"),
        ("flow/hello.py", "from ..policy import x", "flow may not import policy"),
        ("model.py", "from .policy import Policy", "model may not import policy"),
        ("model.py", "from . import policy", "model may not import policy"),
        ("kernel/tap.py", "from ..store.db import X", "kernel may not import store"),
        ("kernel/tap.py", "from .. import host", "kernel may not import host"),
        ("kernel/tap.py", "import guestnet.daemon.api", "kernel may not import daemon"),
        ("client.py", "from guestnet.host import Host", "client may not import host"),
        ("attic/box.py", "", "attic is no room of this house: give it a floor in FLOORS"),
        ("cli/x.py", "from ..attic import y", "cli may not import guestnet.attic: no room"),
        ("cli/x.py", "from guestnet import Host", "cli may not import guestnet.Host: no room"),
    ],
)
def test_it_is_noticed(path: str, text: str, complaint: str) -> None:
    assert any(complaint in found for found in violations(SOURCE / path, text))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("policy/match.py", "import ipaddress\nfrom .rules import Rule\nfrom ..model import Value"),
        ("kernel/tap.py", "import os, socket\nfrom ..plan.steps import Step"),
        ("cli/main.py", "from ..daemon import serve\nfrom .. import client"),
        ("__init__.py", "from .host import Host"),
    ],
)
def test_it_is_allowed(path: str, text: str) -> None:
    assert violations(SOURCE / path, text) == []
