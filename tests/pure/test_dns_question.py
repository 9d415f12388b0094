"""Questions: what is read out of a guest's datagram, and what is refused with which word."""

from __future__ import annotations

import struct

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestnet.dns import (
    MAX_TCP_QUERY_BYTES,
    MAX_UDP_QUERY_BYTES,
    BadQuestion,
    Question,
    Rcode,
    failure,
    read_question,
)
from guestnet.dns.names import labels_of, text_of, wire_of

EXAMPLE = b"\x07example\x03com\x00"
A_IN = b"\x00\x01\x00\x01"
OPT = b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00"

LABELS = st.lists(st.binary(min_size=1, max_size=63), max_size=6).filter(
    lambda labels: sum(map(len, labels)) + len(labels) < 255
)


def query(
    section: bytes = EXAMPLE + A_IN,
    tail: bytes = b"",
    *,
    flags: int = 0x0100,
    counts: tuple[int, int, int, int] = (1, 0, 0, 0),
) -> bytes:
    return struct.pack("!HHHHHH", 0x1234, flags, *counts) + section + tail


def refused(datagram: bytes) -> BadQuestion:
    with pytest.raises(BadQuestion) as caught:
        read_question(datagram)
    return caught.value


# --- what is read ---------------------------------------------------------------------------------


def test_a_plain_question() -> None:
    question = read_question(query(b"\x03wWw" + EXAMPLE + A_IN))
    assert question == Question(
        id=0x1234,
        name="www.example.com",
        qtype=1,
        qclass=1,
        recursion_desired=True,
        authentic_data=False,
        checking_disabled=False,
        edns=None,
        key=b"\x03www" + EXAMPLE + A_IN + b"\0",
        wire=b"\x03wWw" + EXAMPLE + A_IN,
        length=33,
    )
    assert question.udp_limit_bytes == 512


@pytest.mark.parametrize(("offered", "taken"), [(0, 512), (512, 512), (1000, 1000), (65535, 1232)])
def test_the_payload_is_held_within_what_passes_unfragmented(offered: int, taken: int) -> None:
    message = dns.message.make_query("example.com", "AAAA", use_edns=0, payload=offered)
    question = read_question(message.to_wire())
    assert question.edns is not None
    assert question.edns.payload_bytes == question.udp_limit_bytes == taken


def test_askers_that_cannot_share_an_answer_have_different_keys() -> None:
    plain = dns.message.make_query("example.com", "A")
    edns = dns.message.make_query("example.com", "A", use_edns=0)
    dnssec = dns.message.make_query("example.com", "A", want_dnssec=True)
    checking = dns.message.make_query("example.com", "A", flags=dns.flags.RD | dns.flags.CD)
    other = dns.message.make_query("example.com", "AAAA")
    messages = [plain, edns, dnssec, checking, other]
    assert len({read_question(m.to_wire()).key for m in messages}) == len(messages)


def test_case_and_id_do_not_make_another_key() -> None:
    one = dns.message.make_query("exAMPle.com", "A", id=1).to_wire()
    two = dns.message.make_query("EXample.coM", "A", id=2).to_wire()
    assert read_question(one).key == read_question(two).key


def test_options_are_read_over_and_the_root_has_an_empty_name() -> None:
    cookie = dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"8 bytes!")
    message = dns.message.make_query(".", "NS", use_edns=0, options=[cookie])
    question = read_question(message.to_wire())
    assert (question.name, question.qtype) == ("", 2)


@given(LABELS, st.integers(1, 100), st.booleans(), st.booleans(), st.integers(0, 65535))
def test_what_dnspython_builds_is_read_right(
    labels: list[bytes], qtype: int, edns: bool, dnssec: bool, id: int
) -> None:
    if qtype == 41:
        return
    name = dns.name.Name([*labels, b""])
    message = dns.message.make_query(
        name,
        dns.rdatatype.RdataType.make(qtype),
        use_edns=0 if edns else False,
        want_dnssec=edns and dnssec,
        id=id,
    )
    question = read_question(message.to_wire())
    assert question.id == id
    assert question.qtype == qtype
    assert wire_of(question.name) == name.canonicalize().to_wire()
    assert (question.edns is not None, question.wants_dnssec) == (edns, edns and dnssec)


