"""`bench forward`: what guestnet's rules cost a packet and a connection, beside plain masquerade.

Two stages with the same links: on one guestnet has attached the guest, on the other it hangs on a
hand-made veth with forwarding and one masquerade rule. Each number is measured in rounds, a round
being both sides one right after the other, with the order changing.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from guestnet.policy import parse_policy

from .. import processes
from ..addresses import UPLINK
from ..netns import Namespace, veth
from . import machine
from .crowd import Crowd, crowd, state_directory
from .policy import IPERF_PORT, long_policy
from .stage import FAR_IPV4, Stage
from .table import Ratio, count, render

ROUNDS = 5
SECONDS = 2.0
_LISTEN_TIMEOUT_S = 10.0
_ROOT = Path(__file__).parents[2]
#: Of both sites: a connection that was reset is forgotten soon, or the NAT's table would fill.
_CLOSE_TIMEOUT_S = 1
_MASQUERADE = f"""
table ip plain {{
  chain postrouting {{
    type nat hook postrouting priority srcnat
    oifname {UPLINK} masquerade
  }}
}}
"""


@dataclass(frozen=True)
class Side:
    """Where a flow begins and ends."""

    guest: Namespace
    far: Namespace


@dataclass(frozen=True)
class Measurement:
    """One row: its words, and how one side is measured once, in `unit`s."""

    words: str
    unit: str
    scale: float
    once: Callable[[Side, float], float]


def throughput(streams: int, *, down: bool) -> Callable[[Side, float], float]:
    """Bits a second that arrived, by iperf3: from the guest, or (`down`) to it."""

    def once(side: Side, seconds: float) -> float:
        command = ["iperf3", "--json", "--client", str(FAR_IPV4), "--port", str(IPERF_PORT)]
        command += ["--time", f"{max(round(seconds), 1)}", "--parallel", str(streams)]
        command += ["--reverse"] if down else []
        result = side.guest.run(command, timeout_s=seconds + 30)
        return float(json.loads(result.stdout)["end"]["sum_received"]["bits_per_second"])

    return once


def connections(side: Side, seconds: float) -> float:
    """New connections a second."""
    command = [sys.executable, "-m", "lab.bench.connections", "connect"]
    command += [str(FAR_IPV4), str(seconds)]
    return float(side.guest.run(command, timeout_s=seconds + 30, cwd=_ROOT).stdout)


MEASUREMENTS = (
    Measurement("1 stream out", "Gbit/s", 1e9, throughput(1, down=False)),
    Measurement("1 stream in", "Gbit/s", 1e9, throughput(1, down=True)),
    Measurement("8 streams out", "Gbit/s", 1e9, throughput(8, down=False)),
    Measurement("8 streams in", "Gbit/s", 1e9, throughput(8, down=True)),
    Measurement("new connections", "1000/s", 1e3, connections),
)


def run(
    sizes: Sequence[int],
    *,
    rounds: int,
    seconds: float,
    rules: int,
    policies: int,
    say: Callable[[str], None],
    note: Callable[[str], None],
) -> None:
    """Measure, and say the table."""
    say(machine.describe())
    rows: list[list[str]] = []
    with Stage() as stage, Stage() as other, state_directory() as state:
        theirs = plain_side(other)
        with crowd(stage, state, {}) as people, contextlib.ExitStack() as stack:
            ours = attached_side(stage, people, rules)
            say(_proof(people, rules))
            for side in (ours, theirs):
                stack.enter_context(servers(side))
            for size in sorted(sizes):
                for number in range(people.size, size - 1):
                    people.grow(number + 1, policy=long_policy(rules, number % policies))
                for each in MEASUREMENTS:
                    note(f"{count(size)}, {each.words}")
                    ratio = compare(each, ours, theirs, rounds, seconds)
                    rows.append(_row(size, each, ratio))
            for attachment in people.host.attachments():
                people.host.detach(attachment.guest)
    say(f"\n{rounds} rounds of {seconds:g} s a side")
    headings = ["guests", "flow", "", "guestnet", "plain NAT", "ratio of medians (least–most)"]
    say(render(headings, rows))


def compare(each: Measurement, ours: Side, theirs: Side, rounds: int, seconds: float) -> Ratio:
    """Rounds of both sides, one after the other; a short one first, that is not counted."""
    samples: tuple[list[float], list[float]] = ([], [])
    for side in (ours, theirs):
        each.once(side, min(seconds, 1.0))
    for number in range(rounds):
        turn = [(0, ours), (1, theirs)]
        for which, side in turn if number % 2 == 0 else reversed(turn):
            samples[which].append(each.once(side, seconds))
    return Ratio.of(*samples)


def attached_side(stage: Stage, people: Crowd, rules: int) -> Side:
    """The guest on guestnet, with a policy of so many rules."""
    stage.site.sysctl("netfilter.nf_conntrack_tcp_timeout_close", _CLOSE_TIMEOUT_S)
    guest = stage.add_guest()
    people.host.attach("runner", netns=str(guest.path), policy=long_policy(rules))
    return Side(guest, stage.far)


def plain_side(stage: Stage) -> Side:
    """The guest on a veth, behind forwarding and masquerade and nothing else."""
    guest = stage.add_guest()
    veth(stage.site, "guest0", guest, "eth0")
    stage.site.ip("address add 172.16.0.1/30 dev guest0")
    guest.ip("address add 172.16.0.2/30 dev eth0", "route add default via 172.16.0.1")
    stage.site.sysctl("ipv4.ip_forward", 1)
    stage.site.run(["nft", "-f", "-"], stdin=_MASQUERADE)
    stage.site.sysctl("netfilter.nf_conntrack_tcp_timeout_close", _CLOSE_TIMEOUT_S)
    return Side(guest, stage.far)


@contextlib.contextmanager
def servers(side: Side) -> Iterator[None]:
    """Both servers at the far end, listening."""
    with contextlib.ExitStack() as stack:
        # A file: iperf3 tells a lot, and in a pipe that nobody reads it would get stuck.
        log = stack.enter_context(tempfile.TemporaryFile())
        iperf = side.far.popen(
            ["iperf3", "--server", "--port", str(IPERF_PORT), "--forceflush"],
            stdout=log,
            stderr=log,
        )
        stack.callback(processes.stop, iperf)
        command = [sys.executable, "-m", "lab.bench.connections", "serve", str(FAR_IPV4)]
        accept = side.far.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_ROOT)
        stack.callback(processes.stop, accept)
        assert accept.stdout is not None
        if not accept.stdout.readline():
            raise RuntimeError("the server of connections ended before it listened")
        _await_words(iperf, log)
        yield


def _await_words(process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    """Wait for a server's first words: it listens then."""
    deadline = time.monotonic() + _LISTEN_TIMEOUT_S
    while not os.fstat(log.fileno()).st_size:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("iperf3 does not listen")
        time.sleep(0.01)


def _proof(people: Crowd, rules: int) -> str:
    """That the flows measured are decided by the last rule."""
    policy = parse_policy(long_policy(rules))
    if len(policy.rules) != rules:
        raise RuntimeError(f"the policy has {len(policy.rules)} rules, not {rules}")
    verdict = people.host.explain("runner", "tcp", FAR_IPV4, IPERF_PORT)
    if verdict.rule != rules - 1:
        raise RuntimeError(f"the flows are decided by {verdict.text}, not by the last rule")
    return f"policy   {rules} rules, and the last one decides: {verdict.text}"


def _row(size: int, each: Measurement, ratio: Ratio) -> list[str]:
    return [
        f"{size:,}",
        each.words,
        each.unit,
        f"{ratio.ours / each.scale:.2f}",
        f"{ratio.theirs / each.scale:.2f}",
        str(ratio),
    ]
