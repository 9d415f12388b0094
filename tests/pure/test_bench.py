"""The benchmarks' arithmetic, tables and options; what they measure is not tested but measured."""

from __future__ import annotations

import pytest

from guestnet.model import Value
from guestnet.policy import Direction, Places, Protocol, decide, parse_policy
from lab.bench import __main__ as bench
from lab.bench.connections import PORTS
from lab.bench.phases import PHASES, Profile
from lab.bench.policy import IPERF_PORT, RULES, long_policy
from lab.bench.stage import FAR_IPV4
from lab.bench.table import Ratio, milliseconds, percentile, render


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
