"""Addresses that stand for names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestnet.address import (
    SYNTHETIC_IPV4,
    SYNTHETIC_IPV6,
    is_synthetic,
    synthetic_addresses,
)

NAMES = st.from_regex(r"[a-z0-9-]{1,20}(\.[a-z0-9-]{1,20}){0,3}", fullmatch=True)


@given(NAMES, st.sampled_from([4, 6]))
def test_a_name_has_the_same_places_each_time(name: str, version: int) -> None:
    places = list(synthetic_addresses(name, version))
    assert places == list(synthetic_addresses(name, version))
    assert len(set(places)) > 1
    for place in places:
        assert place.version == version
        assert is_synthetic(place)
        if version == 4:
            assert 1 <= int(place) & 0xFF <= 254


@pytest.mark.parametrize("version", [4, 6])
def test_names_are_spread_over_the_prefix(version: int) -> None:
    first = {next(synthetic_addresses(f"host-{n}.example.test", version)) for n in range(1000)}
    # 1000 of 130,048 places: about 4 collide; of 2**64 none does.
    assert len(first) > 980
    if version == 4:
        assert len({int(address) >> 8 for address in first}) > 400
        halves = {int(address) >> 16 for address in first}
        assert halves == {int(SYNTHETIC_IPV4[0]) >> 16, (int(SYNTHETIC_IPV4[0]) >> 16) + 1}


def test_nothing_else_is_one() -> None:
    for prefix in (SYNTHETIC_IPV4, SYNTHETIC_IPV6):
        assert not is_synthetic(prefix[0] - 1)
        assert not is_synthetic(prefix[-1] + 1)
