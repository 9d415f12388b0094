"""The transport: JSON over HTTP on the daemon's Unix socket, and its errors as exceptions again."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from ..errors import (
    BusyError,
    ConfigError,
    ConflictError,
    GuestnetError,
    HostError,
    NotFoundError,
    PolicyError,
    PoolFullError,
    UnreachableError,
)

#: Seconds to wait for the daemon to accept; longer means that it hangs.
CONNECT_TIMEOUT_S = 5
#: Seconds to wait for an answer. Repairing 10,000 guests takes some.
ANSWER_TIMEOUT_S = 120.0
#: Connections kept between requests: about as many as threads that ask at once.
MAX_IDLE = 8

#: What connecting fails with where no daemon runs, as opposed to one that is out of reach.
NO_DAEMON = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED})

#: struct ucred: pid, uid, gid (unix(7), SO_PEERCRED).
_UCRED = struct.Struct("=iII")
_ERRORS: Mapping[str, type[GuestnetError]] = {
    kind.code: kind
    for kind in (
        BusyError,
        ConfigError,
        ConflictError,
        GuestnetError,
        HostError,
        NotFoundError,
        PolicyError,
        PoolFullError,
        UnreachableError,
    )
}

Query = Mapping[str, str | int | Sequence[str] | None]


def error_from(document: Mapping[str, Any]) -> GuestnetError:
    """The error that the daemon encoded: its class, its text, its attributes."""
    kind = _ERRORS.get(str(document.get("code")), GuestnetError)
    error = kind.__new__(kind)
    # The text is the daemon's own: building it anew from values that JSON changed would alter it.
    error.args = (str(document.get("message", "")),)
    error.__dict__.update({k: v for k, v in document.items() if k not in ("code", "message")})
    return error


class Api:
    """JSON requests to one daemon. Thread-safe: each takes an idle connection or opens one.

    `answer_s` is how long an answer may take.
    """

    def __init__(self, path: Path, *, answer_s: float = ANSWER_TIMEOUT_S) -> None:
        self.path = path
        self._answer_s = answer_s
        self._idle: list[_Connection] = []
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def open(self) -> None:
        """Connect now rather than with the first request."""
        self._keep(_Connection.open(self.path))

    def close(self) -> None:
        """Close the idle connections; a later request opens a new one."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def peer(self) -> tuple[int, int]:
        """The daemon's pid, and a descriptor of that very process (pidfd); the caller closes it."""
        connection = _Connection.open(self.path)
        try:
            found = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            pid = int(_UCRED.unpack(found)[0])
            try:
                process = os.pidfd_open(pid)
            except OSError as error:
                raise HostError.from_os("pidfd_open", f"pid {pid}", error) from None
            if connection.is_stale():
                # It ended meanwhile, and the pid may be another's already.
                os.close(process)
                raise UnreachableError("ask", str(self.path), errno.ECONNREFUSED, "it just ended")
        finally:
            connection.close()
        return pid, process

    def get(self, path: str, query: Query | None = None) -> Any:
        """The JSON at `path`."""
        return json.loads(self.request("GET", path, query))

    def post(self, path: str, body: object = None) -> Any:
        """Send `body` as JSON; returns the answer's."""
        return json.loads(self.request("POST", path, body=json.dumps(body).encode()))

    def delete(self, path: str, query: Query | None = None) -> Any:
        """Delete what is at `path`; returns the answer's JSON."""
        return json.loads(self.request("DELETE", path, query))

    def stream(self, path: str, query: Query | None = None) -> Iterator[str]:
        """The data of server-sent events, on a connection of its own, until it ends."""
        with contextlib.closing(_Connection.open(self.path)) as connection:
            connection.request("GET", path + _query(query or {}))
            response = connection.getresponse()
            if response.status >= 400:
                raise _refusal(response.status, f"GET {path}", response.read())
            connection.sock.settimeout(None)
            while line := response.readline():
                if line.startswith(b"data: "):
                    yield line[6:].decode().rstrip()

    def request(
        self, method: str, path: str, query: Query | None = None, body: bytes | None = None
    ) -> bytes:
        """Ask, and return the answer's body. An error's answer raises the error it stands for."""
        target = path + _query(query or {})
        try:
            status, content = self._exchange(method, target, body, self._take())
        except _LostConnectionError as lost:
            # A daemon that goes down closes its connections. What only reads may be asked again;
            # of the rest nobody knows whether it was done.
            if method != "GET":
                raise self._unanswered(method, path, lost) from None
            try:
                status, content = self._exchange(method, target, body, None)
            except _LostConnectionError as again:
                raise self._unanswered(method, path, again) from None
        if status >= 400:
            raise _refusal(status, f"{method} {path}", content)
        return content

    def _exchange(
        self, method: str, target: str, body: bytes | None, connection: _Connection | None
    ) -> tuple[int, bytes]:
        connection = connection or _Connection.open(self.path)
        try:
            connection.sock.settimeout(self._answer_s)
            headers = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise _LostConnectionError(error) from None
        except BaseException:
            connection.close()
            raise
        if response.will_close:
            connection.close()
        else:
            self._keep(connection)
        return response.status, content

    def _take(self) -> _Connection | None:
        with self._lock:
            if self._pid != os.getpid():
                # After a fork the parent goes on talking on these.
                self._pid, self._idle = os.getpid(), []
            while self._idle:
                connection = self._idle.pop()
                if not connection.is_stale():
                    return connection
                connection.close()
        return None

    def _keep(self, connection: _Connection) -> None:
        with self._lock:
            if len(self._idle) < MAX_IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def _unanswered(self, method: str, path: str, lost: _LostConnectionError) -> UnreachableError:
        number = lost.error.errno or 0 if isinstance(lost.error, OSError) else 0
        slow = isinstance(lost.error, TimeoutError)
        why = f"no answer within {self._answer_s:g} s" if slow else "it ended without an answer"
        again = "" if method == "GET" else "; whether it was done is not known, so look, or repeat"
        return UnreachableError(
            f"{method} {path}", f"on {self.path}", errno.ETIMEDOUT if slow else number, why + again
        )


