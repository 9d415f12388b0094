"""Frames in a stream, and what a length may be."""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestnet.frames.framing import FRAME_BYTES_MAX, FrameError, FrameRules, StreamReader
from guestnet.frames.virtio import Gso, HeaderFlag, VirtioNetHeader

PLAIN = FrameRules(1500, vnet_hdr=False)
HEADED = FrameRules(1500, vnet_hdr=True)

good = st.integers(PLAIN.min_bytes, PLAIN.max_bytes)
bad = st.one_of(
    st.integers(0, PLAIN.min_bytes - 1),
    st.integers(PLAIN.max_bytes + 1, 2**32 - 1),
    st.sampled_from([0, 1, 2**16, 2**31, 2**32 - 1]),
)


def encode(frames: Iterable[bytes]) -> bytes:
    return b"".join(struct.pack("!I", len(frame)) + frame for frame in frames)


def read(chunks: Iterable[bytes], rules: FrameRules = PLAIN) -> tuple[list[bytes], str]:
    """The frames of a stream that comes in these pieces, and the error that ended it."""
    reader, found = StreamReader(rules), []
    try:
        for chunk in chunks:
            while chunk:
                room = reader.room()
                part, chunk = chunk[: len(room)], chunk[len(room) :]
                room[: len(part)] = part
                reader.filled(len(part))
                while frames := reader.frames():
                    found += [bytes(frame) for frame in frames]
        reader.end()
    except FrameError as error:
        return found, str(error)
    return found, ""


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def frame(size: int, fill: int) -> bytes:
    return bytes([fill % 256]) * size


@given(st.lists(good, max_size=20), st.lists(st.integers(0, 2**20)))
def test_any_split_gives_the_same_frames(sizes: list[int], places: list[int]) -> None:
    frames = [frame(size, index) for index, size in enumerate(sizes)]
    data = encode(frames)
    assert read([data]) == read(cut(data, places)) == (frames, "")


@given(st.lists(good, max_size=3), bad, st.binary(max_size=50))
def test_byte_by_byte_is_the_same_also_in_its_error(
    sizes: list[int], size: int, rest: bytes
) -> None:
    data = encode(frame(s, 7) for s in sizes) + struct.pack("!I", size) + rest
    frames, error = read(data[i : i + 1] for i in range(len(data)))
    assert (frames, error) == read([data])
    assert len(frames) == len(sizes)
    assert error.startswith(f"a frame of {size} bytes")


@given(st.binary(max_size=4000), st.booleans())
def test_nothing_but_the_documented_error_escapes(data: bytes, vnet_hdr: bool) -> None:
    rules = HEADED if vnet_hdr else PLAIN
    frames, _error = read([data], rules)
    assert all(rules.min_bytes <= len(each) <= rules.max_bytes for each in frames)


@given(good, st.data())
def test_a_stream_that_ends_within_a_frame(size: int, data: st.DataObject) -> None:
    whole = encode([frame(size, 1)])
    kept = data.draw(st.integers(1, len(whole) - 1))
    assert read([whole[:kept]]) == ([], f"the stream ended {kept} bytes into a frame")


def test_a_million_bytes_of_length_ask_for_no_memory() -> None:
    reader = StreamReader(HEADED)
    before = len(reader.room())
    reader.room()[:4] = struct.pack("!I", 2**32 - 1)
    reader.filled(4)
    with pytest.raises(FrameError):
        reader.frames()
    assert len(reader.room()) == before - 4


def test_a_buffer_full_of_the_smallest_frames() -> None:
    frames = [frame(14, index) for index in range(40_000)]
    assert read([encode(frames)]) == (frames, "")


def test_the_largest_frames_of_both_kinds() -> None:
    for rules, size in ((PLAIN, 1500 + 18), (HEADED, 12 + FRAME_BYTES_MAX)):
        frames = [frame(size, 0)] * 9
        assert read([encode(frames)], rules) == (frames, "")
        assert read([encode([frame(size + 1, 0)])], rules)[1]


def headed(header: VirtioNetHeader, size: int) -> memoryview:
    return memoryview(header.pack() + bytes(size))


GSO = VirtioNetHeader(
    flags=HeaderFlag.NEEDS_CSUM, gso_type=Gso.TCPV4, gso_size=1448, csum_start=34, csum_offset=16
)


@pytest.mark.parametrize(
    ("header", "size"),
    [(VirtioNetHeader(), 14), (VirtioNetHeader(), 1518), (GSO, 60), (GSO, FRAME_BYTES_MAX)],
)
def test_headers_that_fit(header: VirtioNetHeader, size: int) -> None:
    HEADED.check_header(headed(header, size))


@pytest.mark.parametrize(
    ("header", "size", "complaint"),
    [
        (VirtioNetHeader(), 1519, "not to be segmented"),
        (VirtioNetHeader(flags=1, csum_start=60, csum_offset=16), 70, "the checksum ends at 78"),
        (VirtioNetHeader(gso_type=99, gso_size=1), 60, "no known segmentation"),
        (VirtioNetHeader(gso_type=Gso.TCPV4), 60, "segments need a size"),
    ],
)
def test_headers_that_do_not(header: VirtioNetHeader, size: int, complaint: str) -> None:
    with pytest.raises(FrameError, match=complaint):
        HEADED.check_header(headed(header, size))


@given(st.binary(min_size=26, max_size=200))
def test_of_any_header_nothing_but_the_documented_error_escapes(data: bytes) -> None:
    with contextlib.suppress(FrameError):
        HEADED.check_header(memoryview(data))


def test_without_a_header_there_is_nothing_to_check() -> None:
    PLAIN.check_header(memoryview(b"\xff" * 60))
