"""The devices that networks and attachments call for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, IPv6Network
from typing import TYPE_CHECKING

from ..address.derive import Placement, bridge_mac
from ..model.terms import Topology
from ..ruleset.chains import PolicyChains
from ..ruleset.elements import Element
from ..ruleset.names import GROUP_BRIDGE, GROUP_PORT, GROUP_ROUTED

if TYPE_CHECKING:
    from ..model import Attachment, NetworkSpec

Interface = IPv4Interface | IPv6Interface
Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class BridgeDevice:
    """A bridge that carries a network's gateway addresses."""

    name: str
    mac: str
    mtu: int
    addresses: tuple[Interface, ...]
    group: int = GROUP_BRIDGE


@dataclass(frozen=True, slots=True)
class GuestDevice:
    """A TAP, or a veth pair into a namespace, with everything that the host's end carries."""

    name: str
    group: int
    mtu: int
    #: MAC of the host's end; empty leaves the kernel's (a bridge port's is never used).
    host_mac: str
    guest_mac: str
    #: Addresses of the host's end (routed).
    addresses: tuple[Interface, ...]
    #: IPv6 routes to the guest by the device (IPv4's comes with the address).
    routes: tuple[IPv6Network, ...]
    #: The guest's addresses; they become permanent neighbours of `neighbour_device`.
    guest_addresses: tuple[Interface, ...]
    #: Gateways a namespace guest routes by.
    gateways: tuple[Address, ...]
    #: Bridge of which the device is a port, or empty.
    master: str = ""
    isolated: bool = True
    queues: int = 1
    owner: int | None = None
    gid: int | None = None
    netns: str | None = None
    guest_interface: str = "eth0"

    @property
    def neighbour_device(self) -> str:
        """Where the host looks for the guest: the bridge, or the device itself."""
        return self.master or self.name


@dataclass(frozen=True, slots=True)
class Desired:
    """Everything that must stand in the kernel for the store's intent to be true."""

    fingerprint: str
    base: str
    places: str
    policies: Mapping[str, PolicyChains] = field(default_factory=dict)
    bridges: tuple[BridgeDevice, ...] = ()
    devices: tuple[GuestDevice, ...] = ()
    elements: frozenset[Element] = frozenset()


def bridge_device(spec: NetworkSpec) -> BridgeDevice:
    """The bridge of a network whose `bridge` and `mtu` are filled in."""
    addresses: list[Interface] = []
    if spec.ipv4 is not None and spec.gateway_ipv4 is not None:
        addresses.append(IPv4Interface((int(spec.gateway_ipv4), spec.ipv4.prefixlen)))
    if spec.ipv6 is not None and spec.gateway_ipv6 is not None:
        addresses.append(IPv6Interface((int(spec.gateway_ipv6), spec.ipv6.prefixlen)))
    return BridgeDevice(spec.bridge or "", bridge_mac(spec), spec.mtu or 1500, tuple(addresses))


def guest_device(spec: NetworkSpec, place: Placement, attachment: Attachment) -> GuestDevice:
    """The device of one attachment."""
    routed = spec.topology is Topology.ROUTED
    addresses: list[Interface] = []
    routes: list[IPv6Network] = []
    if routed and place.ipv4 is not None and place.gateway_ipv4 is not None:
        addresses.append(IPv4Interface((int(place.gateway_ipv4), place.ipv4.network.prefixlen)))
    if routed and place.ipv6 is not None and place.gateway_ipv6 is not None:
        addresses.append(IPv6Interface((int(place.gateway_ipv6), 128)))
        routes.append(IPv6Network((int(place.ipv6.ip), 128)))
    guest = [a for a in (attachment.ipv4, attachment.ipv6) if a is not None]
    gateways = [a for a in (attachment.gateway_ipv4, attachment.gateway_ipv6) if a is not None]
    # With a transport they may use its socket, and the TAP is ours to open.
    opens_tap = attachment.transport is None
    return GuestDevice(
        name=attachment.tap,
        group=GROUP_ROUTED if routed else GROUP_PORT,
        mtu=attachment.mtu,
        host_mac=place.gateway_mac if routed else "",
        guest_mac=attachment.mac,
        addresses=tuple(addresses),
        routes=tuple(routes),
        guest_addresses=tuple(guest),
        gateways=tuple(gateways),
        master="" if routed else spec.bridge or "",
        isolated=spec.isolate,
        queues=attachment.queues,
        owner=attachment.owner if opens_tap else None,
        gid=attachment.group if opens_tap else None,
        netns=attachment.netns,
        guest_interface=attachment.guest_interface,
    )
