"""Groups: total, disjoint, the same as ranges and as single answers, and true to the registries."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestnet.policy import (
    FLOOR,
    UNROUTABLE,
    Group,
    Places,
    classify,
    embed_ranges,
    embedded_ipv4,
    static_ranges,
    teredo_low_bits,
    teredo_ranges,
    unroutable,
    unroutable_groups,
)
from guestnet.policy.groups import groups_inside

V4_MAX, V6_MAX = 2**32 - 1, 2**128 - 1
TEREDO = ip_network("2001::/32")
NOWHERE = Places(frozenset(), ())
MACHINE = Places(
    host=frozenset(map(ip_address, ("192.0.2.10", "10.200.0.1", "2a00::10", "fe80::1"))),
    guests=(IPv4Network("10.200.0.0/16"), IPv6Network("fd42:6d73:62::/48")),
    guests_except=(IPv4Network("10.200.7.0/24"),),
    dns=(ip_address("10.200.0.1"),),
)

_edges4 = sorted({e for g in Group for lo, hi in static_ranges(g, 4) for e in (lo, hi)})
_edges6 = sorted({e for g in Group for lo, hi in static_ranges(g, 6) for e in (lo, hi)})
v4 = st.one_of(st.integers(0, V4_MAX), st.sampled_from(_edges4)).map(IPv4Address)
_embeds = st.tuples(v4, st.integers(0, 3)).map(
    lambda pair: IPv6Address(embed_ranges(max(2, int(pair[0])), max(2, int(pair[0])))[pair[1]][0])
)
_teredo = st.tuples(st.integers(0, 2**64 - 1), v4).map(
    lambda pair: IPv6Address(0x20010000 << 96 | pair[0] << 32 | (int(pair[1]) ^ V4_MAX))
)
v6 = st.one_of(
    st.integers(0, V6_MAX).map(IPv6Address),
    st.sampled_from(_edges6).map(IPv6Address),
    _embeds,
    _teredo,
)


def in_ranges(value: int, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(lo <= value <= hi for lo, hi in ranges)


# --- total and disjoint ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_static_groups_partition_the_space_but_for_teredo(version: int) -> None:
    pieces = sorted(r for group in Group for r in static_ranges(group, version))
    if version == 6:
        pieces = sorted([*pieces, (int(TEREDO[0]), int(TEREDO[-1]))])
    assert pieces[0][0] == 0
    assert pieces[-1][1] == (V4_MAX if version == 4 else V6_MAX)
    for (_, hi), (lo, _) in pairwise(pieces):
        assert hi + 1 == lo


def test_teredo_ranges_partition_the_low_bits() -> None:
    pieces = sorted(r for group in Group for r in teredo_ranges(group))
    assert (pieces[0][0], pieces[-1][1]) == (0, V4_MAX)
    for (_, hi), (lo, _) in pairwise(pieces):
        assert hi + 1 == lo


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("group", Group)
def test_ranges_are_sorted_and_joined(group: Group, version: int) -> None:
    ranges = static_ranges(group, version)
    for (_, hi), (lo, _) in pairwise(ranges):
        assert hi + 1 < lo


def test_host_and_guests_have_no_static_addresses() -> None:
    for group in (Group.HOST, Group.GUESTS):
        assert static_ranges(group, 4) == static_ranges(group, 6) == teredo_ranges(group) == ()


def test_there_is_no_ip_version_5() -> None:
    with pytest.raises(ValueError, match="4 or 6"):
        static_ranges(Group.PUBLIC, 5)


# --- one answer and ranges agree ------------------------------------------------------------------


@settings(deadline=None)
@given(v4)
def test_classify_agrees_with_the_ipv4_ranges(address: IPv4Address) -> None:
    found = [group for group in Group if in_ranges(int(address), static_ranges(group, 4))]
    assert found == [classify(address, NOWHERE)]


@settings(deadline=None)
@given(v6)
def test_classify_agrees_with_the_ipv6_and_teredo_ranges(address: IPv6Address) -> None:
    if address in TEREDO:
        low = int(address) & V4_MAX
        found = [group for group in Group if in_ranges(low, teredo_ranges(group))]
    else:
        found = [group for group in Group if in_ranges(int(address), static_ranges(group, 6))]
    assert found == [classify(address, NOWHERE)]


@settings(deadline=None)
@given(v6)
def test_an_embedding_takes_the_group_of_what_it_embeds(address: IPv6Address) -> None:
    inner = embedded_ipv4(address)
    if inner is not None:
        assert classify(address, NOWHERE) is classify(inner, NOWHERE)


@settings(deadline=None)
@given(v6, v4, v4)
def test_embed_ranges_hold_exactly_the_embeddings(
    address: IPv6Address, one: IPv4Address, other: IPv4Address
) -> None:
    lo, hi = sorted((one, other))
    inner = embedded_ipv4(address)
    within = inner is not None and lo <= inner <= hi
    if address in TEREDO:
        low, high = teredo_low_bits(int(lo), int(hi))
        assert within == (low <= int(address) & V4_MAX <= high)
    else:
        assert within == in_ranges(int(address), embed_ranges(int(lo), int(hi)))


@settings(deadline=None)
@given(v6)
def test_embeddings_are_those_that_the_standard_library_knows(address: IPv6Address) -> None:
    known = address.ipv4_mapped or address.sixtofour
    if address.teredo:
        known = address.teredo[1]
    nat64_or_compatible = int(address) >> 32 in (0, 0x0064FF9B << 64) and int(address) > 1
    if nat64_or_compatible:
        known = IPv4Address(int(address) & V4_MAX)
    assert embedded_ipv4(address) == known


@pytest.mark.parametrize(("lo", "hi"), [(-1, 0), (1, 0), (0, 2**32)])
def test_embed_ranges_refuse_what_is_no_range(lo: int, hi: int) -> None:
    with pytest.raises(ValueError, match="range"):
        embed_ranges(lo, hi)


@settings(deadline=None)
@given(v6, st.integers(0, 128))
def test_groups_inside_holds_the_group_of_every_address_inside(
    address: IPv6Address, prefix: int
) -> None:
    network = IPv6Network((address, prefix), strict=False)
    assert classify(address, NOWHERE) in groups_inside(network)


# --- vectors --------------------------------------------------------------------------------------

VECTORS = {
    Group.NONE: "0.0.0.0 0.1.2.3 :: ::0.0.0.2 ::ffff:0.0.0.0 64:ff9b::0.0.0.1 2002:1::",
    Group.METADATA: "169.254.169.254 169.254.169.252 169.254.170.2 169.254.170.23 168.63.129.16 "
    "100.100.100.200 192.0.0.192 169.254.0.23 169.254.42.42 100.96.0.96 100.80.80.80 "
    "fd00:ec2::254 fd00:ec2::23 fd20:ce::254 fd00:42::42 fd00:a9fe:a9fe::1 fd00:c1::a9fe:a9fe "
    "fd00:100::100:200 ::ffff:169.254.169.254 ::169.254.169.254 64:ff9b::168.63.129.16 "
    "2002:a9fe:a9fe::1 2001:0:1:2:3:4:5601:5601",
    Group.LOOPBACK: "127.0.0.1 127.255.255.255 ::1 ::ffff:127.0.0.1 2002:7f00:1:: 64:ff9b::7f00:1",
    Group.PRIVATE: "10.0.0.0 10.255.255.255 172.16.0.0 172.31.255.255 192.168.1.1 100.64.0.0 "
    "100.127.255.255 fc00:: fdff:ffff:: 64:ff9b::10.1.1.1 2002:c0a8:101::1 fd00:ec2::253 "
    "2001:0:1:2:3:4:f5ff:fffe",
    Group.LINK_LOCAL: "169.254.0.1 169.254.169.253 169.254.169.123 fe80::1 febf:: "
    "fe80::a9fe:a9fe ::ffff:169.254.1.1",
    Group.MULTICAST: "224.0.0.1 239.255.255.255 255.255.255.255 ff02::1 64:ff9b::224.0.0.251",
    Group.RESERVED: "192.0.0.1 192.0.0.8 192.0.0.11 192.0.0.170 192.0.2.1 192.88.99.1 198.18.0.1 "
    "198.19.255.255 198.51.100.1 203.0.113.1 240.0.0.1 255.255.255.254 100::1 100:0:0:1::1 "
    "2001:2::1 2001:10::1 2001:4:111::1 2001:1:: 2001:1::4 2001:db8::1 3fff::1 3fff:fff:: "
    "5f00::1 64:ff9b:1::1 64:ff9b:0:1:: fec0::1 fe00::1 1fff:: 4000:: 200::1 ::1:0:0:0 "
    "::ffff:0:8.8.8.8 64:ff9b::198.18.0.1 2002:f000:1:: 2001:0:1:2:3:4:fff:fffe",
    Group.PUBLIC: "1.1.1.1 8.8.8.8 192.0.0.9 192.0.0.10 192.0.1.0 192.31.196.1 192.52.193.1 "
    "192.175.48.1 100.63.255.255 100.128.0.0 172.32.0.0 198.17.255.255 198.20.0.0 223.255.255.255 "
    "2000:: 2001:1::1 2001:1::2 2001:1::3 2001:3::1 2001:4:112::1 2001:20::1 2001:30::1 2001:200:: "
    "2606:4700::1111 2620:4f:8000::1 3ffe:: 3fff:1000:: ::ffff:8.8.8.8 64:ff9b::8.8.8.8 "
    "2002:808:808::1 2001:0:1:2:3:4:f7f7:f7f7",
}


@pytest.mark.parametrize(
    ("text", "group"), [(text, group) for group, texts in VECTORS.items() for text in texts.split()]
)
def test_vector(text: str, group: Group) -> None:
    assert classify(ip_address(text), NOWHERE) is group


def test_public_is_what_python_calls_global_but_for_these() -> None:
    """Python calls 6to4's relay prefix and Azure's WireServer global; we do not.

    Releases before 2024 also call most of 192.0.0.0/24 global, and know no 3fff::/20. Outside
    2000::/3 Python calls unassigned space global; it is left out here, as are the embeddings.
    """
    ours = ["192.88.99.0/24", "168.63.129.16/32", "192.0.0.0/24", "2001::/23", "3fff::/20"]
    differ = [ip_network(text) for text in (*ours, "224.0.0.0/4", "2002::/16")]
    for value in (*_edges4, *_edges6):
        address = ip_address(value) if value <= V4_MAX else IPv6Address(value)
        assigned = address.version == 4 or address in IPv6Network("2000::/3")
        if assigned and not any(address in network for network in differ):
            assert (classify(address, NOWHERE) is Group.PUBLIC) == address.is_global, address


def test_every_prefix_that_python_calls_private_is_not_public() -> None:
    constants = ipaddress.IPv4Address._constants  # type: ignore[attr-defined]
    for network in constants._private_networks:
        inside = groups_inside(network)
        allowed = {Group.PUBLIC} if network == IPv4Network("192.0.0.0/24") else set()
        assert Group.PUBLIC not in inside - allowed


# --- what only the machine knows ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("192.0.2.10", Group.HOST),  # ahead of reserved
        ("2a00::10", Group.HOST),  # ahead of public: a host's own public address
        ("fe80::1", Group.HOST),  # ahead of link-local
        ("fe80::1%tap0", Group.HOST),  # a zone is not part of an address
        ("fe80::2", Group.LINK_LOCAL),
        ("10.200.0.1", Group.HOST),  # ahead of guests: the gateway
        ("10.200.0.2", Group.GUESTS),
        ("10.200.7.1", Group.PRIVATE),  # skipped part of the pool
        ("64:ff9b::10.200.0.1", Group.HOST),
        ("64:ff9b::10.200.0.2", Group.GUESTS),
        ("2002:c000:20a::1", Group.HOST),
        ("2001:0:1:2:3:4:f537:fffd", Group.GUESTS),  # Teredo client 10.200.0.2
        ("fd42:6d73:62:9::2", Group.GUESTS),
        ("fd42:6d73:63::", Group.PRIVATE),
    ],
)
def test_places(text: str, group: Group) -> None:
    assert classify(ip_address(text), MACHINE) is group


def test_nobodys_address_is_not_even_the_hosts() -> None:
    places = Places(frozenset({ip_address("0.0.0.0"), ip_address("::")}), ())
    assert classify(ip_address("0.0.0.0"), places) is Group.NONE
    assert classify(ip_address("::"), places) is Group.NONE


def test_the_host_is_ahead_of_metadata_and_metadata_ahead_of_guests() -> None:
    address = ip_address("169.254.169.254")
    pool = (IPv4Network("169.254.0.0/16"),)
    assert classify(address, Places(frozenset({address}), pool)) is Group.HOST
    assert classify(address, Places(frozenset(), pool)) is Group.METADATA
    assert classify(ip_address("169.254.0.9"), Places(frozenset(), pool)) is Group.GUESTS


@settings(deadline=None)
@given(st.one_of(v4, v6))
def test_classify_always_answers_and_unroutable_follows_the_group(
    address: IPv4Address | IPv6Address,
) -> None:
    group = classify(address, MACHINE)
    assert unroutable(address, group) == (group in unroutable_groups(address.version))


def test_link_local_is_unroutable_in_ipv6_only() -> None:
    assert unroutable_groups(4) == UNROUTABLE
    assert unroutable_groups(6) == UNROUTABLE | {Group.LINK_LOCAL}
    assert not FLOOR & unroutable_groups(6)
