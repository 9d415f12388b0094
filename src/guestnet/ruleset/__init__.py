"""Policy and attachments become nftables. Pure: values in, rules and set elements out.

Three parts with three lifetimes: `base` is one constant text per release, `compile_policy` gives
the chains of one distinct policy, and `elements` what one guest adds to sets. So the number of
rules grows with the policies that are in use, never with guests.
"""

from .base import FINGERPRINT, base_text
from .chains import PolicyChains, policy_id
from .compile import compile_policy
from .elements import Element, counting_elements, guest_elements, pin_element
from .names import Family
from .places import Doors, NetworkPlaces, places_text
from .relayed import Manner

__all__ = [
    "FINGERPRINT",
    "Doors",
    "Element",
    "Family",
    "Manner",
    "NetworkPlaces",
    "PolicyChains",
    "base_text",
    "compile_policy",
    "counting_elements",
    "guest_elements",
    "pin_element",
    "places_text",
    "policy_id",
]
