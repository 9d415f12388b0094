"""What a guest asks: one datagram read by hand, as every one of them passes here.

    message  = header question [opt]              ; and nothing behind it
    header   = id flags qdcount=1 ancount=0 nscount=0 arcount=0/1
    question = 1*(length label) %x00 qtype qclass  ; uncompressed
    opt      = %x00 type=41 payload rcode version flags rdlength *option

Stricter than RFC 1035: a name in a question may not use compression (it has nothing before it to
point to), a second question is an error (RFC 9619), and of additional records only OPT is known
(a TSIG or SIG(0) would sign a message that we do not pass on).
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from .codes import (
    CLASS_IN,
    EDNS_FLAG_DO,
    FLAG_AD,
    FLAG_CD,
    FLAG_QR,
    FLAG_RD,
    HEADER,
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    MIN_PAYLOAD_BYTES,
    OPCODE_MASK,
    OPCODE_SHIFT,
    OPT,
    Rcode,
    Rtype,
)
from .faults import BadQuestion
from .names import MAX_LABEL_BYTES, MAX_NAME_BYTES, text_of

#: A question is at most 12 + 255 + 4 bytes and its OPT a few dozen; more is not a question.
MAX_UDP_QUERY_BYTES = 1232
#: Over TCP a client may pad (RFC 8467 pads to multiples of 128), and some pad generously.
MAX_TCP_QUERY_BYTES = 4096

#: RFC 6895 section 3.1: 128 to 255 are meta-types (TKEY, TSIG) and question types (IXFR, AXFR,
#: MAILB, MAILA, ANY). None of them is a question of a stub.
_META_TYPES = range(128, 256)
_NO_QUESTION = frozenset({0, int(Rtype.OPT), 65535})

_TYPE_AND_CLASS = Struct("!HH")
_OPTION = Struct("!HH")
#: The last byte of a key: whether the asker speaks EDNS, wants DNSSEC records, checks them itself.
_FLAVOURS = tuple(bytes([flavour]) for flavour in range(8))


class Edns(NamedTuple):
    """What the asker's OPT record says (RFC 6891)."""

    payload_bytes: int
    """What it takes over UDP, held between 512 and 1232."""
    dnssec: bool
    """The DO bit: it wants signatures (RFC 3225)."""


class Question(NamedTuple):
    """One well-formed question. A tuple, because one is made for every datagram."""

    id: int
    name: str
    """Canonical text (see `names`); empty for the root."""
    qtype: int
    qclass: int
    recursion_desired: bool
    authentic_data: bool
    """The AD bit of the query (RFC 6840 section 5.7)."""
    checking_disabled: bool
    edns: Edns | None
    key: bytes
    """What a cached answer must agree in: lower-case name, type, class, EDNS, DO and CD."""
    wire: bytes
    """The question section as asked, to be echoed with its 0x20 case."""
    length: int
    """Bytes of the whole datagram."""

    opcode: int = 0
    """Always 0 (QUERY): everything else is a `BadQuestion`."""

    @property
    def udp_limit_bytes(self) -> int:
        """The longest reply that may go to this asker over UDP."""
        return self.edns.payload_bytes if self.edns else MIN_PAYLOAD_BYTES

    @property
    def wants_dnssec(self) -> bool:
        """Whether signatures are asked for (RFC 3225's DO bit)."""
        return self.edns is not None and self.edns.dnssec


class _Opt(NamedTuple):
    version: int
    edns: Edns


