"""Whom an HTTP/1 client asks for, and how much it says: the head of a request.

The grammar is RFC 9112's without its leniencies, each of which has let someone say one host to a
filter and another to the server behind it:

    blank lines before the request (section 2.2), LF alone as line end (2.2), folded lines (5.2),
    a target whose authority is not the Host (3.2.2), Host twice or not at all (3.2), `name :` (5.1)

or, in what says where the next request begins (section 6):

    Content-Length twice or beside Transfer-Encoding, or as anything but digits; a coding other than
    `chunked`, or in HTTP/1.0

`CONNECT` and HTTP/2's preface are no requests that a host answers here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import NoReturn

from .spoken import NotName, spoken_name

#: Bytes of request line and headers together; nginx and Apache take 8 KiB a line, Envoy 60 KiB.
MAX_HEAD_BYTES = 16384
#: Bytes of a method; the longest registered is UPDATEREDIRECTREF (17). What goes on is not HTTP.
MAX_METHOD_BYTES = 32

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110 section 5.6.2
_REQUEST = re.compile(rb"(%b) ([!-~]+) (HTTP/1\.[01])" % _TOKEN)
_WORD = re.compile(_TOKEN)
#: Beyond these nothing may stand in a line: no control but HTAB, so no CR, LF or NUL.
_BAD_BYTE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(?:[/?#].*)?", re.IGNORECASE)
_AUTHORITY = re.compile(rb"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\[\]:@]+))(?::(?P<port>.*))?")
_LENGTH = re.compile(rb"[0-9]{1,18}")
#: Headers that say where a request goes and where it ends.
_FIELDS = (b"host", b"content-length", b"transfer-encoding", b"upgrade")
_PORT = re.compile(rb"[1-9][0-9]{0,4}")


class NotHttp(ValueError):  # noqa: N818 - an outcome of reading: the bytes may be fine otherwise
    """The bytes begin no HTTP/1 request that can be relied on; the reason never quotes them."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Head:
    """What the head of a request says about its destination."""

    method: str
    target: str
    """As written: `/path?query`, `http://host/path`, or `*`."""
    host: str | None
    """Canonical name, or an IP address's text without brackets. `None`: HTTP/1.0 without a Host."""
    port: int | None
    """`None` where the Host names none."""
    is_address: bool
    """`host` is an IP address, not a name."""
    length: int
    """Bytes up to the end of the blank line."""
    body: int | None = 0
    """Bytes of the body that follows. `None`: it comes in chunks."""
    websocket: bool = False
    """It asks for a WebSocket (RFC 6455 section 4.1) in the place of further requests."""


def read_request_head(data: bytes, before: int = 0) -> Head | None:
    """The request head at the start of `data`, or `None` while more bytes are needed.

    For its first `before` bytes that was the answer already: their lines are not read again before
    the head has ended, or one that comes in single bytes would cost its length squared.

    Raises `NotHttp` at the first line that no further byte could save: for another protocol than
    HTTP mostly at its first byte.
    """
    window = data[:MAX_HEAD_BYTES]
    request: tuple[bytes, bytes, bytes] | None = None
    fields: dict[bytes, list[bytes]] = {name: [] for name in _FIELDS}
    start = _unread(window, before)
    _check_method(window)
    while (end := window.find(b"\r\n", start)) >= 0:
        line = window[start:end]
        if start == 0:
            request = _read_request_line(line)
        elif line or request is None:
            name, value = _read_field(line)
            if name in fields:
                fields[name].append(value)
        else:
            return _head(request, fields, end + 2)
        start = end + 2
    # Of an unfinished line, the last byte may be the first half of its end.
    _check_bytes(window[max(start, before - 1) :].removesuffix(b"\r"))
    if len(data) >= MAX_HEAD_BYTES:
        _refuse("the head is too long")
    return None


def _unread(window: bytes, before: int) -> int:
    """Where to begin: at the last line that was begun before, at the front if the head is whole."""
    if window.find(b"\r\n\r\n", max(before - 3, 0)) >= 0:
        return 0
    last = window.rfind(b"\r\n", 0, before)
    return 0 if last < 0 else last + 2


