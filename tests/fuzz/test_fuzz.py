"""The fuzzer's targets, for a moment and the same each time; `scripts/fuzz` takes its time."""

from __future__ import annotations

import time
from dataclasses import is_dataclass, replace
from itertools import islice
from random import Random
from typing import Any

import pytest

import targets
from mutate import mutated

#: A second or so for each target.
INPUTS = 1000


@pytest.mark.parametrize("name", targets.TARGETS)
def test_seeds_and_what_chance_makes_of_them(name: str) -> None:
    target = targets.TARGETS[name]
    for data in islice(mutated(target.seeds(), Random(name), target.most_bytes), INPUTS):
        try:
            target.check(data)
        except BaseException as error:
            error.add_note(f"{name}: {data!r}")
            raise


@pytest.mark.parametrize(
    ("name", "reader", "wrong"),
    [
        ("question", "read_question", {"qtype": 99}),
        ("response", "read_response", {"addresses": ()}),
        ("hello", "read_client_hello", {"server_name": "b.test"}),
        ("head", "read_request_head", {"host": "b.test"}),
        ("head", "read_request_head", {"port": 7}),
        ("syn", "read_syn", {"port": 7}),
        ("syn", "read_syn", {"guest": "172.16.0.3"}),
        ("syn", "read_syn", {"number": 7}),
    ],
)
def test_a_reader_that_reads_wrong_is_found_out(
    name: str, reader: str, wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By who is asked besides: the seeds suffice."""
    right = getattr(targets, reader)

    def misread(*arguments: Any) -> Any:
        found = right(*arguments)
        if found is None:
            return None
        if hasattr(found, "_replace"):
            return found._replace(**wrong)
        if is_dataclass(found) and not isinstance(found, type):
            return replace(found, **wrong)
        for key, value in wrong.items():
            setattr(found, key, value)
        return found

    monkeypatch.setattr(targets, reader, misread)
    target = targets.TARGETS[name]
    with pytest.raises(AssertionError):
        list(map(target.check, target.seeds()))


def test_a_reader_that_is_slow_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(data: bytes) -> None:
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass

    monkeypatch.setattr(targets, "read_client_hello", slow)
    with pytest.raises(AssertionError, match="ms for 3 bytes"):
        targets.check_hello(b"\x16\3\1")
