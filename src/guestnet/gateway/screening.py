"""HTTP connections that may go to one host: every later request is judged like the first.

Without that a guest could ask an allowed host's server for another host of it, on the connection
that it was allowed. A WebSocket is opaque once the server has agreed to it; nothing else is.
"""

from __future__ import annotations

from collections.abc import Callable

from ..flow.http import Head, NotHttp
from ..flow.requests import Requests
from ..flow.way import Refused

_SWITCHED = b"HTTP/1.1 101"


class Screening:
    """One connection's requests.

    `judge` says whether one may be made, the first as well; of what is none it is told.
    """

    def __init__(self, judge: Callable[[Head | NotHttp], bool]) -> None:
        self.done = False
        self.answers = _Answers(self)
        self._judge = judge
        self._requests = Requests()
        self._seen = 0
        self._may_switch = False

    def take(self, data: bytes) -> bytes:
        """What may go to the server; raises `Refused`."""
        if self.done:
            return data
        self._requests.feed(data)
        passed = []
        try:
            while (found := self._requests.take()) is not None:
                if isinstance(found, bytes):
                    passed.append(found)
                    continue
                if not self._judge(found):
                    raise Refused
                self._seen += 1
                # Answers are not counted: whose a later one is would be a guess.
                self._may_switch = self._seen == 1 and found.websocket
        except NotHttp as error:
            self._judge(error)
            raise Refused from error
        return b"".join(passed)

    def answered(self, start: bytes) -> None:
        """The server's first bytes: a WebSocket's frames follow if that is what they say."""
        if self._may_switch and start == _SWITCHED:
            self.done = True


class _Answers:
    """Looks at the first bytes that the server says, before the client can see them."""

    def __init__(self, screening: Screening) -> None:
        self.done = False
        self._screening = screening
        self._held = b""

    def take(self, data: bytes) -> bytes:
        """All that came, once it is enough to tell."""
        self._held += data
        if len(self._held) < len(_SWITCHED) and _SWITCHED.startswith(self._held):
            return b""
        self.done = True
        self._screening.answered(self._held[: len(_SWITCHED)])
        return self._held
