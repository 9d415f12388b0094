"""nft's notation for ranges and sets."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address


def range4(lo: int, hi: int) -> str:
    """An inclusive IPv4 range."""
    return str(IPv4Address(lo)) if lo == hi else f"{IPv4Address(lo)}-{IPv4Address(hi)}"


def range6(lo: int, hi: int) -> str:
    """An inclusive IPv6 range."""
    return str(IPv6Address(lo)) if lo == hi else f"{IPv6Address(lo)}-{IPv6Address(hi)}"


def interval_set(name: str, kind: str, members: Iterable[str]) -> str:
    """A set of ranges; an empty one is written without `elements`, as nft wants it."""
    listed = ", ".join(members)
    elements = f" elements = {{ {listed} }};" if listed else ""
    return f"  set {name} {{ type {kind}; flags interval;{elements} }}\n"
