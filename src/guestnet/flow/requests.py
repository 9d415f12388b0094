"""All requests of an HTTP/1 connection, one after the other: where each begins, and whom it is for.

A connection that may go to one host is not to be used for another of the same server, so every
head is shown before its bytes go anywhere. Bodies are passed on as they come (RFC 9112 sections 6
and 7), with the leniencies left out that make two readers see different requests.
"""

from __future__ import annotations

import re

from .http import MAX_HEAD_BYTES, Head, NotHttp, read_request_head

#: Bytes of a chunk's size with its extension, and of all trailers; servers take 4 to 16 KiB.
MAX_CHUNK_LINE_BYTES, MAX_TRAILER_BYTES = 256, 8192

_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")


class Requests:
    """What a client has said, request by request.

    `feed` what came, then `take` until it returns `None`: a `Head` is the next request's, whose
    bytes come next; `bytes` are to be passed on. Raises `NotHttp` at what no further byte could
    save, and from then on. What is held back is never more than a head, or a line of a chunk.
    """

    __slots__ = ("_at", "_chunked", "_held", "_left", "_read", "_trailer", "_what")

    def __init__(self) -> None:
        self._held = b""
        #: Where in it what was not taken yet begins: pieces may be small, and are many then.
        self._at = 0
        #: Bytes of what is held that were read as the beginning of a head before.
        self._read = 0
        #: Bytes that pass without being looked at, and whether they are a chunk's.
        self._left = 0
        self._chunked = False
        #: Bytes of trailers so far.
        self._trailer = 0
        self._what = self._begin

    def feed(self, data: bytes) -> None:
        """More of what the client said."""
        self._held = self._held[self._at :] + data
        self._at = 0

    def take(self) -> Head | bytes | None:
        """The next request's head, bytes to pass on, or `None`: more is needed."""
        return self._what()

    def _begin(self) -> Head | bytes | None:
        if self._at == len(self._held):
            return None
        # No more is read of a head in any case.
        window = self._held[self._at : self._at + MAX_HEAD_BYTES]
        head = read_request_head(window, self._read)
        if head is None:
            self._read = len(window)
            return None
        self._read = 0
        self._left = head.length + (head.body or 0)
        self._chunked = head.body is None
        self._what = self._pass
        return head

    def _pass(self) -> Head | bytes | None:
        """What is left of a head with its body, or of a chunk."""
        taken = self._held[self._at : self._at + self._left]
        if not taken:
            return None
        self._at += len(taken)
        self._left -= len(taken)
        if not self._left:
            self._what = self._chunk if self._chunked else self._begin
        return taken

    def _chunk(self) -> Head | bytes | None:
        """The line before a chunk."""
        line = self._line(MAX_CHUNK_LINE_BYTES)
        if line is None:
            return None
        found = _CHUNK.fullmatch(line)
        if found is None:
            raise NotHttp("no size of a chunk")
        size = int(found[1], 16)
        if size:
            # With its line, and the line end behind it, which is checked when it is there.
            self._left = len(line) + 2 + size
            self._what = self._pass_chunk
        else:
            self._left = len(line) + 2
            self._trailer = 0
            self._what = self._pass_last
        return self._what()

    def _pass_chunk(self) -> Head | bytes | None:
        taken = self._pass()
        if not self._left:
            self._what = self._end_chunk
        return taken

    def _end_chunk(self) -> Head | bytes | None:
        end = self._held[self._at : self._at + 2]
        if not b"\r\n".startswith(end):
            raise NotHttp("a chunk is longer than its size")
        if len(end) < 2:
            return None
        self._left = 2
        self._what = self._pass
        return self._pass()

    def _pass_last(self) -> Head | bytes | None:
        taken = self._pass()
        if not self._left:
            self._what = self._trailers
        return taken

    def _trailers(self) -> Head | bytes | None:
        line = self._line(MAX_TRAILER_BYTES - self._trailer)
        if line is None:
            return None
        if line and not _TRAILER.fullmatch(line):
            raise NotHttp("no trailer")
        self._left = len(line) + 2
        self._trailer += self._left
        if line:
            self._what = self._pass_last
        else:
            self._chunked = False
            self._what = self._pass
        return self._what()

    def _line(self, most: int) -> bytes | None:
        """The line at the front without its end; `None` while it may still come."""
        end = self._held.find(b"\r\n", self._at, self._at + most + 2)
        if end < 0 and len(self._held) - self._at > most + 1:
            raise NotHttp("the line of a chunk is too long")
        return None if end < 0 else self._held[self._at : end]
