"""Which address is whose. Pure: slots and numbers in, addresses and names out.

`derive` turns a slot into MAC, addresses and device name; `pool` decides who gets which slot,
and `synthetic` has addresses that stand for names.
"""

from .derive import Placement, capacity, hashed_offset, placement, slot_of, slots_within
from .pool import Pool
from .synthetic import SYNTHETIC_IPV4, SYNTHETIC_IPV6, is_synthetic, synthetic_addresses

__all__ = [
    "SYNTHETIC_IPV4",
    "SYNTHETIC_IPV6",
    "Placement",
    "Pool",
    "capacity",
    "hashed_offset",
    "is_synthetic",
    "placement",
    "slot_of",
    "slots_within",
    "synthetic_addresses",
]
