"""Requests on one connection: every head is seen, whatever stands between them."""

from __future__ import annotations

import time

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestnet.flow.http import MAX_HEAD_BYTES, Head, NotHttp
from guestnet.flow.requests import MAX_CHUNK_LINE_BYTES, MAX_TRAILER_BYTES, Requests


def read(*pieces: bytes) -> tuple[list[str | None], bytes]:
    """The hosts in order, and all that passed."""
    requests, hosts, passed = Requests(), list[str | None](), list[bytes]()
    for piece in pieces:
        requests.feed(piece)
        while (found := requests.take()) is not None:
            if isinstance(found, Head):
                hosts.append(found.host)
            else:
                assert found
                passed.append(found)
    return hosts, b"".join(passed)


def request(host: str, *fields: str, body: bytes = b"", method: str = "POST") -> bytes:
    lines = (f"{method} / HTTP/1.1", f"Host: {host}", *fields, "", "")
    return "\r\n".join(lines).encode() + body


CHUNKS = b"5\r\nGET /\r\n10;x=y\r\n0123456789abcdef\r\n0\r\nX-T: Host: c.test\r\n\r\n"
BODIES = st.one_of(
    st.just(((), b"")),
    st.binary(max_size=40).map(lambda b: ((f"Content-Length: {len(b)}",), b)),
    st.lists(st.binary(min_size=1, max_size=20), max_size=3).map(
        lambda parts: (
            ("Transfer-Encoding: chunked",),
            b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\n",
        )
    ),
)


@given(st.lists(BODIES, min_size=1, max_size=4), st.data())
def test_however_it_is_cut_every_request_is_seen(
    bodies: list[tuple[tuple[str, ...], bytes]], data: st.DataObject
) -> None:
    said = b"".join(
        request(f"h{n}.test", *fields, body=body) for n, (fields, body) in enumerate(bodies)
    )
    hosts = [f"h{n}.test" for n in range(len(bodies))]
    assert read(said) == (hosts, said)
    assert read(*(said[i : i + 1] for i in range(len(said)))) == (hosts, said)
    cut = data.draw(st.integers(0, len(said)))
    assert read(said[:cut], said[cut:]) == (hosts, said)


def test_a_body_that_looks_like_a_request() -> None:
    inner = request("b.test", method="GET")
    for said in (
        request("a.test", f"Content-Length: {len(inner)}", body=inner),
        request("a.test", "Transfer-Encoding: Chunked", body=CHUNKS),
    ):
        assert read(said + request("c.test")) == (["a.test", "c.test"], said + request("c.test"))


def test_a_head_is_shown_before_its_bytes() -> None:
    requests = Requests()
    requests.feed(request("a.test") + request("b.test")[:-2])
    assert isinstance(requests.take(), Head)
    assert requests.take() == request("a.test")
    assert requests.take() is None
    requests.feed(b"\r\n")
    head = requests.take()
    assert isinstance(head, Head)
    assert head.host == "b.test"


@pytest.mark.parametrize(
    "fields",
    [
        ("Content-Length: 3", "Content-Length: 3"),
        ("Content-Length: 3", "Transfer-Encoding: chunked"),
        ("Content-Length: +3",),
        ("Content-Length: 3, 3",),
        ("Content-Length: 0x3",),
        ("Content-Length:",),
        ("Content-Length: 1" + "0" * 18,),
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding: chunked, identity",),
        ("Transfer-Encoding: identity",),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding : chunked",),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding:",),
    ],
)
def test_two_readers_could_see_two_requests(fields: tuple[str, ...]) -> None:
    with pytest.raises(NotHttp):
        read(request("a.test", *fields))


def test_chunks_are_of_http_1_1() -> None:
    said = b"POST / HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n"
    with pytest.raises(NotHttp):
        read(said)


