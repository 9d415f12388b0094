"""IPv4 addresses that travel inside IPv6 addresses, and where in IPv6 a range of IPv4 appears.

A translator or tunnel turns such a packet back into IPv4, so the address it embeds is the place it
reaches. Known forms:

    ::a.b.c.d            IPv4-compatible   RFC 4291 section 2.5.5.1
    ::ffff:a.b.c.d       IPv4-mapped       RFC 4291 section 2.5.5.2
    64:ff9b::a.b.c.d     NAT64             RFC 6052 section 2.1
    2002:aabb:ccdd::     6to4              RFC 3056 section 2
    2001:0:…:~a.b.c.d    Teredo            RFC 4380 section 4, the client's address inverted

Translators with a prefix of their own (RFC 6052's network-specific ones, 64:ff9b:1::/48 of
RFC 8215) cannot be recognised by address.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

IPV4_MAX = 2**32 - 1
IPV6_MAX = 2**128 - 1

_MAPPED = 0xFFFF << 32
_NAT64 = 0x0064_FF9B << 96
_6TO4 = 0x2002 << 112
_6TO4_SHIFT = 80
_TEREDO = 0x2001_0000 << 96

#: 2001::/32, whose embedded address is inverted: no range of IPv4 is a range of it.
TEREDO_RANGE = (_TEREDO, _TEREDO | (2**96 - 1))


def embedded_ipv4(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address inside `address`, or `None`. `::` and `::1` embed nothing."""
    value = int(address)
    high = value >> 32
    if high == _MAPPED >> 32 or high == _NAT64 >> 32 or (high == 0 and value > 1):
        return IPv4Address(value & IPV4_MAX)
    if value >> 112 == _6TO4 >> 112:
        return IPv4Address(value >> _6TO4_SHIFT & IPV4_MAX)
    if value >> 96 == _TEREDO >> 96:
        return IPv4Address(value & IPV4_MAX ^ IPV4_MAX)
    return None


def embed_ranges(lo: int, hi: int) -> tuple[tuple[int, int], ...]:
    """The IPv6 ranges that embed the IPv4 range `lo`..`hi`, sorted, without Teredo.

    Compatible (less `::` and `::1`), mapped, NAT64 and 6to4, as inclusive integers.
    """
    _check_range(lo, hi)
    compatible = ((max(lo, 2), hi),) if hi >= 2 else ()
    return (
        *compatible,
        (_MAPPED | lo, _MAPPED | hi),
        (_NAT64 | lo, _NAT64 | hi),
        (_6TO4 | lo << _6TO4_SHIFT, _6TO4 | hi << _6TO4_SHIFT | (1 << _6TO4_SHIFT) - 1),
    )


def teredo_low_bits(lo: int, hi: int) -> tuple[int, int]:
    """The low 32 bits of the Teredo addresses whose client lies in the IPv4 range `lo`..`hi`."""
    _check_range(lo, hi)
    return (hi ^ IPV4_MAX, lo ^ IPV4_MAX)


def _check_range(lo: int, hi: int) -> None:
    if not 0 <= lo <= hi <= IPV4_MAX:
        raise ValueError(f"not a range of IPv4 addresses: {lo}..{hi}")
