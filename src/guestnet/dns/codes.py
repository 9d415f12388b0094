"""The numbers of DNS that this room gives a meaning, and its limits of size.

Source: the IANA "Domain Name System (DNS) Parameters" registry, and the RFCs named per line.
"""

from __future__ import annotations

from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address


class Rcode(IntEnum):
    """How a question fared (RFC 1035 section 4.1.1, RFC 6891 section 9)."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16
    """Needs an OPT record to be said: its upper bits travel there."""


class Ede(IntEnum):
    """Why, in a word for the person who looks with `dig` (RFC 8914 section 4)."""

    OTHER = 0
    STALE_ANSWER = 3
    NOT_READY = 14
    BLOCKED = 15
    """By the operator's policy: ours."""
    CENSORED = 16
    FILTERED = 17
    """As the client itself, or its owner, has asked."""
    PROHIBITED = 18
    NO_REACHABLE_AUTHORITY = 22
    NETWORK_ERROR = 23


class Rtype(IntEnum):
    """Types that are treated in a way of their own; every other number is an opaque type."""

    A = 1
    NS = 2
    MD = 3
    MF = 4
    CNAME = 5
    SOA = 6
    MB = 7
    MG = 8
    MR = 9
    PTR = 12
    MINFO = 14
    MX = 15
    TXT = 16
    RP = 17
    AFSDB = 18
    RT = 21
    PX = 26
    AAAA = 28
    SRV = 33
    KX = 36
    DNAME = 39
    OPT = 41
    RRSIG = 46
    NSEC = 47
    NSEC3 = 50
    SVCB = 64
    HTTPS = 65


CLASS_IN = 1
#: The versions of the addresses that types of records hold.
VERSIONS: dict[int, int] = {Rtype.A: 4, Rtype.AAAA: 6}

#: Header (RFC 1035 section 4.1.1): id, flags, then the four counts.
HEADER = Struct("!HHHHHH")
HEADER_BYTES = HEADER.size
#: After the name of a record: type, class, TTL, length of the data.
RECORD = Struct("!HHIH")
#: The OPT record (RFC 6891 section 6.1.2) after its empty name: type, payload, upper rcode bits,
#: version, flags, length of the options.
OPT = Struct("!HHBBHH")

FLAG_QR = 0x8000
FLAG_TC = 0x0200
FLAG_RD = 0x0100
FLAG_RA = 0x0080
FLAG_AD = 0x0020
FLAG_CD = 0x0010
OPCODE_SHIFT = 11
OPCODE_MASK = 0xF
RCODE_MASK = 0xF
EDNS_FLAG_DO = 0x8000

#: What every client takes over UDP without EDNS (RFC 1035 section 4.2.1).
MIN_PAYLOAD_BYTES = 512
#: What passes any path unfragmented (DNS Flag Day 2020; RFC 9715 section 3): the most that is
#: offered, accepted and sent over UDP, whatever the other side claims to take.
MAX_PAYLOAD_BYTES = 1232
#: The longest message that its two length bytes over TCP can announce (RFC 1035 section 4.2.2).
MAX_MESSAGE_BYTES = 65535

#: A record that says 0 lives at least this long, or the flow it was asked for would already find
#: the name forgotten.
MIN_TTL_S = 1
#: One day (RFC 8767 section 4 advises a cap, RFC 2181 section 8 allows one): a pin or an answer of
#: years would outlive every reason for it.
MAX_TTL_S = 86_400
#: RFC 2308 section 5: "values of one to three hours have been found to work well".
MAX_NEGATIVE_TTL_S = 3600


def clamped_ttl(ttl_s: int) -> int:
    """The TTL that a guest is told and a pin lives by, for one that an upstream named."""
    return min(max(ttl_s, MIN_TTL_S), MAX_TTL_S)
