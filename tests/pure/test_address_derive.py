"""From a slot to names and addresses: vectors of the systems that guestnet replaces, and laws."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestnet.address import capacity, hashed_offset, placement, slot_of, slots_within
from guestnet.address.derive import (
    ROUTED_SLOTS,
    bridge_mac,
    fnv1a_64,
    hashed_mac,
    link_local,
    reserved_slots,
    slot_bounds,
)
from guestnet.errors import ConfigError
from guestnet.model import NetworkSpec, check_interface_name, check_mac

ROUTED = NetworkSpec()
BRIDGE = NetworkSpec.read({"topology": "bridge"})


def routed(ipv4: str | None = "172.16.0.0/12", ipv6: str | None = None) -> NetworkSpec:
    return NetworkSpec.read({"ipv4": ipv4, "ipv6": ipv6})


def bridge(ipv4: str | None = "172.30.0.0/24", ipv6: str | None = None, **more: str) -> NetworkSpec:
    return NetworkSpec.read({"topology": "bridge", "ipv4": ipv4, "ipv6": ipv6, **more})


# --- vectors: B's hash ----------------------------------------------------------------------------

FNV_1A_64 = {
    "": 0xCBF29CE484222325,
    "a": 0xAF63DC4C8601EC8C,
    "foobar": 0x85944171F73967E8,
    "hello": 0xA430D84680AABD0B,
}


@pytest.mark.parametrize(("text", "digest"), FNV_1A_64.items())
def test_fnv_1a_64(text: str, digest: int) -> None:
    assert fnv1a_64(text.encode()) == digest


@pytest.mark.parametrize("guest", ["a", "foobar", "hello"])
@pytest.mark.parametrize("subnet", ["172.30.0.0/24", "10.0.0.0/8", "10.9.8.0/29", "10.0.0.0/30"])
def test_the_first_offset_is_the_digest_modulo_the_addresses_less_three_plus_two(
    guest: str, subnet: str
) -> None:
    addresses = IPv4Network(subnet).num_addresses
    assert hashed_offset(guest, bridge(subnet)) == FNV_1A_64[guest] % (addresses - 3) + 2


def test_offsets_by_hand() -> None:
    assert hashed_offset("a", bridge()) == 0xAF63DC4C8601EC8C % 253 + 2 == 86
    assert hashed_offset("hello", bridge()) == 0xA430D84680AABD0B % 253 + 2 == 213


def test_a_bridge_guests_mac_is_02_and_the_five_low_bytes_of_the_digest() -> None:
    assert hashed_mac("foobar") == "02:71:f7:39:67:e8"
    assert hashed_mac("hello") == "02:46:80:aa:bd:0b"
    assert placement(bridge(), 1, 86, "a").mac == "02:4c:86:01:ec:8c"


# --- vectors: D's slots ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pool", "slot", "gateway", "guest"),
    [
        ("172.16.0.0/12", 0, "172.16.0.1", "172.16.0.2"),
        ("172.16.0.0/12", 1, "172.16.0.5", "172.16.0.6"),
        ("172.16.0.0/12", 65535, "172.19.255.253", "172.19.255.254"),
        ("172.31.240.0/24", 63, "172.31.240.253", "172.31.240.254"),
        ("10.0.0.0/30", 0, "10.0.0.1", "10.0.0.2"),
    ],
)
def test_a_routed_guest_has_a_30(pool: str, slot: int, gateway: str, guest: str) -> None:
    place = placement(routed(pool), 1, slot, "vm")
    assert str(place.gateway_ipv4) == gateway
    assert str(place.ipv4) == f"{guest}/30"


@pytest.mark.parametrize(
    ("pool", "slot", "gateway", "guest"),
    [
        ("fd42:6d73:62::/48", 0, "fd42:6d73:62::1", "fd42:6d73:62::2"),
        ("fd42:6d73:62::/48", 1, "fd42:6d73:62:1::1", "fd42:6d73:62:1::2"),
        ("fd42:6d73:62::/48", 65535, "fd42:6d73:62:ffff::1", "fd42:6d73:62:ffff::2"),
        ("fd7a:115c:a1e0:100::/56", 3, "fd7a:115c:a1e0:103::1", "fd7a:115c:a1e0:103::2"),
    ],
)
def test_a_routed_guest_has_a_64(pool: str, slot: int, gateway: str, guest: str) -> None:
    place = placement(routed(ipv6=pool), 1, slot, "vm")
    assert str(place.gateway_ipv6) == gateway
    assert str(place.ipv6) == f"{guest}/64"


@pytest.mark.parametrize(
    ("slot", "middle"), [(0, "00:00"), (1, "00:01"), (256, "01:00"), (65535, "ff:ff")]
)
def test_a_routed_guests_mac_is_its_slot(slot: int, middle: str) -> None:
    place = placement(ROUTED, 1, slot, "vm")
    assert place.mac == f"02:6d:73:{middle}:02"
    assert place.gateway_mac == f"02:6d:73:{middle}:01"


# --- how many there are ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "guests"),
    [
        (routed("10.0.0.0/30"), 1),
        (routed("10.0.0.0/29"), 2),
        (routed("10.0.0.0/24"), 64),
        (routed("10.0.0.0/14"), 65536),
        (routed("10.0.0.0/8"), 65536),
        (routed("0.0.0.0/1"), 65536),
        (routed(None, "fd00::/64"), 1),
        (routed(None, "fd00::/56"), 256),
        (routed("10.0.0.0/8", "fd00::/60"), 16),
        (ROUTED, 65536),
        (bridge("10.0.0.0/30"), 1),
        (bridge("10.0.0.0/29"), 5),
        (bridge("10.0.0.0/24"), 253),
        (bridge("10.0.0.0/29", gateway="10.0.0.3"), 5),
        (bridge("10.0.0.0/30", gateway="10.0.0.2"), 1),
        (bridge("10.0.0.0/8"), 2**24 - 3),
        (bridge(None, "fd00::/120"), 254),
        (bridge("10.0.0.0/24", "fd00::/64"), 253),
    ],
    ids=lambda value: f"{value.ipv4} {value.ipv6}" if isinstance(value, NetworkSpec) else None,
)
def test_capacity(spec: NetworkSpec, guests: int) -> None:
    assert capacity(spec) == guests


def test_the_only_guest_of_a_30_has_the_address_that_is_left() -> None:
    spec = bridge("10.0.0.0/30")
    assert slot_bounds(spec) == (1, 2)
    assert (reserved_slots(spec), hashed_offset("anyone", spec)) == ((1,), 2)
    assert str(placement(spec, 1, 2, "vm").ipv4) == "10.0.0.2/30"


def test_a_gateway_of_ones_own_choice_is_reserved_and_the_first_address_is_not() -> None:
    spec = bridge("10.0.0.0/29", gateway="10.0.0.3")
    assert slot_of(spec, IPv4Address("10.0.0.1")) == 1
    with pytest.raises(ConfigError, match="reserved for the network, gateway or broadcast"):
        slot_of(spec, IPv4Address("10.0.0.3"))


# --- asking for an address ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "address", "complaint"),
    [
        (routed("10.0.0.0/24"), "fd00::2", "has no IPv6"),
        (routed(None, "fd00::/48"), "10.0.0.2", "has no IPv4"),
        (routed("10.0.0.0/24"), "10.0.1.2", "lies outside the pool 10.0.0.0/24"),
        (routed("10.0.0.0/24"), "10.0.0.0", "the guest of its block is 10.0.0.2"),
        (routed("10.0.0.0/24"), "10.0.0.5", "the guest of its block is 10.0.0.6"),
        (routed("10.0.0.0/24"), "10.0.0.7", "the guest of its block is 10.0.0.6"),
        (routed(None, "fd00::/48"), "fd00:0:0:7::1", "the guest of its block is fd00:0:0:7::2"),
        (routed("10.0.0.0/8"), "10.255.255.254", "is reserved"),
        (bridge("10.0.0.0/24"), "10.0.0.0", "is reserved"),
        (bridge("10.0.0.0/24"), "10.0.0.1", "is reserved"),
        (bridge("10.0.0.0/24"), "10.0.0.255", "is reserved"),
        (bridge("10.0.0.0/24", "fd00::/64"), "fd00::1", "is reserved"),
        (bridge("10.0.0.0/24", "fd00::/64"), "fd00::ffff", "is reserved"),
    ],
    ids=str,
)
def test_an_address_that_no_guest_can_have_is_refused_with_the_reason(
    spec: NetworkSpec, address: str, complaint: str
) -> None:
    asked = IPv6Address(address) if ":" in address else IPv4Address(address)
    with pytest.raises(ConfigError, match=complaint) as refused:
        slot_of(spec, asked)
    assert (refused.value.key, refused.value.value) == (f"ipv{asked.version}", address)


# --- laws -----------------------------------------------------------------------------------------

specs = st.sampled_from(
    [
        ROUTED,
        BRIDGE,
        routed("10.0.0.0/8"),
        routed("10.0.0.0/24", "fd00::/60"),
        routed(None, "fd00::/48"),
        bridge("10.0.0.0/8", "fd00::/64"),
        bridge("10.0.0.0/29", gateway="10.0.0.6"),
        bridge(None, "fd00::/120"),
    ]
)


@st.composite
def places(draw: st.DrawFn) -> tuple[NetworkSpec, int]:
    """A network and one of the slots that a guest may have."""
    spec = draw(specs)
    first, last = slot_bounds(spec)
    slots = st.one_of(
        st.integers(first, last), st.integers(first, min(first + 5, last)), st.just(last)
    )
    return spec, draw(slots.filter(lambda slot: slot not in reserved_slots(spec)))


@given(places())
def test_slot_of_is_the_inverse_of_placement(where: tuple[NetworkSpec, int]) -> None:
    spec, slot = where
    place = placement(spec, 1, slot, "vm")
    for interface in (place.ipv4, place.ipv6):
        if interface is not None:
            assert slot_of(spec, interface.ip) == slot


@given(places())
def test_every_address_lies_in_its_pool_beside_the_gateway(where: tuple[NetworkSpec, int]) -> None:
    spec, slot = where
    place = placement(spec, 1, slot, "vm")
    assert (place.ipv4 is None, place.ipv6 is None) == (spec.ipv4 is None, spec.ipv6 is None)
    for pool, interface, gateway in (
        (spec.ipv4, place.ipv4, place.gateway_ipv4),
        (spec.ipv6, place.ipv6, place.gateway_ipv6),
    ):
        if pool is None or interface is None or gateway is None:
            continue
        ends = (interface.network.network_address, interface.network.broadcast_address)
        assert interface.ip in pool
        assert gateway in interface.network
        assert interface.ip not in (gateway, ends[0])
        assert interface.version == 6 or interface.ip != ends[1]


@given(places(), st.integers(1, 36**4))
def test_macs_and_device_names_are_ones_the_kernel_takes(
    where: tuple[NetworkSpec, int], number: int
) -> None:
    spec, slot = where
    place = placement(spec, number, slot, "vm")
    assert check_interface_name(place.tap) == place.tap
    assert place.tap.startswith("gn")
    for mac in (place.mac, place.gateway_mac):
        assert check_mac(mac) == mac
        assert int(mac[:2], 16) & 0b11 == 0b10  # locally administered, unicast


def test_device_names_are_unique_over_a_whole_pool() -> None:
    spec = routed("0.0.0.0/1")
    first, last = slot_bounds(spec)
    assert (first, last) == (0, ROUTED_SLOTS - 1)
    names = {placement(spec, 36, slot, "vm").tap for slot in range(last + 1)}
    assert len(names) == ROUTED_SLOTS
    assert max(map(len, names)) <= 15


@given(st.tuples(places(), st.integers(1, 10**6)), st.tuples(places(), st.integers(1, 10**6)))
def test_two_places_never_share_a_device_name(
    one: tuple[tuple[NetworkSpec, int], int], other: tuple[tuple[NetworkSpec, int], int]
) -> None:
    (spec, slot), number = one
    (other_spec, other_slot), other_number = other
    same = (slot, number) == (other_slot, other_number)
    name = placement(spec, number, slot, "vm").tap
    assert (name == placement(other_spec, other_number, other_slot, "other").tap) == same


@given(st.text(max_size=60), specs)
def test_the_hash_never_points_at_network_gateway_or_broadcast(
    guest: str, spec: NetworkSpec
) -> None:
    guest = guest.encode(errors="ignore").decode()
    if spec.topology == "bridge" and spec.gateway is None:
        first, last = slot_bounds(spec)
        assert first <= hashed_offset(guest, spec) <= last
        assert hashed_offset(guest, spec) not in reserved_slots(spec)
        assert hashed_offset(guest, spec) == hashed_offset(guest, spec)


def around_of(address: IPv4Address | IPv6Address) -> IPv4Network | IPv6Network:
    """The address alone, as a network."""
    return IPv4Network(address) if isinstance(address, IPv4Address) else IPv6Network(address)


@given(places(), st.integers(0, 40))
def test_slots_within_tells_exactly_the_slots_whose_blocks_touch_a_network(
    where: tuple[NetworkSpec, int], width: int
) -> None:
    spec, slot = where
    place = placement(spec, 1, slot, "vm")
    for interface in (place.ipv4, place.ipv6):
        if interface is None:
            continue
        prefix = interface.max_prefixlen - min(width, interface.max_prefixlen)
        around = type(interface.network)((int(interface.ip), prefix), strict=False)
        found = slots_within(spec, around)
        assert found is not None
        low, high = found
        assert low <= slot <= high
        for near in {slot - 1, slot + 1, low - 1, high + 1}:
            first, last = slot_bounds(spec)
            if not first <= near <= last:
                continue
            theirs = placement(spec, 1, near, "vm")
            block = theirs.ipv4 if interface.version == 4 else theirs.ipv6
            assert block is not None
            own = block.network if spec.topology == "routed" else around_of(block.ip)
            touched = around.overlaps(own)
            assert (low <= near <= high) == touched


@pytest.mark.parametrize(
    ("network", "slots"),
    [
        ("10.0.0.0/24", (0, 63)),
        ("10.0.0.4/32", (1, 1)),
        ("10.0.0.3/32", (0, 0)),
        ("10.0.0.8/29", (2, 3)),
        ("0.0.0.0/0", (0, 63)),
        ("10.0.1.0/24", None),
        ("9.255.255.0/24", None),
        ("fd00::/8", None),
    ],
)
def test_slots_within_by_hand(network: str, slots: tuple[int, int] | None) -> None:
    asked = IPv6Network(network) if ":" in network else IPv4Network(network)
    assert slots_within(routed("10.0.0.0/24"), asked) == slots


def test_what_the_guest_derives_from_its_mac() -> None:
    # RFC 4291 appendix A: 34-56-78-9A-BC-DE becomes …:3656:78FF:FE9A:BCDE.
    assert link_local("34:56:78:9a:bc:de") == IPv6Address("fe80::3656:78ff:fe9a:bcde")
    assert link_local("02:6d:73:00:01:02") == IPv6Address("fe80::6d:73ff:fe00:102")


def test_a_bridges_mac_is_its_networks_own() -> None:
    assert bridge_mac(BRIDGE) == bridge_mac(bridge("10.0.0.0/24"))
    assert bridge_mac(BRIDGE) != bridge_mac(bridge(name="other"))
