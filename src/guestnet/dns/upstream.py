"""Asking a resolver, and believing no more of its answer than was asked.

Of a response only the chain counts: the CNAMEs that lead from the asked name on, in order, and the
records of the asked type at its end. An address under any other name is how a resolver, or a guest
who owns a zone, would plant one; it is dropped. Glue and additional records are never looked at.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import NamedTuple

from .codes import (
    CLASS_IN,
    EDNS_FLAG_DO,
    FLAG_CD,
    FLAG_QR,
    FLAG_RD,
    FLAG_TC,
    HEADER,
    HEADER_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_NEGATIVE_TTL_S,
    MAX_PAYLOAD_BYTES,
    MAX_TTL_S,
    OPCODE_MASK,
    OPCODE_SHIFT,
    OPT,
    RCODE_MASK,
    Address,
    Rcode,
    Rtype,
    clamped_ttl,
)
from .faults import BadResponse
from .names import MAX_NAME_BYTES, labels_of, text_of, wire_of
from .records import RawRecord, Record, opened, read_records

#: BIND and Unbound themselves stop at 11.
MAX_CNAMES = 16
#: In all sections. The root's NS set signed and with all its glue is 41; what is larger is a zone
#: made to be large, and no stub could use it. It bounds addresses as well.
MAX_RECORDS = 64
#: What padded queries are a multiple of.
PADDING_BLOCK_BYTES = 128
#: Random bits that `ask` can use: a byte for each of the longest name, of which one bit counts.
CASE_BITS = 8 * MAX_NAME_BYTES

_TYPE_AND_CLASS = Struct("!HH")
#: An EDNS option's code and length (RFC 6891 section 6.1.2), and the code of padding.
_OPTION = Struct("!HH")
_PADDING = 12
#: 0x20 for lower-case letters.
_CASE_OF_LETTERS = bytes(0x20 if 0x61 <= octet <= 0x7A else 0 for octet in range(256))
#: From the end of the question to the flags of OPT: its empty name, type, payload, rcode, version.
_TO_EDNS_FLAGS = 7
_NUMBERS_OF_SOA = Struct("!IIIII")
_PROOFS = frozenset({Rtype.NSEC, Rtype.NSEC3})
_ANSWERED = frozenset({Rcode.NOERROR, Rcode.NXDOMAIN})


class Response(NamedTuple):
    """What an upstream's answer says about the question it was asked."""

    rcode: int
    """With the upper bits of an OPT record. Other than NOERROR and NXDOMAIN: nothing is kept."""
    tc: bool
    """Cut off: nothing is kept, ask again over TCP."""
    wire: bytes
    """The message itself."""
    chain: tuple[str, ...]
    """The asked name, then the target of each CNAME; the last is the one that was answered for."""
    is_negative: bool = False
    """NXDOMAIN, or nothing of the asked type at the end of the chain."""
    addresses: tuple[tuple[Address, int], ...] = ()
    """Of the last name, for A and AAAA questions: each once, with its TTL in seconds, clamped."""
    records: tuple[Record, ...] = ()
    """The answer section without what is not of the chain."""
    authority: tuple[Record, ...] = ()
    """SOA of a negative answer, and NSEC, NSEC3 and their signatures where DNSSEC was asked for."""
    min_ttl_s: int | None = None
    """The shortest TTL in `records`, as sent; `None` without records."""
    negative_ttl_s: int | None = None
    """How long "there is nothing" holds (RFC 2308 section 5); `None` if positive or not said."""

    @property
    def cache_ttl_s(self) -> int:
        """How long an answer made of this may be cached; 0 is not at all."""
        if self.tc or self.rcode not in _ANSWERED:
            return 0
        if self.is_negative:
            lifetimes = [self.negative_ttl_s or 0]
            lifetimes += [] if self.min_ttl_s is None else [self.min_ttl_s]
            return min(lifetimes)
        return min(self.min_ttl_s or 0, MAX_TTL_S)


