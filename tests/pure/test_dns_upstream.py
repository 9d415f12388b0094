"""Upstreams: what is asked, what of an answer is believed, and what of it a guest is told."""

from __future__ import annotations

import itertools
import struct
from ipaddress import ip_address

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guestnet.dns import (
    CASE_BITS,
    MAX_CNAMES,
    MAX_RECORDS,
    BadResponse,
    Cache,
    Question,
    Rcode,
    Response,
    ask,
    build_answer,
    read_question,
    read_response,
)
from guestnet.dns.rewrite import without_parameters

WWW = "www.example.com"


class _Everything:
    def __contains__(self, address: object) -> bool:
        return True


ALL = _Everything()


def number(qtype: str) -> int:
    return int(dns.rdatatype.from_text(qtype))


def rrsets(lines: list[str]) -> list[dns.rrset.RRset]:
    return [dns.rrset.from_text(*line.split(None, 4)) for line in lines]  # type: ignore[arg-type]


def answer_to(
    asked: bytes,
    answer: list[str],
    authority: list[str] | None = None,
    additional: list[str] | None = None,
    rcode: int = 0,
) -> bytes:
    message = dns.message.make_response(dns.message.from_wire(asked), recursion_available=True)
    message.answer, message.authority = rrsets(answer), rrsets(authority or [])
    message.additional = rrsets(additional or [])
    message.set_rcode(dns.rcode.Rcode.make(rcode))
    return message.to_wire()


def resolved(
    qtype: str,
    answer: list[str],
    authority: list[str] | None = None,
    *,
    name: str = WWW,
    rcode: int = 0,
    dnssec: bool = False,
) -> Response:
    asked = ask(name, number(qtype), 7, dnssec=dnssec)
    return read_response(answer_to(asked, answer, authority, rcode=rcode), asked)


def guest_asks(qtype: str, name: str = WWW, **options: object) -> Question:
    return read_question(dns.message.make_query(name, qtype, **options).to_wire())  # type: ignore[arg-type]


def told(wire: bytes) -> list[str]:
    """The answer section, record by record, as dnspython reads it."""
    message = dns.message.from_wire(wire, one_rr_per_rrset=True)
    return [rrset.to_text().replace("EDGE", "edge") for rrset in message.answer]


# --- asking ---------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.booleans())
def test_a_padded_query_tells_nothing_by_its_length(letters: int, dnssec: bool) -> None:
    wire = ask(f"{'x' * letters}.test", 1, 7, padded=True, dnssec=dnssec)
    message = dns.message.from_wire(wire)
    assert len(wire) == 128
    assert [option.otype for option in message.options] == [dns.edns.OptionType.PADDING]
    assert read_response(response_to(wire), wire).chain == (message.question[0].name.to_text(True),)


def response_to(wire: bytes) -> bytes:
    return dns.message.make_response(dns.message.from_wire(wire)).to_wire()


def test_a_query() -> None:
    message = dns.message.from_wire(ask(WWW, 28, 99, dnssec=True, checking_disabled=True))
    assert message.id == 99
    assert message.question[0].to_text() == "www.example.com. IN AAAA"
    assert (message.edns, message.payload) == (0, 1232)
    assert message.ednsflags & dns.flags.DO
    assert message.flags == dns.flags.RD | dns.flags.CD


@given(st.integers(0, 2**CASE_BITS - 1))
def test_random_case_changes_letters_only(bits: int) -> None:
    wire = ask(r"a-1.\065\000bc.example.com", 1, 0, bits)
    assert wire.lower() == ask(r"a-1.\065\000bc.example.com", 1, 0).lower()
    assert read_question(wire).name == r"a-1.a\000bc.example.com"


def test_all_bits_set_is_upper_case_throughout() -> None:
    assert b"\x03WWW\x07EXAMPLE\x03COM\x00" in ask(WWW, 1, 0, 2**CASE_BITS - 1)


