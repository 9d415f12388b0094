"""Who gets which slot, in time that does not grow as the pool fills.

Pure: `now` (seconds, any epoch that only grows) arrives as an argument. The pool remembers who had
a slot last, so an id that comes back finds its old address while that is free.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

#: Bits of one node of `SlotSet`; three levels of it hold 2**30 slots.
_NODE_BITS = 1024
_FULL = (1 << _NODE_BITS) - 1


class SlotSet:
    """A set of slots that finds the next *absent* one in constant time.

    A tree of wide bit masks: level 0 marks members, each level above marks full nodes below. Only
    touched nodes exist, so an empty /8 costs nothing.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._levels: list[dict[int, int]] = [{}]
        span = _NODE_BITS
        while span < size:
            self._levels.append({})
            span *= _NODE_BITS

    def __contains__(self, slot: int) -> bool:
        return bool(self._levels[0].get(slot // _NODE_BITS, 0) >> (slot % _NODE_BITS) & 1)

    def add(self, slot: int) -> None:
        """Put a slot in; a second time changes nothing."""
        for level in self._levels:
            node, bit = divmod(slot, _NODE_BITS)
            mask = level[node] = level.get(node, 0) | 1 << bit
            if mask != _FULL:
                return
            slot = node

    def discard(self, slot: int) -> None:
        """Take a slot out; an absent one changes nothing."""
        for level in self._levels:
            node, bit = divmod(slot, _NODE_BITS)
            before = level.get(node, 0)
            after = before & ~(1 << bit)
            if after:
                level[node] = after
            else:
                level.pop(node, None)
            if before != _FULL:
                return
            slot = node

    def next_absent(self, start: int) -> int | None:
        """The lowest absent slot at or after `start`, or None."""
        slot = start
        depth = 0
        while True:
            node, bit = divmod(slot, _NODE_BITS)
            absent = ~self._levels[depth].get(node, 0) & _FULL & ~((1 << bit) - 1)
            if absent:
                slot = node * _NODE_BITS + (absent & -absent).bit_length() - 1
                if depth == 0:
                    return slot if slot < self._size else None
                # A child of this node has room: go down to its first slot.
                depth -= 1
                slot *= _NODE_BITS
            elif depth + 1 < len(self._levels):
                depth += 1
                slot = node + 1
            else:
                return None


class Pool:
    """The slots `first`–`last` of one network. Not thread-safe; its owner holds a lock."""

    def __init__(self, first: int, last: int, reserved: Iterable[int], rest_s: float) -> None:
        self._first = first
        self._last = last
        self._rest_s = rest_s
        self._reserved = frozenset(slot for slot in reserved if first <= slot <= last)
        self._skipped: frozenset[range] = frozenset()
        self._taken = SlotSet(last + 1)
        self._live: set[int] = set()
        #: slot → when it was released, oldest first; these may not be handed out before their time.
        self._resting: OrderedDict[int, float] = OrderedDict()
        #: Last holders of free slots, both ways; bounded by the number of slots.
        self._slot_of: dict[str, int] = {}
        self._guest_of: dict[int, str] = {}
        self._cursor = first
        for slot in self._reserved:
            self._taken.add(slot)

    @property
    def live(self) -> int:
        """Slots in use."""
        return len(self._live)

    @property
    def skipped(self) -> int:
        """Slots not handed out because the host uses their addresses."""
        return sum(len(part) for part in self._skipped)

    def capacity(self) -> int:
        """Slots that can be handed out."""
        return self._last - self._first + 1 - len(self._reserved) - self.skipped

    def resting(self, now: float) -> int:
        """Slots that were released less than the resting time ago."""
        self._wake(now)
        return len(self._resting)

    def is_free(self, slot: int) -> bool:
        """Whether an owner may ask for this slot by its address."""
        return slot not in self._taken or slot in self._resting

    def any_live(self, first: int, last: int) -> bool:
        """Whether a slot of `first`–`last` is in use."""
        if last - first < len(self._live):
            return any(slot in self._live for slot in range(first, last + 1))
        return any(first <= slot <= last for slot in self._live)

    def choose(self, guest: str, now: float, preferred: int | None = None) -> int | None:
        """The slot a new lease gets, or None if the pool is full. Nothing is taken yet.

        In order: the guest's old one; from `preferred` (bridge: its hash) or after the last one
        handed out (routed); when all else is in use, the one that has rested longest.
        """
        self._wake(now)
        old = self._slot_of.get(guest)
        if old is not None and self._first <= old <= self._last and self.is_free(old):
            return old
        start = self._cursor if preferred is None else preferred
        slot = self._taken.next_absent(start)
        if slot is None:
            slot = self._taken.next_absent(self._first)
        if slot is not None:
            return slot
        return next(iter(self._resting), None)

    def take(self, slot: int) -> None:
        """Hand a slot out."""
        self._taken.add(slot)
        self._live.add(slot)
        self._resting.pop(slot, None)
        self._forget(slot)
        self._cursor = slot + 1 if slot < self._last else self._first

    def release(self, slot: int, guest: str, now: float) -> None:
        """Take a slot back: it rests, and is kept in mind for its last holder."""
        self._live.discard(slot)
        if self._rest_s > 0 and not self._is_skipped(slot):
            self._taken.add(slot)
            self._resting[slot] = now
            self._resting.move_to_end(slot)
        elif not self._is_skipped(slot):
            self._taken.discard(slot)
        self.remember(slot, guest)

    def remember(self, slot: int, guest: str) -> None:
        """Note who had a free slot last."""
        self._forget(slot)
        previous = self._slot_of.pop(guest, None)
        if previous is not None:
            self._guest_of.pop(previous, None)
        self._slot_of[guest] = slot
        self._guest_of[slot] = guest

    def skip(self, parts: Iterable[tuple[int, int]]) -> None:
        """Replace what is not handed out because the host uses it; live slots stay live."""
        wanted = _merged(parts)
        for part in self._skipped - wanted:
            for slot in part:
                if slot not in self._live and slot not in self._reserved:
                    self._taken.discard(slot)
        for part in wanted - self._skipped:
            for slot in part:
                self._taken.add(slot)
                self._resting.pop(slot, None)
        self._skipped = wanted

    def _is_skipped(self, slot: int) -> bool:
        return any(slot in part for part in self._skipped)

    def _forget(self, slot: int) -> None:
        guest = self._guest_of.pop(slot, None)
        if guest is not None:
            del self._slot_of[guest]

    def _wake(self, now: float) -> None:
        while self._resting:
            slot, since = next(iter(self._resting.items()))
            if 0 <= now - since < self._rest_s:
                return
            del self._resting[slot]
            self._taken.discard(slot)


def _merged(parts: Iterable[tuple[int, int]]) -> frozenset[range]:
    """Overlapping and adjoining (first, last) parts as disjoint ranges."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(parts):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return frozenset(range(first, last + 1) for first, last in merged)
