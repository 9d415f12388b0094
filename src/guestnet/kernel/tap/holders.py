"""Which process holds a TAP: for the error message, and for nothing else.

The kernel says *that* a TAP is held; by whom can only be gathered from /proc, where a descriptor of
/dev/net/tun shows its interface as `iff:` (tun_chr_show_fdinfo()). What this finds is therefore a
help to people and never decides anything: processes of other users and of other PID namespaces may
be hidden, and the name may be that of a TAP in another network namespace.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Names shown; a TAP with more holders than this is a TAP with "…".
SHOWN_MAX = 4

UNKNOWN = "a process that cannot be seen from here (another user's, or of another PID namespace)"


@dataclass(frozen=True, slots=True)
class Holder:
    """A process with an open queue of a TAP of that name."""

    pid: int
    #: The kernel's name of the process (/proc/PID/comm), unprintable characters replaced.
    command: str
    #: Whether it is in the caller's network namespace.
    same_netns: bool

    def __str__(self) -> str:
        me = ", this process" if self.pid == os.getpid() else ""
        return f"pid {self.pid} ({self.command}{me})"


def find_holders(name: str, proc: Path = Path("/proc")) -> list[Holder]:
    """Processes that hold a TAP of that name, as far as the caller may look; by pid."""
    own = _netns(proc / "thread-self")
    found = []
    for entry in sorted(int(entry.name) for entry in proc.iterdir() if entry.name.isdigit()):
        process = proc / str(entry)
        if any(interface == name for interface in _interfaces(process)):
            same = entry == os.getpid() or (own != "" and _netns(process) == own)
            found.append(Holder(entry, _command(process), same))
    return found


def describe_holders(name: str) -> str:
    """The holders in words: those of this network namespace first, or that none can be seen."""
    holders = find_holders(name)
    near = [holder for holder in holders if holder.same_netns]
    shown = near or holders
    if not shown:
        return UNKNOWN
    text = ", ".join(str(holder) for holder in shown[:SHOWN_MAX])
    text += ", …" if len(shown) > SHOWN_MAX else ""
    return text if near else f"{text}, if its {name} is this one (another network namespace)"


def _interfaces(process: Path) -> Iterator[str]:
    """Names of the TAPs whose queues the process has open."""
    try:
        descriptors = list((process / "fd").iterdir())
    except OSError:
        return  # gone, or not ours to look at
    for descriptor in descriptors:
        try:
            # readlink touches no file, where opening or stat-ing one could block on a dead mount.
            if "tun" not in os.readlink(descriptor).rpartition("/")[2]:
                continue
            text = (process / "fdinfo" / descriptor.name).read_text()
        except OSError:
            continue
        for line in text.splitlines():
            key, _, value = line.partition("\t")
            if key == "iff:":
                yield value


def _command(process: Path) -> str:
    try:
        raw = (process / "comm").read_bytes().rstrip(b"\n")
    except OSError:
        return "?"
    # A process names itself: its name must not write escape sequences into the owner's terminal.
    return "".join(c if c.isprintable() else "?" for c in raw.decode("utf-8", "replace"))


def _netns(process: Path) -> str:
    try:
        return os.readlink(process / "ns" / "net")
    except OSError:
        return ""
