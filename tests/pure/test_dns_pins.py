"""Pins: told by whom, to whom, until when; and never more than the caps."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestnet.dns import GRACE_S, Pins

A, B, C = (ip_address(f"192.0.2.{i}") for i in (1, 2, 3))


def pinned(pins: Pins, guest: str, name: str, now: float) -> tuple[object, ...]:
    """Where the guest may still take `name` to be."""
    return tuple(each for each in (A, B, C) if pins.is_pinned(guest, name, each, now))


def test_a_guest_may_go_where_it_was_told() -> None:
    pins = Pins()
    pins.learn("vm-1", "b.com", [(A, 60.0), (B, 60.0)], now=0.0)
    pins.learn("vm-1", "a.com", [(A, 60.0)], now=0.0)
    assert pins.names_of("vm-1", A, 1.0) == ("a.com", "b.com")
    assert pins.names_of("vm-1", B, 1.0) == ("b.com",)
    assert pinned(pins, "vm-1", "b.com", 1.0) == (A, B)
    assert pins.is_pinned("vm-1", "b.com", B, 1.0)


def test_what_one_guest_was_told_is_nothing_to_another() -> None:
    pins = Pins()
    pins.learn("vm-1", "a.com", [(A, 60.0)], now=0.0)
    assert pins.names_of("vm-2", A, 1.0) == ()
    assert pinned(pins, "vm-2", "a.com", 1.0) == ()
    assert not pins.is_pinned("vm-2", "a.com", A, 1.0)


def test_a_pin_outlives_its_ttl_by_the_grace_and_no_longer() -> None:
    pins = Pins()
    pins.learn("vm-1", "a.com", [(A, 60.0)], now=0.0)
    assert pins.is_pinned("vm-1", "a.com", A, 60.0 + GRACE_S - 0.1)
    end = 60.0 + GRACE_S
    assert not pins.is_pinned("vm-1", "a.com", A, end)
    assert pins.names_of("vm-1", A, end) == ()
    assert pinned(pins, "vm-1", "a.com", end) == ()


@pytest.mark.parametrize(("until", "held"), [(-5.0, 1.0), (0.0, 1.0), (1e9, 86_400.0)])
def test_a_lifetime_is_held_between_a_second_and_a_day(until: float, held: float) -> None:
    pins = Pins()
    pins.learn("vm-1", "a.com", [(A, until)], now=0.0)
    assert pins.is_pinned("vm-1", "a.com", A, held + GRACE_S - 0.1)
    assert not pins.is_pinned("vm-1", "a.com", A, held + GRACE_S)


def test_a_shorter_answer_does_not_take_back_a_longer_promise() -> None:
    pins = Pins()
    pins.learn("vm-1", "a.com", [(A, 3600.0)], now=0.0)
    pins.learn("vm-1", "a.com", [(A, 11.0)], now=10.0)
    assert pins.is_pinned("vm-1", "a.com", A, 3000.0)


def test_full_caps_evict_what_was_learnt_longest_ago() -> None:
    pins = Pins(max_names_per_guest=2, max_addresses_per_name=2)
    for name in ("a.com", "b.com", "a.com", "c.com"):
        pins.learn("vm-1", name, [(A, 60.0)], now=0.0)
    assert pins.names_of("vm-1", A, 1.0) == ("a.com", "c.com")
    pins.learn("vm-1", "c.com", [(B, 60.0), (A, 60.0), (C, 60.0)], now=1.0)
    assert pinned(pins, "vm-1", "c.com", 2.0) == (A, C)
    assert pins.names_of("vm-1", B, 2.0) == ()


def test_a_guest_that_is_gone_leaves_nothing() -> None:
    pins = Pins()
    pins.learn("vm-1", "a.com", [(A, 60.0)], now=0.0)
    pins.forget("vm-1")
    pins.forget("vm-1")
    assert pins.names_of("vm-1", A, 1.0) == ()
    assert pins.expire(1e6) == 0


def test_expiry_frees_what_is_past_and_nothing_else() -> None:
    pins = Pins()
    pins.learn("vm-1", "a.com", [(A, 60.0)], now=0.0)
    pins.learn("vm-1", "b.com", [(A, 60.0)], now=0.0)
    pins.learn("vm-1", "b.com", [(B, 600.0)], now=1.0)
    assert pins.expire(60.0) == 0
    assert pins.expire(60.0 + GRACE_S + 16) == 1
    assert pinned(pins, "vm-1", "b.com", 200.0) == (B,)
    assert pins.expire(1e6) == 1
    assert pins._guests == {}
    assert pins._due == {}


def test_nothing_told_is_nothing_learnt() -> None:
    pins = Pins()
    pins.learn("vm-1", "a.com", [], now=0.0)
    assert pins._guests == {}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["vm-1", "vm-2"]),
            st.sampled_from("abcdef"),
            st.lists(st.tuples(st.sampled_from([A, B, C]), st.floats(0, 500)), max_size=4),
            st.sampled_from(["learn", "learn", "learn", "expire", "forget"]),
        ),
        max_size=60,
    )
)
def test_caps_and_indexes_hold_whatever_happens(
    steps: list[tuple[str, str, list[tuple[object, float]], str]],
) -> None:
    pins = Pins(max_names_per_guest=3, max_addresses_per_name=2)
    for now, (guest, name, told, verb) in enumerate(steps):
        if verb == "learn":
            pins.learn(guest, name, told, 10.0 * now)  # type: ignore[arg-type]
        elif verb == "expire":
            pins.expire(10.0 * now)
        else:
            pins.forget(guest)
        check(pins)


def check(pins: Pins) -> None:
    """Both indexes and the schedule say the same; no cap is exceeded."""
    scheduled = sorted(pair for due in pins._due.values() for pair in due)
    assert scheduled == sorted((g, n) for g, known in pins._guests.items() for n in known.names)
    for known in pins._guests.values():
        assert 1 <= len(known.names) <= 3
        forth = {(n, a) for n, pin in known.names.items() for a in pin.until}
        assert forth == {(n, a) for a, names in known.by_address.items() for n in names}
        assert all(1 <= len(pin.until) <= 2 for pin in known.names.values())


def test_whoever_asks_is_told_what_made_room_and_how_long_ago_it_was_learnt() -> None:
    pins = Pins(max_names_per_guest=1, max_addresses_per_name=1)
    told: list[tuple[str, float]] = []
    pins.on_evicted = lambda guest, age_s: told.append((guest, age_s))
    pins.learn("vm-1", "a.com", [(A, 60.0)], now=0.0)
    pins.learn("vm-1", "a.com", [(A, 60.0)], now=5.0)  # nothing new, and yet told again
    pins.learn("vm-2", "b.com", [(A, 60.0)], now=6.0)
    assert told == []
    pins.learn("vm-1", "b.com", [(A, 60.0)], now=7.0)
    assert told == [("vm-1", 2.0)]
    pins.learn("vm-1", "b.com", [(B, 60.0)], now=9.0)
    assert told == [("vm-1", 2.0), ("vm-1", 0.0)]
