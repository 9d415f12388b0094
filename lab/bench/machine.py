"""Where and when a benchmark ran: without it its numbers say nothing."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path


def describe() -> str:
    """CPU model, cores, memory, kernel, Python, load and date, one line each."""
    load = os.getloadavg()[0]
    return "\n".join(
        [
            f"machine  {_cpu()}, {os.cpu_count()} cores, {_memory_gib():.0f} GiB",
            f"kernel   {platform.release()}, Python {platform.python_version()}",
            f"date     {time.strftime('%Y-%m-%d %H:%M %Z')}, load before the run {load:.2f}",
        ]
    )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def resident_bytes(pid: int) -> int:
    """Resident memory of a process (proc(5), VmRSS)."""
    return _kilobytes(pid, "status", "VmRSS")


def proportional_bytes(pid: int) -> int:
    """The same, but what several processes have in common is divided among them (proc(5), Pss)."""
    return _kilobytes(pid, "smaps_rollup", "Pss")


def _kilobytes(pid: int, file: str, wanted: str) -> int:
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == wanted:
            return int(value.split()[0]) * 1024
    raise ProcessLookupError(f"pid {pid} has no memory any more")
