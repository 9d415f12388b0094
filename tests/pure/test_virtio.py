"""The virtio-net header: layout against linux/virtio_net.h, and what may escape from parsing."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestnet.errors import GuestnetError
from guestnet.frames.virtio import (
    GSO_ECN,
    HEADER_BYTES,
    PLAIN,
    Gso,
    HeaderFlag,
    VirtioHeaderError,
    VirtioNetHeader,
)

u8 = st.integers(0, 0xFF)
u16 = st.integers(0, 0xFFFF)
headers = st.builds(
    VirtioNetHeader,
    flags=u8,
    gso_type=u8,
    hdr_len=u16,
    gso_size=u16,
    csum_start=u16,
    csum_offset=u16,
    num_buffers=u16,
)

#: TCP over IPv4 without options: checksum at 14 + 20 + 16.
TSO4 = VirtioNetHeader(HeaderFlag.NEEDS_CSUM, Gso.TCPV4, 54, 1448, 34, 16)


def test_layout_is_that_of_the_kernel_header() -> None:
    header = VirtioNetHeader(
        flags=0x01,
        gso_type=0x04,
        hdr_len=0x1122,
        gso_size=0x3344,
        csum_start=0x5566,
        csum_offset=0x7788,
        num_buffers=0x99AA,
    )
    assert header.pack() == bytes.fromhex("01 04 2211 4433 6655 8877 aa99")


def test_the_default_is_a_finished_frame() -> None:
    assert PLAIN.pack() == bytes(12)
    assert not PLAIN.needs_checksum
    assert not PLAIN.is_gso
    PLAIN.check(14)


@given(headers)
def test_packing_and_parsing_are_inverse(header: VirtioNetHeader) -> None:
    assert VirtioNetHeader.parse(header.pack()) == header


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_every_twelve_bytes_survive_unchanged(data: bytes) -> None:
    assert VirtioNetHeader.parse(data).pack() == data


@given(st.binary(max_size=40))
def test_only_the_documented_error_escapes_from_parsing(data: bytes) -> None:
    try:
        VirtioNetHeader.parse(data)
    except VirtioHeaderError as error:
        assert len(data) != HEADER_BYTES
        assert str(len(data)) in str(error)  # noqa: PT017 - both outcomes are legitimate
    else:
        assert len(data) == HEADER_BYTES


@given(headers, st.integers(0, 70000))
def test_only_the_documented_error_escapes_from_checking(
    header: VirtioNetHeader, size: int
) -> None:
    try:
        header.check(size)
    except VirtioHeaderError:
        return
    assert header.hdr_len <= size
    if header.needs_checksum:
        assert header.csum_start + header.csum_offset + 2 <= size


@given(headers, st.binary(max_size=64))
def test_split_parts_header_and_frame(header: VirtioNetHeader, frame: bytes) -> None:
    assert VirtioNetHeader.split(header.pack() + frame) == (header, frame)


def test_split_of_a_cut_header_fails() -> None:
    with pytest.raises(VirtioHeaderError, match="this has 11"):
        VirtioNetHeader.split(bytes(11))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(VirtioNetHeader)])
def test_a_field_out_of_range_is_named(field: str) -> None:
    limit = 0xFF if field in ("flags", "gso_type") else 0xFFFF
    for value in (-1, limit + 1):
        arguments: dict[str, Any] = {field: value}
        with pytest.raises(VirtioHeaderError, match=f"{field}={value}"):
            VirtioNetHeader(**arguments)


def test_the_error_is_ours_and_a_value_error() -> None:
    assert issubclass(VirtioHeaderError, ValueError)
    assert issubclass(VirtioHeaderError, GuestnetError)


def test_a_segmented_frame_passes() -> None:
    TSO4.check(54 + 10_000)
    dataclasses.replace(TSO4, gso_type=Gso.TCPV4 | GSO_ECN).check(54 + 10_000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"csum_start": 10_040}, "checksum ends at 10058, the frame at 10054"),
        ({"hdr_len": 10_055}, "hdr_len=10055"),
        ({"gso_size": 0}, "segments need a size"),
        ({"gso_type": 2}, "gso_type=0x2: no known"),
        ({"gso_type": Gso.UDP_L4 | GSO_ECN}, "only TCP"),
        ({"gso_type": GSO_ECN, "gso_size": 0}, "only TCP"),
    ],
)
def test_what_no_kernel_could_act_on_is_refused(change: dict[str, int], message: str) -> None:
    arguments: dict[str, Any] = dict(change)
    with pytest.raises(VirtioHeaderError, match=message):
        dataclasses.replace(TSO4, **arguments).check(10_054)


def test_unknown_flags_pass() -> None:
    VirtioNetHeader(flags=0xF8).check(60)


def test_checksum_fields_mean_nothing_without_their_flag() -> None:
    VirtioNetHeader(csum_start=0xFFFF, csum_offset=0xFFFF).check(60)
