"""Whom a TLS client asks for: the ClientHello, read from the first bytes of a connection.

    record      type(1)=22 version(2) length(2) fragment      RFC 8446 section 5.1
    handshake   type(1)=1 length(3) body                      RFC 8446 section 4
    body        version random session_id cipher_suites compression [extensions]    section 4.1.2

A hello may span records, and a record segments: with post-quantum key shares it is 2 to 4 KB.
Stricter than the RFCs, because another reader behind us may choose differently: any extension given
twice, anything after the hello in its last record, a server name that is not exactly one host name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from .spoken import NotName, spoken_name

#: Bytes of the handshake message. nginx's preread buffer and Envoy's TLS inspector hold as much.
MAX_HANDSHAKE_BYTES = 16384
#: Records over which it may be spread. One would do; tools that split it to evade filters use few.
MAX_RECORDS = 64
_RECORD_HEADER_BYTES, _HANDSHAKE_HEADER_BYTES = 5, 4
#: With so many bytes `read_client_hello` never asks for more.
MAX_HELLO_BYTES = MAX_HANDSHAKE_BYTES + _HANDSHAKE_HEADER_BYTES + MAX_RECORDS * _RECORD_HEADER_BYTES

_RECORD_HANDSHAKE, _CLIENT_HELLO = 22, 1
_VERSION_MAJOR = 3
_FRAGMENT_MAX = 2**14
_RANDOM_BYTES = 32
_SESSION_ID_MAX = 32
#: IANA's TLS ExtensionType values.
_SERVER_NAME, _ALPN, _ECH = 0, 16, 0xFE0D
_HOST_NAME = 0


class NotHello(ValueError):  # noqa: N818 - an outcome of reading: the bytes may be fine otherwise
    """The bytes begin no ClientHello that can be relied on; the reason never quotes them."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Hello:
    """What a ClientHello says in the clear."""

    server_name: str | None
    """Lower case, without the root's dot; `None` if the extension is absent."""
    alpn: tuple[str, ...]
    """Protocols offered (RFC 7301), in order; bytes beyond ASCII (GREASE) as Latin-1."""
    has_ech: bool
    """An encrypted_client_hello is there. Browsers send one that says nothing (GREASE) to everyone,
    and no one else can tell it from a real one, whose `server_name` is only the public name."""
    length: int
    """Bytes from the start to the end of the hello's last record."""


def read_client_hello(data: bytes) -> Hello | None:
    """The ClientHello at the start of `data`, or `None` while more bytes are needed.

    Raises `NotHello` as soon as no further byte could make it one: for another protocol than TLS
    at its first byte.
    """
    fragments: list[bytes] = []
    collected = offset = 0
    message_bytes: int | None = None
    while message_bytes is None or collected < message_bytes:
        if len(fragments) == MAX_RECORDS:
            _refuse("the hello is spread over too many records")
        size = _record_size(data, offset)
        begin = offset + _RECORD_HEADER_BYTES
        fragment = data[begin : begin + (size or 0)]
        fragments.append(fragment)
        collected += len(fragment)
        if message_bytes is None:
            message_bytes = _message_size(b"".join(fragments))
        if message_bytes is not None:
            promised = collected - len(fragment) + (size or 0)
            if promised > message_bytes:
                _refuse("something follows the hello in its record")
        if size is None or len(fragment) < size:
            return None
        offset = begin + size
    return _read_body(_Reader(b"".join(fragments)[_HANDSHAKE_HEADER_BYTES:]), offset)


def _record_size(data: bytes, offset: int) -> int | None:
    """The length of the record's fragment, or `None`; what is there of its header is checked."""
    header = data[offset : offset + _RECORD_HEADER_BYTES]
    if header and header[0] != _RECORD_HANDSHAKE:
        _refuse("no TLS handshake record")
    if len(header) > 1 and header[1] != _VERSION_MAJOR:
        _refuse("no version of TLS")
    if len(header) < _RECORD_HEADER_BYTES:
        return None
    size = int.from_bytes(header[3:])
    if not 1 <= size <= _FRAGMENT_MAX:
        _refuse("a record is empty or too long")
    return size


def _message_size(start: bytes) -> int | None:
    """The whole message's length, header included, from its first bytes."""
    if start and start[0] != _CLIENT_HELLO:
        _refuse("the first handshake message is no ClientHello")
    if len(start) < _HANDSHAKE_HEADER_BYTES:
        return None
    size = int.from_bytes(start[1:_HANDSHAKE_HEADER_BYTES])
    if size > MAX_HANDSHAKE_BYTES:
        _refuse("the hello is too long")
    return _HANDSHAKE_HEADER_BYTES + size


class _Reader:
    """Vectors of the TLS presentation language (RFC 8446 section 3), taken from the front."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def __bool__(self) -> bool:
        return self._position < len(self._data)

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        end = self._position + count
        if end > len(self._data):
            _refuse("a field is longer than what holds it")
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def number(self, width: int) -> int:
        """An unsigned integer of `width` bytes."""
        return int.from_bytes(self.take(width))

    def vector(self, width: int, least: int, most: int) -> bytes:
        """A vector whose length takes `width` bytes and lies in `least`..`most`."""
        size = self.number(width)
        if not least <= size <= most:
            _refuse("a field has a length that TLS does not allow")
        return self.take(size)


def _read_body(body: _Reader, length: int) -> Hello:
    if body.number(2) >> 8 != _VERSION_MAJOR:
        _refuse("no version of TLS")
    body.take(_RANDOM_BYTES)
    body.vector(1, 0, _SESSION_ID_MAX)
    if len(body.vector(2, 2, 2**16 - 2)) % 2:
        _refuse("half a cipher suite")
    body.vector(1, 1, 2**8 - 1)
    extensions = _read_extensions(body) if body else {}
    if body:
        _refuse("something follows the extensions")
    server_name, alpn = extensions.get(_SERVER_NAME), extensions.get(_ALPN)
    return Hello(
        None if server_name is None else _read_server_name(server_name),
        () if alpn is None else _read_alpn(alpn),
        _ECH in extensions,
        length,
    )


def _read_extensions(body: _Reader) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    block = _Reader(body.vector(2, 0, 2**16 - 1))
    while block:
        kind = block.number(2)
        if kind in found:
            _refuse("an extension is there twice")
        found[kind] = block.vector(2, 0, 2**16 - 1)
    return found


def _read_server_name(extension: bytes) -> str:
    """The one host name (RFC 6066 section 3, which defines no other type)."""
    outer = _Reader(extension)
    names = _Reader(outer.vector(2, 1, 2**16 - 1))
    if names.number(1) != _HOST_NAME:
        _refuse("the server name is no host name")
    raw = names.vector(2, 1, 2**16 - 1)
    if names or outer:
        _refuse("there is more than one server name")
    try:
        return spoken_name(raw)
    except NotName as error:
        raise NotHello(f"server name: {error}") from None


def _read_alpn(extension: bytes) -> tuple[str, ...]:
    """The protocol names (RFC 7301 section 3.1)."""
    outer = _Reader(extension)
    block = _Reader(outer.vector(2, 2, 2**16 - 1))
    if outer:
        _refuse("something follows the protocol names")
    names = []
    while block:
        names.append(block.vector(1, 1, 2**8 - 1).decode("latin-1"))
    return tuple(names)


def _refuse(reason: str) -> NoReturn:
    raise NotHello(reason)
