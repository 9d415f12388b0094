"""DNS names: their one spelling, what lies below one, and the name that a flow goes by."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

import idna

from ..errors import ConfigError

#: Ports of services that resolve names beside the gateway: NetBIOS, DNS over TLS and QUIC,
#: multicast DNS, LLMNR. Guests whose policy has rules by name have none of them; port 53 is the
#: gateway's.
NAME_SERVICES = (137, 138, 784, 853, 5353, 5355, 8853)
#: RFC 1035 section 2.3.4, as text without the root's dot.
MAX_NAME = 253
MAX_LABEL = 63
#: Characters of non-ASCII text that are worked on: mapping may shorten a name, but not by this.
_MAX_UNICODE = 1024
#: A wrong name in an error; what is longer is cut.
_SHOWN = 300

# The underscore is no host's but is common in names of services (RFC 8552).
_LABEL = re.compile(r"[a-z0-9_-]*")
# What `inet_aton` and the URL standard ("ends in a number") read as an IPv4 address.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


def canonical_name(text: str) -> str:
    """The one spelling of a DNS name: lower-case ASCII labels, without the root's dot.

    Other scripts become A-labels: IDNA2008 (RFC 5891) after the mapping of UTS #46. Raises
    `ConfigError`, whatever the text: an address, a wildcard and the root are no names.
    """
    name = text.lower() if text.isascii() else _ascii(text)
    name = name.removesuffix(".")
    if not name:
        _refuse(text, "a name as in api.example.com")
    if len(name) > MAX_NAME:
        _refuse(text, f"a name has at most {MAX_NAME} characters")
    labels = name.split(".")
    for label in labels:
        if not _LABEL.fullmatch(label):
            _refuse(text, "a name has letters, digits, '-' and '_' between its dots")
        if not 1 <= len(label) <= MAX_LABEL:
            _refuse(text, f"a name has 1 to {MAX_LABEL} characters between its dots")
    if _NUMBER.fullmatch(labels[-1]):
        _refuse(text, "an address is no name, and no name ends in a number")
    return name


def is_below(name: str, suffix: str) -> bool:
    """Whether `name` is `suffix` or lies below it, label by label; both are canonical."""
    return name == suffix or name.endswith("." + suffix)


def _ascii(text: str) -> str:
    if len(text) > _MAX_UNICODE:
        _refuse(text, f"a name has at most {MAX_NAME} characters")
    try:
        mapped = idna.uts46_remap(text, std3_rules=False)
        return ".".join(
            label if label.isascii() else idna.alabel(label).decode("ascii")
            for label in mapped.split(".")
        )
    except ValueError as error:  # IDNAError, and what unicodedata and the codecs raise
        raise ConfigError("name", text[:_SHOWN], "is no name that IDNA allows") from error


def _refuse(text: str, expected: str) -> NoReturn:
    raise ConfigError("name", text[:_SHOWN], expected)


@dataclass(frozen=True, slots=True)
class FlowName:
    """The name that a flow goes by, as its first bytes or the DNS said it.

    Raises `ConfigError` if it is no name.
    """

    name: str
    """Canonical, whatever spelling was given."""
    verified: bool
    """Whether the flow's address is one that this name really has."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", canonical_name(self.name))
