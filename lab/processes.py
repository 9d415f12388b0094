"""Who a process is, beyond its reusable pid, and how one that we started is ended."""

from __future__ import annotations

import subprocess
from pathlib import Path

#: Seconds a process gets between SIGTERM and SIGKILL.
STOP_PATIENCE_S = 2.0


def start_time(pid: int) -> int | None:
    """Clock ticks since boot at which `pid` started, or `None` when it is gone or a zombie.

    Together with the pid this names a process for good: pids are reused (proc(5), field 22).
    """
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def children(pid: int) -> set[int]:
    """The living children of a process, whichever of its threads started them."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        fields = _stat(int(entry.name))
        if fields is not None and fields[0] not in "ZX" and int(fields[1]) == pid:
            found.add(int(entry.name))
    return found


def command_line(pid: int) -> str:
    """What a process was called with, for people; empty when it is gone."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return raw.rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")


def stop(process: subprocess.Popen[bytes], patience_s: float = STOP_PATIENCE_S) -> None:
    """End a process that we started, politely first; close our ends of its pipes."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the command, which may hold blanks and brackets."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()
