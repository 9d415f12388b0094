"""Rules that hold for every test: what cannot run is skipped and counted, and nothing is left.

A test marked `root` or `guest` is skipped, with the reason, where it cannot run; the last lines of
a run say how many were. A test that leaves a namespace, a device, a process or (marked `root`) an
nft table behind fails.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# `lab` lies beside `src` and is not installed; `pytest` without `python -m` would not find it.
sys.path.insert(0, str(Path(__file__).parents[1]))

from lab import leaks, netns

# No deadlines: the machine is shared. In CI the examples are the same each time, so that a change
# is refused for what it changed; elsewhere they are new ones each time.
settings.register_profile("everywhere", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "everywhere")

_skipped: Counter[str] = Counter()


def pytest_configure() -> None:
    """Clear away what a killed run left, and let no daemon of this one slip away."""
    leaks.adopt_orphans()
    if not leaks.why_no_root():
        netns.reap_stale()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs more than this machine gives."""
    for mark, reason in (("root", leaks.why_no_root()), ("guest", leaks.why_no_guest())):
        if not reason:
            continue
        for item in items:
            if item.get_closest_marker(mark) and not item.get_closest_marker("skip"):
                item.add_marker(pytest.mark.skip(reason=f"needs {mark}: {reason}"))
                _skipped[f"{mark} ({reason})"] += 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say aloud how much was not tested."""
    for what, count in _skipped.items():
        terminalreporter.write_line(f"NOT TESTED: {count} tests that need {what}", yellow=True)


@pytest.fixture(scope="session", autouse=True)
def nothing_left_by_the_run() -> Iterator[None]:
    """Hold the fixtures of wider scope, which outlive a test, to the same rule as the tests."""
    root = not leaks.why_no_root()
    before = leaks.Traces.now(tables=root)
    yield
    if found := leaks.left_behind(before, tables=root):
        pytest.fail("the run left behind:\n  " + "\n  ".join(found), pytrace=False)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test after which there is more on the machine than before it.

    Set up before and torn down after the test's own fixtures, as the first of them that is
    autouse; what fixtures of a wider scope hold is there before and after.
    """
    tables = request.node.get_closest_marker("root") is not None
    before = leaks.Traces.now(tables=tables)
    yield
    if found := leaks.left_behind(before, tables=tables):
        pytest.fail("left behind:\n  " + "\n  ".join(found), pytrace=False)