# --- whose answer it is ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda wire: b"\xff\xff" + wire[2:],
        lambda wire: wire[:2] + bytes([wire[2] & 0x7F]) + wire[3:],
        lambda wire: wire.replace(b"eXAmPLE", b"example", 1),
        lambda wire: wire.replace(b"eXAmPLE", b"eXAmPLF", 1),
        lambda wire: wire[:4] + b"\0\0" + wire[6:],
        lambda wire: wire[:4] + b"\0\2" + wire[6:],
        lambda wire: wire[:11],
    ],
    ids=["id", "QR", "case", "name", "no question", "two questions", "no header"],
)
def test_what_may_be_somebody_elses_is_said_to_be(change: object) -> None:
    asked = ask("example.com", 1, 7, 0b1101100)
    assert b"eXAmPLE" not in asked
    asked = asked.replace(asked[13:20], b"eXAmPLE")
    wire = answer_to(asked, ["example.com. 60 IN A 192.0.2.1"])
    assert read_response(wire, asked).addresses == ((ip_address("192.0.2.1"), 60),)
    with pytest.raises(BadResponse) as caught:
        read_response(change(wire), asked)  # type: ignore[operator]
    assert caught.value.mismatched


# --- the chain ------------------------------------------------------------------------------------


def test_a_chain_in_any_order_is_followed_from_the_question() -> None:
    response = resolved(
        "A",
        [
            "edge.cdn.net. 60 IN A 192.0.2.1",
            "a.CDN.net. 20 IN CNAME EDGE.cdn.net.",
            "www.example.com. 300 IN CNAME a.cdn.net.",
            "edge.cdn.net. 60 IN A 192.0.2.2",
        ],
    )
    assert response.chain == (WWW, "a.cdn.net", "edge.cdn.net")
    assert response.addresses == ((ip_address("192.0.2.1"), 60), (ip_address("192.0.2.2"), 60))
    assert (response.min_ttl_s, response.cache_ttl_s) == (20, 20)
    assert not response.is_negative
    assert told(build_answer(guest_asks("A"), response, ALL)) == [
        "www.example.com. 300 IN CNAME a.cdn.net.",
        "a.cdn.net. 20 IN CNAME edge.cdn.net.",
        "edge.cdn.net. 60 IN A 192.0.2.1",
        "edge.cdn.net. 60 IN A 192.0.2.2",
    ]


def test_what_is_not_of_the_chain_is_neither_believed_nor_told() -> None:
    asked = ask(WWW, number("A"), 7)
    wire = answer_to(
        asked,
        [
            "www.example.com. 300 IN CNAME a.cdn.net.",
            "www.example.com. 300 IN A 10.0.0.1",
            "bank.com. 300 IN A 10.0.0.2",
            "a.cdn.net. 300 IN A 192.0.2.1",
            "a.cdn.net. 300 IN AAAA 2001:db8::1",
            "a.cdn.net. 300 IN TXT x",
            "b.cdn.net. 300 IN CNAME bank.com.",
        ],
        ["bank.com. 300 IN NS a.cdn.net."],
        ["a.cdn.net. 300 IN A 10.0.0.3"],
    )
    response = read_response(wire, asked)
    assert response.addresses == ((ip_address("192.0.2.1"), 300),)
    reply = dns.message.from_wire(build_answer(guest_asks("A"), response, ALL))
    assert len(reply.answer) == 2
    assert reply.authority == reply.additional == []


def test_only_the_addresses_that_were_kept_are_told() -> None:
    response = resolved("A", [f"{WWW}. 60 IN A 192.0.2.1", f"{WWW}. 60 IN A 10.0.0.1"])
    wire = build_answer(guest_asks("A"), response, {ip_address("192.0.2.1")})
    assert told(wire) == ["www.example.com. 60 IN A 192.0.2.1"]


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_loop_of_cnames(length: int) -> None:
    names = [WWW, *(f"n{i}.com" for i in range(length - 1)), WWW]
    lines = [f"{a}. 60 IN CNAME {b}." for a, b in itertools.pairwise(names)]
    with pytest.raises(BadResponse, match="loop"):
        resolved("A", lines)


def chain_of(length: int) -> list[str]:
    names = [WWW, *(f"n{i}.com" for i in range(length))]
    return [f"{a}. 60 IN CNAME {b}." for a, b in itertools.pairwise(names)]


def test_a_chain_as_long_as_allowed_and_one_longer() -> None:
    assert len(resolved("A", chain_of(MAX_CNAMES)).chain) == MAX_CNAMES + 1
    with pytest.raises(BadResponse, match="CNAMEs"):
        resolved("A", chain_of(MAX_CNAMES + 1))


