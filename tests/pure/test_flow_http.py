"""The request head's reader: whom a client asks for, and the ways to say two things at once."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestnet.flow.http import MAX_HEAD_BYTES, Head, NotHttp, read_request_head


def head(*lines: str, request: str = "GET / HTTP/1.1") -> bytes:
    return "".join(f"{line}\r\n" for line in (request, *lines, "")).encode("latin-1")


def outcome(data: bytes, before: int = 0) -> Head | str | None:
    """What the reader says, its error as a reason."""
    try:
        return read_request_head(data, before)
    except NotHttp as error:
        return error.reason


def byte_by_byte(data: bytes) -> Head | str | None:
    """The first answer to a growing prefix that is not "more"."""
    for end in range(len(data) + 1):
        if (found := outcome(data[:end], max(end - 1, 0))) is not None:
            return found
    return None


GOOD = head("Host: a.example:8080", "Accept: */*", request="POST /x?y HTTP/1.1")

# -- what clients say --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "read"),
    [
        ("example.com", ("example.com", None, False)),
        ("EXAMPLE.com.:8080", ("example.com", 8080, False)),
        ("127.0.0.1", ("127.0.0.1", None, True)),
        ("127.0.0.1:65535", ("127.0.0.1", 65535, True)),
        ("[::1]", ("::1", None, True)),
        ("[2001:DB8:0::1]:443", ("2001:db8::1", 443, True)),
        ("[::ffff:10.0.0.1]", ("::ffff:a00:1", None, True)),
    ],
)
def test_the_host(host: str, read: tuple[str, int | None, bool]) -> None:
    said = head("User-Agent: x", f"hOsT:\t {host} \t")
    assert outcome(said) == Head("GET", "/", *read, len(said))
    assert byte_by_byte(said) == outcome(said + b"body")
    absolute = head(f"Host: {host}", request=f"GET http://{host}/x HTTP/1.1")
    found = outcome(absolute)
    assert isinstance(found, Head)
    assert (found.host, found.port, found.is_address) == read


def test_what_else_a_head_may_be() -> None:
    old = head(request="GET /~a HTTP/1.0")
    assert outcome(old) == Head("GET", "/~a", None, None, False, len(old))
    assert isinstance(outcome(head("Host: a", request="OPTIONS * HTTP/1.1")), Head)
    assert isinstance(outcome(head("Host: a", "X: caf\xe9", "Y:", "Z: a:b")), Head)
    assert outcome(b"") is None
    assert outcome(GOOD[:-1]) is None


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x16\3\1", "no method"),
        (b"\r\nGET / HTTP/1.1\r\n", "no method"),
        (b"\nGET", "no method"),
        (b" GET", "no method"),
        (b"GE(T", "no method"),
        (b"A" * 33, "no method"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "no method"),
        (b"EHLO a.example\r\n", "no request line of HTTP/1.0 or HTTP/1.1"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "no request line of HTTP/1.0 or HTTP/1.1"),
        (b"GET /\r\n", "no request line of HTTP/1.0 or HTTP/1.1"),
        (b"GET  / HTTP/1.1\r\n", "no request line of HTTP/1.0 or HTTP/1.1"),
        (b"GET / HTTP/1.1 \r\n", "no request line of HTTP/1.0 or HTTP/1.1"),
        (b"GET / HTTP/1.2\r\n", "no request line of HTTP/1.0 or HTTP/1.1"),
        (b"GET / http/1.1\r\n", "no request line of HTTP/1.0 or HTTP/1.1"),
        (b"GET /\x80 HTTP/1.1\r\n", "no request line of HTTP/1.0 or HTTP/1.1"),
        (b"CONNECT a:443 HTTP/1.1\r\n", "CONNECT is for proxies"),
        (b"GET a.example HTTP/1.1\r\n", "the target is neither a path nor a URL"),
        (b"GET ftp://a/ HTTP/1.1\r\n", "the target is neither a path nor a URL"),
        (b"GET * HTTP/1.1\r\n", "the target * is for OPTIONS"),
        (head(), "no Host"),
        (head("Host: a", "Host: a"), "more than one Host"),
        (head("Host: a", "host: b", request="GET / HTTP/1.0"), "more than one Host"),
        (head("Host : a"), "no header: a folded line, or space around its name"),
        (head(" Host: a"), "no header: a folded line, or space around its name"),
        (head("Host: a", "\tb"), "no header: a folded line, or space around its name"),
        (head("Host: a", "b"), "no header: a folded line, or space around its name"),
        (head("Host: a", ": b"), "no header: a folded line, or space around its name"),
        (head("Host: a", request="GET http://b/ HTTP/1.1"), "the target's host is not the Host"),
        (head("Host: a", request="GET http://a:80/ HTTP/1.1"), "the target's host is not the Host"),
        (head(request="GET http://a/ HTTP/1.0"), "the target's host is not the Host"),
        (head("Host: a:0"), "the Host's port is no port"),
        (head("Host: a:65536"), "the Host's port is no port"),
        (head("Host: a:"), "the Host's port is no port"),
        (head("Host: [::g]"), "the Host is empty or has more than host and port"),
        (head("Host: [1::2::3]"), "the Host is no IPv6 address"),
        (head("Host: [fe80::1%eth0]"), "the Host is empty or has more than host and port"),
    ],
)
def test_it_is_refused(data: bytes, reason: str) -> None:
    assert outcome(data) == byte_by_byte(data) == reason


@pytest.mark.parametrize("byte", [b"\0", b"\n", b"\r", b"\x0b", b"\x1f", b"\x7f"])
def test_a_control_character_anywhere_is_refused_at_once(byte: bytes) -> None:
    for place in (GOOD.index(b"x?"), GOOD.index(b"a.ex"), GOOD.index(b"*/*")):
        data = GOOD[:place] + byte + GOOD[place:]
        found = outcome(data[: place + 2])
        assert found == "a control character, or a line that does not end with CRLF"
        assert byte_by_byte(data) == found == outcome(data)


@pytest.mark.parametrize(
    "host",
    ["", "a b", "a,b", "a@b", "u:p@b", "a/b", "a..b", "*.a", "1.2.3", "0x7f.1", "01.2.3.4", "\xe9"],
)
def test_a_host_that_is_none_is_refused(host: str) -> None:
    assert isinstance(outcome(head(f"Host: {host}")), str)


def test_the_cap_is_exact() -> None:
    room = MAX_HEAD_BYTES - len(head("Host: a", "X: "))
    assert isinstance(outcome(head("Host: a", "X: " + "x" * room)), Head)
    assert outcome(head("Host: a", "X: " + "x" * (room + 1))) == "the head is too long"
    assert outcome(b"GET /" + b"x" * (MAX_HEAD_BYTES - 6)) is None
    assert outcome(b"GET /" + b"x" * (MAX_HEAD_BYTES - 5)) == "the head is too long"


@pytest.mark.parametrize("filler", [" ", "\t", "a ", ":", "x"])
def test_no_head_takes_long_to_read(filler: str) -> None:
    long = (filler * MAX_HEAD_BYTES)[: MAX_HEAD_BYTES - 60]
    began = time.process_time()
    outcome(head(f"X: x{long}x", "Host: a"))
    outcome(head(f"Host: x{long}x"))
    outcome(f"GET /{long} ".encode())
    assert time.process_time() - began < 0.1


def test_a_head_in_single_bytes_costs_its_length_and_not_the_square_of_it() -> None:
    """Read from the front at each byte it took 23 s of the gateway, which all guests share."""
    data = head("Host: a", *["a:"] * 4000).removesuffix(b"\r\n")
    began = time.process_time()
    assert byte_by_byte(data) is None
    assert time.process_time() - began < 2


# -- whatever comes ----------------------------------------------------------------------------


@given(st.binary(max_size=200) | st.text("GET /:Host\r\n \t1.", max_size=80).map(str.encode))
def test_only_the_documented_error(data: bytes) -> None:
    assert outcome(data) == byte_by_byte(data)


@settings(max_examples=300)
@given(
    st.sampled_from([GOOD, head("Host: a", request="GET http://a/ HTTP/1.1")]),
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(b"\r\n\0 :\thH/a\xff")),
        max_size=4,
    ),
    st.binary(max_size=8),
)
def test_a_mutated_head_answers_the_same_in_any_pieces(
    data: bytes, changes: list[tuple[float, int]], tail: bytes
) -> None:
    changed = bytearray(data)
    for where, value in changes:
        changed[int(where * len(changed))] = value
    whole = bytes(changed) + tail
    assert outcome(whole) == byte_by_byte(whole)