# --- what is refused ------------------------------------------------------------------------------

POINTER = b"\xc0\x0c"
BAD = {
    "no question": (query(b"", counts=(0, 0, 0, 0)), Rcode.FORMERR),
    "two questions": (query(2 * (EXAMPLE + A_IN), counts=(2, 0, 0, 0)), Rcode.FORMERR),
    "two announced": (query(counts=(2, 0, 0, 0)), Rcode.FORMERR),
    "an answer": (query(counts=(1, 1, 0, 0)), Rcode.FORMERR),
    "an authority": (query(counts=(1, 0, 1, 0)), Rcode.FORMERR),
    "two additional": (query(tail=2 * OPT, counts=(1, 0, 0, 2)), Rcode.FORMERR),
    "cut in the name": (query(EXAMPLE[:-3]), Rcode.FORMERR),
    "cut in a label": (query(b"\x3fexample"), Rcode.FORMERR),
    "cut in the type": (query(EXAMPLE + A_IN[:3]), Rcode.FORMERR),
    "a pointer": (query(POINTER + A_IN), Rcode.FORMERR),
    "a pointer after a label": (query(b"\x03www" + POINTER + A_IN), Rcode.FORMERR),
    "a label of an unknown kind": (query(b"\x41" + 65 * b"a" + b"\0" + A_IN), Rcode.FORMERR),
    "a name of 256 bytes": (query(127 * b"\x01a" + b"\0\0" + A_IN), Rcode.FORMERR),
    "a name of 257 bytes": (query(128 * b"\x01a" + b"\0" + A_IN), Rcode.FORMERR),
    "bytes behind": (query(tail=b"\0"), Rcode.FORMERR),
    "OPT unannounced": (query(tail=OPT), Rcode.FORMERR),
    "OPT announced": (query(counts=(1, 0, 0, 1)), Rcode.FORMERR),
    "OPT cut": (query(tail=OPT[:-1], counts=(1, 0, 0, 1)), Rcode.FORMERR),
    "OPT with a name": (query(tail=b"\x01a" + OPT, counts=(1, 0, 0, 1)), Rcode.FORMERR),
    "bytes behind OPT": (query(tail=OPT + b"\0", counts=(1, 0, 0, 1)), Rcode.FORMERR),
    "an option cut": (
        query(tail=OPT[:-1] + b"\x03\x00\x0a\x00", counts=(1, 0, 0, 1)),
        Rcode.FORMERR,
    ),
    "an option too long": (
        query(tail=OPT[:-1] + b"\x04\x00\x0a\x00\x01", counts=(1, 0, 0, 1)),
        Rcode.FORMERR,
    ),
    "TSIG": (query(tail=b"\0\0\xfa" + OPT[3:], counts=(1, 0, 0, 1)), Rcode.FORMERR),
    "too long": (query(tail=bytes(MAX_UDP_QUERY_BYTES)), Rcode.FORMERR),
    "EDNS 1": (query(tail=OPT[:6] + b"\x01" + OPT[7:], counts=(1, 0, 0, 1)), Rcode.BADVERS),
    "IQUERY": (query(flags=0x0900), Rcode.NOTIMP),
    "UPDATE": (query(flags=0x2800), Rcode.NOTIMP),
    "CHAOS": (query(EXAMPLE + b"\x00\x10\x00\x03"), Rcode.REFUSED),
    "class ANY": (query(EXAMPLE + b"\x00\x01\x00\xff"), Rcode.REFUSED),
    "type 0": (query(EXAMPLE + b"\x00\x00\x00\x01"), Rcode.REFUSED),
    "OPT": (query(EXAMPLE + b"\x00\x29\x00\x01"), Rcode.REFUSED),
    "a response": (query(flags=0x8180), None),
    "nothing": (b"", None),
    "less than a header": (query()[:11], None),
    **{
        kind: (query(EXAMPLE + bytes([0, number, 0, 1])), Rcode.REFUSED)
        for kind, number in [("ANY", 255), ("AXFR", 252), ("IXFR", 251), ("MAILB", 253)]
    },
}