@pytest.mark.parametrize(
    "chunks",
    [
        b"x\r\n",
        b"\r\n",
        b"-1\r\n",
        b"0x1\r\na\r\n",
        b"1\na\r\n0\r\n\r\n",
        b"1 \r\na\r\n",
        b"1;\n\r\na\r\n",
        b"1\r\nab\r\n",
        b"1\r\na\n0\r\n\r\n",
        b"1" * 16 + b"\r\n",
        b"1;" + b"x" * MAX_CHUNK_LINE_BYTES + b"\r\n",
        b"0\r\n folded: x\r\n\r\n",
        b"0\r\nnothing\r\n\r\n",
        b"0\r\n" + b"x: y\r\n" * (MAX_TRAILER_BYTES // 6 + 2),
    ],
)
def test_chunks_that_are_none(chunks: bytes) -> None:
    said = request("a.test", "Transfer-Encoding: chunked") + chunks
    for pieces in ([said], [said[i : i + 1] for i in range(len(said))]):
        with pytest.raises(NotHttp):
            read(*pieces)


def test_what_is_held_is_bounded() -> None:
    with pytest.raises(NotHttp):
        read(request("a.test"), b"GET / HTTP/1.1\r\nX: " + b"x" * MAX_HEAD_BYTES)
    requests = Requests()
    requests.feed(request("a.test", f"Content-Length: {10**17}"))
    while requests.take() is not None:
        pass
    for _ in range(100):
        requests.feed(b"x" * 65536)
        assert requests.take() == b"x" * 65536


def test_small_pieces_cost_no_more_each_when_there_are_many() -> None:
    """Chunks of one byte, fed at once: the time of four times as many is not sixteen times that."""

    def took(chunks: int) -> float:
        said = request("a.test", "Transfer-Encoding: chunked") + b"1\r\nx\r\n" * chunks
        spent = []
        for _ in range(5):
            began = time.process_time()
            read(said)
            spent.append(time.process_time() - began)
        return min(spent)

    assert took(40_000) < 8 * took(10_000)


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        (("Upgrade: WebSocket",), True),
        (("Upgrade: h2c",), False),
        (("Upgrade: websocket, h2c",), False),
        (("Upgrade: websocket", "Upgrade: h2c"), False),
        ((), False),
    ],
)
def test_a_websocket_is_asked_for(fields: tuple[str, ...], asked: bool) -> None:
    requests = Requests()
    requests.feed(request("a.test", *fields))
    head = requests.take()
    assert isinstance(head, Head)
    assert head.websocket is asked


def seen_by_h11(said: bytes) -> list[str] | None:
    """The hosts that another reader sees; `None` where it refuses."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(said)
    connection.receive_data(b"")
    hosts = []
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                hosts.append(dict(event.headers).get(b"host", b"").decode())
            elif isinstance(event, h11.EndOfMessage):
                connection.send(h11.Response(status_code=204, headers=[]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE:
                    return hosts
                connection.start_next_cycle()
            elif event is h11.NEED_DATA or isinstance(event, h11.ConnectionClosed):
                return hosts
    except h11.RemoteProtocolError:
        return None


WORDS = st.sampled_from(
    [
        *(b"POST / HTTP/1.1\r\n", b"Host: a.test\r\n", b"Host: b.test\r\n", b"\r\n"),
        *(b"Content-Length: 3\r\n", b"Content-Length: 40\r\n", b"Transfer-Encoding: chunked\r\n"),
        *(
            b"0\r\n\r\n",
            b"3\r\nabc\r\n",
            b"abc",
            b"\n",
            b" ",
            b"X: y\r\n",
            b"28\r\n",
            b"Upgrade: x\r\n",
        ),
    ]
)


@given(st.lists(WORDS, max_size=30))
def test_another_reader_sees_no_other_hosts(words: list[bytes]) -> None:
    """Where both go on, both see the same; one may stop earlier."""
    said = b"".join(words)
    ours: list[str | None] = []
    requests = Requests()
    requests.feed(said)
    try:
        while (found := requests.take()) is not None:
            if isinstance(found, Head):
                ours.append(found.host)
    except NotHttp:
        pass
    theirs = seen_by_h11(said)
    if theirs is not None:
        shorter = min(len(ours), len(theirs))
        assert ours[:shorter] == theirs[:shorter]
