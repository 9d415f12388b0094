"""From what stands to what must stand, without touching what is already right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..ruleset.elements import Element
from ..ruleset.names import GROUP_BRIDGE, GROUP_PORT, GROUP_RETIRED, GROUP_ROUTED
from .desired import Desired, GuestDevice
from .steps import (
    Admit,
    Configure,
    Expel,
    InstallBase,
    InstallPolicy,
    MakeBridge,
    MakeDevice,
    RemovePolicies,
    Retire,
    SetPlaces,
    Step,
)

_GUEST_GROUPS = (GROUP_ROUTED, GROUP_PORT)


@dataclass(frozen=True, slots=True)
class SeenDevice:
    """A device as it stands."""

    name: str
    group: int
    mac: str
    mtu: int
    master: str
    up: bool


@dataclass(frozen=True, slots=True)
class Observed:
    """What stands in the kernel that is ours, and whatever bears a name that we want."""

    devices: Mapping[str, SeenDevice] = field(default_factory=dict)
    chains: frozenset[str] = frozenset()
    elements: frozenset[Element] = frozenset()


def repair(desired: Desired, observed: Observed) -> tuple[Step, ...]:
    """Steps in the order that keeps every guest either as it should be or cut off.

    The places are always set: they follow the machine, and setting them disturbs nobody.
    """
    return (
        *_rules(desired, observed),
        *_bridges(desired, observed),
        *_devices(desired, observed),
        *_unused(desired, observed),
    )


def _rules(desired: Desired, observed: Observed) -> Iterator[Step]:
    if desired.fingerprint not in observed.chains:
        yield InstallBase(
            desired.base,
            desired.places,
            tuple(desired.policies.values()),
            desired.elements,
        )
        return
    extra = observed.elements - desired.elements
    if extra:
        yield Expel(_ordered(extra))
    yield SetPlaces(desired.places)
    for chains in desired.policies.values():
        if not all(name in observed.chains for name, _rules in chains.chains):
            yield InstallPolicy(chains)
    missing = desired.elements - observed.elements
    if missing:
        yield Admit(_ordered(missing))


def _ordered(elements: frozenset[Element]) -> tuple[Element, ...]:
    return tuple(sorted(elements, key=lambda e: (e.family, e.set_name, e.key)))


def _bridges(desired: Desired, observed: Observed) -> Iterator[Step]:
    wanted = {bridge.name for bridge in desired.bridges}
    for bridge in desired.bridges:
        seen = observed.devices.get(bridge.name)
        right = (bridge.group, bridge.mac, bridge.mtu, True)
        if seen is None or (seen.group, seen.mac, seen.mtu, seen.up) != right:
            yield MakeBridge(bridge)
    for seen in observed.devices.values():
        if seen.group == GROUP_BRIDGE and seen.name not in wanted:
            yield Retire(seen.name)


def _devices(desired: Desired, observed: Observed) -> Iterator[Step]:
    wanted = {device.name for device in desired.devices}
    for device in desired.devices:
        seen = observed.devices.get(device.name)
        if seen is None or seen.group == GROUP_RETIRED:
            yield MakeDevice(device)
        elif reason := _difference(device, seen):
            yield Configure(device, reason)
    wanted |= {bridge.name for bridge in desired.bridges}
    for seen in observed.devices.values():
        # What was retired and not deleted yet is retired once more: its deletion follows.
        if seen.group in (GROUP_RETIRED, *_GUEST_GROUPS) and seen.name not in wanted:
            yield Retire(seen.name)


def _difference(device: GuestDevice, seen: SeenDevice) -> str:
    """What is wrong with a standing device, or empty."""
    if seen.group != device.group:
        return f"group {seen.group:#x}"
    if device.host_mac and seen.mac != device.host_mac:
        return f"MAC {seen.mac}"
    if seen.mtu != device.mtu:
        return f"MTU {seen.mtu}"
    if seen.master != device.master:
        return f"bridge {seen.master or 'none'}"
    return "" if seen.up else "down"


def _unused(desired: Desired, observed: Observed) -> Iterator[Step]:
    used = {name for chains in desired.policies.values() for name, _rules in chains.chains}
    if desired.fingerprint not in observed.chains:
        return  # the tables are new: there is nothing old in them
    old = tuple(sorted(n for n in observed.chains if n.startswith("policy-") and n not in used))
    if old:
        yield RemovePolicies(old, tuple(desired.policies.values()))