@pytest.mark.parametrize("case", BAD)
def test_it_is_refused(case: str) -> None:
    datagram, rcode = BAD[case]
    bad = refused(datagram)
    assert bad.rcode == rcode, bad.reason
    reply = failure(bad)
    if reply is None or rcode is None:
        assert (reply, rcode) == (None, None)
        return
    parsed = dns.message.from_wire(reply)
    assert (parsed.id, int(parsed.rcode())) == (0x1234, int(rcode))
    assert parsed.flags & dns.flags.QR
    assert len(reply) <= 512


def test_a_refusal_echoes_the_question_and_an_opcode_comes_back() -> None:
    refused_type = failure(refused(BAD["ANY"][0]))
    assert refused_type is not None
    assert dns.message.from_wire(refused_type).question[0].name.to_text() == "example.com."
    update = failure(refused(BAD["UPDATE"][0]))
    assert update is not None
    assert dns.message.from_wire(update).opcode() == 5


def test_the_longest_name_is_read_and_tcp_takes_more() -> None:
    longest = 126 * b"\x01a" + b"\x01b\x00"
    assert len(longest) == 255
    assert read_question(query(longest + A_IN)).wire == longest + A_IN
    padding = 2000
    padded = query(
        tail=OPT[:-2] + struct.pack("!HHH", padding + 4, 12, padding) + bytes(padding),
        counts=(1, 0, 0, 1),
    )
    assert refused(padded).rcode == Rcode.FORMERR
    assert read_question(padded, MAX_TCP_QUERY_BYTES).name == "example.com"


@given(st.binary(max_size=200))
def test_only_the_documented_error_escapes_of_random_bytes(datagram: bytes) -> None:
    check(datagram)


@given(st.binary(max_size=100), st.integers(0, 1))
def test_nor_of_a_header_with_random_bytes_behind(tail: bytes, additional: int) -> None:
    check(query(tail, counts=(1, 0, 0, additional)))


@given(st.data())
def test_nor_of_a_valid_question_with_bytes_changed(data: st.DataObject) -> None:
    datagram = bytearray(query(tail=OPT, counts=(1, 0, 0, 1)))
    for _ in range(data.draw(st.integers(1, 4))):
        datagram[data.draw(st.integers(0, len(datagram) - 1))] = data.draw(st.integers(0, 255))
    check(bytes(datagram[: data.draw(st.integers(0, len(datagram)))]))


def read(datagram: bytes) -> Question | BadQuestion:
    try:
        return read_question(datagram)
    except BadQuestion as bad:
        return bad


def check(datagram: bytes) -> None:
    """Either a question that dnspython reads the same way, or a `BadQuestion` with a reply."""
    question = read(datagram)
    if isinstance(question, BadQuestion):
        reply = failure(question)
        assert (reply is None) == (question.rcode is None)
        assert reply is None or dns.message.from_wire(reply).id == question.id
        return
    parsed = dns.message.from_wire(datagram)
    [asked] = parsed.question
    assert wire_of(question.name) == asked.name.canonicalize().to_wire()
    assert (question.qtype, question.id) == (asked.rdtype, parsed.id)


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([], ""),
        ([b"a_b-1", b"com"], "a_b-1.com"),
        ([b"evil.example", b"com"], r"evil\046example.com"),
        ([b"*", b"x"], r"\042.x"),
        ([b"\0\xff\\"], r"\000\255\092"),
    ],
)
def test_a_name_as_text(labels: list[bytes], text: str) -> None:
    assert text_of(labels) == text
    assert labels_of(wire_of(text)) == labels


@given(LABELS, LABELS)
def test_text_is_the_same_only_for_the_same_name(one: list[bytes], two: list[bytes]) -> None:
    one, two = [label.lower() for label in one], [label.lower() for label in two]
    assert (text_of(one) == text_of(two)) == (one == two)
    assert labels_of(wire_of(text_of(one))) == one


@pytest.mark.parametrize(
    "text", ["a..b", ".a", 64 * "a", 64 * "aaa.", "ä", "\u212a", "\\1", "\\256"]
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"label|ASCII|backslash|longer"):
        wire_of(text)
