"""What the benchmarks measure with: it counts what there is, and an ordinary user's guest works."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from lab.bench import contenders, ordinary
from lab.bench.contenders import Contender
from lab.bench.flows import probe, servers, throughput
from lab.bench.stage import Stage
from lab.bench.starts import MAKERS
from lab.user import User

pytestmark = pytest.mark.root

SIZE, RATE, SECONDS = 100, 1000, 0.3
#: Every other datagram of that size and no other packet.
LOSE_HALF = f"""
table ip lossy {{
  chain input {{
    type filter hook input priority 0
    udp length {SIZE + 8} numgen inc mod 2 0 drop
  }}
}}
"""


@pytest.fixture
def plain() -> Iterator[Contender]:
    with contenders.plain() as contender, servers(contender.far):
        yield contender


@pytest.mark.parametrize("way", ["out", "back"])
def test_datagrams_that_are_lost_are_counted(plain: Contender, way: str) -> None:
    whole = probe(plain, way, SECONDS, SIZE, RATE)
    assert whole["lost"] == 0
    assert 0 < whole["arrived_per_s"] == whole["offered_per_s"] <= RATE
    for end in (plain.guest, plain.far):
        end.run(["nft", "-f", "-"], stdin=LOSE_HALF)
    assert probe(plain, way, SECONDS, SIZE, RATE)["lost"] == pytest.approx(0.5, abs=0.01)


def test_a_user_s_guest_is_measured_with_all_that_works_for_it() -> None:
    with ordinary.rootless([1500, 65520]) as found:
        for guest in found:
            with servers(guest.far):
                assert probe(guest, "connect", 0.1, 1)["per_s"] > 0
                assert probe(guest, "out", 0.1, SIZE, RATE)["lost"] == 0
                figures = throughput("up", 1, down=False).once(guest, 1)
            assert figures["up"] > 0
            assert figures["up cpu"] > 0


def test_each_maker_of_a_network_gets_the_byte() -> None:
    program = """
from lab.bench import starts
for maker in starts.MAKERS.values():
    assert starts.to_first_byte(maker) > 0
    assert starts.to_end(maker)[starts.CPU] > 0
print(len(starts.MAKERS))
"""
    with (
        Stage() as stage,
        contenders.upstream(stage.far),
        servers(stage.far),
        User(stage.site) as user,
    ):
        done = user.run([sys.executable, "-P", "-c", program])
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) == len(MAKERS)
        assert not user.processes()
        assert not [each for each in user.home.iterdir() if each.name.startswith("tmp")]
