"""Addresses that stand for names: on a synthetic network each name has one of its own.

They are nobody's: 198.18.0.0/15 is for benchmarks (RFC 2544) and routed nowhere, and the IPv6
prefix is a unique local one (RFC 4193). Whose name an address is, is asked per guest, so that two
guests may know one address by different names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address

SYNTHETIC_IPV4 = IPv4Network("198.18.0.0/15")
SYNTHETIC_IPV6 = IPv6Network("fd73:796e:7468::/64")
#: Places tried for a name until it takes one from another name. A guest has a thousand names at
#: most in 130,000 places, so that the second is rarely needed.
ATTEMPTS = 16


def is_synthetic(address: Address) -> bool:
    """Whether an address stands for a name, on a network where such do."""
    return address in (SYNTHETIC_IPV4 if address.version == 4 else SYNTHETIC_IPV6)


def synthetic_addresses(name: str, version: int) -> Iterator[Address]:
    """Where a name may be, the best first: the same each time, so that a guest that remembers it
    is right after a restart too, and workers that do not talk to each other agree.
    """
    for attempt in range(ATTEMPTS):
        digest = hashlib.blake2b(f"{attempt} {name}".encode(), digest_size=8).digest()
        if version == 4:
            # No network's first or last address of a /24: there are clients that shun them.
            block, host = digest[0] << 1 | digest[1] & 1, int.from_bytes(digest[2:4], "big")
            yield SYNTHETIC_IPV4.network_address + (block << 8) + 1 + host % 254
        else:
            yield SYNTHETIC_IPV6.network_address + int.from_bytes(digest, "big")
