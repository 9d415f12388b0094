"""Where a guest goes: a slot that is free, that the owner may have asked for, that nobody uses."""

from __future__ import annotations

from ..address.derive import Placement, hashed_mac, hashed_offset, placement, slot_of
from ..errors import ConflictError, PoolFullError
from ..kernel.interface import Site
from ..kernel.outlook import WIDEST_USED_PREFIX
from ..kernel.route import Network
from ..model import AttachRequest, NetworkSpec, Topology
from ..plan import SetPlaces
from .ledger import Ledger
from .network import LiveNetwork


class Placer:
    """Chooses slots, and keeps out of the pools what the host uses itself."""

    def __init__(self, ledger: Ledger, site: Site) -> None:
        self._ledger = ledger
        self._site = site

    def place(self, network: LiveNetwork, request: AttachRequest, now: float) -> Placement:
        """A free place that fits the request; raises `ConflictError` or `PoolFullError`."""
        explicit = _explicit_slot(network.spec, request)
        while True:
            if explicit is None:
                slot = self._choose(network, request.guest, now)
            elif network.pool.is_free(explicit):
                slot = explicit
            else:
                key = "ipv4" if request.ipv4 is not None else "ipv6"
                raise ConflictError(key, str(request.ipv4 or request.ipv6), self._taken(request))
            place = placement(network.spec, network.number, slot, request.guest)
            if not self._is_used_by_host(network, place):
                return place
            self.skip_used()

    def _choose(self, network: LiveNetwork, guest: str, now: float) -> int:
        spec = network.spec
        preferred = hashed_offset(guest, spec) if spec.topology is Topology.BRIDGE else None
        slot = network.pool.choose(guest, now, preferred)
        if slot is None:
            pools = " and ".join(str(pool) for pool in network.pools)
            raise PoolFullError(spec.name, pools, network.pool.capacity(), network.pool.skipped)
        return slot

    def _taken(self, request: AttachRequest) -> str:
        for address in (request.ipv4, request.ipv6):
            holder = self._ledger.holder_of_address(address) if address is not None else None
            if holder is not None:
                return f"is leased to guest {holder.guest!r}"
        return "is being released, or the host uses it"

    def mac(self, network: LiveNetwork, request: AttachRequest, place: Placement) -> str:
        """The MAC asked for, or derived; on a bridge it is no other guest's."""
        mac = request.mac or place.mac
        shared = network.spec.topology is Topology.BRIDGE
        attempt = 0
        while True:
            holder = "the gateway" if mac == place.gateway_mac else None
            if shared and holder is None:
                holder = self._ledger.holder_of_mac(network.spec.name, mac)
            if holder is None:
                return mac
            if request.mac is not None:
                raise ConflictError("mac", mac, f"is the MAC of {holder!r}")
            attempt += 1
            mac = hashed_mac(f"{request.guest}\0{attempt}")

    # -- what the host uses ------------------------------------------------------------------

    def _is_used_by_host(self, network: LiveNetwork, place: Placement) -> bool:
        """Ask the routing table, at a cost that does not depend on its size."""
        if network.spec.topology is Topology.BRIDGE:
            return False  # the whole subnet was free when the network was made, and is its own now
        asked = [each.ip for each in (place.ipv4, place.ipv6) if each is not None]
        if place.gateway_ipv4 is not None:
            asked.append(place.gateway_ipv4)
        for address in asked:
            way = self._site.outlook.way_to(address)
            if way is not None and way.destination.prefixlen >= WIDEST_USED_PREFIX:
                self._note_used(way.destination, way.words)
                return True
        return False

    def _note_used(self, destination: Network, words: str) -> None:
        for network in self._ledger.networks.values():
            network.note_used(destination, words)

    def skip_used(self) -> None:
        """Look up what the host uses, leave it out of every pool, and tell the ruleset."""
        before = [network.holes for network in self._ledger.networks.values()]
        around = self._site.outlook.surroundings()
        for network in self._ledger.networks.values():
            network.skip(around.used, self._ledger.bridge_subnets())
        if before != [network.holes for network in self._ledger.networks.values()]:
            self._site.perform([SetPlaces(self._ledger.places(around.addresses))])


def _explicit_slot(spec: NetworkSpec, request: AttachRequest) -> int | None:
    """The slot that the addresses asked for belong to."""
    asked = [address for address in (request.ipv4, request.ipv6) if address is not None]
    slots = {slot_of(spec, address) for address in asked}
    if len(slots) > 1:
        place = placement(spec, 0, slot_of(spec, asked[0]), request.guest)
        right = place.ipv6.ip if place.ipv6 is not None else "none"
        raise ConflictError("ipv6", str(request.ipv6), f"{request.ipv4} goes with {right}")
    return slots.pop() if slots else None