def test_as_many_records_as_allowed_and_one_more() -> None:
    many = [f"{WWW}. 60 IN A 192.0.2.{i}" for i in range(MAX_RECORDS)]
    assert len(resolved("A", many[:-1]).addresses) == MAX_RECORDS - 1  # and one OPT
    with pytest.raises(BadResponse, match="records"):
        resolved("A", many)


def test_a_cname_that_was_asked_for_is_not_followed() -> None:
    response = resolved("CNAME", chain_of(2))
    assert response.chain == (WWW,)
    assert told(build_answer(guest_asks("CNAME"), response, ())) == [chain_of(1)[0]]


# --- negative, failed and cut answers -------------------------------------------------------------

SOA = "example.com. 900 IN SOA ns. host. 1 2 3 4 60"


@pytest.mark.parametrize("rcode", [Rcode.NXDOMAIN, Rcode.NOERROR])
def test_nothing_is_remembered_for_as_long_as_the_soa_says(rcode: Rcode) -> None:
    response = resolved("A", [], [SOA], rcode=rcode)
    assert response.is_negative
    assert response.negative_ttl_s == response.cache_ttl_s == 60
    reply = dns.message.from_wire(build_answer(guest_asks("A"), response, ()))
    assert int(reply.rcode()) == rcode
    assert reply.authority[0].ttl == 60


@pytest.mark.parametrize("authority", [[], ["other.com. 900 IN SOA ns. host. 1 2 3 4 60"]])
def test_without_a_soa_of_the_zone_nothing_is_remembered(authority: list[str]) -> None:
    response = resolved("A", [], authority, rcode=Rcode.NXDOMAIN)
    assert (response.negative_ttl_s, response.cache_ttl_s, response.authority) == (None, 0, ())


def test_nxdomain_behind_a_cname_lives_as_long_as_the_shorter() -> None:
    soa = "cdn.net. 900 IN SOA ns. host. 1 2 3 4 600"
    response = resolved("A", [f"{WWW}. 30 IN CNAME a.cdn.net."], [soa], rcode=Rcode.NXDOMAIN)
    assert (response.negative_ttl_s, response.cache_ttl_s) == (600, 30)


def test_of_an_upstreams_failure_nothing_is_kept() -> None:
    response = resolved("A", [f"{WWW}. 60 IN A 192.0.2.1"], rcode=Rcode.SERVFAIL)
    assert (response.rcode, response.addresses, response.cache_ttl_s) == (Rcode.SERVFAIL, (), 0)
    assert resolved("A", [], rcode=23).rcode == 23


def test_a_cut_response_is_not_read() -> None:
    asked = ask(WWW, 1, 7)
    wire = bytearray(answer_to(asked, [f"{WWW}. 60 IN A 192.0.2.1"]))
    wire[2] |= 0x02
    response = read_response(bytes(wire[:-20]), asked)
    assert response.tc
    assert (response.addresses, response.cache_ttl_s) == ((), 0)


@pytest.mark.parametrize(
    ("sent", "pinned", "cached"),
    [(0, 1, 0), (1, 1, 1), (10**6, 86_400, 86_400), (2**31 - 1, 86_400, 86_400)],
)
def test_ttls_are_clamped(sent: int, pinned: int, cached: int) -> None:
    response = resolved("A", [f"{WWW}. {sent} IN A 192.0.2.1"])
    assert response.addresses[0][1] == pinned
    assert response.cache_ttl_s == cached
    [line] = told(build_answer(guest_asks("A"), response, ALL))
    assert line.split()[1] == str(pinned)


# --- other types ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("qtype", "data"),
    [
        ("TXT", '"v=spf1 -all" "second"'),
        ("MX", "10 mail.example.com."),
        ("SRV", "1 2 443 srv.example.com."),
        ("CAA", '0 issue "ca.example"'),
        ("NS", "ns.example.com."),
        ("SOA", "ns.example.com. host.example.com. 1 2 3 4 5"),
        ("PTR", "host.example.com."),
        ("DNAME", "other.example.com."),
        ("NAPTR", '1 2 "u" "E2U+sip" "!^.*$!sip:x!" .'),
        ("DS", "1 8 2 " + 64 * "0"),
        ("AFSDB", "1 afs.example.com."),
        ("RP", "host.example.com. txt.example.com."),
        ("TYPE65400", "\\# 4 c00c0001"),
    ],
)
def test_it_reaches_the_guest_unchanged(qtype: str, data: str) -> None:
    answer = [f"{WWW}. 60 IN CNAME x.example.com.", f"x.example.com. 60 IN {qtype} {data}"]
    response = resolved(qtype, answer)
    wire = build_answer(guest_asks(qtype), response, ())
    [_cname, [record]] = dns.message.from_wire(wire).answer
    assert record == dns.rdata.from_text("IN", qtype, data)


