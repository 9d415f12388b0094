"""The one spelling of a host name that a guest wrote into its first bytes.

The grammar is that of `naming.canonical_name` for ASCII. A client sends A-labels (RFC 6066
section 3, RFC 9110 section 4.2.3), so other scripts are no names here: nothing is mapped.
"""

from __future__ import annotations

import re

#: RFC 1035 section 2.3.4, as text without the root's dot.
MAX_NAME = 253

_LABEL = rb"[A-Za-z0-9_-]{1,63}"
_NAME = re.compile(rb"(?:%b\.)*(?P<last>%b)\.?" % (_LABEL, _LABEL))
# What `inet_aton` and the URL standard ("ends in a number") read as an IPv4 address.
_NUMBER = re.compile(rb"[0-9]+|0[xX][0-9A-Fa-f]*")


class NotName(ValueError):  # noqa: N818 - an outcome of reading, like NotHello
    """The bytes are no DNS name; the reason never quotes them."""


def spoken_name(raw: bytes) -> str:
    """The name in lower case without the root's dot; raises `NotName`, for an IP literal too."""
    if len(raw) > MAX_NAME + 1:
        raise NotName(f"a name has at most {MAX_NAME} characters")
    found = _NAME.fullmatch(raw)
    if found is None:
        raise NotName("a name is labels of 1 to 63 letters, digits, '-' and '_'")
    if _NUMBER.fullmatch(found["last"]):
        raise NotName("an address is no name, and no name ends in a number")
    name = raw.decode("ascii").lower().removesuffix(".")
    if len(name) > MAX_NAME:
        raise NotName(f"a name has at most {MAX_NAME} characters")
    return name
