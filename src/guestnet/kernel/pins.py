"""Pins in the kernel: pairs of guest and peer that may follow a rule by name, each for a time."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address

from ..ruleset.chains import pins_set
from ..ruleset.elements import Element
from ..ruleset.names import Family
from .nft import Nft

Address = IPv4Address | IPv6Address


class PinSets:
    """The sets of pins. Thread-safe, by the lock of whoever else uses this `Nft`."""

    def __init__(self, nft: Nft, lock: threading.RLock) -> None:
        self._nft = nft
        self._lock = lock

    def add(self, lifetimes_s: Mapping[Element, int]) -> None:
        """Let guests' packets follow rules by name (`pin_element`), each for a time."""
        with self._lock:
            self._nft.renew(lifetimes_s)

    def remove(self, policy: str, rules: Iterable[int], guests: Collection[Address]) -> None:
        """Take guests' pins under rules of a policy away: the next holder has asked nothing."""
        with self._lock:
            for rule in rules:
                for guest in guests:
                    gone = self._of(policy, rule, guest)
                    if gone:
                        self._nft.change(remove=gone)

    def peers(self, policy: str, rule: int, guest: Address) -> list[Address]:
        """Peers that a guest's packets may follow a rule by name to."""
        with self._lock:
            pins = self._of(policy, rule, guest)
        return [ip_address(each.key[len(guest.packed) :]) for each in pins]

    def _of(self, policy: str, rule: int, guest: Address) -> list[Element]:
        standing = self._nft.elements(Family.INET, pins_set(policy, rule, guest.version))
        return [each for each in standing if each.key.startswith(guest.packed)]