def test_signatures_and_proofs_go_only_to_those_who_set_do() -> None:
    signature = "8 3 60 20300101000000 20200101000000 1 example.com. AAAA"
    response = resolved(
        "A",
        [
            f"{WWW}. 60 IN CNAME x.example.com.",
            f"{WWW}. 60 IN RRSIG CNAME {signature}",
            f"x.example.com. 60 IN RRSIG TXT {signature}",
        ],
        [SOA, f"example.com. 60 IN RRSIG SOA {signature}", "x.example.com. 60 IN NSEC y. TXT"],
        dnssec=True,
    )
    plain = dns.message.from_wire(build_answer(guest_asks("A"), response, ()))
    assert [r.rdtype.name for r in plain.answer + plain.authority] == ["CNAME", "SOA"]
    full = dns.message.from_wire(build_answer(guest_asks("A", want_dnssec=True), response, ()))
    types = [r.rdtype.name for r in full.answer + full.authority]
    assert types == ["CNAME", "RRSIG", "SOA", "RRSIG", "NSEC"]
    assert full.ednsflags & dns.flags.DO


# --- HTTPS and SVCB -------------------------------------------------------------------------------

ECH = "ech=AAQAAAAA"
HINTS = "ipv4hint=10.0.0.1 ipv6hint=fd00::1"


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (f"1 . alpn=h2 ipv4hint=10.0.0.1 {ECH} ipv6hint=fd00::1", '1 . alpn="h2"'),
        (f"1 svc.example.com. {ECH} key65400=x", '1 svc.example.com. key65400="x"'),
        (f"1 . mandatory=alpn,ech alpn=h2 {ECH}", '1 . mandatory="alpn" alpn="h2"'),
        (f"1 . mandatory=ech,ipv4hint {ECH} ipv4hint=10.0.0.1", "1 ."),
        ("0 alias.example.com.", "0 alias.example.com."),
    ],
)
def test_no_ech_and_no_hints(sent: str, kept: str) -> None:
    response = resolved("HTTPS", [f"{WWW}. 60 IN HTTPS {sent}"])
    [line] = told(build_answer(guest_asks("HTTPS"), response, ()))
    assert line == f"{WWW}. 60 IN HTTPS {kept}"


def test_ech_stays_where_it_may_but_hints_never() -> None:
    response = resolved("HTTPS", [f"{WWW}. 60 IN HTTPS 1 . {ECH} {HINTS}"])
    [line] = told(build_answer(guest_asks("HTTPS"), response, (), strip_ech=False))
    assert line == f'{WWW}. 60 IN HTTPS 1 . ech="AAQAAAAA"'


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\1",
        b"\0\1\x03www",
        b"\0\1\0\0\1",
        b"\0\1\0\0\1\0\5abc",
        b"\0\1\0\0\4\0\0\0\4\0\0",
        b"\0\1\0\0\5\0\0\0\4\0\0",
        b"\0\1\x01a\xc0\x02",
        b"\0\1\0" + b"".join(struct.pack("!HH", 100 + i, 0) for i in range(66)),
    ],
    ids=[
        "empty",
        "no target",
        "cut",
        "cut key",
        "cut value",
        "twice",
        "unsorted",
        "compressed",
        "many",
    ],
)
def test_a_malformed_service_record_is_left_out(data: bytes) -> None:
    assert without_parameters(data, frozenset({5})) is None


@given(st.binary(max_size=64))
def test_nothing_escapes_of_a_service_record(data: bytes) -> None:
    kept = without_parameters(data, frozenset({4, 5, 6}))
    if kept is not None:
        assert without_parameters(kept, frozenset({4, 5, 6})) == kept


# --- hostile bytes --------------------------------------------------------------------------------

ASKED = ask(WWW, 1, 7)
HEAD = b"\x00\x07\x81\x80\x00\x01"
SECTION = ASKED[12 : 12 + 21]
FIXED = struct.pack("!HHIH", 1, 1, 60, 4)


def raw(counts: tuple[int, int, int], records: bytes) -> bytes:
    return HEAD + struct.pack("!HHH", *counts) + SECTION + records


