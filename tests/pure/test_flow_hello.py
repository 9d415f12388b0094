"""The ClientHello reader: what real clients send, and what nobody should get past it."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestnet.flow.hello import (
    MAX_HANDSHAKE_BYTES,
    MAX_HELLO_BYTES,
    MAX_RECORDS,
    Hello,
    NotHello,
    read_client_hello,
)


def openssl_hello(name: str | None = None, alpn: tuple[str, ...] = ()) -> bytes:
    """What a client of this machine's OpenSSL says first."""
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    if alpn:
        context.set_alpn_protocols(list(alpn))
    said = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), said, server_hostname=name).do_handshake()
    return said.read()


def vector(width: int, data: bytes) -> bytes:
    return len(data).to_bytes(width) + data


def extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2) + vector(2, data)


def sni(*names: bytes, kind: int = 0) -> bytes:
    return extension(0, vector(2, b"".join(bytes([kind]) + vector(2, name) for name in names)))


def message(extensions: bytes | None = b"", kind: int = 1, version: bytes = b"\3\3") -> bytes:
    body = version + bytes(32) + vector(1, b"") + vector(2, b"\x13\x01") + vector(1, b"\0")
    return bytes([kind]) + vector(3, body + (b"" if extensions is None else vector(2, extensions)))


def records(data: bytes, size: int = 2**14) -> bytes:
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    return b"".join(b"\x16\3\1" + vector(2, part) for part in parts)


def outcome(data: bytes) -> Hello | str | None:
    """What the reader says, its error as a reason."""
    try:
        return read_client_hello(data)
    except NotHello as error:
        return error.reason


def byte_by_byte(data: bytes) -> Hello | str | None:
    """The first answer to a growing prefix that is not "more"."""
    for end in range(len(data) + 1):
        if (found := outcome(data[:end])) is not None:
            return found
    return None


PADDING = extension(21, bytes(3000))
GOOD = records(message(sni(b"a.example") + extension(16, b"\0\x03\x02h2")))


# -- what clients say --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "example.com", "xn--bcher-kva.example"])
@pytest.mark.parametrize("alpn", [(), ("h2", "http/1.1")])
def test_openssl(name: str | None, alpn: tuple[str, ...]) -> None:
    said = openssl_hello(name, alpn)
    assert read_client_hello(said) == Hello(name, alpn, False, len(said))
    assert byte_by_byte(said) == outcome(said)
    assert read_client_hello(said + b"\x14\3\3\0\1\1") == outcome(said)


@pytest.mark.parametrize("size", [60, 100, 517, 1400, 2**14])
def test_a_hello_with_post_quantum_keys_over_any_records(size: int) -> None:
    said = records(message(extension(51, bytes(1300)) + PADDING + sni(b"Pq.Example.")), size)
    if len(said) // (size + 5) > MAX_RECORDS:
        assert outcome(said) == "the hello is spread over too many records"
        return
    assert outcome(said) == Hello("pq.example", (), False, len(said))
    assert byte_by_byte(said) == outcome(said)