def ask(
    name: str,
    qtype: int,
    id: int,
    case_bits: int = 0,
    *,
    dnssec: bool = False,
    checking_disabled: bool = False,
    padded: bool = False,
) -> bytes:
    """A query for `name` (canonical text): RD, EDNS 1232 (RFC 6891), no options but padding.

    One that is `padded` is a multiple of 128 bytes (RFC 7830, RFC 8467 section 4.1), for who sees
    the length of what is encrypted.

    `case_bits` of up to `CASE_BITS` random bits writes letters in upper case (0x20): an attacker
    who cannot see the query has to guess them as well as `id`. Raises `ValueError` for a text that
    is no name; `Question.name` always is one.
    """
    flags = FLAG_RD | (FLAG_CD if checking_disabled else 0)
    question = _with_case(wire_of(name), case_bits) + _TYPE_AND_CLASS.pack(qtype, CLASS_IN)
    options = b""
    if padded:
        size = HEADER_BYTES + len(question) + 1 + OPT.size + _OPTION.size
        zeros = -size % PADDING_BLOCK_BYTES
        options = _OPTION.pack(_PADDING, zeros) + bytes(zeros)
    do = EDNS_FLAG_DO if dnssec else 0
    opt = b"\0" + OPT.pack(Rtype.OPT, MAX_PAYLOAD_BYTES, 0, 0, do, len(options))
    return HEADER.pack(id, flags, 1, 0, 0, 1) + question + opt + options


def _with_case(name: bytes, bits: int) -> bytes:
    """A letter in upper case if the 0x20 of its byte is set; bytes of length are never letters."""
    letters = int.from_bytes(name.translate(_CASE_OF_LETTERS), "big")
    return (int.from_bytes(name, "big") ^ letters & bits).to_bytes(len(name), "big")


class _Asked(NamedTuple):
    """What we asked."""

    id: bytes
    wire: bytes
    """The question section, its case included."""
    qtype: int
    wants_dnssec: bool

    @property
    def name(self) -> str:
        """Canonical text."""
        return text_of(labels_of(self.wire[:-4].lower()))


def _own(asked: bytes) -> _Asked:
    """The question of a message that we sent, which needs no checking."""
    position = HEADER_BYTES
    while length := asked[position]:
        position += 1 + length
    qtype, _class = _TYPE_AND_CLASS.unpack_from(asked, position + 1)
    end = position + 5
    flags = asked[end + _TO_EDNS_FLAGS :][:1]  # none where it speaks no EDNS
    dnssec = bool(flags and flags[0] & EDNS_FLAG_DO >> 8)
    return _Asked(asked[:2], asked[HEADER_BYTES:end], qtype, dnssec)


def read_response(wire: bytes, asked: bytes) -> Response:
    """What `wire` answers to `asked`, the very bytes that were sent.

    Raises only `BadResponse`: `mismatched` unless id, QR and the question (case included) are the
    asked ones; otherwise for what is malformed, has leftovers, loops, or exceeds a limit.
    """
    question = _own(asked)
    flags, counts = _check_echo(wire, question)
    # Read nothing of a message that was cut: it may end inside a record.
    if flags & FLAG_TC:
        return Response(flags & RCODE_MASK, True, wire, (question.name,))
    if sum(counts) > MAX_RECORDS:
        raise BadResponse(f"more than {MAX_RECORDS} records")
    sections = []
    position = HEADER_BYTES + len(question.wire)
    for count in counts:
        section, position = read_records(wire, position, count)
        sections.append(section)
    if position != len(wire):
        raise BadResponse("bytes after the last record")
    answer, authority, additional = sections
    rcode = flags & RCODE_MASK | _upper_rcode(additional)
    if rcode not in _ANSWERED:
        return Response(rcode, False, wire, (question.name,))
    return _answered(question, wire, rcode, answer, authority)


def _check_echo(wire: bytes, question: _Asked) -> tuple[int, tuple[int, int, int]]:
    """The flags and the counts of records, if this is the response to that question."""
    if len(wire) < HEADER_BYTES:
        raise BadResponse("shorter than a header", mismatched=True)
    if len(wire) > MAX_MESSAGE_BYTES:
        raise BadResponse("longer than a message")
    _id, flags, questions, *counts = HEADER.unpack_from(wire)
    if wire[:2] != question.id or not flags & FLAG_QR:
        raise BadResponse("another id, or no response", mismatched=True)
    end = HEADER_BYTES + len(question.wire)
    if questions != 1 or wire[HEADER_BYTES:end] != question.wire:
        raise BadResponse("not the question that was asked", mismatched=True)
    if flags >> OPCODE_SHIFT & OPCODE_MASK:
        raise BadResponse("an opcode other than QUERY")
    answers, authorities, additional = counts
    return flags, (answers, authorities, additional)


def _upper_rcode(additional: list[RawRecord]) -> int:
    """The eight bits of the rcode that travel in OPT (RFC 6891 section 6.1.3)."""
    opts = [record for record in additional if record.rtype == Rtype.OPT]
    if len(opts) > 1:
        raise BadResponse("more than one OPT")
    return opts[0].ttl >> 24 << 4 if opts else 0