BROKEN = {
    "a pointer to itself": raw((1, 0, 0), b"\xc0\x21" + FIXED + bytes(4)),
    "a pointer forward": raw((1, 0, 0), b"\xc0\x30" + FIXED + bytes(4)),
    "a pointer beyond": raw((1, 0, 0), b"\xff\xff" + FIXED + bytes(4)),
    "half a pointer": raw((1, 0, 0), b"\xc0"),
    "two pointers in a loop": raw((1, 0, 0), b"\x01a\xc0\x21" + FIXED + bytes(4)),
    "a label of an unknown kind": raw((1, 0, 0), b"\x80" + FIXED + bytes(4)),
    "a name that grows too long": raw((1, 0, 0), 120 * b"\x01a" + b"\xc0\x0c" + FIXED + bytes(4)),
    "no record": raw((1, 0, 0), b""),
    "cut in a record": raw((1, 0, 0), b"\xc0\x0c" + FIXED[:-1]),
    "cut in the data": raw((1, 0, 0), b"\xc0\x0c" + FIXED + bytes(3)),
    "leftovers": raw((1, 0, 0), b"\xc0\x0c" + FIXED + bytes(5)),
    "an address of five bytes": raw((1, 0, 0), b"\xc0\x0c" + FIXED[:-1] + b"\x05" + bytes(5)),
    "a CNAME beyond its data": raw(
        (1, 0, 0), b"\xc0\x0c" + struct.pack("!HHIH", 5, 1, 60, 1) + b"\x01a\0"
    ),
    "many records": raw((65535, 65535, 65535), b""),
    "two OPTs": raw((0, 0, 2), 2 * (b"\0\0\x29" + bytes(8))),
    "a STATUS": HEAD[:2] + b"\x91\x80" + raw((0, 0, 0), b"")[4:],
    "too long": raw((0, 0, 0), bytes(65536)),
}


@pytest.mark.parametrize("case", BROKEN)
def test_it_is_a_bad_response(case: str) -> None:
    with pytest.raises(BadResponse) as caught:
        read_response(BROKEN[case], ASKED)
    assert not caught.value.mismatched


def test_a_thousand_bare_pointers_are_not_followed() -> None:
    chain = b"".join(struct.pack("!H", 0xC000 | 43 + 2 * i - 2) for i in range(1, 2000))
    opaque = b"\0" + struct.pack("!HHIH", 10, 1, 0, 2 + len(chain)) + b"\xc0\x0c" + chain
    last = 12 + 21 + len(opaque) - 2
    wire = raw((2, 0, 0), opaque + struct.pack("!H", 0xC000 | last) + FIXED + bytes(4))
    with pytest.raises(BadResponse, match="pointer"):
        read_response(wire, ASKED)


def test_64_kib_of_data_that_outgrow_a_message_become_servfail() -> None:
    asked = ask("a." * 100 + "com", number("SRV"), 7)
    section = asked[12:-11]
    record = b"\xc0\x0c" + struct.pack("!HHIH", 33, 1, 60, 8) + bytes(6) + b"\xc0\x0c"
    wire = HEAD + struct.pack("!HHH", 1, 0, 0) + section + record
    response = read_response(wire, asked)
    big = response.records[0]._replace(rtype=16, data=bytes(65000))
    question = read_question(asked)
    fitting = Response(0, False, wire, response.chain, records=(big,))
    assert len(build_answer(question, fitting, ())) > 65000
    outgrown = Response(0, False, wire, response.chain, records=(big, big))
    reply = dns.message.from_wire(build_answer(question, outgrown, ()))
    assert int(reply.rcode()) == Rcode.SERVFAIL


def test_the_longest_response_is_read() -> None:
    text = bytes(65535 - len(raw((1, 0, 0), b"")) - 12)
    asked = ask(WWW, 16, 7)
    record = b"\xc0\x0c" + struct.pack("!HHIH", 16, 1, 60, len(text)) + text
    wire = HEAD + struct.pack("!HHH", 1, 0, 0) + asked[12:33] + record
    assert len(wire) == 65535
    assert read_response(wire, asked).records[0].data == text


def test_an_answer_to_another_question_is_not_built() -> None:
    with pytest.raises(ValueError, match="not for"):
        build_answer(guest_asks("A", "bank.com"), resolved("A", []), ())


