"""What a test may leave behind on the machine, seen before and after it."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, fields
from typing import Self

from . import netns, processes

#: What guestnet, or a test of it, makes says so by its name. Whatever else appears meanwhile is the
#: work of others on this machine.
_NAMESPACE = re.compile(r"gn")
_DEVICE = re.compile(r"gn|tap|veth|fcbr|plain")
#: Seconds for the kernel to finish what a test ended: namespaces and devices go asynchronously.
SETTLE_S = 2.0

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@dataclass(frozen=True)
class Traces:
    """Names of everything there is, by kind."""

    namespaces: frozenset[str]
    devices: frozenset[str]
    processes: frozenset[int]
    tables: frozenset[str]

    @classmethod
    def now(cls, *, tables: bool) -> Self:
        """What is there; nft tables need root and a process, so they are asked for."""
        return cls(
            frozenset(name for name in netns.names() if _ours(name)),
            frozenset(name for name in os.listdir("/sys/class/net") if _DEVICE.match(name)),
            frozenset(processes.children(os.getpid())),
            _tables() if tables else frozenset(),
        )

    def beyond(self, before: Traces) -> list[str]:
        """In words, what is here that was not before."""
        found = []
        for field in fields(self):
            for name in sorted(getattr(self, field.name) - getattr(before, field.name)):
                told = processes.command_line(name) if field.name == "processes" else ""
                found.append(f"{field.name}: {name} {told}".rstrip())
        return found


def left_behind(before: Traces, *, tables: bool) -> list[str]:
    """What a test left once the kernel had `SETTLE_S` to finish; at once, when that is nothing."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        found = Traces.now(tables=tables).beyond(before)
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def adopt_orphans() -> None:
    """Make processes whose parent ended children of this one, so that a daemon cannot slip away."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl PR_SET_CHILD_SUBREAPER")


def why_no_root(commands: tuple[str, ...] = ("ip", "nft", "tcpdump", "openssl")) -> str:
    """Why tests of a real kernel cannot run here; empty when they can."""
    if os.geteuid() != 0:
        return "not root"
    if missing := _missing(commands):
        return missing
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return "" if probe.returncode == 0 else "network namespaces are not permitted here"


def why_no_guest() -> str:
    """Why no VM can be booted here; empty when one can. The image may still have to be made."""
    return why_no_root() or _missing(("qemu-system-x86_64",))


def _missing(commands: tuple[str, ...]) -> str:
    missing = [command for command in commands if shutil.which(command) is None]
    return f"missing: {' '.join(missing)} (scripts/setup installs them)" if missing else ""


def _ours(name: str) -> bool:
    """Whether a namespace can be of this run: not one of another lab that runs beside it."""
    mine = name.startswith(f"{netns.PREFIX}-{os.getpid()}-")
    return bool(_NAMESPACE.match(name)) and (mine or netns.owner_alive(name) is not True)


def _tables() -> frozenset[str]:
    listing = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True)
    return frozenset(listing.stdout.splitlines())