def _check_method(window: bytes) -> None:
    """Refuse what does not begin like a request, as soon as that shows."""
    method = _WORD.match(window)
    end = 0 if method is None else method.end()
    if end > MAX_METHOD_BYTES or (window and end == 0) or window[end : end + 1] not in b" ":
        _refuse("no method")


def _check_bytes(line: bytes) -> None:
    if _BAD_BYTE.search(line):
        _refuse("a control character, or a line that does not end with CRLF")


def _read_request_line(line: bytes) -> tuple[bytes, bytes, bytes]:
    """Method, target and version."""
    _check_bytes(line)
    found = _REQUEST.fullmatch(line)
    if found is None:
        _refuse("no request line of HTTP/1.0 or HTTP/1.1")
    method, target, version = found.groups()
    if method.upper() == b"CONNECT":
        _refuse("CONNECT is for proxies")
    if target != b"*" and not target.startswith(b"/") and not _ABSOLUTE.fullmatch(target):
        _refuse("the target is neither a path nor a URL")
    if target == b"*" and method != b"OPTIONS":
        _refuse("the target * is for OPTIONS")
    return method, target, version


def _read_field(line: bytes) -> tuple[bytes, bytes]:
    """A header's name in lower case, and its value."""
    _check_bytes(line)
    name, colon, value = line.partition(b":")
    if not colon or not _WORD.fullmatch(name):
        _refuse("no header: a folded line, or space around its name")
    return name.lower(), value.strip(b" \t")


def _head(
    request: tuple[bytes, bytes, bytes], fields: dict[bytes, list[bytes]], length: int
) -> Head:
    method, target, version = request
    hosts = fields[b"host"]
    if len(hosts) > 1:
        _refuse("more than one Host")
    if not hosts and version != b"HTTP/1.0":
        _refuse("no Host")
    place = _read_authority(hosts[0]) if hosts else None
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute and (place is None or _read_authority(absolute[1]) != place):
        _refuse("the target's host is not the Host")
    host, port, is_address = place or (None, None, False)
    return Head(
        method.decode("ascii"), target.decode("ascii"), host, port, is_address, length,
        _read_body(version, fields[b"content-length"], fields[b"transfer-encoding"]),
        [value.lower() for value in fields[b"upgrade"]] == [b"websocket"],
    )  # fmt: skip


def _read_body(version: bytes, lengths: list[bytes], codings: list[bytes]) -> int | None:
    """Bytes of the body, or `None` for chunks (RFC 9112 section 6.3)."""
    if codings:
        if lengths or version == b"HTTP/1.0" or [c.lower() for c in codings] != [b"chunked"]:
            _refuse("Transfer-Encoding beside Content-Length, in HTTP/1.0, or not just chunked")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        _refuse("more than one Content-Length, or one that is no number")
    return int(lengths[0])


def _read_authority(raw: bytes) -> tuple[str, int | None, bool]:
    """Host, port, and whether the host is an address (RFC 3986 section 3.2, without userinfo)."""
    found = _AUTHORITY.fullmatch(raw)
    if found is None:
        _refuse("the Host is empty or has more than host and port")
    port = _read_port(found["port"])
    try:
        if found["v6"] is not None:
            return str(IPv6Address(found["v6"].decode("ascii"))), port, True
        return _read_host(found["host"]), port, _is_ipv4(found["host"])
    except AddressValueError:
        _refuse("the Host is no IPv6 address")
    except NotName as error:
        raise NotHttp(f"Host: {error}") from None


def _read_host(raw: bytes) -> str:
    return raw.decode("ascii") if _is_ipv4(raw) else spoken_name(raw)


def _is_ipv4(raw: bytes) -> bool:
    """Four decimal numbers without leading zeros: the only spelling whose value is undisputed."""
    try:
        IPv4Address(raw.decode("ascii"))
    except (AddressValueError, UnicodeDecodeError):
        return False
    return True


def _read_port(raw: bytes | None) -> int | None:
    if raw is None:
        return None
    if not _PORT.fullmatch(raw) or int(raw) > 2**16 - 1:
        _refuse("the Host's port is no port")
    return int(raw)


def _refuse(reason: str) -> NoReturn:
    raise NotHttp(reason)
