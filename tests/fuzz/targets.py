"""What is fuzzed: every reader of bytes that a guest, a lying resolver or an owner wrote.

A target takes any bytes and raises `AssertionError` where one of these does not hold:

- only the documented error escapes;
- it takes time in proportion to its length (`LIMIT_NS`, `LIMIT_NS_PER_BYTE`);
- a stream in pieces is answered as the whole is, and what a prefix was answered holds;
- who reads the same bytes behind us (dnspython, h11, OpenSSL) understands nothing else.

PYTEST_DONT_REWRITE: the fuzzer runs this file without pytest.
"""

from __future__ import annotations

import ssl
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Any, TypeVar

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import h11
from scapy.layers.inet import IP, TCP, in4_chksum
from scapy.layers.inet6 import IPv6, in6_chksum
from scapy.utils import checksum

import seeds
from guestnet.dns import (
    MAX_RECORDS,
    MAX_TCP_QUERY_BYTES,
    BadQuestion,
    BadResponse,
    Question,
    Response,
    ask,
    build_answer,
    failure,
    fit,
    read_question,
    read_response,
)
from guestnet.dns.names import wire_of
from guestnet.errors import ConfigError
from guestnet.flow.hello import MAX_HELLO_BYTES, Hello, NotHello, read_client_hello
from guestnet.flow.http import MAX_HEAD_BYTES, Head, NotHttp, read_request_head
from guestnet.flow.requests import Requests
from guestnet.flow.syn import Syn, read_syn
from guestnet.policy import Policy, parse_policy

T = TypeVar("T")

#: CPU time that one input may take. Readers need 0.2 µs a byte, instrumented for coverage several
#: times that; what grows with the square of its length is above it at a few kilobytes.
LIMIT_NS, LIMIT_NS_PER_BYTE = 20_000_000, 5_000
#: Prefixes that are tried of a stream: all of a short one.
PREFIXES = 200
#: dnspython takes a quarter of a second for a hostile message of a kilobyte.
ORACLE_BYTES = 400


@dataclass(frozen=True)
class Target:
    """A reader, under its name on the command line."""

    name: str
    check: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    #: Bytes of the longest input that is tried: a little beyond the reader's own limit.
    most_bytes: int


def timed(read: Callable[[], T], size: int) -> T:
    """What `read` returns of so many bytes, if it is not slow three times in a row."""
    limit = LIMIT_NS + LIMIT_NS_PER_BYTE * size
    for _ in range(3):  # the collector, or a page fault, may have been in the way
        began = time.thread_time_ns()
        found = read()
        took = time.thread_time_ns() - began
        if took <= limit:
            return found
    raise AssertionError(f"{took / 1e6:.1f} ms for {size} bytes")


# -- DNS: a guest's question -------------------------------------------------------------------


def check_question(data: bytes) -> None:
    """The question reader, over UDP and TCP, and the reply to what it refuses."""

    def read() -> Question | BadQuestion:
        try:
            return read_question(data, MAX_TCP_QUERY_BYTES)
        except BadQuestion as bad:
            return bad

    found = timed(read, len(data))
    if isinstance(found, BadQuestion):
        _check_failure(found, data)
        return
    again = read_question(ask(found.name, found.qtype, 7))
    assert (again.name, again.qtype) == (found.name, found.qtype), "a name does not survive"
    if len(data) > ORACLE_BYTES:
        return
    try:
        message = dns.message.from_wire(data)
    except dns.exception.DNSException:
        return
    (asked,) = message.question
    assert message.id == found.id
    assert asked.name.to_digestable() == found.wire[:-4].lower(), "another name than dnspython's"
    assert (asked.rdtype, asked.rdclass) == (found.qtype, found.qclass)
    assert (message.edns >= 0) == (found.edns is not None)
    assert bool(message.ednsflags & dns.flags.DO) == found.wants_dnssec


def _check_failure(bad: BadQuestion, data: bytes) -> None:
    wire = failure(bad)
    if wire is None:
        return
    assert len(wire) <= max(len(data), 12) + 11, "an answer that amplifies"
    message = dns.message.from_wire(wire)
    assert message.id == int.from_bytes(data[:2])
    assert message.flags & dns.flags.QR


