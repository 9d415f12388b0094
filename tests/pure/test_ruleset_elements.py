"""A guest's set elements, byte for byte as nftables compares them."""

from __future__ import annotations

import pytest

from guestnet.address import placement
from guestnet.model import Attachment, NetworkSpec
from guestnet.policy import parse_policy
from guestnet.ruleset.chains import policy_id
from guestnet.ruleset.elements import Element, counting_elements, guest_elements
from guestnet.ruleset.names import Family

POLICY = policy_id(parse_policy("public"))


def attachment(spec: NetworkSpec, slot: int = 1, guest: str = "vm-1") -> Attachment:
    place = placement(spec, 1, slot, guest)
    return Attachment(
        guest=guest, network=spec.name, topology=spec.topology, generation=1, slot=slot,
        tap=place.tap, mac=place.mac, ipv4=place.ipv4, ipv6=place.ipv6,
        gateway_ipv4=place.gateway_ipv4, gateway_ipv6=place.gateway_ipv6, mtu=1500, dns=(),
        policy="public",
    )  # fmt: skip


def shown(elements: tuple[Element, ...]) -> set[tuple[str, str, str]]:
    return {(each.family.word, each.set_name, each.key.hex(" ", 4)) for each in elements}


#: "gn1-1", padded to IFNAMSIZ.
DEVICE = "676e312d 31000000 00000000 00000000"
#: Slot 1's MAC, padded to a multiple of four bytes.
MAC = "026d7300 01020000"
IPV4 = "ac100006"  # 172.16.0.6
IPV6 = "fd426d73 00620001 00000000 00000002"
LINK_LOCAL = "fe800000 00000000 006d73ff fe000102"


def test_a_routed_guest() -> None:
    assert shown(guest_elements(attachment(NetworkSpec()), POLICY)) == {
        ("inet", "identity4", f"{DEVICE} {MAC} {IPV4}"),
        ("arp", "identity4", f"{DEVICE} {MAC} {IPV4}"),
        ("inet", "identity6", f"{DEVICE} {MAC} {IPV6}"),
        ("inet", "identity6", f"{DEVICE} {MAC} {LINK_LOCAL}"),
        ("inet", "announce6", f"{DEVICE} {IPV6}"),
        ("inet", "announce6", f"{DEVICE} {LINK_LOCAL}"),
        ("inet", "live4", f"{IPV4} {IPV4}"),
        ("inet", "live6", f"{IPV6} {IPV6}"),
        ("inet", f"{POLICY}-members4", IPV4),
        ("inet", f"{POLICY}-members6", IPV6),
    }


def test_a_bridge_guest_is_identified_in_the_bridge_and_policed_in_inet() -> None:
    spec = NetworkSpec.read({"topology": "bridge"})
    elements = guest_elements(attachment(spec, slot=86, guest="a"), POLICY)
    device = "676e312d 35360000 00000000 00000000"  # "gn1-56"
    mac = "024c8601 ec8c0000"  # of the hash of "a"
    ipv6 = "fd426d73 00630000 00000000 00000056"
    link_local = "fe800000 00000000 004c86ff fe01ec8c"
    assert shown(elements) == {
        ("bridge", "identity4", f"{device} {mac} ac1e0056"),
        ("bridge", "identity6", f"{device} {mac} {ipv6}"),
        ("bridge", "identity6", f"{device} {mac} {link_local}"),
        ("bridge", "announce6", f"{device} {ipv6}"),
        ("bridge", "announce6", f"{device} {link_local}"),
        ("inet", "live4", "ac1e0056 ac1e0056"),
        ("inet", "live6", f"{ipv6} {ipv6}"),
        ("inet", f"{POLICY}-members4", "ac1e0056"),
        ("inet", f"{POLICY}-members6", ipv6),
    }


@pytest.mark.parametrize("family", [4, 6])
def test_a_guest_of_one_family_has_no_elements_of_the_other(family: int) -> None:
    spec = NetworkSpec(ipv6=None) if family == 4 else NetworkSpec(ipv4=None)
    names = {each.set_name for each in guest_elements(attachment(spec), POLICY)}
    assert names == {"identity4", "live4", f"{POLICY}-members4"} if family == 4 else {
        "identity6", "announce6", "live6", f"{POLICY}-members6"}  # fmt: skip


def test_refusals_are_counted_by_address() -> None:
    assert shown(counting_elements("refused", attachment(NetworkSpec()).addresses)) == {
        ("inet", "refused4", IPV4),
        ("inet", "refused6", IPV6),
    }


def test_an_interface_name_of_15_bytes_fits_with_its_zero() -> None:
    named = attachment(NetworkSpec(ipv6=None)).model_copy(update={"tap": "fifteen-bytes-x"})
    (key,) = {e.key for e in guest_elements(named, POLICY) if e.set_name == "identity4"}
    assert (key[:16], len(key)) == (b"fifteen-bytes-x\0", 28)


def test_no_two_slots_share_an_element() -> None:
    spec = NetworkSpec()
    seen: set[Element] = set()
    for slot in (*range(40), 256, 257, 65535):
        own = guest_elements(attachment(spec, slot), POLICY)
        assert len(set(own)) == len(own)
        assert not seen & set(own)
        seen |= set(own)


def test_families_are_the_kernels_numbers() -> None:
    # NFPROTO_INET, NFPROTO_ARP, NFPROTO_BRIDGE (linux/netfilter.h)
    assert [(family.word, int(family)) for family in Family] == [
        ("inet", 1), ("arp", 3), ("bridge", 7)]  # fmt: skip
