"""Whom a client's first bytes name: TLS, HTTP, or a protocol that carries no name."""

from __future__ import annotations

from ipaddress import ip_address

from .hello import read_client_hello
from .http import read_request_head

#: What an SSH client begins with, without waiting for the server (RFC 4253 section 4.2).
_SSH = b"SSH-"


def first_name(data: bytes) -> str | None:
    """The name that a client's first bytes speak: `None` is too early to say, empty is none.

    Raises `NotHello` or `NotHttp` where they are neither, and no protocol without names.
    """
    if data[:1] == b"\x16":
        hello = read_client_hello(data)
        return None if hello is None else hello.server_name or ""
    if data[:4] == _SSH:
        return ""
    if _SSH.startswith(data):
        return None
    head = read_request_head(data)
    return None if head is None else head.host or ""


def is_address(host: str) -> bool:
    """Whether a Host is an address, not a name."""
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
