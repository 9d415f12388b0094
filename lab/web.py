"""The lab's web server: one HTTP/1.1 connection, small enough to trust in a test.

GET  /            who answered and whom it saw, as JSON
GET  /bytes/N     N bytes, at most 1 GiB
PUT  /upload      {"received": bytes}, for a body with a Content-Length
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

#: Bytes of a request's head, and of the largest body either way.
HEAD_MAX_BYTES = 16 << 10
BODY_MAX_BYTES = 1 << 30
_CHUNK = bytes(256 << 10)

#: Called with the request line of each request.
Note = Callable[[str], None]


async def serve(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    facts: Mapping[str, Any],
    note: Note,
) -> None:
    """Answer requests until the client is done; `facts` are told by `GET /`."""
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return
        lines = head.decode("latin-1").split("\r\n")
        note(lines[0])
        method, _, rest = lines[0].partition(" ")
        path = rest.partition(" ")[0]
        headers = {
            key.strip().lower(): value.strip()
            for key, colon, value in (line.partition(":") for line in lines[1:])
            if colon
        }
        if not await _respond(reader, writer, method, path, headers, facts):
            return
        await writer.drain()
        if headers.get("connection", "").lower() == "close" or rest.endswith("HTTP/1.0"):
            return


async def _respond(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    method: str,
    path: str,
    headers: Mapping[str, str],
    facts: Mapping[str, Any],
) -> bool:
    """Write one response; false when the connection cannot go on after it."""
    length = _number(headers.get("content-length", "0"))
    if length is None or "transfer-encoding" in headers:
        _head(writer, 411, 0)
        return False
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    received = await _swallow(reader, length)
    if received < length:
        return False
    if path == "/":
        _json(writer, {**facts, "method": method, "host": headers.get("host", "")})
    elif path == "/upload":
        _json(writer, {"received": received})
    elif path.startswith("/bytes/") and (size := _number(path.removeprefix("/bytes/"))) is not None:
        _head(writer, 200, size)
        for start in range(0, size, len(_CHUNK)):
            writer.write(_CHUNK[: size - start])
            await writer.drain()
    else:
        _head(writer, 404, 0)
    return True


async def _swallow(reader: asyncio.StreamReader, length: int) -> int:
    """Read and forget a body; how much of it came."""
    received = 0
    while received < length:
        chunk = await reader.read(min(length - received, 1 << 20))
        if not chunk:
            break
        received += len(chunk)
    return received


def _number(text: str) -> int | None:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 11 else None
    return number if number is None or number <= BODY_MAX_BYTES else None


def _json(writer: asyncio.StreamWriter, value: Mapping[str, Any]) -> None:
    body = json.dumps(value).encode() + b"\n"
    _head(writer, 200, len(body))
    writer.write(body)


def _head(writer: asyncio.StreamWriter, status: int, length: int) -> None:
    writer.write(f"HTTP/1.1 {status} lab\r\nContent-Length: {length}\r\n\r\n".encode())