def test_what_an_extension_says() -> None:
    hello = Hello("a.example", ("h2",), False, len(GOOD))
    assert outcome(GOOD) == hello
    assert outcome(records(message(None))) == Hello(None, (), False, 5 + len(message(None)))
    ech = outcome(records(message(sni(b"public.example") + extension(0xFE0D, b"\0"))))
    assert isinstance(ech, Hello)
    assert (ech.server_name, ech.has_ech) == ("public.example", True)
    grease = outcome(records(message(extension(16, vector(2, b"\x02\xfa\xfa")))))
    assert isinstance(grease, Hello)
    assert grease.alpn == ("\xfa\xfa",)


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", "no TLS handshake record"),
        (b"\x80\x2e\x01\x03\x01", "no TLS handshake record"),  # SSLv2
        (b"\x15\3\1\0\2\1\0", "no TLS handshake record"),
        (b"\x16\2", "no version of TLS"),
        (b"\x16\3\1\0\0", "a record is empty or too long"),
        (b"\x16\3\1\x40\x01", "a record is empty or too long"),
        (b"\x16\3\1\0\4\2", "the first handshake message is no ClientHello"),
        (b"\x16\3\1\0\4\1\1\0\0", "the hello is too long"),
        (records(b"\1\0\0\0"), "a field is longer than what holds it"),
        (records(message(version=b"\0\2")), "no version of TLS"),
        (records(message() + b"\0"), "something follows the hello in its record"),
        (records(message(), 20)[:25] + b"\x17", "no TLS handshake record"),
        (records(message(), 20)[:25] + b"\x14\3\3\0\1\1", "no TLS handshake record"),
        (records(message(sni(b"a") + sni(b"a"))), "an extension is there twice"),
        (records(message(PADDING + PADDING)), "an extension is there twice"),
        (records(message(sni(b"a", b"b"))), "there is more than one server name"),
        (records(message(sni(b"a", kind=1))), "the server name is no host name"),
        (records(message(extension(0, b""))), "a field is longer than what holds it"),
        (records(message(sni())), "a field has a length that TLS does not allow"),
        (records(message(sni(b""))), "a field has a length that TLS does not allow"),
        (records(message(extension(16, b"\0\1h"))), "a field has a length that TLS does not allow"),
        (records(message(PADDING[:9])), "a field is longer than what holds it"),
        (records(message(extension(16, b"\0\2\1h!"))), "something follows the protocol names"),
    ],
)  # fmt: skip
def test_it_is_refused(data: bytes, reason: str) -> None:
    assert outcome(data) == byte_by_byte(data) == reason


@pytest.mark.parametrize(
    "name", [b"127.0.0.1", b"[::1]", b"a\0.example", b"a b", "bücher.example".encode(), b"a" * 254]
)
def test_a_server_name_that_is_none_is_refused(name: bytes) -> None:
    found = outcome(records(message(sni(name))))
    assert isinstance(found, str)
    assert found.startswith("server name: ")


def test_the_caps_are_exact() -> None:
    room = MAX_HANDSHAKE_BYTES - (len(message()) - 4) - 4
    fits = message(extension(21, bytes(room)))
    assert isinstance(outcome(records(fits, -(-len(fits) // MAX_RECORDS))), Hello)
    assert outcome(records(message(extension(21, bytes(room + 1))))) == "the hello is too long"
    slow = records(message(PADDING), 1)
    assert outcome(slow[: 6 * MAX_RECORDS]) == "the hello is spread over too many records"


# -- whatever comes ----------------------------------------------------------------------------


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: GOOD[:60] + tail))
def test_only_the_documented_error(data: bytes) -> None:
    assert outcome(data) == byte_by_byte(data)


@settings(max_examples=300)
@given(
    st.sampled_from([GOOD, records(message(sni(b"a.example")), 30), openssl_hello("b.example")]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    st.binary(max_size=8),
)
def test_a_mutated_hello_answers_the_same_in_any_pieces(
    data: bytes, changes: list[tuple[float, int]], tail: bytes
) -> None:
    changed = bytearray(data)
    for where, value in changes:
        changed[int(where * len(changed))] = value
    whole = bytes(changed) + tail
    assert outcome(whole) == byte_by_byte(whole)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 2**14), min_size=1, max_size=MAX_RECORDS + 1))
def test_so_many_bytes_are_always_enough(sizes: list[int]) -> None:
    longest = message(extension(21, bytes(MAX_HANDSHAKE_BYTES - len(message()))))
    said = b""
    for size in sizes:
        said, longest = said + records(longest[:size]), longest[size:]
    said = (said + records(longest) if longest else said) + bytes(MAX_HELLO_BYTES)
    assert outcome(said[:MAX_HELLO_BYTES]) is not None
