"""Answers to questions that a guest asks again, byte for byte: given without being read.

Programs ask the same question many times, and a stub's question differs from its last one in
nothing but the id. So what was answered at once is remembered by the datagram behind its id. It is
right only while nothing changed that the answer depends on: until the next whole second of its
TTLs at most, as long as the guest's policy and the machine's addresses stand, and its pins with
them. Then the question is read, decided and pinned like any other, which renews what it renews.
"""

from __future__ import annotations

from .guests import REPEAT_S, Guest

#: Of one guest; beyond it the guest's are forgotten, and each is remembered anew.
GUEST_REPEATS = 2048
#: Of all guests; beyond it all are forgotten. Some 10,000 answers, each for a second.
ALL_REPEATS_BYTES = 8 * 1024 * 1024
#: An entry's tuple, float, dictionary slot and the heads of two `bytes`, as measured by
#: `sys.getsizeof` on CPython 3.11 and rounded up.
ENTRY_BYTES = 320


class Repeats:
    """What may be given again to each guest (`Guest.repeats`), bounded for one and for all."""

    def __init__(self) -> None:
        self._bytes = 0
        self._filled: set[Guest] = set()

    def keep(self, guest: Guest, question: bytes, answer: bytes, until: float, now: float) -> None:
        """Remember the answer to a whole datagram until a time, `REPEAT_S` from now at most."""
        size = ENTRY_BYTES + len(question) + len(answer)
        if self._bytes + size > ALL_REPEATS_BYTES:
            self.clear()
        if len(guest.repeats) >= GUEST_REPEATS:
            guest.repeats.clear()
        guest.repeats[question[2:]] = answer[2:], min(until, now + REPEAT_S)
        self._filled.add(guest)
        # What a guest forgets by itself stays counted until everything is forgotten.
        self._bytes += size

    def clear(self) -> None:
        """Forget everything; it is remembered anew as it is asked."""
        for guest in self._filled:
            guest.repeats.clear()
        self._filled.clear()
        self._bytes = 0
