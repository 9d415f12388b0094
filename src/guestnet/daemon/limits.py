"""What a request may be, before anything reads it."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import ConfigError
from .faults import answer

#: A policy of `MAX_TEXT` (a million) characters, each written as six (`\\u0041`), and the rest.
MAX_BODY_BYTES = 8 << 20


class Limits:
    """ASGI middleware: refuses bodies that are too large, and queries that are not UTF-8."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if not _is_text(scope["query_string"]):
            # Elsewhere such bytes become U+FFFD, and the id of another guest.
            refusal = answer(ConfigError("query", scope["query_string"], "is not UTF-8"))
            await refusal(scope, receive, send)
            return
        if _announced(scope) > MAX_BODY_BYTES:
            refusal = answer(_too_large(), 413)
            await refusal(scope, receive, send)
            return
        await self._app(scope, _counted(receive), send)


def _is_text(query: bytes) -> bool:
    try:
        unquote_to_bytes(query).decode()
    except UnicodeDecodeError:
        return False
    return True


def _announced(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


def _counted(receive: Receive) -> Receive:
    """`receive` for a body that did not announce its size."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > MAX_BODY_BYTES:
            raise HTTPException(413, _too_large().expected)
        return message

    return counted


def _too_large() -> ConfigError:
    return ConfigError("body", "…", f"a request has at most {MAX_BODY_BYTES} bytes")
