"""Datagrams that go as one: what is put together comes apart as it was."""

from __future__ import annotations

import socket
import struct

from hypothesis import example, given
from hypothesis import strategies as st

from guestnet.gateway.segments import MOST, MOST_BYTES, UDP_GRO, pieces, runs, size_in
from guestnet.kernel.mmsg import ancillary, read_ancillary

sizes = st.lists(st.sampled_from([0, 1, 2, 3, 1200, 1472, 30_000, 65_507]), max_size=200)


@given(sizes=sizes)
@example(sizes=[1] * 200)
@example(sizes=[1000, 1000, 3, 1000])
@example(sizes=[5, 0, 5, 0, 0])
def test_runs_are_what_the_kernel_takes_as_one(sizes: list[int]) -> None:
    datagrams = [memoryview(bytes([index % 251]) * size) for index, size in enumerate(sizes)]
    found = [list(run) for run in runs(datagrams)]
    assert [each for run in found for each in run] == datagrams
    for run in found:
        size = len(run[0])
        assert all(len(each) == size for each in run[:-1])
        if len(run) > 1:
            assert 0 < len(run[-1]) <= size
            assert len(run) <= MOST
            assert sum(map(len, run)) <= MOST_BYTES
            assert pieces(memoryview(b"".join(run)), size) == run


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=50))
def test_equal_ones_are_as_few_runs_as_may_be(sizes: list[int]) -> None:
    equal = [memoryview(b"x" * sizes[0])] * len(sizes)
    assert len(list(runs(equal))) == 1


def test_what_the_kernel_says_of_the_size() -> None:
    said = ancillary(socket.IPPROTO_IP, 20, bytes(16))
    assert size_in(read_ancillary(said)) == 0
    said += ancillary(socket.IPPROTO_UDP, UDP_GRO, struct.pack("=i", 1200))
    assert size_in(read_ancillary(said)) == 1200
    assert pieces(memoryview(b"one"), 0) == [b"one"]
    assert pieces(memoryview(b""), 0) == [b""]
