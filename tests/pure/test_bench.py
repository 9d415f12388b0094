"""The benchmarks' arithmetic, tables and options; what they measure is not tested but measured."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from guestnet.model import Value
from guestnet.policy import Direction, Places, Protocol, decide, parse_policy
from lab.bench import __main__ as bench
from lab.bench import datagrams, machine, rootless
from lab.bench.connections import PORTS
from lab.bench.contenders import Contender
from lab.bench.phases import PHASES, Profile
from lab.bench.policy import IPERF_PORT, RULES, long_policy
from lab.bench.samples import Measurement, Samples, shares, take_turns, values
from lab.bench.stage import FAR_IPV4
from lab.bench.table import Ratio, milliseconds, percentile, render
from lab.netns import Lent


@pytest.mark.parametrize(
    ("percent", "expected"), [(50, 50.0), (99, 99.0), (100, 100.0), (1, 1.0), (0, 1.0)]
)
def test_percentiles_are_samples(percent: float, expected: float) -> None:
    samples = [float(i) for i in range(100, 0, -1)]
    assert percentile(samples, percent) == expected


def test_one_sample_is_every_percentile() -> None:
    assert percentile([3.0], 50) == percentile([3.0], 99) == 3.0


def test_no_sample_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 50)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.00012, "0.12"), (0.0123, "12.3"), (0.25, "250"), (0.0, "0.00")]
)
def test_milliseconds_have_three_figures(seconds: float, shown: str) -> None:
    assert milliseconds(seconds) == shown


def test_a_ratio_is_of_medians_and_tells_its_rounds() -> None:
    ratio = Ratio.of([9.0, 10.0, 30.0], [10.0, 20.0, 10.0])
    assert (ratio.ours, ratio.theirs) == (10.0, 10.0)
    assert str(ratio) == "1.00 (0.50–3.00)"


def test_a_ratio_is_of_rounds_that_both_have() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Ratio.of([1.0, 2.0], [1.0])


def test_a_table_lines_up() -> None:
    assert render(["what", "ms"], [["a", "1.00"], ["longer", "12"]]).split("\n") == [
        "what      ms",
        "------  ----",
        "a       1.00",
        "longer    12",
    ]


def _samples(*words: str) -> list[Samples]:
    nowhere = Lent(Path("/nowhere"), "nowhere")
    return [Samples(Contender(each, nowhere, nowhere)) for each in words]


def test_another_one_is_the_first_in_each_round() -> None:
    samples = _samples("a", "b", "c")
    order = []

    def once(contender: Contender, seconds: float) -> dict[str, float]:
        order.append(contender.words)
        return {"figure": seconds}

    for number in range(4):
        take_turns(Measurement("figure", once), samples, number, float(number))
    assert "".join(order) == "abcbcacababc"
    assert [each.middle("figure") for each in samples] == [1.5, 1.5, 1.5]


def test_a_table_of_shares_sets_all_beside_the_first() -> None:
    plain, other, without = _samples("plain", "other", "without")
    plain.add({"flow": 2e9})
    other.add({"flow": 1e9, "cpu": 0.5})
    all_of_them = [plain, other, without]
    assert shares("Gbit/s", all_of_them, [("out", "flow", 1e9)]).split("\n")[2:] == [
        "plain    2.00 (1.00)",
        "other    1.00 (0.50)",
        "without            -",
    ]
    assert values("cost", all_of_them, [("CPU", "cpu", 1, 1)]).split("\n")[2:] == [
        "plain      -",
        "other    0.5",
        "without    -",
    ]


def test_no_round_is_begun_that_would_not_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootless, "STREAMS", [])
    monkeypatch.setattr(rootless, "DATAGRAMS", [])
    seen: list[str] = []
    assert rootless._rounds(_samples("a"), 3, 1.0, float("inf"), seen.append) == 3
    assert rootless._rounds(_samples("a"), 3, 1.0, 0.0, seen.append) == 1
    assert seen == ["no time for round 2"]


def test_none_that_were_sent_are_no_measurement() -> None:
    assert datagrams._rates(90, 100, 2.0)["lost"] == pytest.approx(0.1)
    assert datagrams._rates(90, 100, 2.0)["arrived_per_s"] == 45
    with pytest.raises(TimeoutError, match="no time"):
        datagrams._rates(0, 0, 0.0)


def test_shared_memory_is_divided() -> None:
    mine = os.getpid()
    assert 0 < machine.proportional_bytes(mine) <= 2 * machine.resident_bytes(mine)
    with pytest.raises(FileNotFoundError):
        machine.proportional_bytes(0)


@pytest.mark.parametrize("rules", [1, 2, 9, 10, 50, RULES, 1000])
@pytest.mark.parametrize("variant", [0, 99])
def test_the_last_of_the_rules_decides(rules: int, variant: int) -> None:
    policy = parse_policy(long_policy(rules, variant))
    nowhere = Places(frozenset(), ())
    for port in (IPERF_PORT, *PORTS):
        verdict = decide(policy, Direction.EGRESS, Protocol.TCP, FAR_IPV4, port, nowhere)
        assert verdict.allowed
        assert verdict.rule == rules - 1


def test_variants_are_distinct_policies() -> None:
    assert len({str(parse_policy(long_policy(RULES, i))) for i in range(100)}) == 100


def test_a_function_that_has_moved_is_told_and_no_obstacle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(PHASES, "gone", ("no.such:thing", "model:Value.no_such", "model:None"))
    with (profile := Profile()).patched(), profile.call():
        pass
    assert {"no.such:thing", "model:Value.no_such"} <= set(profile.missing)


def test_a_profile_leaves_functions_as_they_were() -> None:
    before = Value.__init__
    with Profile().patched(split=True):
        assert Value.__init__ is not before
    assert Value.__init__ is before


def test_a_phase_is_without_those_inside_it() -> None:
    profile = Profile()
    with profile.call():
        profile._enter("outer")
        profile._enter("inner")
        profile._leave()
        profile._leave()
    assert profile.counts == {"python": 1, "outer": 1, "inner": 1}
    assert all(seconds >= 0 for seconds in profile.seconds.values())
    assert profile.rows()[-1][0] == "total"


def test_alone_it_lists_the_benchmarks(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([]) == 0
    assert "attach" in (shown := capsys.readouterr().out)
    assert "forward" in shown


@pytest.mark.parametrize("guests", ["0", "x", "1,", "-1", "1000000"])
def test_impossible_numbers_of_guests_are_refused(
    guests: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench.main(["attach", "--guests", guests])
    assert "--guests" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "-1", "6", "nan"])
@pytest.mark.parametrize("name", ["relay", "rootless"])
def test_figures_take_seconds_at_most(
    name: str, seconds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench.main([name, f"--seconds={seconds}"])
    assert "--seconds" in capsys.readouterr().err
