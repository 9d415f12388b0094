"""`bench start`: an ordinary user's commands, from nothing to their end.

Beside them a Python that does nothing, which is what any of guestnet's processes costs at least,
and pasta, which gives a program a network without policy. They take turns, as one run is compared.
This file runs itself as the user: what children took is told to their parent alone.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from ..user import User
from ..world import World
from . import machine
from .table import milliseconds, render

ROUNDS = 15

_GUESTNET = (sys.executable, "-P", "-m", "guestnet.cli")
COMMANDS: Mapping[str, Sequence[str]] = {
    "python -c pass": (sys.executable, "-I", "-c", "pass"),
    "guestnet run -- true": (*_GUESTNET, "run", "--", "true"),
    "guestnet version": (*_GUESTNET, "version"),
    "guestnet ls": (*_GUESTNET, "ls"),
    "pasta -- true": ("pasta", "--config-net", "--", "true"),
}


def run(*, rounds: int, say: Callable[[str], None], note: Callable[[str], None]) -> None:
    """Measure, and say the table."""
    say(machine.describe())
    with World() as world, User(world.site) as user:
        note("a daemon")
        _done(user.guestnet("up"))
        note(f"{rounds} rounds")
        argv = [sys.executable, "-P", "-m", "lab.bench.start", str(rounds)]
        told = _done(user.run(argv, timeout_s=60 + 10 * rounds))
        _done(user.guestnet("down"))
    say(f"\n{rounds} rounds in turns; milliseconds, least and median")
    rows = [
        [name, *(f"{milliseconds(f(each))}" for each in taken for f in (min, median))]
        for name, taken in json.loads(told).items()
    ]
    headings = ["command", "from start to end", "median", "processor time", "median"]
    say(render(headings, rows))


def _done(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode:
        raise RuntimeError(f"{done.args}: {done.stderr}")
    return done.stdout


def measure(rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds from start to end, and of processor time with all that was started."""
    commands = {name: argv for name, argv in COMMANDS.items() if shutil.which(argv[0])}
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in commands}
    for _ in range(rounds):
        for name, argv in commands.items():
            before, began = _processor_s(), time.perf_counter()
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            found[name][0].append(time.perf_counter() - began)
            found[name][1].append(_processor_s() - before)
    return found


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    os.chdir("/")
    print(json.dumps(measure(int(sys.argv[1]))))
