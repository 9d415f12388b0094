"""The verbs: each step is a value, can be repeated, and says in words what it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ..ruleset.chains import PolicyChains
from ..ruleset.elements import Element
from .desired import BridgeDevice, GuestDevice


@dataclass(frozen=True, slots=True)
class InstallBase:
    """Write the constant tables anew, together with all that refers to them."""

    base: str
    places: str
    policies: tuple[PolicyChains, ...]
    elements: frozenset[Element]

    def __str__(self) -> str:
        return (
            f"install the ruleset with {len(self.policies)} policies "
            f"and {len(self.elements)} set elements"
        )


@dataclass(frozen=True, slots=True)
class SetPlaces:
    """Make the machine's sets (pools, egress, resolvers) say exactly this."""

    places: str

    def __str__(self) -> str:
        return "set pools, egress interfaces and resolvers"


@dataclass(frozen=True, slots=True)
class InstallPolicy:
    """Make the chains of a policy."""

    chains: PolicyChains

    def __str__(self) -> str:
        return f"install {self.chains.id}"


@dataclass(frozen=True, slots=True)
class RemovePolicies:
    """Delete chains that no guest uses any more; `kept` are the policies that stay."""

    names: tuple[str, ...]
    kept: tuple[PolicyChains, ...]

    def __str__(self) -> str:
        return f"remove {len(self.names)} unused chains"


@dataclass(frozen=True, slots=True)
class MakeBridge:
    """Make a network's bridge, or bring a standing one to what it should be."""

    bridge: BridgeDevice

    def __str__(self) -> str:
        return f"make bridge {self.bridge.name}"


@dataclass(frozen=True, slots=True)
class MakeDevice:
    """Make a guest's device, complete."""

    device: GuestDevice

    def __str__(self) -> str:
        return f"make {self.device.name}"


@dataclass(frozen=True, slots=True)
class Configure:
    """Bring a standing device to what it should be, without taking it from its guest."""

    device: GuestDevice
    reason: str

    def __str__(self) -> str:
        return f"set {self.device.name} right: {self.reason}"


@dataclass(frozen=True, slots=True)
class Admit:
    """Add elements: from here on the guest's packets are its own, and meet its policy."""

    elements: tuple[Element, ...]

    def __str__(self) -> str:
        return f"admit {len(self.elements)} set elements"


@dataclass(frozen=True, slots=True)
class Expel:
    """Remove elements: from here on nothing passes, established flows included."""

    elements: tuple[Element, ...]

    def __str__(self) -> str:
        return f"expel {len(self.elements)} set elements"


@dataclass(frozen=True, slots=True)
class Exchange:
    """Replace elements by others at once: from here on another policy holds for the guest."""

    old: tuple[Element, ...]
    new: tuple[Element, ...]

    def __str__(self) -> str:
        return f"exchange {len(self.old)} set elements"


@dataclass(frozen=True, slots=True)
class Retire:
    """Take a device, whose guest is expelled, out of the way of others; it is deleted later.

    `device` is what it was made as, where that is known.
    """

    name: str
    device: GuestDevice | None = None

    def __str__(self) -> str:
        return f"retire {self.name}"


Step: TypeAlias = (
    InstallBase
    | SetPlaces
    | InstallPolicy
    | RemovePolicies
    | MakeBridge
    | MakeDevice
    | Configure
    | Admit
    | Exchange
    | Expel
    | Retire
)
