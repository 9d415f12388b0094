"""Which address is whose. Pure: slots and numbers in, addresses and names out.

`derive` turns a slot into MAC, addresses and device name; `pool` decides who gets which slot.
"""

from .derive import Placement, capacity, hashed_offset, placement, slot_of, slots_within
from .pool import Pool

__all__ = [
    "Placement",
    "Pool",
    "capacity",
    "hashed_offset",
    "placement",
    "slot_of",
    "slots_within",
]
