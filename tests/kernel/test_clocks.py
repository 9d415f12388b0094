"""Clocks: one that somebody sets, and one that a suspended machine goes on to count."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any

import pytest

from guestnet.flow.inward import Inward
from guestnet.flow.reactor import Reactor
from guestnet.gateway.exchange import Exchange
from guestnet.gateway.guests import Guest
from guestnet.gateway.service import Service
from guestnet.model import Decision
from guestnet.policy import Action, Protocol, Verdict, parse_policy
from lab.addresses import ALLOWED
from mine import Mine

#: How long everything is stopped, again and again; the last is longer than a worker may take.
STOPS_S = (*[0.25] * 40, 6.0)
#: Enough for a process to be at work, or again.
RUNNING_S = 0.1
#: Two requests on one connection, the second when it is told to.
TWICE = """
import http.client, sys
to = http.client.HTTPConnection(sys.argv[1], timeout=30)
for _ in range(2):
    to.request("GET", "/")
    answer = to.getresponse(); answer.read(); print(answer.status)
    sys.stdin.readline()
"""
#: Sets the guest's policy again and again, until it fails.
TELLING = """
from guestnet.client import connect
with connect() as client:
    while True:
        client.set_policy("box", "deny@192.0.2.9,public")
        client.set_policy("box", "public")
"""
GUESTNET = (sys.executable, "-P", "-m", "guestnet.cli")
PEER, OWN = IPv4Address("192.0.2.1"), IPv4Address("172.16.0.2")


def test_how_long_it_took_does_not_depend_on_the_clock_s_being_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody sets a machine's clock for a test: the moments that are told come from elsewhere."""
    told: list[Decision] = []
    with Reactor(lambda error: pytest.fail(repr(error))) as reactor:
        owner: Any = SimpleNamespace(reactor=reactor, tell=told.append)
        policy = parse_policy("public")
        guest = Guest("vm", "net", (OWN,), (), policy, (), False, 1, Service())
        monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
        inward = Inward(PEER, 7, OWN, 9)
        made = Exchange(owner, guest, None, PEER, 7, Protocol.UDP, (str(OWN), 9), inward)
        monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)
        assert made.tell(Verdict(Action.ALLOW, 0, "allow@public", None, ""), "idle")
    (decision,) = told
    assert decision.time == 2_000_000_000.0
    assert 0 <= decision.duration_s < 1000


@pytest.mark.root
def test_what_was_suspended_counts() -> None:
    """The gateway's clock is the one that does; here it alone is ahead."""
    program = "import time; from guestnet.flow.reactor import Reactor; "
    program += "print(Reactor(print).now() - time.monotonic() > 99_999)"
    ahead = ["unshare", "--time", "--fork", "--boottime", "100000", sys.executable, "-c", program]
    assert subprocess.run(ahead, capture_output=True, text=True, check=True).stdout == "True\n"


@pytest.mark.root
def test_all_of_it_is_stopped_for_a_while(mine: Mine) -> None:
    """As a laptop's lid does, but for the clocks: a flow goes on, and new ones begin.

    The daemon is telling its workers new policies: that they are late, or go on after it, is
    nobody's fault.
    """
    pid = mine.up()
    mine.say("attach", "box", "--netns", "new", "--policy", "public")
    talk = ("exec", "box", "--", sys.executable, "-uc", TWICE, str(ALLOWED.ipv4))
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        mine.user.popen([*GUESTNET, *talk], **pipes) as talking,
        mine.user.popen([sys.executable, "-Pc", TELLING]) as telling,
    ):
        assert talking.stdout is not None
        assert talking.stdout.readline() == b"200\n"
        for stopped_s in STOPS_S:
            time.sleep(RUNNING_S)
            stopped = sorted(mine.user.processes())
            for each in reversed(stopped):
                os.kill(each, signal.SIGSTOP)
            time.sleep(stopped_s)
            for each in stopped:  # the daemon before its workers
                with suppress(ProcessLookupError):  # which is looked for below
                    os.kill(each, signal.SIGCONT)
        time.sleep(RUNNING_S)
        assert telling.poll() is None, mine.log
        telling.terminate()
        out, _err = talking.communicate(b"go\n", timeout=30)
        assert out == b"200\n", mine.log
    for address in (ALLOWED.ipv4, f"[{ALLOWED.ipv6}]"):
        page = json.loads(mine.say("exec", "box", "--", "curl", "-gsS", f"http://{address}/"))
        assert page["server"] == "allowed"
    assert mine.up() == pid
    assert "ending it" not in mine.log
