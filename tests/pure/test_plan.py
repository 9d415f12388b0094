"""Repair: from whatever stands to what must stand, held by a tiny kernel made of dictionaries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestnet.address import placement
from guestnet.model import Attachment, NetworkSpec
from guestnet.plan import (
    Admit,
    BridgeDevice,
    Configure,
    Desired,
    Expel,
    GuestDevice,
    InstallBase,
    InstallPolicy,
    MakeBridge,
    MakeDevice,
    Observed,
    RemovePolicies,
    Retire,
    SeenDevice,
    SetPlaces,
    Step,
    bridge_device,
    guest_device,
    repair,
)
from guestnet.policy import parse_policy
from guestnet.ruleset.chains import policy_id
from guestnet.ruleset.compile import compile_policy
from guestnet.ruleset.elements import Element, guest_elements
from guestnet.ruleset.names import GROUP_BRIDGE, GROUP_PORT, GROUP_RETIRED, GROUP_ROUTED, Family

ROUTED = NetworkSpec(mtu=1500)
BRIDGE = NetworkSpec.read({"name": "lan", "topology": "bridge", "mtu": 1500})
POLICIES = {policy_id(p): compile_policy(p) for p in map(parse_policy, ("none", "public", "all"))}
BASE = "base-of-this-release"


# --- a kernel of dictionaries ---------------------------------------------------------------------


class Kernel:
    """Does steps as the site would, as far as `repair` can see it."""

    def __init__(self, observed: Observed) -> None:
        self.devices = dict(observed.devices)
        self.chains = set(observed.chains)
        self.elements = set(observed.elements)

    def observed(self) -> Observed:
        return Observed(dict(self.devices), frozenset(self.chains), frozenset(self.elements))

    def perform(self, steps: Iterable[Step]) -> None:
        for step in steps:
            self._do(step)

    def _do(self, step: Step) -> None:
        match step:
            case InstallBase():
                self.chains = {BASE, *(n for p in step.policies for n, _rules in p.chains)}
                self.elements = set(step.elements)
            case InstallPolicy(chains):
                self.chains |= {name for name, _rules in chains.chains}
            case RemovePolicies(names):
                assert set(names) <= self.chains  # the kernel refuses to delete what is not there
                self.chains -= set(names)
            case MakeBridge(bridge):
                self.devices[bridge.name] = seen_bridge(bridge)
            case MakeDevice(device):
                seen = self.devices.get(device.name)
                assert seen is None or seen.group == GROUP_RETIRED, f"{device.name} exists"
                self.devices[device.name] = seen_device(device)
            case Configure(device):
                assert device.name in self.devices
                self.devices[device.name] = seen_device(device)
            case Retire(name):
                del self.devices[name]
            case Admit(elements):
                self.elements |= set(elements)
            case Expel(elements):
                self.elements -= set(elements)
            case SetPlaces():
                pass
            case _:
                raise AssertionError(f"what is {step!r}?")


def seen_device(device: GuestDevice) -> SeenDevice:
    mac = device.host_mac or "de:ad:be:ef:00:01"  # a port keeps the kernel's
    return SeenDevice(device.name, device.group, mac, device.mtu, device.master, True)


def seen_bridge(bridge: BridgeDevice) -> SeenDevice:
    return SeenDevice(bridge.name, bridge.group, bridge.mac, bridge.mtu, "", True)


def standing(desired: Desired) -> Observed:
    """The kernel in which everything desired stands, and nothing else."""
    devices = [*map(seen_device, desired.devices), *map(seen_bridge, desired.bridges)]
    chains = {BASE, *(name for p in desired.policies.values() for name, _rules in p.chains)}
    return Observed({d.name: d for d in devices}, frozenset(chains), desired.elements)


# --- what may be desired, and what may stand ------------------------------------------------------


def attachment(spec: NetworkSpec, number: int, slot: int) -> Attachment:
    place = placement(spec, number, slot, f"vm-{slot}")
    return Attachment(
        guest=f"vm-{slot}", network=spec.name, topology=spec.topology, generation=slot, slot=slot,
        tap=place.tap, mac=place.mac, ipv4=place.ipv4, ipv6=place.ipv6,
        gateway_ipv4=place.gateway_ipv4, gateway_ipv6=place.gateway_ipv6, mtu=1500, dns=(),
        policy="public",
    )  # fmt: skip


GUESTS = [(spec, number, slot) for number, spec in ((1, ROUTED), (2, BRIDGE)) for slot in (2, 3, 4)]


def desire(guests: Iterable[tuple[NetworkSpec, int, int]], policies: Iterable[str]) -> Desired:
    """Guests and the policies they have, in turn."""
    names = list(policies) or list(POLICIES)[:1]
    devices, elements, used = [], set(), set(policies)
    for index, (spec, number, slot) in enumerate(guests):
        each = attachment(spec, number, slot)
        name = names[index % len(names)]
        used.add(name)
        place = placement(spec, number, slot, each.guest)
        devices.append(guest_device(spec, place, each))
        elements |= set(guest_elements(each, name))
    bridges = (bridge_device(BRIDGE),)
    return Desired(
        BASE, "the base", "the places", {name: POLICIES[name] for name in sorted(used)}, bridges,
        tuple(devices), frozenset(elements),
    )  # fmt: skip


desires = st.builds(
    desire, st.lists(st.sampled_from(GUESTS), unique=True), st.sets(st.sampled_from(list(POLICIES)))
)

FOREIGN = SeenDevice("eth0", 0, "52:54:00:00:00:01", 1500, "", True)
STRAYS = [
    FOREIGN,
    SeenDevice("docker0", 0, "02:42:00:00:00:01", 1500, "", True),
    SeenDevice("gn1-ff", GROUP_ROUTED, "02:6d:73:00:ff:01", 1500, "", True),
    SeenDevice("gn2-99", GROUP_PORT, "02:6d:73:00:ff:01", 1500, "fcbr0", True),
    SeenDevice("oldbr", GROUP_BRIDGE, "02:00:00:00:00:01", 1500, "", True),
    SeenDevice("gn1-fe", GROUP_RETIRED, "02:6d:73:00:fe:01", 1500, "", False),
]
STRAY_ELEMENTS = [
    Element(Family.INET, "live4", b"\xac\x10\x00\xfe"),
    Element(Family.ARP, "identity4", bytes(28)),
]


@st.composite
def broken(draw: st.DrawFn) -> tuple[Desired, Observed]:
    """Something desired, and a kernel in which parts of it are missing, wrong, or too many."""
    desired = draw(desires)
    right = standing(desired)
    devices = {}
    for name, seen in right.devices.items():
        fate = draw(st.sampled_from(["right", "right", "gone", "retired", "down", "mtu", "group",
                                     "mac", "master"]))  # fmt: skip
        changed: dict[str, dict[str, Any]] = {
            "retired": {"group": GROUP_RETIRED}, "down": {"up": False}, "mtu": {"mtu": 1400},
            "group": {"group": 0}, "mac": {"mac": "02:00:00:00:00:09"},
            "master": {"master": "other"},
        }  # fmt: skip
        if fate == "master" and seen.group == GROUP_BRIDGE:
            continue  # a bridge in a bridge is not a thing
        if fate != "gone":
            devices[name] = replace(seen, **changed.get(fate, {}))
    devices |= {d.name: d for d in draw(st.lists(st.sampled_from(STRAYS), unique=True))}
    chains = {name for name in sorted(right.chains) if draw(st.integers(0, 5))}
    chains |= draw(st.sets(st.sampled_from(["policy-0123456789abcdef-egress", "leave"])))
    elements = {e for e in sorted(right.elements, key=repr) if draw(st.integers(0, 3))}
    elements |= draw(st.sets(st.sampled_from(STRAY_ELEMENTS)))
    return desired, Observed(devices, frozenset(chains), frozenset(elements))


def without_places(steps: Iterable[Step]) -> list[Step]:
    return [step for step in steps if not isinstance(step, SetPlaces)]


# --- transcripts ----------------------------------------------------------------------------------


def test_a_fresh_machine_gets_everything_in_an_order_that_never_lets_a_guest_loose() -> None:
    desired = desire(GUESTS[:1] + GUESTS[3:4], [policy_id(parse_policy("public"))])
    assert [str(step) for step in repair(desired, Observed())] == [
        f"install the ruleset with 1 policies and {len(desired.elements)} set elements",
        "make bridge fcbr0",
        "make gn1-2",
        "make gn2-2",
    ]


def test_a_machine_on_which_all_is_right_only_has_its_places_set() -> None:
    desired = desire(GUESTS, POLICIES)
    assert repair(desired, standing(desired)) == (SetPlaces("the places"),)


def test_a_guest_whose_device_is_gone_gets_it_again() -> None:
    desired = desire(GUESTS[:2], POLICIES)
    seen = standing(desired)
    devices = {name: each for name, each in seen.devices.items() if name != "gn1-2"}
    steps = without_places(repair(desired, replace(seen, devices=devices)))
    assert steps == [MakeDevice(desired.devices[0])]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"up": False}, "down"),
        ({"mtu": 9000}, "MTU 9000"),
        ({"mac": "02:00:00:00:00:09"}, "MAC 02:00:00:00:00:09"),
        ({"master": "docker0"}, "bridge docker0"),
        ({"group": 0}, "group 0x0"),
    ],
)
def test_a_device_that_is_wrong_is_set_right_where_it_stands(
    change: dict[str, object], reason: str
) -> None:
    desired = desire(GUESTS[:1], POLICIES)
    seen = standing(desired)
    devices = {**seen.devices, "gn1-2": replace(seen.devices["gn1-2"], **change)}  # type: ignore[arg-type]
    (step,) = without_places(repair(desired, replace(seen, devices=devices)))
    assert step == Configure(desired.devices[0], reason)
    assert str(step) == f"set gn1-2 right: {reason}"


def test_the_mac_of_a_bridge_port_is_the_kernels_choice() -> None:
    desired = desire(GUESTS[3:4], POLICIES)
    seen = standing(desired)
    devices = {**seen.devices, "gn2-2": replace(seen.devices["gn2-2"], mac="52:00:00:00:00:77")}
    assert without_places(repair(desired, replace(seen, devices=devices))) == []


def test_a_retired_device_of_the_same_name_is_made_anew_not_reused() -> None:
    desired = desire(GUESTS[:1], POLICIES)
    seen = standing(desired)
    devices = {**seen.devices, "gn1-2": replace(seen.devices["gn1-2"], group=GROUP_RETIRED)}
    steps = without_places(repair(desired, replace(seen, devices=devices)))
    assert steps == [MakeDevice(desired.devices[0])]


def test_another_releases_base_is_replaced_whole_and_nothing_else_is_done_to_the_rules() -> None:
    desired = desire(GUESTS, POLICIES)
    seen = standing(desired)
    old = frozenset({"base-of-another", "policy-0123456789abcdef-egress"})
    steps = repair(desired, replace(seen, chains=old, elements=frozenset(STRAY_ELEMENTS)))
    assert steps == (
        InstallBase("the base", "the places", tuple(desired.policies.values()), desired.elements),
    )


def test_chains_that_no_guest_uses_go() -> None:
    desired = desire(GUESTS[:1], [policy_id(parse_policy("public"))])
    seen = standing(desired)
    chains = seen.chains | {"policy-0123456789abcdef-egress", "policy-0123456789abcdef-ingress"}
    (step,) = without_places(repair(desired, replace(seen, chains=chains)))
    assert step == RemovePolicies(
        ("policy-0123456789abcdef-egress", "policy-0123456789abcdef-ingress"),
        tuple(desired.policies.values()),
    )


# --- laws -----------------------------------------------------------------------------------------


@given(desires)
def test_of_an_exact_match_only_the_places_are_set(desired: Desired) -> None:
    assert repair(desired, standing(desired)) == (SetPlaces(desired.places),)


@settings(max_examples=300)
@given(broken())
def test_after_a_repair_there_is_nothing_to_repair(case: tuple[Desired, Observed]) -> None:
    desired, observed = case
    kernel = Kernel(observed)
    kernel.perform(repair(desired, observed))
    assert repair(desired, kernel.observed()) == (SetPlaces(desired.places),)
    assert kernel.elements == desired.elements


@settings(max_examples=300)
@given(broken())
def test_what_is_right_is_left_alone(case: tuple[Desired, Observed]) -> None:
    desired, observed = case
    right = standing(desired)
    touched = set()
    for step in repair(desired, observed):
        match step:
            case MakeBridge(bridge):
                touched.add(bridge.name)
            case MakeDevice(device) | Configure(device):
                touched.add(device.name)
            case Retire(name):
                touched.add(name)
            case InstallPolicy(chains):
                assert not {name for name, _rules in chains.chains} <= observed.chains
    for name, seen in right.devices.items():
        if observed.devices.get(name) == seen:
            assert name not in touched


@settings(max_examples=300)
@given(broken())
def test_devices_of_others_are_never_touched(case: tuple[Desired, Observed]) -> None:
    desired, observed = case
    kernel = Kernel(observed)
    kernel.perform(repair(desired, observed))
    for name in ("eth0", "docker0"):
        assert kernel.devices.get(name) == observed.devices.get(name)


@settings(max_examples=300)
@given(broken())
def test_nobody_is_admitted_before_intruders_are_expelled_and_its_device_is_never_retired(
    case: tuple[Desired, Observed],
) -> None:
    desired, observed = case
    steps = repair(desired, observed)
    kinds = [type(step) for step in steps]
    if Expel in kinds and Admit in kinds:
        assert kinds.index(Expel) < kinds.index(Admit)
    if Admit in kinds:  # what elements refer to stands before them
        assert all(at < kinds.index(Admit) for at, k in enumerate(kinds) if k is InstallPolicy)
    wanted = {device.name for device in desired.devices}
    wanted |= {bridge.name for bridge in desired.bridges}
    assert not wanted & {step.name for step in steps if isinstance(step, Retire)}


@settings(max_examples=200)
@given(broken())
def test_a_base_that_is_missing_comes_with_everything_at_once(
    case: tuple[Desired, Observed],
) -> None:
    desired, observed = case
    steps = repair(desired, replace(observed, chains=observed.chains - {BASE}))
    (base,) = [step for step in steps if isinstance(step, InstallBase)]
    assert steps[0] is base
    assert (base.base, base.places) == (desired.base, desired.places)
    assert base.elements == desired.elements
    assert base.policies == tuple(desired.policies.values())
    others = (SetPlaces, InstallPolicy, Admit, Expel, RemovePolicies)
    assert not any(isinstance(step, others) for step in steps)


@settings(max_examples=200)
@given(broken(), st.integers(0, 30))
def test_a_repair_that_was_interrupted_is_finished_by_the_next(
    case: tuple[Desired, Observed], done: int
) -> None:
    desired, observed = case
    kernel = Kernel(observed)
    kernel.perform(repair(desired, observed)[:done])
    kernel.perform(repair(desired, kernel.observed()))
    assert without_places(repair(desired, kernel.observed())) == []


# --- devices --------------------------------------------------------------------------------------


def test_the_device_of_a_routed_guest() -> None:
    (device,) = desire(GUESTS[:1], POLICIES).devices
    assert (device.name, device.group, device.host_mac) == ("gn1-2", GROUP_ROUTED,
                                                            "02:6d:73:00:02:01")  # fmt: skip
    assert [str(a) for a in device.addresses] == ["172.16.0.9/30", "fd42:6d73:62:2::1/128"]
    assert [str(r) for r in device.routes] == ["fd42:6d73:62:2::2/128"]
    assert [str(a.ip) for a in device.guest_addresses] == ["172.16.0.10", "fd42:6d73:62:2::2"]
    assert (device.neighbour_device, device.master) == ("gn1-2", "")


def test_the_device_of_a_bridge_guest_is_a_port_without_addresses() -> None:
    (device,) = desire(GUESTS[3:4], POLICIES).devices
    assert (device.group, device.master, device.isolated) == (GROUP_PORT, "fcbr0", True)
    assert (device.addresses, device.routes, device.host_mac) == ((), (), "")
    assert device.neighbour_device == "fcbr0"


def test_the_bridge_carries_the_gateways() -> None:
    bridge = bridge_device(BRIDGE)
    assert [str(a) for a in bridge.addresses] == ["172.30.0.1/24", "fd42:6d73:63::1/64"]
    assert (bridge.name, bridge.group) == ("fcbr0", GROUP_BRIDGE)