# -- DNS: an upstream's response ---------------------------------------------------------------


def check_response(data: bytes) -> None:
    """The response reader and the answer that is made of it.

    The first byte chooses one of `seeds.ASKED`; its upper bit says whether the rest is a message
    (mostly somebody else's) or flags, three counts and records behind that question.
    """
    asked = seeds.ASKED[data[0] % len(seeds.ASKED)] if data else seeds.ASKED[0]
    question = read_question(asked)
    wire = data[1:]
    if data and data[0] < 0x80 and len(data) >= 9:
        flags = (int.from_bytes(wire[:2]) | 0x8000).to_bytes(2)
        wire = asked[:2] + flags + b"\0\1" + wire[2:8] + question.wire + wire[8:]

    def read() -> Response | None:
        try:
            return read_response(wire, asked)
        except BadResponse:
            return None

    response = timed(read, len(wire))
    if response is None:
        return
    assert response.chain[0] == question.name
    assert 0 <= response.cache_ttl_s <= 86400
    kept = frozenset(address for address, _ttl in response.addresses[::2])
    reply = timed(lambda: build_answer(question, response, kept), len(wire))
    assert len(fit(reply, question, question.udp_limit_bytes)) <= question.udp_limit_bytes
    if not response.tc:
        _check_reply(reply, asked, response, kept)
        if len(wire) <= ORACLE_BYTES:
            _compare_response(wire, reply, response, kept)


def _check_reply(reply: bytes, asked: bytes, response: Response, kept: frozenset[Any]) -> None:
    counts = struct.unpack_from("!HHH", reply, 6)
    if sum(counts) > MAX_RECORDS:  # our own OPT was one too many
        return
    again = read_response(reply, asked)
    assert {address for address, _ttl in again.addresses} <= kept, "an address that was not kept"
    if again.rcode == response.rcode:
        assert again.chain == response.chain
        assert {address for address, _ttl in again.addresses} == kept
        removed = len(response.addresses) - len(kept)
        assert len(response.records) - len(again.records) in range(removed, removed + 65)


def _compare_response(wire: bytes, reply: bytes, response: Response, kept: frozenset[Any]) -> None:
    try:
        message = dns.message.from_wire(wire, one_rr_per_rrset=True)
    except (dns.exception.DNSException, ValueError):
        return
    if message.rcode() not in (0, 3):
        return
    (asked,) = message.question
    name, seen = asked.name, set()
    while asked.rdtype != dns.rdatatype.CNAME and name not in seen:
        seen.add(name)
        for rrset in message.answer:
            if (rrset.name, rrset.rdclass, rrset.rdtype) == (name, 1, dns.rdatatype.CNAME):
                name = rrset[0].target
                break
    assert name.to_digestable() == wire_of(response.chain[-1]), "another chain than dnspython's"
    found = {
        rrset[0].address
        for rrset in message.answer
        if rrset.rdtype == asked.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA)
        if (rrset.name, rrset.rdclass) == (name, 1)
    }
    said = {str(address) for address, _ttl in response.addresses}
    assert said == {_address(a) for a in found}, "other addresses than dnspython's"
    told = dns.message.from_wire(reply)
    shown = {
        _address(record.address)
        for rrset in told.answer
        if rrset.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA)
        for record in rrset
    }
    assert shown <= {str(address) for address in kept}, "dnspython sees an address we do not"
    for rrset in told.answer:
        if rrset.rdtype in (dns.rdatatype.HTTPS, dns.rdatatype.SVCB):
            assert not {4, 5, 6} & {key for record in rrset for key in record.params}


def _address(text: str) -> str:
    return str(IPv6Address(text)) if ":" in text else text


# -- streams -----------------------------------------------------------------------------------


