"""Answers that were given before, ready to be given again.

One cache serves one way of judging: what it holds is an answer that a policy has already filtered,
so guests whose policies differ must not share one (nor may two guests, if what one of them asked
for is to stay hidden from the other).

A hit parses nothing and copies the answer once: the places of its TTLs were found when it was
stored, and are rewritten at most once a second.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from struct import Struct

from .answers import explanation
from .codes import (
    FLAG_RD,
    FLAG_TC,
    HEADER,
    HEADER_BYTES,
    MAX_TTL_S,
    RCODE_MASK,
    RECORD,
    Address,
    Ede,
    Rcode,
    Rtype,
)
from .faults import BadResponse
from .question import Question
from .records import skip_name

#: 4 MiB and 8192 answers: what a build or a browser asks for in a day, in the memory of one page
#: of theirs.
DEFAULT_MAX_BYTES = 4 * 2**20
DEFAULT_MAX_ENTRIES = 8192
#: RFC 8767 section 4: stale records are served with a TTL of 30 seconds …
STALE_TTL_S = 30
#: … and for one to three days; we take the shorter.
MAX_STALE_S = 86_400
#: Section 5: "the failure recheck timer", and how long a client waits for a fresh answer.
STALE_REST_S, STALE_AFTER_S = 30.0, 1.8
#: An entry's object, tuples and dictionary slot, and for each record two integers, as measured by
#: `sys.getsizeof` on CPython 3.11 and rounded up: without them, tiny answers would cost nothing.
ENTRY_BYTES = 800
RECORD_BYTES = 80

_TTL = Struct("!I")
#: Bytes from the end of a record's name to its TTL: type and class.
_TTL_BEHIND_NAME = 4


class Entry:
    """One stored answer. Ages by the clock that is passed in, never by itself."""

    __slots__ = (
        "_age_s", "_aged", "_heads", "_tail", "_ttls", "addresses", "ask_again_at", "expires_at",
        "size", "stored_at",
    )  # fmt: skip

    def __init__(
        self, heads: tuple[bytes, bytes], tail: bytes, ttls: tuple[tuple[int, int], ...],
        stored_at: float, expires_at: float, size: int, addresses: tuple[Address, ...] = (),
    ) -> None:  # fmt: skip
        #: Flags and counts, for an asker without and with RD.
        self._heads = heads
        #: Everything behind the question.
        self._tail = tail
        #: Where in the tail each TTL stands, and what it was.
        self._ttls = ttls
        #: The tail as of `_age_s`: most hits of a busy name fall within the same second.
        self._aged = tail
        self._age_s = 0
        self.stored_at = stored_at
        self.expires_at = expires_at
        self.size = size
        #: Where the answer leads, for who pins it without reading it again.
        self.addresses = addresses
        #: Until when it is given stale without anybody being asked: nobody answered just now.
        self.ask_again_at = 0.0

    def reply(self, question: Question, now: float) -> bytes:
        """The answer with the asker's id, RD and case, its TTLs less the time gone by."""
        age_s = int(now - self.stored_at)
        if age_s != self._age_s:
            self._aged = self._with_ttls([max(ttl - age_s, 0) for _place, ttl in self._ttls])
            self._age_s = age_s
        head = self._heads[question.recursion_desired]
        return question.id.to_bytes(2, "big") + head + question.wire + self._aged

    def same_until(self, now: float) -> float:
        """When a reply to the same question will no longer be what `reply` gives now."""
        return min(self.expires_at, self.stored_at + int(now - self.stored_at) + 1)

    def stale_reply(self, question: Question) -> bytes:
        """The answer with every TTL at `STALE_TTL_S`; to EDNS askers it says that it is stale."""
        head = self._heads[question.recursion_desired]
        tail = self._with_ttls([STALE_TTL_S] * len(self._ttls))
        if question.edns is not None:
            # The OPT record stands last and has no options, so the last two bytes are their length.
            option = explanation(Ede.STALE_ANSWER)
            tail = tail[:-2] + len(option).to_bytes(2, "big") + option
        return question.id.to_bytes(2, "big") + head + question.wire + tail

    def _with_ttls(self, ttls: list[int]) -> bytes:
        tail = bytearray(self._tail)
        for (place, _ttl), ttl in zip(self._ttls, ttls, strict=True):
            _TTL.pack_into(tail, place, ttl)
        return bytes(tail)