def _answered(
    question: _Asked,
    wire: bytes,
    rcode: int,
    answer: list[RawRecord],
    authority: list[RawRecord],
) -> Response:
    answer = [record for record in answer if record.rclass == CLASS_IN]
    names, cnames = _follow(question, wire, answer)
    final = names[-1]
    found = [
        opened(wire, record)
        for record in answer
        if record.owner == final and record.rtype == question.qtype
    ]
    if rcode == Rcode.NXDOMAIN and found:
        raise BadResponse("NXDOMAIN, and yet records of the name")
    found = list({record.data: record for record in found}.values())
    proof, negative_ttl_s = ([], None) if found else _soa(wire, final, authority)
    records = (*cnames, *found)
    signatures: list[Record] = []
    if question.wants_dnssec:
        signatures = _signatures(wire, question.qtype, names, answer)
        proof = proof + _proofs(wire, authority, with_soa=bool(proof))
    return Response(
        rcode,
        False,
        wire,
        tuple(text_of(labels_of(name)) for name in names),
        not found,
        _addresses(question.qtype, found),
        (*records, *signatures),
        tuple(proof),
        min((record.ttl_s for record in records), default=None),
        negative_ttl_s,
    )


def _follow(
    question: _Asked, wire: bytes, answer: list[RawRecord]
) -> tuple[list[bytes], list[Record]]:
    """The names of the chain and the CNAME records between them, whatever order they came in.

    Of two CNAMEs of one name (RFC 2181 section 10.1 forbids them) the first counts.
    """
    names = [question.wire[:-4].lower()]
    records: list[Record] = []
    if question.qtype == Rtype.CNAME:
        return names, records
    aliases: dict[bytes, RawRecord] = {}
    for raw in answer:
        if raw.rtype == Rtype.CNAME:
            aliases.setdefault(raw.owner, raw)
    while alias := aliases.get(names[-1]):
        record = opened(wire, alias)
        target = record.data.lower()
        if target in names:
            raise BadResponse("CNAMEs in a loop")
        if len(records) == MAX_CNAMES:
            raise BadResponse(f"more than {MAX_CNAMES} CNAMEs")
        records.append(record)
        names.append(target)
    return names, records


def _addresses(qtype: int, found: list[Record]) -> tuple[tuple[Address, int], ...]:
    if qtype == Rtype.A:
        return tuple((IPv4Address(r.data), clamped_ttl(r.ttl_s)) for r in found)
    if qtype == Rtype.AAAA:
        return tuple((IPv6Address(r.data), clamped_ttl(r.ttl_s)) for r in found)
    return ()


def _soa(wire: bytes, final: bytes, authority: list[RawRecord]) -> tuple[list[Record], int | None]:
    """The SOA of a negative answer and how long it may be believed (RFC 2308 section 5)."""
    for raw in authority:
        if raw.rtype == Rtype.SOA and raw.rclass == CLASS_IN and _encloses(raw.owner, final):
            record = opened(wire, raw)
            *_others, minimum = _NUMBERS_OF_SOA.unpack(record.data[-_NUMBERS_OF_SOA.size :])
            ttl_s = min(record.ttl_s, minimum, MAX_NEGATIVE_TTL_S)
            return [record._replace(ttl_s=ttl_s)], ttl_s
    return [], None


def _encloses(zone: bytes, name: bytes) -> bool:
    """Whether `name` is `zone` or below it, label by label."""
    position = 0
    while len(name) - position > len(zone):
        position += 1 + name[position]
    return name[position:] == zone


def _signatures(
    wire: bytes, qtype: int, names: list[bytes], answer: list[RawRecord]
) -> list[Record]:
    """RRSIGs (RFC 4034 section 3) over the records of the chain."""
    covered = {*((name, int(Rtype.CNAME)) for name in names[:-1]), (names[-1], qtype)}
    if qtype == Rtype.RRSIG:
        return []  # asked for themselves, they are the answer
    return [
        opened(wire, raw)
        for raw in answer
        if raw.rtype == Rtype.RRSIG and (raw.owner, _covers(wire, raw)) in covered
    ]


def _proofs(wire: bytes, authority: list[RawRecord], with_soa: bool) -> list[Record]:
    """Proofs that something does not exist, and the signatures of what stands beside them."""
    signed = {*_PROOFS, Rtype.SOA} if with_soa else _PROOFS
    return [
        opened(wire, raw)
        for raw in authority
        if raw.rclass == CLASS_IN
        and (raw.rtype in _PROOFS or (raw.rtype == Rtype.RRSIG and _covers(wire, raw) in signed))
    ]


def _covers(wire: bytes, signature: RawRecord) -> int:
    """The type that an RRSIG signs: its first two bytes; 0, which no record has, if too short."""
    if signature.end - signature.start < 2:
        return 0
    return int.from_bytes(wire[signature.start : signature.start + 2], "big")
