"""Who gets which slot: transcripts, a model that knows nothing of bit masks, and the clock."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from guestnet.address import Pool, capacity, hashed_offset, placement
from guestnet.address.derive import reserved_slots, slot_bounds
from guestnet.address.pool import SlotSet
from guestnet.model import NetworkSpec

REST_S = 30.0


def pool(first: int = 0, last: int = 7, *, rest_s: float = REST_S) -> Pool:
    return Pool(first, last, (), rest_s)


def lease(slots: Pool, guest: str, now: float = 0.0, preferred: int | None = None) -> int | None:
    """What attach does: choose, then take."""
    slot = slots.choose(guest, now, preferred)
    if slot is not None:
        slots.take(slot)
    return slot


# --- transcripts ----------------------------------------------------------------------------------


def test_an_id_that_comes_back_gets_its_old_slot() -> None:
    slots = pool()
    assert [lease(slots, guest) for guest in ("a", "b", "c")] == [0, 1, 2]
    slots.release(1, "b", now=10)
    assert lease(slots, "d", now=11) == 3
    assert lease(slots, "b", now=12) == 1  # resting, but its own


def test_an_old_slot_that_another_has_is_not_given_twice() -> None:
    slots = pool(last=1)
    assert [lease(slots, "a"), lease(slots, "b")] == [0, 1]
    slots.release(0, "a", now=10)
    assert lease(slots, "c", now=11) == 0  # nothing else was free
    assert lease(slots, "a", now=100) is None
    slots.release(0, "c", now=200)
    assert slots.choose("c", now=201) == 0


def test_a_released_slot_rests() -> None:
    slots = pool(last=2)
    for guest in ("a", "b"):
        lease(slots, guest)
    slots.release(0, "a", now=100)
    slots.release(1, "b", now=101)
    assert slots.resting(now=102) == 2
    assert lease(slots, "c", now=102) == 2
    assert slots.choose("d", now=102) == 0  # all else is in use: the one that rested longest
    assert slots.resting(now=130) == 1
    assert slots.choose("d", now=130.5) == 0


def test_a_full_pool_has_nothing() -> None:
    slots = pool(last=4)
    assert [lease(slots, f"vm-{i}") for i in range(6)] == [0, 1, 2, 3, 4, None]
    assert (slots.live, slots.capacity()) == (5, 5)


@pytest.mark.parametrize(("subnet", "guests"), [("10.0.0.0/30", 1), ("10.0.0.0/29", 5)])
def test_a_30_has_one_guest_and_a_29_five(subnet: str, guests: int) -> None:
    spec = NetworkSpec.read({"topology": "bridge", "ipv4": subnet, "ipv6": None})
    first, last = slot_bounds(spec)
    slots = Pool(first, last, reserved_slots(spec), REST_S)
    given_out = []
    for number in range(guests + 1):
        slot = lease(slots, f"vm-{number}", preferred=hashed_offset(f"vm-{number}", spec))
        given_out.append(str(placement(spec, 1, slot, "").ipv4) if slot is not None else None)
    assert given_out.pop() is None
    assert sorted(map(str, given_out)) == [f"10.0.0.{i + 2}/{subnet[-2:]}" for i in range(guests)]
    assert slots.capacity() == capacity(spec) == guests


def test_no_rest_is_no_rest() -> None:
    slots = pool(last=0, rest_s=0)
    lease(slots, "a")
    slots.release(0, "a", now=1)
    assert (slots.resting(now=1), slots.choose("b", now=1)) == (0, 0)


def test_a_clock_that_is_set_back_ends_the_rest_instead_of_prolonging_it() -> None:
    slots = pool(last=1)
    lease(slots, "a")
    slots.release(0, "a", now=1000)
    assert slots.resting(now=999) == 0


def test_hashes_that_collide_are_probed_past() -> None:
    slots = Pool(1, 6, (1,), REST_S)
    assert [lease(slots, guest, preferred=5) for guest in "abcde"] == [5, 6, 2, 3, 4]
    assert lease(slots, "f", preferred=5) is None


def test_what_the_host_uses_is_skipped_and_comes_back() -> None:
    slots = pool(last=9)
    slots.skip([(0, 3), (2, 5)])
    assert (slots.skipped, slots.capacity()) == (6, 4)
    assert [lease(slots, guest) for guest in "abcde"] == [6, 7, 8, 9, None]
    slots.skip([])
    assert lease(slots, "e") == 0


def test_a_live_slot_that_is_skipped_stays_live_and_is_not_given_again_meanwhile() -> None:
    slots = pool(last=3)
    lease(slots, "a")
    slots.skip([(0, 1)])
    assert (slots.live, slots.is_free(0)) == (1, False)
    slots.release(0, "a", now=1)
    assert not slots.is_free(0)
    assert slots.choose("a", now=2) == 2  # not its old one
    slots.skip([])
    assert slots.is_free(0)
    assert slots.choose("a", now=3) == 0


def test_skipping_less_frees_only_what_nobody_has() -> None:
    slots = pool(last=5)
    lease(slots, "a")  # 0
    slots.skip([(0, 4)])
    slots.skip([(3, 4)])
    assert [lease(slots, guest) for guest in "bcdef"] == [1, 2, 5, None, None]


# --- SlotSet against a set ------------------------------------------------------------------------


def next_absent(members: set[int], start: int, size: int) -> int | None:
    return next((slot for slot in range(start, size) if slot not in members), None)


class SlotSetMachine(RuleBasedStateMachine):
    """Three sizes: one node, two levels of nodes, three."""

    @initialize(size=st.sampled_from([1, 9, 1024, 1025, 5000, 1024 * 1024 + 7]))
    def make(self, size: int) -> None:
        self.size = size
        self.slots = SlotSet(size)
        self.members: set[int] = set()

    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        slot = data.draw(st.integers(0, self.size - 1))
        self.slots.add(slot)
        self.members.add(slot)

    @rule(data=st.data(), length=st.sampled_from([3, 1024, 3000]))
    def add_a_run(self, data: st.DataObject, length: int) -> None:
        start = data.draw(st.integers(0, self.size - 1))
        for slot in range(start, min(start + length, self.size)):
            self.slots.add(slot)
            self.members.add(slot)

    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        among = st.sampled_from(sorted(self.members)) if self.members else st.nothing()
        slot = data.draw(st.one_of(st.integers(0, self.size - 1), among))
        self.slots.discard(slot)
        self.members.discard(slot)

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        start = data.draw(st.one_of(st.integers(0, self.size - 1), st.sampled_from([0])))
        assert self.slots.next_absent(start) == next_absent(self.members, start, self.size)
        assert (start in self.slots) == (start in self.members)

    @invariant()
    def the_first_absent_is_found(self) -> None:
        if hasattr(self, "slots"):
            assert self.slots.next_absent(0) == next_absent(self.members, 0, self.size)


TestSlotSet = SlotSetMachine.TestCase
TestSlotSet.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.sets(st.integers(0, 1023)), st.integers(0, 1023))
def test_a_full_node_with_holes(holes: set[int], start: int) -> None:
    slots = SlotSet(3 * 1024)
    for slot in range(1024):
        if slot not in holes:
            slots.add(slot)
    expected = next((slot for slot in range(start, 1025) if slot in holes or slot == 1024), None)
    assert slots.next_absent(start) == expected


# --- Pool against a model -------------------------------------------------------------------------

FIRST, LAST, RESERVED = 1, 12, frozenset({3})
GUESTS = st.sampled_from([f"vm-{i}" for i in range(8)])


class PoolMachine(RuleBasedStateMachine):
    """The promises of `Pool`, kept by hand in sets and dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(FIRST, LAST, RESERVED, REST_S)
        self.now = 1000.0
        self.live: dict[int, str] = {}
        self.rested_since: dict[int, float] = {}
        self.skipped: set[int] = set()
        self.last_of: dict[str, int] = {}

    def usable(self) -> set[int]:
        """Slots that nobody holds and the host does not use."""
        return set(range(FIRST, LAST + 1)) - RESERVED - self.skipped - self.live.keys()

    def awake(self) -> set[int]:
        return {s for s in self.usable() if self.now - self.rested_since.get(s, -1e9) >= REST_S}

    @rule(guest=GUESTS, preferred=st.one_of(st.none(), st.integers(FIRST, LAST)))
    def attach(self, guest: str, preferred: int | None) -> None:
        if guest in self.live.values():
            return
        slot = self.pool.choose(guest, self.now, preferred)
        awake, usable = self.awake(), self.usable()
        if self.last_of.get(guest) in usable:
            assert slot == self.last_of[guest]
        elif awake:
            assert slot in awake
            if preferred is not None:
                above = [s for s in sorted(awake) if s >= preferred]
                assert slot == (above or sorted(awake))[0]
        elif usable:
            # Any of those that were released at one time may come first.
            assert slot in usable
            assert self.rested_since[slot] == min(self.rested_since[s] for s in usable)
        else:
            assert slot is None
        if slot is not None:
            self.take(slot, guest)

    @precondition(lambda self: self.usable())
    @rule(guest=GUESTS, data=st.data())
    def attach_at_an_address(self, guest: str, data: st.DataObject) -> None:
        if guest not in self.live.values():
            self.take(data.draw(st.sampled_from(sorted(self.usable()))), guest)

    def take(self, slot: int, guest: str) -> None:
        self.pool.take(slot)
        assert slot not in self.live
        self.live[slot] = guest
        self.rested_since.pop(slot, None)
        self.last_of = {g: s for g, s in self.last_of.items() if s != slot}

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def detach(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.live)))
        guest = self.live.pop(slot)
        self.pool.release(slot, guest, self.now)
        if slot not in self.skipped:
            self.rested_since[slot] = self.now
        self.last_of = {g: s for g, s in self.last_of.items() if s != slot}
        self.last_of[guest] = slot

    @rule(parts=st.lists(st.tuples(st.integers(FIRST, LAST), st.integers(0, 5)), max_size=3))
    def the_host_uses(self, parts: list[tuple[int, int]]) -> None:
        bounds = [(first, min(first + more, LAST)) for first, more in parts]
        self.pool.skip(bounds)
        self.skipped = {slot for first, last in bounds for slot in range(first, last + 1)}
        for slot in self.skipped:
            self.rested_since.pop(slot, None)  # nobody had it since

    @rule(passed_s=st.sampled_from([0.5, 7.0, 29.0, 31.0]))
    def time_passes(self, passed_s: float) -> None:
        self.now += passed_s

    @invariant()
    def it_knows_what_is_free(self) -> None:
        usable = self.usable()
        assert {s for s in range(FIRST, LAST + 1) if self.pool.is_free(s)} == usable
        assert self.pool.live == len(self.live)
        assert self.pool.resting(self.now) == len(usable - self.awake())
        assert self.pool.skipped == len(self.skipped)

    @invariant()
    def it_knows_where_someone_lives(self) -> None:
        for first, last in ((FIRST, LAST), (2, 4), (5, 5)):
            someone = any(first <= slot <= last for slot in self.live)
            assert self.pool.any_live(first, last) == someone


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


