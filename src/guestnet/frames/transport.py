"""How a VMM gets its guest's frames when it does not open the TAP itself, as text and as a value.

KIND[+vnet]:PATH        stream:/run/vm-1.sock    dgram+vnet:/run/vm-1.sock
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from ..errors import ConfigError

#: sun_path of sockaddr_un is 108 bytes with its terminating zero (linux/un.h).
PATH_MAX_BYTES = 107
#: A VMM that names its own end (QEMU's dgram) puts it beside ours, under this name more.
PEER_SUFFIX = ".vmm"
_VNET = "+vnet"
_SYNTAX = "is KIND:PATH or KIND+vnet:PATH, as stream:/run/vm-1.sock"


class Kind(StrEnum):
    """Who listens, and how frames are told apart."""

    #: We listen on a stream socket; each frame follows its length in 4 bytes, big-endian.
    STREAM = "stream"
    #: The same framing on a socket on which the VMM listens; we connect, again and again.
    STREAM_CLIENT = "stream-client"
    #: A datagram is a frame; answers go to whoever sent the last one.
    DGRAM = "dgram"
    #: Whoever connects is handed the open TAP (SCM_RIGHTS), and no frame passes here.
    TAP_FD = "tap-fd"


@dataclass(frozen=True, slots=True)
class Transport:
    """One transport, checked."""

    kind: Kind
    #: Absolute path of the socket.
    path: str
    #: Each frame is preceded by a 12-byte virtio-net header, and may be a large segment.
    vnet_hdr: bool = False

    def __str__(self) -> str:
        return f"{self.kind.value}{_VNET if self.vnet_hdr else ''}:{self.path}"

    @property
    def peer_path(self) -> str:
        """Where a VMM that names its own datagram socket puts it."""
        return self.path + PEER_SUFFIX

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a transport's text; raises `ConfigError` saying what would be right."""
        word, colon, path = text.partition(":")
        name = word.removesuffix(_VNET)
        try:
            kind = Kind(name)
        except ValueError:
            raise ConfigError("transport", text, _unknown(name) if colon else _SYNTAX) from None
        if not colon or not path:
            raise ConfigError("transport", text, _SYNTAX)
        _check_path(text, kind, path)
        return cls(kind, path, word.endswith(_VNET))


def _unknown(name: str) -> str:
    kinds = [each.value for each in Kind]
    # `qemu-stream`, `unixgram`: words that VMMs have for these.
    near = [kind for kind in kinds if kind in name] or difflib.get_close_matches(name, kinds, n=1)
    if not near and name.endswith("gram"):
        near = [Kind.DGRAM.value]
    hint = f"did you mean {near[-1]!r}? " if near else ""
    return f"{hint}transports: {', '.join(kinds)}, each with +vnet for the virtio-net header"


def _check_path(text: str, kind: Kind, path: str) -> None:
    longest = PATH_MAX_BYTES - (len(PEER_SUFFIX) if kind is Kind.DGRAM else 0)
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise ConfigError("transport", text, "a socket's path is valid UTF-8 text") from None
    if not path.startswith("/"):
        raise ConfigError("transport", text, f"the path is absolute, as /run/{path}")
    if path.endswith("/") or any(part in ("", ".", "..") for part in path.split("/")[1:]):
        raise ConfigError("transport", text, "the path names a file, without empty parts and dots")
    if not path.isprintable():
        raise ConfigError("transport", text, "the path has characters that cannot be printed")
    if size > longest:
        raise ConfigError(
            "transport", text, f"a {kind.value} path has at most {longest} bytes, this has {size}"
        )
