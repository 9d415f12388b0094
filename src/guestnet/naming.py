"""What an owner says about names: their one spelling, resolvers, and names of guestnet's own.

9.9.9.9  2620:fe::fe                        a resolver that is asked in clear, on port 53
tls://9.9.9.9#dns.quad9.net                 one over TLS (RFC 7858), and the name that its
tls://[2620:fe::fe]:8853#dns.quad9.net      certificate bears; without one the certificate
                                            bears the address
{"db.test": ["10.0.0.5", "fd00::5"],        records of a network's own: addresses of a name,
 "www.test": "db.test"}                     or the name that it is an alias of
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple, NoReturn, TypeAlias

import idna

from .errors import ConfigError

Address: TypeAlias = IPv4Address | IPv6Address
#: Names of a network's own.
Records: TypeAlias = dict[str, tuple[Address | str, ...]]

#: RFC 1035 section 2.3.4, as text without the root's dot.
MAX_NAME = 253
MAX_LABEL = 63
#: Characters of non-ASCII text that are worked on: mapping may shorten a name, but not by this.
_MAX_UNICODE = 1024
#: A wrong name in an error; what is longer is cut.
_SHOWN = 300

#: Everything below it is guestnet's own; RFC 9476's neighbour `internal` is nobody's (ICANN 2024).
ZONE = "guestnet.internal"
#: The name under which guests find the host.
HOST_ALIAS = f"host.{ZONE}"

#: IANA's ports of DNS and of DNS over TLS (RFC 7858 section 3.1).
DNS_PORT, DNS_TLS_PORT = 53, 853
_TLS = "tls://"
#: Names with records of a network's own: a company's zone belongs into a resolver.
MAX_RECORDS = 1024
#: Addresses of one family of one name: what an answer over UDP has room for.
MAX_ADDRESSES = 8

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


# -- guests' names -----------------------------------------------------------------------------


def guest_label(guest: str) -> str | None:
    """The label under which a guest is found: its id in lower case, if that is one label."""
    label = guest.lower() if guest.isascii() else ""
    return label if _LABEL.fullmatch(label) and 1 <= len(label) <= MAX_LABEL else None


def guests_zone(network: str) -> str:
    """What the names of a network's guests end in."""
    return f"{network}.{ZONE}"


# -- resolvers ---------------------------------------------------------------------------------


class Upstream(NamedTuple):
    """A resolver that questions are put to."""

    address: Address
    port: int = DNS_PORT
    tls: bool = False
    server_name: str = ""
    """What its certificate is to bear; empty is its address."""

    def __str__(self) -> str:
        if not self.tls:
            return str(self.address)
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        port = "" if self.port == DNS_TLS_PORT else f":{self.port}"
        return f"{_TLS}{host}{port}" + (f"#{self.server_name}" if self.server_name else "")


def read_upstream(resolver: Address | str) -> Upstream:
    """A resolver as an owner writes it; raises `ValueError` saying what would be right."""
    if not isinstance(resolver, str):
        return Upstream(resolver)
    if not resolver.startswith(_TLS):
        return Upstream(_address(resolver))
    place, mark, server_name = resolver.removeprefix(_TLS).partition("#")
    if mark:
        try:
            server_name = canonical_name(server_name)
        except ConfigError as error:
            raise ValueError(
                f"behind '#' stands the certificate's name: {error.expected}"
            ) from None
    host, port = _split(place)
    return Upstream(_address(host), port, tls=True, server_name=server_name)


def _address(text: str) -> Address:
    try:
        found = ip_address(text)
    except ValueError:
        raise ValueError(
            "a resolver is an IPv4 or IPv6 address, or tls://ADDRESS[:PORT][#NAME] with the "
            "address of an IPv6 one in brackets"
        ) from None
    if isinstance(found, IPv6Address) and found.scope_id:
        raise ValueError("a resolver's address has no scope")
    return found