@given(st.binary(max_size=300))
def test_only_the_documented_error_escapes_of_random_bytes(wire: bytes) -> None:
    check(wire)


@given(st.tuples(*3 * [st.integers(0, 4)]), st.binary(max_size=200))
def test_nor_of_the_right_header_with_random_bytes_behind(
    counts: tuple[int, int, int], records: bytes
) -> None:
    check(raw(counts, records))


VALID = answer_to(
    ASKED,
    [
        f"{WWW}. 60 IN CNAME a.cdn.net.",
        f"{WWW}. 60 IN RRSIG CNAME 8 3 60 20300101000000 20200101000000 1 example.com. AAAA",
        "a.cdn.net. 60 IN A 192.0.2.1",
        "a.cdn.net. 60 IN HTTPS 1 . alpn=h2 ech=AAQAAAAA",
        "a.cdn.net. 60 IN MX 1 mail.cdn.net.",
    ],
    ["cdn.net. 900 IN SOA ns. host. 1 2 3 4 60", "cdn.net. 60 IN NSEC b.cdn.net. A"],
)


@given(
    st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=6),
    st.integers(0, len(VALID)),
)
@example([], len(VALID))
def test_nor_of_a_valid_response_with_bytes_changed(
    changes: list[tuple[int, int]], length: int
) -> None:
    wire = bytearray(VALID)
    for place, octet in changes:
        wire[place] = octet
    check(bytes(wire))
    check(bytes(wire[:length]))


@given(
    st.permutations([WWW, "a.com", "b.a.com", "c.net"]),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=6),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), max_size=8),
)
def test_only_addresses_that_the_question_leads_to(
    names: list[str], aliases: list[tuple[int, int]], hosts: list[tuple[int, int]]
) -> None:
    cnames = [f"{names[a]}. 60 IN CNAME {names[b]}." for a, b in dict(aliases).items()]
    records = [f"{names[a]}. 60 IN A 192.0.2.{i}" for a, i in hosts]
    response = lenient(answer_to(ASKED, cnames + records))
    if response is None:
        return
    reached = WWW
    targets = {names[a]: names[b] for a, b in dict(aliases).items()}
    while reached in targets:
        reached = targets[reached]
    expected = {ip_address(f"192.0.2.{i}") for a, i in hosts if names[a] == reached}
    assert {address for address, _ttl in response.addresses} == expected


FAILED = {*range(16)} - {Rcode.NOERROR, Rcode.NXDOMAIN}


def lenient(wire: bytes) -> Response | None:
    try:
        return read_response(wire, ASKED)
    except BadResponse:
        return None


def check(wire: bytes) -> None:
    """A `BadResponse`, or something from which every reply is well-formed and can be cached."""
    response = lenient(wire)
    if response is None:
        return
    assert response.chain[0] == WWW
    for question in (guest_asks("A"), guest_asks("A", want_dnssec=True)):
        reply = build_answer(question, response, ALL)
        assert count_of_records(reply) >= len(response.records) * question.wants_dnssec
        cache = Cache()
        cache.put(question, reply, 60, now=0.0)
        kept = cache.get(question.key, 0.0)
        wanted = None if reply[3] & 0xF in FAILED else reply
        assert wanted == (None if kept is None else kept.reply(question, 0.0))


def count_of_records(wire: bytes) -> int:
    """Names and bounds as dnspython sees them; it is not asked about opaque data."""
    _question, used = dns.name.from_wire(wire, 12)
    position = 12 + used + 4
    *_head, answers, authorities, additional = struct.unpack_from("!HHHHHH", wire)
    for _ in range(answers + authorities + additional):
        _owner, used = dns.name.from_wire(wire, position)
        position += used + 10
        position += int.from_bytes(wire[position - 2 : position], "big")
    assert position == len(wire)
    return int(answers)


def test_names_are_compressed_to_where_they_stand() -> None:
    response = resolved("A", [f"{WWW}. 60 IN CNAME a.cdn.net.", "a.cdn.net. 60 IN A 192.0.2.1"])
    wire = build_answer(guest_asks("A"), response, ALL)
    # Header, question, and two owners of two bytes each.
    assert len(wire) == 12 + 21 + (2 + 10 + 11) + (2 + 10 + 4)
    name, used = dns.name.from_wire(wire, len(wire) - 16)
    assert (name.to_text(), used) == ("a.cdn.net.", 2)
