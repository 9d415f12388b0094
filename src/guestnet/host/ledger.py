"""What this host holds, in memory: networks and leases, and what must stand for them.

The store is what survives; this is the same, indexed for the questions an attach asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address

from ..address.derive import placement
from ..errors import ConflictError, NotFoundError
from ..kernel.netns import netns_path
from ..model import Attachment, Topology
from ..plan import Desired, GuestDevice, bridge_device, guest_device
from ..ruleset.base import FINGERPRINT, base_text
from ..ruleset.doors import Doors
from ..ruleset.elements import Element, guest_elements
from ..ruleset.names import DEVICE_PREFIX, TABLE
from ..ruleset.places import NetworkPlaces, places_text
from ..ruleset.relayed import Manner
from ..store import Lease, NetworkRecord
from .installed import InstalledPolicies, id_of
from .network import LiveNetwork, Used

Address = IPv4Address | IPv6Address


class Ledger:
    """Not thread-safe: `Host` holds the lock."""

    def __init__(self, manner: Manner = Manner.FORWARDED, *, is_apart: bool = False) -> None:
        #: What becomes of flows that are allowed by address.
        self.manner = manner
        #: Whether the site is another namespace than the host's own.
        self.is_apart = is_apart
        self.networks: dict[str, LiveNetwork] = {}
        self.attached: dict[str, Lease] = {}
        #: Cut off, but their devices and flows are not cleared away yet.
        self.detaching: dict[str, Lease] = {}
        self.installed = InstalledPolicies()
        #: The highest generation of any lease so far.
        self.generation = 0
        #: Where the gateway listens, while there is one.
        self.doors: Doors | None = None
        self._by_tap: dict[str, str] = {}
        self._by_mac: dict[tuple[str, str], str] = {}
        self._by_address: dict[Address, str] = {}
        #: How many guests of a network were told of each resolver.
        self._told_dns: dict[str, Counter[Address]] = {}
        #: Of guests that are cut off: nobody else gets theirs until they are cleared away.
        self._leaving_addresses: dict[Address, Attachment] = {}

    # -- reading -----------------------------------------------------------------------------

    def network(self, name: str) -> LiveNetwork:
        """A network, or `NotFoundError` naming those that exist."""
        network = self.networks.get(name)
        if network is None:
            known = ", ".join(sorted(self.networks)) or "none"
            raise NotFoundError("network", name, f"there is no such network (there is: {known})")
        return network

    def attachment(self, guest: str) -> Attachment:
        """A guest's attachment, or `NotFoundError`."""
        lease = self.attached.get(guest)
        if lease is None or lease.attachment is None:
            raise NotFoundError("guest", guest, "is not attached")
        return lease.attachment

    def attachments(self) -> Iterator[Attachment]:
        """All attachments."""
        for lease in self.attached.values():
            if lease.attachment is not None:
                yield lease.attachment

    def guests_of(self, network: str) -> list[str]:
        """Guests attached to a network."""
        return [guest for guest, lease in self.attached.items() if lease.network == network]

    def holder_of_address(self, address: Address) -> Attachment | None:
        """The attachment that has an address."""
        guest = self._by_address.get(address)
        return self.attached[guest].attachment if guest is not None else None

    def last_holder_of_address(self, address: Address) -> Attachment | None:
        """The attachment that has an address, or had it and is not cleared away."""
        return self.holder_of_address(address) or self._leaving_addresses.get(address)

    def addresses(self) -> Iterable[Address]:
        """Addresses of all attached guests."""
        return self._by_address.keys()

    def is_here(self, guest: str) -> bool:
        """Whether a guest is attached, or cut off and not cleared away. Needs no lock."""
        return guest in self.attached or guest in self.detaching

    def is_leaving(self, guest: str, netns: str | None) -> bool:
        """Whether a guest, or a former guest of a namespace, is cut off but not cleared away."""
        if guest in self.detaching:
            return True
        if netns is None:
            return False
        path = str(netns_path(netns))
        return any(
            lease.attachment is not None and lease.attachment.netns == path
            for lease in self.detaching.values()
        )

    def holder_of_mac(self, network: str, mac: str) -> str | None:
        """The guest that has a MAC on a network."""
        return self._by_mac.get((network, mac))

    def holder_of_tap(self, tap: str) -> str | None:
        """The guest that has a device name, or had it and is not cleared away."""
        return self._by_tap.get(tap)

    def attachment_at(self, tap: str) -> Attachment | None:
        """The attachment that has a device."""
        lease = self.attached.get(self._by_tap.get(tap, ""))
        return lease.attachment if lease is not None else None

    def is_gateway(self, address: Address) -> bool:
        """Whether an address is the host's towards guests."""
        return any(
            address in (each.gateway_ipv4, each.gateway_ipv6) for each in self.attachments()
        ) or any(
            address in (network.spec.gateway_ipv4, network.spec.gateway_ipv6)
            for network in self.networks.values()
        )

    def gateways(self) -> set[Address]:
        """The host's addresses towards guests."""
        specs = [network.spec for network in self.networks.values()]
        found = [(each.gateway_ipv4, each.gateway_ipv6) for each in self.attachments()]
        found += [(each.gateway_ipv4, each.gateway_ipv6) for each in specs]
        return {address for pair in found for address in pair if address is not None}

    # -- writing -----------------------------------------------------------------------------

    def enter(self, record: NetworkRecord) -> LiveNetwork:
        """Take up a network that the store has."""
        network = LiveNetwork(record.number, record.spec)
        self.networks[record.spec.name] = network
        return network

    def next_generation(self) -> int:
        """A generation that no lease has had."""
        self.generation += 1
        return self.generation

    def add(self, lease: Lease) -> None:
        """Enter a lease whose guest is attached."""
        attachment = _attachment(lease)
        self.attached[lease.guest] = lease
        self._by_tap[attachment.tap] = lease.guest
        self._by_mac[lease.network, attachment.mac] = lease.guest
        for address in attachment.addresses:
            self._by_address[address] = lease.guest
        self._told_dns.setdefault(lease.network, Counter()).update(_told(attachment))

    def cut(self, lease: Lease) -> None:
        """Move a guest's lease from attached to detaching."""
        del self.attached[lease.guest]
        self.detaching[lease.guest] = lease
        attachment = _attachment(lease)
        for address in attachment.addresses:
            self._by_address.pop(address, None)
            self._leaving_addresses[address] = attachment
        told = self._told_dns[lease.network]
        told.subtract(_told(attachment))
        self._told_dns[lease.network] = +told  # without those that nobody was told

    def released(self, lease: Lease, now: float) -> None:
        """Give a lease's slot back to its network, if that still exists."""
        current = self.detaching.get(lease.guest)
        if current is not None and current.generation == lease.generation:
            del self.detaching[lease.guest]
        if lease.attachment is not None:
            # Device name and MAC stand until the device is gone.
            if self._by_tap.get(lease.attachment.tap) == lease.guest:
                del self._by_tap[lease.attachment.tap]
            place = (lease.network, lease.attachment.mac)
            if self._by_mac.get(place) == lease.guest:
                del self._by_mac[place]
            for address in lease.attachment.addresses:
                self._leaving_addresses.pop(address, None)
        network = self.networks.get(lease.network)
        if network is not None:
            network.pool.release(lease.slot, lease.guest, now)

    # -- what must stand ---------------------------------------------------------------------

    def device(self, attachment: Attachment) -> GuestDevice:
        """The device of an attachment."""
        network = self.network(attachment.network)
        place = placement(network.spec, network.number, attachment.slot, attachment.guest)
        return guest_device(network.spec, place, attachment)

    def bridge_subnets(self) -> Used:
        """Subnets of bridge networks, which routed pools leave out."""
        return [
            (pool, f"network {network.spec.name!r}")
            for network in self.networks.values()
            if network.spec.topology is Topology.BRIDGE
            for pool in network.pools
        ]

    def foreign_patterns(self) -> list[str]:
        """Device names and patterns that other tools' filters must let through."""
        if not self.networks:
            return []
        bridges = [n.spec.bridge for n in self.networks.values() if n.spec.bridge]
        own = [tap for tap in self._by_tap if not tap.startswith(DEVICE_PREFIX)]
        return [f"{DEVICE_PREFIX}*", *bridges, *own]

    def places(self, host: Iterable[Address]) -> str:
        """The transaction that sets pools, egress and resolvers."""
        return places_text(self.network_places(), host, self.doors, self.manner, told=self.is_apart)

    def network_places(self) -> list[NetworkPlaces]:
        """Each network's share of the sets."""
        addresses: dict[str, list[Address]] = {name: [] for name in self.networks}
        for address, guest in self._by_address.items():
            addresses[self.attached[guest].network].append(address)
        return [
            network.places(addresses[name], self.told_dns(name))
            for name, network in self.networks.items()
        ]

    def told_dns(self, name: str) -> set[Address]:
        """Resolvers that guests of a network were told when they came: they may ask them still.

        The gateway's own addresses are none of them.
        """
        if self.networks[name].spec.dns is not None:
            return set()
        return set(self._told_dns.get(name, ()))

    def desired(self, host: Iterable[Address], marker: str) -> Desired:
        """Everything that must stand in the kernel; `marker` names the store in the tables."""
        devices = []
        elements: set[Element] = set()
        for each in self.attachments():
            devices.append(self.device(each))
            elements.update(guest_elements(each, id_of(each.policy)))
        return Desired(
            FINGERPRINT,
            f"{base_text()}add chain inet {TABLE} {marker}\n",
            self.places(host),
            dict(self.installed.chains),
            tuple(
                bridge_device(network.spec)
                for network in self.networks.values()
                if network.spec.topology is Topology.BRIDGE
            ),
            tuple(devices),
            frozenset(elements),
        )


def check_tap_is_free(ledger: Ledger, tap: str) -> str:
    """Return a device name that the owner asked for, or raise `ConflictError`."""
    holder = ledger.holder_of_tap(tap)
    if holder is not None:
        raise ConflictError("tap", tap, f"is the device of guest {holder!r}")
    return tap


def _attachment(lease: Lease) -> Attachment:
    if lease.attachment is None:
        raise ValueError(f"lease of {lease.guest!r} without an attachment")
    return lease.attachment


def _told(attachment: Attachment) -> list[Address]:
    """The resolvers that a guest was told, without the gateway's own addresses."""
    own = (attachment.gateway_ipv4, attachment.gateway_ipv6)
    return [resolver for resolver in attachment.dns if resolver not in own]