def _split(place: str) -> tuple[str, int]:
    """Address and port of `ADDRESS`, `ADDRESS:PORT`, `[IPV6]` and `[IPV6]:PORT`."""
    host, colon, port = place, "", ""
    if place.startswith("["):
        host, _bracket, rest = place[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        if ":" not in host or (rest and colon != ":"):
            raise ValueError("an IPv6 address with a port is written [ADDRESS]:PORT")
    elif place.count(":") == 1:
        host, colon, port = place.partition(":")
    if not colon:
        return host, DNS_TLS_PORT
    if not (port.isascii() and port.isdecimal() and 1 <= int(port[:6]) <= 65535):
        raise ValueError("a port is a number from 1 to 65535")
    return host, int(port)


def read_resolver(value: object) -> Address | str:
    """One of the `dns` of a network: an address, or the canonical text of one over TLS.

    Raises `ValueError`.
    """
    if isinstance(value, (IPv4Address, IPv6Address)):
        return value
    if not isinstance(value, str):
        raise ValueError("a resolver is text: an address, or tls://ADDRESS[:PORT][#NAME]")
    found = read_upstream(value)
    return str(found) if found.tls else found.address


# -- records -----------------------------------------------------------------------------------


def read_records(value: object) -> Records:
    """Names with their addresses, or each with the one name that it is an alias of.

    Raises `ConfigError`.
    """
    if not isinstance(value, Mapping):
        raise ConfigError("records", value, "is a table of names: {'db.test': ['10.0.0.5']}")
    if len(value) > MAX_RECORDS:
        raise ConfigError(
            "records", len(value), f"a network has records for at most {MAX_RECORDS} names"
        )
    found: Records = {}
    for text, data in value.items():
        name = _record_name(text)
        if name in found:
            raise ConfigError(f"records.{name}", text, "stands twice; put its addresses together")
        found[name] = _record_data(f"records.{name}", data)
    for name in found:
        _check_alias(name, found)
    return found


def _record_name(text: object) -> str:
    if not isinstance(text, str):
        raise ConfigError("records", text, "a name is text")
    try:
        name = canonical_name(text)
    except ConfigError as error:
        raise ConfigError("records", text, error.expected) from None
    if is_below(name, ZONE):
        raise ConfigError("records", text, f"names below {ZONE} are guestnet's own")
    return name


def _record_data(key: str, data: object) -> tuple[Address | str, ...]:
    values = (data,) if isinstance(data, (str, IPv4Address, IPv6Address)) else data
    if not isinstance(values, Iterable) or isinstance(values, (bytes, Mapping)):
        raise ConfigError(key, data, "is a list of addresses, or one name")
    found = tuple(dict.fromkeys(_record_value(key, each) for each in values))
    names = [each for each in found if isinstance(each, str)]
    if not found:
        raise ConfigError(key, [], "is a list of addresses, or one name")
    if names and len(found) > 1:
        raise ConfigError(key, names[0], "a name stands alone: an alias has no other records")
    for version in (4, 6):
        number = sum(not isinstance(each, str) and each.version == version for each in found)
        if number > MAX_ADDRESSES:
            expected = f"a name has at most {MAX_ADDRESSES} addresses of a family"
            raise ConfigError(key, number, expected)
    return found


def _record_value(key: str, value: object) -> Address | str:
    if isinstance(value, (IPv4Address, IPv6Address)):
        return value
    if not isinstance(value, str):
        raise ConfigError(key, value, "is the text of an address or of a name")
    try:
        address = ip_address(value)
    except ValueError:
        try:
            return canonical_name(value)
        except ConfigError:
            raise ConfigError(key, value, "is neither an address nor a name") from None
    if (isinstance(address, IPv6Address) and address.scope_id) or address.is_unspecified:
        raise ConfigError(key, value, "is the address of no host")
    return address


def _check_alias(name: str, records: Records) -> None:
    """Raise `ConfigError` if aliases from `name` on lead in a circle."""
    seen = {name}
    target = records[name][0]
    while isinstance(target, str):
        if target in seen:
            raise ConfigError(f"records.{name}", target, "aliases lead in a circle")
        seen.add(target)
        target = records[target][0] if target in records else IPv4Address(0)