class Cache:
    """Answers by `Question.key`, bounded in bytes and number; the least recently used goes first.

    `serve_stale_s` keeps expired answers for `stale` (RFC 8767), up to one day; 0 is off.
    """

    def __init__(
        self,
        max_bytes: int = DEFAULT_MAX_BYTES,
        max_entries: int = DEFAULT_MAX_ENTRIES,
        *,
        serve_stale_s: float = 0,
    ) -> None:
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._stale_s = min(max(serve_stale_s, 0), MAX_STALE_S)
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes_held(self) -> int:
        """Memory, as estimated by `ENTRY_BYTES` and `RECORD_BYTES`."""
        return self._bytes

    def get(self, key: bytes, now: float) -> Entry | None:
        """The entry that is still fresh; one beyond use is removed on the way."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if now < entry.expires_at:
            self._entries.move_to_end(key)
            return entry
        if now >= entry.expires_at + self._stale_s:
            self._remove(key)
        return None

    def stale(self, key: bytes, now: float) -> Entry | None:
        """The entry if one is stored at all and not too old: for when no upstream answers."""
        entry = self._entries.get(key)
        if entry is None or now >= entry.expires_at + self._stale_s:
            return None
        return entry

    def put(
        self,
        question: Question,
        wire: bytes,
        ttl_s: float,
        now: float,
        addresses: tuple[Address, ...] = (),
    ) -> None:
        """Keep `wire`, our reply to `question`, for `ttl_s` seconds (at most a day).

        `addresses` are those that the reply leads to, for whoever pins them at a later hit.
        Nothing is kept of a truncated reply, of a failure, for a lifetime of 0 or of what alone
        exceeds `max_bytes`. Raises `ValueError` if `wire` is no well-formed reply to the question.
        """
        flags, counts, ttls = _read(question, wire)
        self._remove(question.key)
        start = HEADER_BYTES + len(question.wire)
        tail = wire[start:]
        # The tail counts twice: as stored, and as of this second.
        size = ENTRY_BYTES + RECORD_BYTES * (len(ttls) + len(addresses))
        size += 2 * len(tail) + 2 * len(question.key)
        lifetime_s = min(ttl_s, MAX_TTL_S)
        if not _may_be_kept(flags) or lifetime_s <= 0:
            return
        if size > self._max_bytes or self._max_entries < 1:
            return
        without_rd = (flags & ~FLAG_RD).to_bytes(2, "big") + counts
        with_rd = (flags | FLAG_RD).to_bytes(2, "big") + counts
        entry = Entry((without_rd, with_rd), tail, ttls, now, now + lifetime_s, size, addresses)
        self._entries[question.key] = entry
        self._bytes += size
        while self._bytes > self._max_bytes or len(self._entries) > self._max_entries:
            self._remove(next(iter(self._entries)))

    def clear(self) -> None:
        """Forget everything: the policy or the upstreams have changed."""
        self._entries.clear()
        self._bytes = 0

    def _remove(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size


def _may_be_kept(flags: int) -> bool:
    return not flags & FLAG_TC and flags & RCODE_MASK in (Rcode.NOERROR, Rcode.NXDOMAIN)


def _read(question: Question, wire: bytes) -> tuple[int, bytes, tuple[tuple[int, int], ...]]:
    """Flags, the bytes of the counts, and where behind the question which TTL stands."""
    start = position = HEADER_BYTES + len(question.wire)
    if len(wire) < start or wire[HEADER_BYTES:start].lower() != question.wire.lower():
        raise ValueError("not a reply to this question")
    _id, flags, questions, *counts = HEADER.unpack_from(wire)
    ttls = []
    try:
        for _ in range(sum(counts)):
            position = skip_name(wire, position)
            rtype, _class, ttl, length = RECORD.unpack_from(wire, position)
            if rtype != Rtype.OPT:
                ttls.append((position + _TTL_BEHIND_NAME - start, ttl))
            position += RECORD.size + length
    except (BadResponse, struct.error) as error:
        raise ValueError(f"bad DNS response: {error}") from error
    if questions != 1 or position != len(wire):
        raise ValueError("not a reply to one question")
    return flags, wire[4:HEADER_BYTES], tuple(ttls)
