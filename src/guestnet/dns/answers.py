"""Replies that we make ourselves: refusals, failures, local records, and "ask again over TCP".

Written by hand, as a guest may ask for forbidden names as fast as it can: a refusal has to be
cheaper than the question. The question is echoed as asked, RD and CD are copied (RFC 4035 section
3.2.2), RA is set, and AA and AD never: we are nobody's authority, and what we filter no longer
validates. OPT appears only if the asker sent one (RFC 6891 section 7).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct

from .codes import (
    CLASS_IN,
    EDNS_FLAG_DO,
    FLAG_CD,
    FLAG_QR,
    FLAG_RA,
    FLAG_RD,
    FLAG_TC,
    HEADER,
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    OPCODE_SHIFT,
    OPT,
    RCODE_MASK,
    RECORD,
    VERSIONS,
    Address,
    Ede,
    Rcode,
    Rtype,
)
from .faults import BadQuestion
from .names import wire_of
from .question import Question

#: How long a guest may remember a refusal: an owner who allows a name sees it work at once.
REFUSAL_TTL_S = 5
#: What RFC 8914 calls EXTRA-TEXT is for a human eye; this keeps a refusal of the longest name
#: below the 512 bytes that everyone takes.
MAX_TEXT_BYTES = 128
#: More addresses than any host of ours has, and still below 512 bytes with a long name.
MAX_LOCAL_ADDRESSES = 8

#: A pointer (RFC 1035 section 4.1.4) to the name in the question.
ASKED_NAME = bytes([0xC0, HEADER_BYTES])

_EDE_OPTION_CODE = 15
_EDE = Struct("!HHH")
_SOA_NUMBERS = Struct("!IIIII")
#: Who speaks in our SOA records; `invalid` can belong to nobody (RFC 6761 section 6.4).
_OURSELVES = wire_of("guestnet.invalid")


def refusal(question: Question, rcode: Rcode, ede_code: Ede | None = None, text: str = "") -> bytes:
    """A reply without records, with the reason `ede_code` and `text` (RFC 8914) for EDNS askers.

    With NXDOMAIN and NOERROR goes an SOA of five seconds, or the guest's resolver would choose for
    itself how long to remember (RFC 2308 section 5). Text beyond 128 bytes is cut.
    """
    options = b"" if ede_code is None else explanation(ede_code, text)
    if rcode in (Rcode.NXDOMAIN, Rcode.NOERROR):
        return reply(question, rcode, authorities=[_soa()], options=options)
    return reply(question, rcode, options=options)


def no_data(question: Question) -> bytes:
    """The name exists, but has no record of this type (RFC 2308 section 2.2)."""
    return refusal(question, Rcode.NOERROR)


def addresses(
    question: Question, found: Iterable[Address], ttl_s: int, *, aliases: Sequence[str] = ()
) -> bytes:
    """A and AAAA records for a name of our own; what is not of the asked type is left out.

    `aliases` are the names that lead there, without the one that was asked for, in canonical text.
    Addresses beyond the eighth are left out too; without any the reply is `no_data`.
    """
    fitting = [each for each in found if each.version == VERSIONS.get(question.qtype)]
    owner, records = ASKED_NAME, []
    for target in aliases:
        name = wire_of(target)
        records.append(record_bytes(owner, Rtype.CNAME, ttl_s, name))
        if question.qtype == Rtype.CNAME:
            break  # that is what was asked for, and no more
        owner = name
    if not fitting and not records:
        return no_data(question)
    records += [
        record_bytes(owner, question.qtype, ttl_s, address.packed)
        for address in fitting[:MAX_LOCAL_ADDRESSES]
    ]
    return reply(question, Rcode.NOERROR, answers=records)


def pointer(question: Question, name: str, ttl_s: int) -> bytes:
    """A PTR record: the name (canonical text) of the address that was asked for."""
    record = record_bytes(ASKED_NAME, Rtype.PTR, ttl_s, wire_of(name))
    return reply(question, Rcode.NOERROR, answers=[record])


def truncated(question: Question) -> bytes:
    """TC and nothing else: ask again over TCP (RFC 2181 section 9)."""
    return reply(question, Rcode.NOERROR, flags=FLAG_TC)


def fit(wire: bytes, question: Question, limit_bytes: int) -> bytes:
    """`wire` if it is within the limit (see `Question.udp_limit_bytes`), else `truncated`."""
    return wire if len(wire) <= limit_bytes else truncated(question)


def failure(bad: BadQuestion) -> bytes | None:
    """The reply to a datagram that could not be read, or `None`: drop it silently."""
    if bad.rcode is None:
        return None
    flags = FLAG_QR | FLAG_RA | bad.opcode << OPCODE_SHIFT | bad.rcode & RCODE_MASK
    if bad.recursion_desired:
        flags |= FLAG_RD
    header = HEADER.pack(bad.id, flags, bool(bad.question), 0, 0, bad.edns)
    return header + bad.question + (_opt(bad.rcode, False, b"") if bad.edns else b"")


def reply(
    question: Question,
    rcode: int,
    *,
    answers: list[bytes] | None = None,
    authorities: list[bytes] | None = None,
    options: bytes = b"",
    flags: int = 0,
) -> bytes:
    """A whole message around records that are already in wire form.

    An `rcode` above 15 needs an OPT record; to an asker without one it becomes SERVFAIL.
    """
    answers, authorities, edns = answers or [], authorities or [], question.edns
    if edns is None and rcode > RCODE_MASK:
        rcode = Rcode.SERVFAIL
    flags |= FLAG_QR | FLAG_RA | rcode & RCODE_MASK
    if question.recursion_desired:
        flags |= FLAG_RD
    if question.checking_disabled:
        flags |= FLAG_CD
    counts = (1, len(answers), len(authorities), edns is not None)
    parts = [HEADER.pack(question.id, flags, *counts), question.wire, *answers, *authorities]
    if edns is not None:
        parts.append(_opt(rcode, edns.dnssec, options))
    return b"".join(parts)


def record_bytes(owner: bytes, rtype: int, ttl_s: int, data: bytes) -> bytes:
    """One record of class IN; `owner` is a name in wire form or a pointer."""
    return owner + RECORD.pack(rtype, CLASS_IN, ttl_s, len(data)) + data


def _opt(rcode: int, dnssec: bool, options: bytes) -> bytes:
    flags = EDNS_FLAG_DO if dnssec else 0
    return (
        b"\0" + OPT.pack(Rtype.OPT, MAX_PAYLOAD_BYTES, rcode >> 4, 0, flags, len(options)) + options
    )


def explanation(code: Ede, text: str = "") -> bytes:
    """The EDNS option of an extended error (RFC 8914 section 2); text is cut between characters."""
    extra = text.encode("utf-8", "replace")[:MAX_TEXT_BYTES].decode("utf-8", "ignore").encode()
    return _EDE.pack(_EDE_OPTION_CODE, 2 + len(extra), code) + extra


def _soa() -> bytes:
    numbers = _SOA_NUMBERS.pack(1, *4 * (REFUSAL_TTL_S,))
    return record_bytes(ASKED_NAME, Rtype.SOA, REFUSAL_TTL_S, _OURSELVES + _OURSELVES + numbers)
