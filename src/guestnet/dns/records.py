"""Resource records of a message somebody else wrote: bounds first, meaning second.

Read by hand because the sender may be the guest's accomplice, who owns a zone and fills it with
what is dear to read: 1.4 kB of 64 MX records with names of 127 labels took dnspython 2.9 a quarter
of a second. Here a record costs its owner's name; its data is opened only if it is wanted.
"""

from __future__ import annotations

from typing import NamedTuple

from .codes import CLASS_IN, RECORD, Rtype
from .faults import BadResponse
from .names import MAX_LABEL_BYTES, MAX_NAME_BYTES

#: One pointer before each of the 127 labels that a name can have. Pointers must also go strictly
#: backwards, so this bounds work, not loops: a chain of bare pointers would be thousands long.
MAX_POINTERS = 127
_POINTER = 0xC0
#: A TTL with its first bit set means zero (RFC 2181 section 8).
_TTL_SIGN = 0x8000_0000

#: Types whose data may carry compressed names (RFC 3597 section 4): bytes before, names, bytes
#: after. All other data is opaque and copied as it is.
_LAYOUTS: dict[int, tuple[int, int, int]] = {
    **dict.fromkeys((Rtype.NS, Rtype.CNAME, Rtype.PTR, Rtype.DNAME), (0, 1, 0)),
    **dict.fromkeys((Rtype.MD, Rtype.MF, Rtype.MB, Rtype.MG, Rtype.MR), (0, 1, 0)),
    **dict.fromkeys((Rtype.MX, Rtype.AFSDB, Rtype.RT, Rtype.KX), (2, 1, 0)),
    **dict.fromkeys((Rtype.MINFO, Rtype.RP), (0, 2, 0)),
    Rtype.SOA: (0, 2, 20),
    Rtype.PX: (2, 2, 0),
    Rtype.SRV: (6, 1, 0),
    Rtype.A: (4, 0, 0),
    Rtype.AAAA: (16, 0, 0),
}


class RawRecord(NamedTuple):
    """A record whose data is still `wire[start:end]`, unread."""

    owner: bytes
    """Uncompressed and in lower case."""
    rtype: int
    rclass: int
    ttl: int
    """As sent, not clamped. For OPT it holds flags instead."""
    start: int
    end: int


class Record(NamedTuple):
    """A record of class IN that can be written anywhere."""

    owner: bytes
    """Uncompressed and in lower case."""
    rtype: int
    ttl_s: int
    """As sent, not clamped."""
    data: bytes
    """Free of compression; names in it keep their case."""


def read_records(wire: bytes, start: int, count: int) -> tuple[list[RawRecord], int]:
    """`count` records from `start`, and where they end. Raises `BadResponse`."""
    records = []
    for _ in range(count):
        record = _read_record(wire, start)
        records.append(record)
        start = record.end
    return records, start


def _read_record(wire: bytes, start: int) -> RawRecord:
    owner, position = read_name(wire, start)
    data = position + RECORD.size
    if data > len(wire):
        raise BadResponse("truncated in a record")
    rtype, rclass, ttl, length = RECORD.unpack_from(wire, position)
    if data + length > len(wire):
        raise BadResponse("truncated in a record's data")
    return RawRecord(owner.lower(), rtype, rclass, ttl, data, data + length)


def read_name(wire: bytes, start: int) -> tuple[bytes, int]:
    """The name at `start`, uncompressed, and where it ends (RFC 1035 section 4.1.4).

    Raises `BadResponse`. A pointer must point before the piece of name that it ends, so that
    following pointers always comes to an end.
    """
    parts = []
    length = 1
    position = piece = start
    end = 0
    pointers = 0
    try:
        while octet := wire[position]:
            if octet >= _POINTER:
                target = (octet ^ _POINTER) << 8 | wire[position + 1]
                end = end or position + 2
                pointers += 1
                if target >= piece or pointers > MAX_POINTERS:
                    raise BadResponse("a compression pointer that does not go back")
                position = piece = target
                continue
            if octet > MAX_LABEL_BYTES:
                raise BadResponse("a label of an unknown kind")
            length += 1 + octet
            if length > MAX_NAME_BYTES:
                raise BadResponse("a name longer than 255 bytes")
            parts.append(wire[position : position + 1 + octet])
            position += 1 + octet
    except IndexError:
        raise BadResponse("truncated in a name") from None
    return b"".join(parts) + b"\0", end or position + 1


def skip_name(wire: bytes, start: int) -> int:
    """Where the name at `start` ends, without following pointers. Raises `BadResponse`."""
    position = start
    try:
        while octet := wire[position]:
            if octet >= _POINTER:
                return position + 2
            position += 1 + octet
    except IndexError:
        raise BadResponse("truncated in a name") from None
    return position + 1


def opened(wire: bytes, raw: RawRecord) -> Record:
    """The record with its data read and freed of compression. Raises `BadResponse`."""
    ttl_s = 0 if raw.ttl & _TTL_SIGN else raw.ttl
    layout = _LAYOUTS.get(raw.rtype)
    if layout is None or raw.rclass != CLASS_IN:
        return Record(raw.owner, raw.rtype, ttl_s, wire[raw.start : raw.end])
    before, names, after = layout
    position = raw.start + before
    parts = [wire[raw.start : position]]
    for _ in range(names):
        name, position = read_name(wire, position)
        parts.append(name)
    if position + after != raw.end:
        raise BadResponse(f"data of type {raw.rtype} is not of its length")
    parts.append(wire[position : raw.end])
    return Record(raw.owner, raw.rtype, ttl_s, b"".join(parts))
