"""`bench relay`: what it costs that guestnet relays a flow instead of forwarding it.

Plain NAT is the measure, and beside the relay stand the two user-mode networks that people use
where they cannot or would not touch the kernel's. All are measured in rounds: a round is one
measurement on each, one right after the other, and who goes first changes.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from .. import processes
from . import contenders, limits, machine
from .contenders import Contender
from .flows import CONNECTIONS, GIGABITS, ROOT, STREAMS, probe, servers
from .samples import Figures, Measurement, Samples, latencies, shares, take_turns, values
from .stage import FAR_IPV4

ROUNDS = 3
SECONDS = 1.0
#: Of fairness, and of idle flows; the idle ones come in as many batches as there are rounds.
FLOWS = 1000
#: guestnet relays 4,096 flows of one guest at a time, shared by its workers.
_BATCHES_MOST = 3
_SHARE_S = 3.0
_SETTLE_S = 0.5
_WARM_UP_S = 0.2


def fairness(contender: Contender, _seconds: float) -> Figures:
    """How evenly a thousand downloads share what there is."""
    return probe(contender, "share", _SHARE_S, FLOWS)


#: After all others: it leaves behind flows whose end got lost on the way.
LAST = Measurement(f"{FLOWS} downloads", fairness)


def run(
    *, rounds: int, seconds: float, say: Callable[[str], None], note: Callable[[str], None]
) -> None:
    """Measure, and say the tables."""
    say(machine.describe())
    limits.many_descriptors()
    held = idle_flows(min(rounds, _BATCHES_MOST), note)
    with contextlib.ExitStack() as stack:
        # The plain one first: everything is told as a share of it.
        samples = [Samples(each) for each in _contenders(stack)]
        for far in {id(each.contender.far): each.contender.far for each in samples}.values():
            stack.enter_context(servers(far))
        for each in samples:
            each.by_name.update(held.get(each.contender.words, {}))
        for measurement in STREAMS:
            note(f"warm-up, {measurement.words}")
            for each in samples:
                measurement.once(each.contender, _WARM_UP_S)
        for number in range(rounds):
            for measurement in STREAMS:
                note(f"round {number + 1}, {measurement.words}")
                take_turns(measurement, samples, number, seconds)
        for number in range(rounds):
            note(f"round {number + 1}, {LAST.words}")
            take_turns(LAST, samples, number, seconds)
    say(f"\n{rounds} rounds, about {seconds:g} s for each figure of a round; medians")
    report(samples, say)


def _contenders(stack: contextlib.ExitStack) -> Iterator[Contender]:
    yield stack.enter_context(contenders.plain())
    policies = {"guestnet, by address": "public", "guestnet, by name": contenders.relay_policy()}
    yield from stack.enter_context(contenders.guestnet(policies))
    yield from contenders.user_mode(stack)


def idle_flows(batches: int, note: Callable[[str], None]) -> dict[str, dict[str, list[float]]]:
    """Memory of idle flows, by contender: in processes of their own, that are ended afterwards.

    Memory that other flows have used once would be there to be used again; and thousands of flows
    that end at once leave a user-mode network with some whose end got lost.
    """
    with contextlib.ExitStack() as stack:
        found = {}
        for contender in _contenders(stack):
            if contender.pids:
                note(f"idle flows, {contender.words}")
                samples = Samples(contender)
                with servers(contender.far):
                    idle(samples, batches)
                found[contender.words] = samples.by_name
        return found


def idle(samples: Samples, batches: int) -> None:
    """Resident memory for each of a thousand flows that stay, batch on batch."""
    contender = samples.contender
    command = [sys.executable, "-m", "lab.bench.probes", "hold", str(FAR_IPV4), str(FLOWS)]
    pipe = subprocess.PIPE
    process = contender.guest.popen(command, stdin=pipe, stdout=pipe, cwd=ROOT)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for _ in range(batches):
            before = sum(map(machine.resident_bytes, contender.pids))
            process.stdin.write(b"more\n")
            process.stdin.flush()
            if not process.stdout.readline():
                break  # it cannot have so many: what there is counts
            time.sleep(_SETTLE_S)
            after = sum(map(machine.resident_bytes, contender.pids))
            samples.add({"idle": (after - before) / FLOWS})
    finally:
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        processes.stop(process)


def report(samples: Sequence[Samples], say: Callable[[str], None]) -> None:
    """The tables: a row for each contender, and in brackets what part of plain NAT's it is."""
    downloads = (f"{FLOWS} downloads, Gbit/s", "bytes_per_s", 1e9 / 8)
    costs = [
        ("CPU s/GB out", "out1 cpu", 1, 2),
        ("in", "in1 cpu", 1, 2),
        ("KB an idle flow", "idle", 1e3, 1),
        ("Jain's index", "jain", 1, 3),
        ("starved", "starved", 1, 0),
    ]
    for table in (
        shares("Gbit/s", samples, GIGABITS),
        shares("new connections, 1000/s", samples, [*CONNECTIONS, downloads]),
        latencies(samples),
        values("cost", samples, costs),
    ):
        say(f"\n{table}")