# --- cost -----------------------------------------------------------------------------------------

SIZE = 1 << 18
#: The machine's noise; a search that walks what is taken would be a hundred times slower.
GENEROUS = 8


def cpu_s_of_choosing(filled: float, *, hashed: bool) -> float:
    """CPU seconds of 2,000 choices in a pool of which a share is in use, the best of three."""
    slots = Pool(0, SIZE - 1, (), REST_S)
    dice = random.Random(7)
    taken = dice.sample(range(SIZE), int(SIZE * filled)) if hashed else range(int(SIZE * filled))
    for slot in taken:
        slots.take(slot)
    starts = [dice.randrange(SIZE) if hashed else None for _ in range(2000)]
    best = float("inf")
    for _ in range(3):
        begun = time.process_time()
        for start in starts:
            assert slots.choose("new", 0.0, start) is not None
        best = min(best, time.process_time() - begun)
    return best


@pytest.mark.parametrize("hashed", [False, True], ids=["routed", "bridge"])
def test_finding_a_slot_does_not_slow_down_as_the_pool_fills(hashed: bool) -> None:
    nearly_empty = cpu_s_of_choosing(0.01, hashed=hashed)
    nearly_full = cpu_s_of_choosing(0.99, hashed=hashed)
    assert nearly_full < GENEROUS * nearly_empty


def test_taking_and_releasing_do_not_slow_down_either() -> None:
    def cpu_s(filled: float) -> float:
        slots = Pool(0, SIZE - 1, (), REST_S)
        for slot in range(int(SIZE * filled)):
            slots.take(slot)
        begun = time.process_time()
        for number in range(2000):
            found = lease(slots, f"vm-{number}", now=number * 100.0)
            assert found is not None
            slots.release(found, f"vm-{number}", now=number * 100.0)
        return time.process_time() - begun

    assert cpu_s(0.99) < GENEROUS * cpu_s(0.01)
