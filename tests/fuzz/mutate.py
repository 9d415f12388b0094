"""Inputs out of inputs, by chance that can be repeated. Blind: nothing is learnt from coverage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

#: Numbers at which lengths, counts and offsets tip over.
_EDGES = [
    b"\0",
    b"\1",
    b"\x3f",
    b"\x40",
    b"\x7f",
    b"\x80",
    b"\xc0\x0c",
    b"\xff",
    b"\0\0",
    b"\xff\xff",
]
_WORDS = [
    b"\r\n",
    b"\n",
    b" ",
    b":",
    b".",
    b",",
    b"@",
    b"*",
    b"+",
    b"-",
    b"/",
    b"[",
    b"]",
    b"\r\n\r\n",
]


def mutated(seeds: Sequence[bytes], random: Random, most_bytes: int) -> Iterator[bytes]:
    """The seeds themselves, then changed ones without end."""
    yield from seeds
    while True:
        data = random.choice(seeds)
        for _ in range(1 << random.randrange(4)):
            data = random.choice(_WAYS)(data, seeds, random)
        yield data[:most_bytes]


def _place(data: bytes, random: Random) -> int:
    return random.randrange(len(data) + 1)


def _flip(data: bytes, _seeds: Sequence[bytes], random: Random) -> bytes:
    if not data:
        return b"\0"
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]


def _insert(data: bytes, _seeds: Sequence[bytes], random: Random) -> bytes:
    at = _place(data, random)
    return data[:at] + random.choice(_EDGES + _WORDS) + data[at:]


def _overwrite(data: bytes, _seeds: Sequence[bytes], random: Random) -> bytes:
    at, what = _place(data, random), random.choice(_EDGES)
    return data[:at] + what + data[at + len(what) :]


def _cut(data: bytes, _seeds: Sequence[bytes], random: Random) -> bytes:
    a, b = sorted((_place(data, random), _place(data, random)))
    return data[:a] + data[b:]


def _repeat(data: bytes, _seeds: Sequence[bytes], random: Random) -> bytes:
    a, b = sorted((_place(data, random), _place(data, random)))
    return data[:b] + data[a:b] * (1 << random.randrange(6)) + data[b:]


def _splice(data: bytes, seeds: Sequence[bytes], random: Random) -> bytes:
    other = random.choice(seeds)
    return data[: _place(data, random)] + other[_place(other, random) :]


_WAYS: list[Callable[[bytes, Sequence[bytes], Random], bytes]] = [
    _flip, _insert, _overwrite, _cut, _repeat, _splice
]  # fmt: skip
