"""What one guest adds to the sets and maps: its identity, and its policy by address.

Keys are bytes as nftables compares them: each part of a concatenation padded to 4 bytes
(nft_set_elem_key; the interface name to IFNAMSIZ).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

from ..address.derive import link_local
from ..model.terms import Topology
from .chains import members_set, pins_set
from .names import TABLE, Family

if TYPE_CHECKING:
    from ..model import Attachment

Address = IPv4Address | IPv6Address

_IFNAMSIZ = 16


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a set without ranges."""

    family: Family
    set_name: str
    key: bytes


def pin_element(policy: str, rule: int, guest: Address, peer: Address) -> Element:
    """What lets a guest's packets to `peer` follow a rule by name of the policy with this id."""
    return Element(Family.INET, pins_set(policy, rule, guest.version), guest.packed + peer.packed)


def admission_text(elements: Iterable[Element]) -> str:
    """The elements in nft's notation, for a transaction that writes their sets as well."""
    listed: dict[tuple[str, str], list[str]] = {}
    for each in sorted(elements, key=lambda e: (e.family, e.set_name, e.key)):
        listed.setdefault((each.family.word, each.set_name), []).append(_written(each))
    return "".join(
        f"add element {family} {TABLE} {name} {{ {', '.join(members)} }}\n"
        for (family, name), members in listed.items()
    )


def _written(element: Element) -> str:
    key = element.key
    if element.set_name.startswith("identity"):
        return f"{_device(key)} . {key[16:22].hex(':')} . {ip_address(key[24:])}"
    if element.set_name == "announce6":
        return f"{_device(key)} . 0x{key[16:].hex()}"
    if element.set_name.startswith("live"):
        half = len(key) // 2
        return f"{ip_address(key[:half])} . {ip_address(key[half:])}"
    return str(ip_address(key))


def _device(key: bytes) -> str:
    return '"' + key[:_IFNAMSIZ].rstrip(b"\0").decode() + '"'


def guest_elements(attachment: Attachment, policy: str) -> tuple[Element, ...]:
    """All elements of a guest; `policy` is the id that its policy's chains share."""
    return (*_identity(attachment), *_membership(attachment, policy))


def counting_elements(
    word: str, addresses: Iterable[IPv4Address | IPv6Address]
) -> tuple[Element, ...]:
    """Where something is counted of guests (`telling.COUNTING`); they outlive them."""
    return tuple(Element(Family.INET, f"{word}{each.version}", each.packed) for each in addresses)


def _identity(attachment: Attachment) -> Iterator[Element]:
    routed = attachment.topology is Topology.ROUTED
    family = Family.INET if routed else Family.BRIDGE
    device = attachment.tap.encode().ljust(_IFNAMSIZ, b"\0")
    mac = bytes.fromhex(attachment.mac.replace(":", "")) + b"\0\0"
    if attachment.ipv4 is not None:
        key = device + mac + attachment.ipv4.ip.packed
        yield Element(family, "identity4", key)
        if routed:
            yield Element(Family.ARP, "identity4", key)
    if attachment.ipv6 is not None:
        for address in (attachment.ipv6.ip, link_local(attachment.mac)):
            yield Element(family, "identity6", device + mac + address.packed)
            yield Element(family, "announce6", device + address.packed)


def _membership(attachment: Attachment, policy: str) -> Iterator[Element]:
    for address in attachment.addresses:
        # A pair, so that one set answers both "is it live" and "is it the flow's own end".
        yield Element(Family.INET, f"live{address.version}", address.packed * 2)
        yield Element(Family.INET, members_set(policy, address.version), address.packed)