def read_question(datagram: bytes, max_bytes: int = MAX_UDP_QUERY_BYTES) -> Question:
    """The question in `datagram`, a guest's UDP payload or one TCP message without its length.

    Raises only `BadQuestion`: `rcode` None for what must not be answered (a response, or less than
    a header), FORMERR, NOTIMP for an opcode other than QUERY, BADVERS for EDNS of a later version,
    REFUSED for a class other than IN and for types that are no question of a stub.
    """
    length = len(datagram)
    if length < HEADER_BYTES:
        raise BadQuestion(None, 0, "shorter than a header")
    id, flags, questions, answers, authorities, additional = HEADER.unpack_from(datagram)
    if flags & FLAG_QR:
        raise BadQuestion(None, id, "a response, not a question")
    desired = bool(flags & FLAG_RD)
    if opcode := flags >> OPCODE_SHIFT & OPCODE_MASK:
        reason = f"opcode {opcode} is not QUERY"
        raise BadQuestion(Rcode.NOTIMP, id, reason, opcode=opcode, recursion_desired=desired)
    try:
        if length > max_bytes:
            raise _MalformedError(f"{length} bytes are more than {max_bytes}")
        if (questions, answers, authorities) != (1, 0, 0) or additional > 1:
            raise _MalformedError("not exactly one question")
        labels, end = _read_labels(datagram)
        if end + 4 > length:
            raise _MalformedError("truncated in the question")
        qtype, qclass = _TYPE_AND_CLASS.unpack_from(datagram, end)
        opt = _read_opt(datagram, end + 4) if additional else None
        if opt is None and end + 4 != length:
            raise _MalformedError("bytes after the question")
    except _MalformedError as error:
        reason = str(error)
        raise BadQuestion(Rcode.FORMERR, id, reason, recursion_desired=desired) from None
    wire = datagram[HEADER_BYTES : end + 4]
    edns = opt.edns if opt else None
    if refusal := _refusal(qtype, qclass, opt):
        rcode, reason = refusal
        raise BadQuestion(
            rcode, id, reason, recursion_desired=desired, question=wire, edns=edns is not None
        )
    checking_disabled = bool(flags & FLAG_CD)
    flavour = (1 + 2 * edns.dnssec if edns else 0) + 4 * checking_disabled
    return Question(
        id,
        text_of(labels),
        qtype,
        qclass,
        desired,
        bool(flags & FLAG_AD),
        checking_disabled,
        edns,
        # Bytes of length are below "A", so lowering the whole name changes letters only.
        wire[:-4].lower() + wire[-4:] + _FLAVOURS[flavour],
        wire,
        length,
    )


class _MalformedError(Exception):
    """Never leaves this file."""


def _read_labels(datagram: bytes) -> tuple[list[bytes], int]:
    """The labels of the name behind the header, in lower case, and where the name ends."""
    labels = []
    position = HEADER_BYTES
    try:
        while length := datagram[position]:
            if length > MAX_LABEL_BYTES:
                raise _MalformedError("a label longer than 63 bytes, or a compression pointer")
            start = position + 1
            position = start + length
            labels.append(datagram[start:position].lower())
    except IndexError:
        raise _MalformedError("truncated in the name") from None
    position += 1
    if position - HEADER_BYTES > MAX_NAME_BYTES:
        raise _MalformedError("a name longer than 255 bytes")
    return labels, position


def _read_opt(datagram: bytes, start: int) -> _Opt:
    """The OPT record that must fill the rest of the datagram (RFC 6891 section 6.1)."""
    options = start + 1 + OPT.size
    if options > len(datagram):
        raise _MalformedError("truncated in the additional record")
    rtype, payload, _rcode, version, flags, rdlength = OPT.unpack_from(datagram, start + 1)
    if datagram[start] != 0 or rtype != Rtype.OPT:
        raise _MalformedError("an additional record that is not OPT")
    if options + rdlength != len(datagram):
        raise _MalformedError("OPT does not end with the message")
    _check_options(datagram, options)
    payload = min(max(payload, MIN_PAYLOAD_BYTES), MAX_PAYLOAD_BYTES)
    return _Opt(version, Edns(payload, bool(flags & EDNS_FLAG_DO)))


def _check_options(datagram: bytes, position: int) -> None:
    """Options (cookies, client subnet, padding) go no further, but have to be well-formed."""
    while position < len(datagram):
        if position + _OPTION.size > len(datagram):
            raise _MalformedError("truncated in an EDNS option")
        _code, length = _OPTION.unpack_from(datagram, position)
        position += _OPTION.size + length
    if position != len(datagram):
        raise _MalformedError("an EDNS option longer than its record")


def _refusal(qtype: int, qclass: int, opt: _Opt | None) -> tuple[Rcode, str] | None:
    if opt is not None and opt.version:
        return Rcode.BADVERS, f"EDNS version {opt.version}"
    if qclass != CLASS_IN:
        return Rcode.REFUSED, f"class {qclass} is not IN"
    if qtype in _META_TYPES or qtype in _NO_QUESTION:
        return Rcode.REFUSED, f"type {qtype} is no question of a stub"
    return None
