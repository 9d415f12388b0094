"""What it takes to come back: a host, and a daemon, that find the leases of a former one."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from guestnet import connect
from guestnet.errors import UnreachableError

from .. import processes
from .machine import resident_bytes
from .stage import Stage

HEADINGS = (
    "restart",
    "Host.open, s",
    "daemon ready, s",
    "daemon after kill -9, s",
    "resident, MB",
    "after listing all, MB",
)
READY_TIMEOUT_S = 120.0
#: Seconds the daemon is left alone before its memory is read.
_SETTLE_S = 2.0
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Restart:
    """Seconds and bytes; the daemon's are from starting its process to its first right answer."""

    guests: int
    family: str
    open_s: float
    ready_s: float
    killed_s: float
    resident_bytes: int
    listed_bytes: int

    def cells(self) -> list[str]:
        """As they stand in the table."""
        return [
            f"{self.open_s:.2f}",
            f"{self.ready_s:.2f}",
            f"{self.killed_s:.2f}",
            f"{self.resident_bytes / 1e6:.0f}",
            f"{self.listed_bytes / 1e6:.0f}",
        ]


def measure(stage: Stage, state: Path, family: str, guests: int) -> Restart:
    """Open the state directory in fresh processes, one after another."""
    opened = _host(stage, state, guests)
    with tempfile.TemporaryDirectory(prefix="gnbench-run-") as run_dir:
        first = _Daemon(stage, state, Path(run_dir), guests)
        first.process.kill()
        first.process.wait()
        second = _Daemon(stage, state, Path(run_dir), guests)
        time.sleep(_SETTLE_S)
        resident = resident_bytes(second.process.pid)
        with connect(run_dir) as client:
            client.attachments()
        listed = resident_bytes(second.process.pid)
        processes.stop(second.process, READY_TIMEOUT_S)
    return Restart(guests, family, opened, first.ready_s, second.ready_s, resident, listed)


def _host(stage: Stage, state: Path, guests: int) -> float:
    command = [sys.executable, "-m", "lab.bench.holder", str(state)]
    holder = stage.site.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_ROOT)
    assert holder.stdin is not None
    assert holder.stdout is not None
    found = json.loads(holder.stdout.readline())
    holder.stdin.close()
    holder.wait(READY_TIMEOUT_S)
    holder.stdout.close()
    if found["guests"] < guests:
        raise RuntimeError(f"the host came back with {found['guests']} of {guests} guests")
    return float(found["open_s"])


class _Daemon:
    """A daemon in the stage's site, started and waited for."""

    def __init__(self, stage: Stage, state: Path, run_dir: Path, guests: int) -> None:
        begin = time.perf_counter()
        self.process = stage.site.popen(
            [
                *(sys.executable, "-m", "guestnet.daemon"),
                *("--state-dir", str(state), "--run-dir", str(run_dir)),
            ],
            stderr=subprocess.DEVNULL,
        )
        while True:
            try:
                with connect(run_dir) as client:
                    found = sum(network.attached for network in client.networks())
                self.ready_s = time.perf_counter() - begin
                break
            except UnreachableError:
                if self.process.poll() is not None:
                    raise RuntimeError(f"the daemon ended: {self.process.returncode}") from None
                if time.perf_counter() - begin > READY_TIMEOUT_S:
                    raise
                time.sleep(0.01)
        if found < guests:
            raise RuntimeError(f"the daemon came back with {found} of {guests} guests")
