"""A DNS responder that knows one table: A and AAAA of the lab's names, NXDOMAIN for the rest.

RFC 1035 section 4.1. One question a message, no compression in questions, no EDNS: clients cope.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address

Zone = Mapping[str, tuple[IPv4Address | IPv6Address, ...]]

A, AAAA = 1, 28
_FORMERR, _NXDOMAIN = 1, 3
_HEADER = struct.Struct("!HHHHHH")
_TTL_S = 30
#: A message before EDNS, and the longest name (RFC 1035 section 2.3.4).
QUERY_MAX_BYTES, _NAME_MAX_BYTES = 512, 255


def answer(query: bytes, zone: Zone) -> tuple[str, bytes] | None:
    """The name asked for and the reply, or `None` for what is no query at all."""
    if len(query) < _HEADER.size:
        return None
    ident, flags, questions, *_ = _HEADER.unpack_from(query)
    if flags & 0x8000:
        return None
    question = _question(query) if questions == 1 else None
    if question is None:
        return "", _HEADER.pack(ident, 0x8080 | _FORMERR, 0, 0, 0, 0)
    name, kind, end = question
    known = name in zone
    records = [
        # 0xC00C points back at the name in the question.
        struct.pack("!HHHIH", 0xC00C, kind, 1, _TTL_S, len(address.packed)) + address.packed
        for address in zone.get(name, ())
        if kind == (A if address.version == 4 else AAAA)
    ]
    # QR, AA, RA, and the client's RD.
    status = 0x8480 | (flags & 0x0100) | (0 if known else _NXDOMAIN)
    header = _HEADER.pack(ident, status, 1, len(records), 0, 0)
    return name, header + query[_HEADER.size : end] + b"".join(records)


def _question(query: bytes) -> tuple[str, int, int] | None:
    """Name in lower case, type, and where the question ends; `None` when it is malformed."""
    labels: list[bytes] = []
    at = _HEADER.size
    while at < min(len(query), _HEADER.size + _NAME_MAX_BYTES):
        size = query[at]
        if size == 0:
            if len(query) < at + 5:
                return None
            kind = struct.unpack_from("!H", query, at + 1)[0]
            return b".".join(labels).decode("ascii", "replace").lower(), kind, at + 5
        if size > 63:
            return None
        labels.append(query[at + 1 : at + 1 + size])
        at += 1 + size
    return None
