r"""Names: as the bytes of a message, and as the one text that policies, caches and logs compare.

The text is lower-case without the trailing dot, so the root is the empty text. Every byte outside
`[a-z0-9_-]` is written `\DDD`, its decimal value in three digits (RFC 1035 section 5.1), a dot
inside a label included: two names have the same text only if they are the same name, and a "."
in it always separates labels, so matching a suffix cannot be tricked by what a label contains.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

#: RFC 1035 section 2.3.4.
MAX_NAME_BYTES = 255
MAX_LABEL_BYTES = 63

#: Nearly every name that there is.
_PLAIN_LABELS = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*").fullmatch
_ALL_PLAIN = re.compile(rb"[a-z0-9_.-]*").fullmatch
_NOT_PLAIN = re.compile(rb"[^a-z0-9_-]")
_REVERSE4, _REVERSE6 = ".in-addr.arpa", ".ip6.arpa"
_OCTET = re.compile(r"25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9]").fullmatch
_NIBBLE = re.compile(r"[0-9a-f]").fullmatch
_UNITS = re.compile(rb"\\([0-9]{3})|([^\\])", re.DOTALL)


def text_of(labels: Sequence[bytes]) -> str:
    """The text of a name whose labels, without the root's, are given in lower case."""
    joined = b".".join(labels)
    if _ALL_PLAIN(joined) and joined.count(b".") == max(len(labels) - 1, 0):
        return joined.decode("ascii")
    return b".".join(_NOT_PLAIN.sub(_escaped, label) for label in labels).decode("ascii")


def _escaped(match: re.Match[bytes]) -> bytes:
    return b"\\%03d" % match[0][0]


def labels_of(name: bytes) -> list[bytes]:
    """The labels of an uncompressed name in wire form, without the root's."""
    labels = []
    position = 0
    while length := name[position]:
        labels.append(name[position + 1 : position + 1 + length])
        position += 1 + length
    return labels


def wire_of(text: str) -> bytes:
    """The wire form, in lower case, of a name in text; a trailing dot is allowed.

    Raises `ValueError` for what is no name: an empty or too long label, too long in all, a
    character beyond ASCII (an internationalised name is written in its `xn--` form) or a
    backslash that begins no `\\DDD`.
    """
    plain = canonical(text)
    if plain and _PLAIN_LABELS(plain) and len(plain) <= MAX_NAME_BYTES - 2:
        labels = plain.encode("ascii").split(b".")
        return b"".join([b"%c%b" % (len(label), label) for label in labels]) + b"\0"
    wire = bytearray()
    for part in plain.split(".") if plain else ():
        label = _unescaped(part).lower()
        if not 0 < len(label) <= MAX_LABEL_BYTES:
            raise ValueError(f"{text!r} has a label of {len(label)} bytes")
        wire.append(len(label))
        wire += label
    wire.append(0)
    if len(wire) > MAX_NAME_BYTES:
        raise ValueError(f"{text!r} is longer than a name may be")
    return bytes(wire)


def canonical(text: str) -> str:
    """A name that an owner typed, as the text that is compared: lower case, no trailing dot."""
    # str.lower would turn KELVIN SIGN into "k": beyond ASCII there is no name to make of it.
    return (text.lower() if text.isascii() else text).removesuffix(".")


def _unescaped(part: str) -> bytes:
    try:
        raw = part.encode("ascii")
    except UnicodeEncodeError:
        raise ValueError(f"{part!r} is not ASCII") from None
    label = bytearray()
    position = 0
    while position < len(raw):
        unit = _UNITS.match(raw, position)
        if unit is None or (unit[1] and int(unit[1]) > 255):
            raise ValueError(f"{part!r} has a backslash that begins no \\DDD")
        label += bytes([int(unit[1])]) if unit[1] else unit[2]
        position = unit.end()
    return bytes(label)


def reversed_address(name: str) -> IPv4Address | IPv6Address | None:
    """The address that a name (canonical text) of the reverse tree stands for.

    RFC 1035 section 3.5, RFC 3596 section 2.5; `None` for all other names, zones included.
    """
    if name.endswith(_REVERSE4):
        octets = name.removesuffix(_REVERSE4).split(".")
        if len(octets) == 4 and all(_OCTET(each) for each in octets):
            return IPv4Address(bytes(map(int, reversed(octets))))
    elif name.endswith(_REVERSE6):
        nibbles = name.removesuffix(_REVERSE6).split(".")
        if len(nibbles) == 32 and all(_NIBBLE(each) for each in nibbles):
            return IPv6Address(bytes.fromhex("".join(reversed(nibbles))))
    return None
