"""Names that guests wrote: one spelling or `NotName`. And what the readers may import."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import guestnet.flow
from guestnet.flow.spoken import NotName, spoken_name


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"example.com", "example.com"),
        (b"EXAMPLE.Com.", "example.com"),
        (b"_dmarc.a-b.xn--bcher-kva.example", "_dmarc.a-b.xn--bcher-kva.example"),
        (b"localhost", "localhost"),
        (b"1.2.3.4.in-addr.arpa", "1.2.3.4.in-addr.arpa"),
        (b"a" * 63 + b".b", "a" * 63 + ".b"),
        (b".".join([b"a" * 63] * 3 + [b"b" * 61]) + b".", ".".join(["a" * 63] * 3 + ["b" * 61])),
    ],
)
def test_a_name_has_one_spelling(raw: bytes, name: str) -> None:
    assert spoken_name(raw) == name


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b".", b"..", b"a..b", b".a", b"a.b..", b" a", b"a ", b"a\n", b"a\0.b", b"*.a"),
        *(b"a" * 64 + b".b", b".".join([b"a" * 63] * 3 + [b"b" * 62]), b"a." * 127 + b"a."),
        *(b"127.0.0.1", b"127.0.0.1.", b"2130706433", b"a.1", b"0x7f.0x1", b"0X7F000001", b"a.0x"),
        *(b"::1", b"[::1]", b"a:80", b"a@b", "bücher.example".encode(), b"a/b", b"a%2eb"),
    ],
)
def test_what_is_no_name(raw: bytes) -> None:
    with pytest.raises(NotName):
        spoken_name(raw)


@given(st.binary(max_size=300) | st.text("aZ09-_.x", max_size=260).map(str.encode))
@example(b"a.0x")
def test_reading_twice_changes_nothing(raw: bytes) -> None:
    try:
        name = spoken_name(raw)
    except NotName:
        return
    assert spoken_name(name.encode()) == name
    assert name == name.lower()
    assert len(name) <= 253


@pytest.mark.parametrize("module", ["spoken", "hello", "http"])
def test_the_readers_know_nothing_of_the_world(module: str) -> None:
    file = Path(guestnet.flow.__file__).with_name(f"{module}.py")
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            assert {alias.name for alias in node.names} <= {"re"}
        elif isinstance(node, ast.ImportFrom):
            assert node.module in {"__future__", "dataclasses", "ipaddress", "typing", "spoken"}