class _LostConnectionError(Exception):
    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Connect, or raise `UnreachableError`."""
        connection = cls("guestnet")
        try:
            connection.sock = _connected(path)
        except OSError as error:
            remedy = {
                errno.ENOENT: "no daemon runs here; run: guestnet up",
                errno.ENOTDIR: "no daemon can run here; choose another run directory",
                errno.ECONNREFUSED: "its daemon is gone; run: guestnet up",
                errno.EACCES: "the socket is for root, or the members of socket_group",
                errno.EAGAIN: f"the daemon has not answered for {CONNECT_TIMEOUT_S} s",
            }.get(error.errno or 0, "run: guestnet doctor")
            raise UnreachableError("connect", str(path), error.errno or 0, remedy) from None
        return connection

    def is_stale(self) -> bool:
        """Whether the daemon has closed it: between requests it never has anything to say."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0))


def _connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # While connecting it must block: one with a timeout of Python's would be refused (EAGAIN)
        # as soon as many connect at once, instead of waiting for its turn.
        limit = struct.pack("ll", CONNECT_TIMEOUT_S, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        sock.connect(os.fspath(path))
        sock.settimeout(ANSWER_TIMEOUT_S)
    except BaseException:
        sock.close()
        raise
    return sock


def _query(query: Query) -> str:
    """`?key=value…`; a guest's id may be any text, so every byte of a value is quoted."""
    pairs = [
        (key, str(item))
        for key, value in query.items()
        if value is not None
        for item in ([value] if isinstance(value, (str, int)) else value)
    ]
    try:
        text = "&".join(f"{key}={quote(value, safe='')}" for key, value in pairs)
    except UnicodeEncodeError as error:
        raise ConfigError("guest", error.object, "is not valid UTF-8 text") from None
    return f"?{text}" if text else ""


def _refusal(status: int, what: str, content: bytes) -> GuestnetError:
    with contextlib.suppress(ValueError):
        document = json.loads(content)
        if isinstance(document, dict) and "code" in document:
            return error_from(document)
    return HostError(what, "was refused", 0, f"HTTP {status}: {content[:200]!r}")
