"""An upstream's answer, written anew for the guest that asked.

Nothing of the upstream's message is copied as a whole: header, question and OPT are ours, and of
records only those of the chain, with the addresses that policy kept.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise
from struct import Struct

from .answers import record_bytes, refusal, reply
from .codes import HEADER_BYTES, MAX_MESSAGE_BYTES, Address, Ede, Rcode, Rtype, clamped_ttl
from .faults import BadResponse
from .names import wire_of
from .question import Question
from .records import Record, read_name
from .upstream import Response

#: Keys of RFC 9460 section 14.3.2.
_MANDATORY, _IPV4_HINT, _ECH, _IPV6_HINT = 0, 4, 5, 6
#: Addresses that no policy has seen, in a record whose names the client asks for anyway.
_HINTS = frozenset({_IPV4_HINT, _IPV6_HINT})
#: With an encrypted ClientHello the name in clear is not the name that is reached.
_HINTS_AND_ECH = _HINTS | {_ECH}

#: The registry knows ten keys; a record of thousands costs only us, as no client reads it.
MAX_PARAMETERS = 64
_PARAMETER = Struct("!HH")
#: The largest offset that a compression pointer can hold.
_MAX_OFFSET = 0x3FFF


def build_answer(
    question: Question,
    response: Response,
    addresses_kept: Container[Address],
    strip_ech: bool = True,
) -> bytes:
    """The reply to `question`: the chain's records, A and AAAA only as far as kept.

    HTTPS and SVCB records lose their address hints, and with `strip_ech` their ECH keys; one that
    is malformed is left out, as RFC 9460 section 2.2 tells clients to do. TTLs are clamped. An
    answer that outgrows a message becomes SERVFAIL. The signature of a record that was changed no
    longer fits it: a validating guest will call that bogus, rightly.

    Raises `ValueError` if the response is to another name than the question.
    """
    if response.chain[0] != question.name:
        raise ValueError(f"a response for {response.chain[0]!r}, not for {question.name!r}")
    removed = _HINTS_AND_ECH if strip_ech else _HINTS
    pages = _Pages(question)
    answers = [
        pages.write(kept)
        for record in response.records
        if (kept := _kept(record, addresses_kept, removed)) and _is_wanted(kept, question)
    ]
    authorities = [
        pages.write(record) for record in response.authority if _is_wanted(record, question)
    ]
    wire = reply(question, response.rcode, answers=answers, authorities=authorities)
    if len(wire) > MAX_MESSAGE_BYTES:
        return refusal(question, Rcode.SERVFAIL, Ede.OTHER, "the answer outgrew a DNS message")
    return wire


def with_aliases(response: Response, aliases: Sequence[str], ttl_s: int) -> Response:
    """The response to the last of `aliases` (canonical text) as one to the first of them."""
    records = tuple(
        Record(wire_of(alias), Rtype.CNAME, ttl_s, wire_of(target))
        for alias, target in pairwise(aliases)
    )
    return response._replace(
        chain=(*aliases[:-1], *response.chain),
        records=(*records, *response.records),
        min_ttl_s=ttl_s if response.min_ttl_s is None else min(ttl_s, response.min_ttl_s),
    )


class _Pages:
    """Writes records one after the other, and knows where names already stand.

    Compresses owners only. Each is a name of the chain, which the question or the data of the
    CNAME before it spells out, or a parent of one.
    """

    def __init__(self, question: Question) -> None:
        self._places: dict[bytes, int] = {}
        self._position = HEADER_BYTES + len(question.wire)
        self._remember(question.wire[:-4].lower(), HEADER_BYTES)

    def write(self, record: Record) -> bytes:
        place = self._places.get(record.owner)
        owner = record.owner if place is None else (0xC000 | place).to_bytes(2, "big")
        written = record_bytes(owner, record.rtype, clamped_ttl(record.ttl_s), record.data)
        self._position += len(written)
        if record.rtype == Rtype.CNAME:
            self._remember(record.data.lower(), self._position - len(record.data))
        return written

    def _remember(self, name: bytes, offset: int) -> None:
        position = 0
        while name[position] and offset + position <= _MAX_OFFSET:
            self._places.setdefault(name[position:], offset + position)
            position += 1 + name[position]


def _is_wanted(record: Record, question: Question) -> bool:
    """Signatures and proofs go only to who set DO or asked for them (RFC 4035 section 3.2.1)."""
    if record.rtype in (Rtype.RRSIG, Rtype.NSEC, Rtype.NSEC3):
        return question.wants_dnssec or record.rtype == question.qtype
    return True


def _kept(record: Record, addresses: Container[Address], removed: frozenset[int]) -> Record | None:
    if record.rtype == Rtype.A:
        return record if IPv4Address(record.data) in addresses else None
    if record.rtype == Rtype.AAAA:
        return record if IPv6Address(record.data) in addresses else None
    if record.rtype in (Rtype.HTTPS, Rtype.SVCB):
        data = without_parameters(record.data, removed)
        return None if data is None else record._replace(data=data)
    return record


def without_parameters(data: bytes, removed: frozenset[int]) -> bytes | None:
    """The data of an HTTPS or SVCB record without these keys, or `None` if it is malformed.

    A removed key is taken out of `mandatory` as well, or clients would have to ignore the record
    (RFC 9460 section 8).
    """
    try:
        target, position = read_name(data, 2)
    except BadResponse:
        return None
    if position != 2 + len(target):
        return None  # a compressed name, which section 2.2 forbids
    kept = [data[:position]]
    last = -1
    while position < len(data):
        if position + _PARAMETER.size > len(data):
            return None
        key, length = _PARAMETER.unpack_from(data, position)
        value = data[position + _PARAMETER.size : position + _PARAMETER.size + length]
        position += _PARAMETER.size + length
        if key <= last or len(value) != length or len(kept) > MAX_PARAMETERS:
            return None
        last = key
        if key == _MANDATORY:
            value = _without_keys(value, removed)
        if key not in removed and (value or key != _MANDATORY):
            kept.append(_PARAMETER.pack(key, len(value)) + value)
    return b"".join(kept)


def _without_keys(mandatory: bytes, removed: frozenset[int]) -> bytes:
    keys = (mandatory[i : i + 2] for i in range(0, len(mandatory), 2))
    return b"".join(key for key in keys if int.from_bytes(key, "big") not in removed)
