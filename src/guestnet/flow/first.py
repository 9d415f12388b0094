"""Whom a client's first bytes name: TLS, HTTP, or a protocol that carries no name."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from .hello import read_client_hello
from .http import read_request_head

#: What an SSH client begins with, without waiting for the server (RFC 4253 section 4.2).
_SSH = b"SSH-"


@dataclass(frozen=True, slots=True)
class First:
    """What a client's first bytes are."""

    name: str
    """The host that they name; empty where they name none."""
    is_http: bool = False
    """They are an HTTP request, and another may follow that names another host."""


def read_first(data: bytes, before: int = 0) -> First | None:
    """What a client's first bytes are, or `None` while it is too early to say.

    For the first `before` of them it was too early: they need not be read again.

    Raises `NotHello` or `NotHttp` where they are neither, and no protocol without names.
    """
    if data[:1] == b"\x16":
        hello = read_client_hello(data)
        return None if hello is None else First(hello.server_name or "")
    if data[:4] == _SSH:
        return First("")
    if _SSH.startswith(data):
        return None
    head = read_request_head(data, before)
    return None if head is None else First(head.host or "", is_http=True)


def is_address(host: str) -> bool:
    """Whether a Host is an address, not a name."""
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