def _check_pieces(data: bytes, whole: Any, read: Callable[[bytes, int], Any]) -> None:
    """The first answer to a growing prefix is the whole's; `read` knows how much it saw before."""
    before = 0
    for end in [*range(0, len(data), max(len(data) // PREFIXES, 1)), len(data)]:
        found = read(data[:end], before)
        before = end
        if found is not None:
            if isinstance(found, ValueError):
                assert isinstance(whole, ValueError), "refused in pieces"
            else:
                assert found == whole, "read otherwise in pieces"
            return
    assert whole is None, "answered at once, and not in pieces"


def check_hello(data: bytes) -> None:
    """The ClientHello reader."""

    def read(data: bytes, _before: int = 0) -> Hello | NotHello | None:
        try:
            return read_client_hello(data)
        except NotHello as error:
            return error

    found = timed(lambda: read(data), len(data))
    _check_pieces(data, found, read)
    if found is None:
        assert len(data) < MAX_HELLO_BYTES, "waits for more than a hello can have"
    elif isinstance(found, Hello):
        heard = openssl_hears(data[: found.length])
        if heard:
            said = heard[0] and heard[0].lower().removesuffix(".")
            assert said == found.server_name, "another name than OpenSSL's"


def openssl_hears(data: bytes) -> list[str | None]:
    """The server name that a server with OpenSSL is asked for; empty if it does not get so far."""
    heard: list[str | None] = []
    _OPENSSL.sni_callback = lambda _object, name, _context: heard.append(name)
    incoming = ssl.MemoryBIO()
    incoming.write(data)
    with suppress(ssl.SSLError):
        _OPENSSL.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True).do_handshake()
    return heard


_OPENSSL = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def check_head(data: bytes) -> None:
    """The reader of an HTTP request's head."""

    def read(data: bytes, before: int = 0) -> Head | NotHttp | None:
        try:
            return read_request_head(data, before)
        except NotHttp as error:
            return error

    found = timed(lambda: read(data), len(data))
    _check_pieces(data, found, read)
    if found is None:
        assert len(data) < MAX_HEAD_BYTES, "waits for more than a head can have"
    elif isinstance(found, Head):
        _compare_head(data[: found.length], found)


def _compare_head(data: bytes, head: Head) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=2 * MAX_HEAD_BYTES)
    connection.receive_data(data)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError:
        return
    assert isinstance(event, h11.Request), "h11 sees no whole head"
    assert (event.method, event.target) == (head.method.encode(), head.target.encode())
    hosts = [value.decode("ascii") for name, value in event.headers if name == b"host"]
    assert len(hosts) == (head.host is not None), "h11 sees more Hosts"
    if head.host is not None:
        host, bracket, port = hosts[0].partition("]")
        if bracket:
            assert str(IPv6Address(host.removeprefix("["))) == head.host, "another Host than h11's"
            port = port.removeprefix(":")
        else:
            host, _colon, port = hosts[0].partition(":")
            assert host.lower().removesuffix(".") == head.host, "another Host than h11's"
        assert (int(port) if port else None) == head.port, "another port than h11's"


def check_requests(data: bytes) -> None:
    """The reader of all requests of a connection; the first byte says in which pieces they come.

    Nothing passes that was not shown before, and h11 behind it sees no request but those.
    """
    size, data = data[0] if data else 0, data[1:]
    heads, passed, refused = timed(lambda: _requests(data, len(data)), len(data))
    assert data.startswith(passed), "other bytes are passed on than came"
    again, passed_again, refused_again = _requests(data, size + 1)
    assert (again, refused_again) == (heads, refused), "read otherwise in pieces"
    assert passed_again.startswith(passed), "less is passed on in pieces"
    seen = _requests_of_h11(passed_again)
    shown = [(head.method.encode(), head.target.encode()) for head in heads]
    assert [event[:2] for event in seen] == shown[: len(seen)], "h11 sees another request"
    for (_method, _target, data), head in zip(seen, heads, strict=False):
        _compare_head(data, head)


def _requests(data: bytes, size: int) -> tuple[list[Head], bytes, bool]:
    """What is shown, what is passed on, and whether the end was a refusal."""
    requests = Requests()
    heads, passed = [], []
    try:
        for start in range(0, len(data), max(size, 1)):
            requests.feed(data[start : start + max(size, 1)])
            while (taken := requests.take()) is not None:
                if isinstance(taken, Head):
                    heads.append(taken)
                else:
                    passed.append(taken)
    except NotHttp:
        return heads, b"".join(passed), True
    return heads, b"".join(passed), False


def _requests_of_h11(data: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """Method, target and the head again in h11's words, until it ends the connection."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=2 * MAX_HEAD_BYTES)
    connection.receive_data(data)
    seen = []
    with suppress(h11.RemoteProtocolError):
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                line = b"%b %b HTTP/%b" % (event.method, event.target, event.http_version)
                fields = [b"%b: %b" % field for field in event.headers]
                seen.append((event.method, event.target, b"\r\n".join([line, *fields, b"", b""])))
            elif isinstance(event, h11.EndOfMessage):
                connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE:
                    break
                connection.start_next_cycle()
            elif not isinstance(event, h11.Data):
                break
    return seen


# -- a guest's request for a connection --------------------------------------------------------


def check_syn(data: bytes) -> None:
    """The reader of a SYN, and what is sent on or answered because of it."""
    syn = timed(lambda: read_syn(data), len(data))
    if syn is None:
        return
    _compare_syn(data, syn)
    sent = _scapy(syn.packet)
    assert bytes(sent) == syn.packet, "bytes beside the headers"
    assert not sent[TCP].payload, "a SYN with data"
    for each in (syn.packet, syn.reset()):
        assert _sums_are_right(_scapy(each))
    reset = _scapy(syn.reset())[TCP]
    assert (reset.sport, reset.dport, str(reset.flags)) == (syn.port, syn.guest_port, "RA")
    assert reset.ack == (syn.number + 1) % 2**32
    error = syn.error(3, 1)
    assert error.endswith(syn.packet)
    assert _scapy(error).dst == syn.guest


def _compare_syn(data: bytes, syn: Syn) -> None:
    packet = _scapy(data)
    if TCP not in packet:
        return  # it says that it is shorter; the kernel logs none that does
    segment = packet[TCP]
    assert packet.src == syn.guest, "another guest than scapy's"
    assert packet.dst == str(syn.address), "another address than scapy's"
    assert (segment.sport, segment.dport, segment.seq) == (syn.guest_port, syn.port, syn.number)
    assert set("FSRA") & set(str(segment.flags)) == {"S"}, "no SYN to scapy"
    assert (packet.tc if IPv6 in packet else packet.tos) & 0xFC == syn.service_class


def _sums_are_right(packet: Any) -> bool:
    """What is summed up with a sum that is right comes to 0 (RFC 1071)."""
    if IPv6 in packet:
        return bool(in6_chksum(6, packet, bytes(packet[TCP])) == 0)  # type: ignore[no-untyped-call]
    head = bytes(packet)[: packet.ihl * 4]
    return bool(checksum(head) == 0 and in4_chksum(6, packet, bytes(packet[TCP])) == 0)


def _scapy(data: bytes) -> Any:
    return IPv6(data) if data[0] >> 4 == 6 else IP(data)


# -- an owner's policy -------------------------------------------------------------------------


def check_policy(data: bytes) -> None:
    """The policy language."""
    text = data.decode("utf-8", "replace")

    def read() -> Policy | ConfigError:
        try:
            return parse_policy(text)
        except ConfigError as error:
            return error

    found = timed(read, len(text))
    if isinstance(found, Policy):
        assert parse_policy(str(found)) == found, "a policy does not survive being written"
    else:
        assert str(found), "an error without words"


TARGETS = {
    target.name: target
    for target in (
        Target("question", check_question, seeds.questions, 1400),
        Target("response", check_response, seeds.responses, 4096),
        Target("hello", check_hello, seeds.hellos, MAX_HELLO_BYTES + 64),
        Target("head", check_head, seeds.heads, MAX_HEAD_BYTES + 64),
        Target("requests", check_requests, seeds.requests, 4096),
        Target("syn", check_syn, seeds.syns, 160),
        Target("policy", check_policy, seeds.policies, 4096),
    )
}
