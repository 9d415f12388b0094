"""A network as the host holds it in memory: settings, slots, and what of its pools is skipped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from ..address import Pool, capacity, slots_within
from ..address.derive import reserved_slots, slot_bounds
from ..errors import ConflictError
from ..model import NetworkInfo, NetworkSpec, Skipped, Topology
from ..ruleset.places import NetworkPlaces, without

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
#: Networks that someone uses, each with its origin in words.
Used = Sequence[tuple[Network, str]]


def overlaps(one: Network, other: Network) -> bool:
    """Whether two networks share an address; networks of different families never do."""
    return one.version == other.version and one.overlaps(other)


class LiveNetwork:
    """One network; `number` is the one that its device names carry."""

    def __init__(self, number: int, spec: NetworkSpec) -> None:
        self.number = number
        self.spec = spec
        first, last = slot_bounds(spec)
        self.pool = Pool(first, last, reserved_slots(spec), spec.rest_s)
        self.egress: tuple[str, ...] = ()
        #: The host's own resolvers now, for a network that names none.
        self.host_dns: tuple[Address, ...] = ()
        self.skipped: tuple[Skipped, ...] = ()
        self._holes: tuple[Network, ...] = ()
        #: Those of the holes that are other networks' own.
        self._others: tuple[Network, ...] = ()
        #: Found out one by one when a place was about to be given.
        self._noted: dict[Network, str] = {}

    @property
    def pools(self) -> tuple[Network, ...]:
        """The pools of the families that the network has."""
        return tuple(pool for pool in (self.spec.ipv4, self.spec.ipv6) if pool is not None)

    @property
    def dns(self) -> tuple[Address, ...]:
        """Resolvers that guests may be told."""
        return self.host_dns if self.spec.dns is None else self.spec.plain_dns

    @property
    def holes(self) -> tuple[Network, ...]:
        """Parts of the pools that the host uses itself."""
        return self._holes

    def skip(self, used: Used, others: Used = ()) -> None:
        """Leave out what the host uses and `others` own; a bridge network owns its whole subnet."""
        if self.spec.topology is Topology.BRIDGE:
            return
        self._others = tuple(
            network for network, _ in others if any(overlaps(network, pool) for pool in self.pools)
        )
        found: dict[Network, str] = {}
        for network, reason in (*used, *others, *self._noted.items()):
            if any(overlaps(network, pool) for pool in self.pools):
                found.setdefault(network, reason)
        self._holes = tuple(found)
        self.skipped = tuple(
            Skipped(pool=str(network), reason=reason) for network, reason in found.items()
        )
        self.pool.skip(
            slots for network in found if (slots := slots_within(self.spec, network)) is not None
        )

    def note_used(self, network: Network, reason: str) -> None:
        """Remember a network that a look at the host's main routes does not show."""
        if any(overlaps(network, pool) for pool in self.pools):
            self._noted[network] = reason

    def forget_noted(self) -> None:
        """Start anew with what the host shows."""
        self._noted.clear()

    def _is_in_hole(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in hole for hole in self._holes)

    def places(self, guests: Iterable[Address] = (), told: Iterable[Address] = ()) -> NetworkPlaces:
        """The network's share of the ruleset's sets.

        `guests` are its live guests' addresses, `told` the resolvers that they were told.
        """
        # An address of a guest in a hole: the guest was there first, and is still a guest.
        stray = [ip_network(address) for address in guests if self._is_in_hole(address)]
        return NetworkPlaces(
            without(self.pools, self._others),
            self.egress,
            tuple(dict.fromkeys((*self.dns, *told))),
            self.spec.bridge or "",
            self.spec.isolate,
            self.spec.synthetic,
            guests=(*without(self.pools, self._holes), *stray),
        )

    def info(self, now: float) -> NetworkInfo:
        """The network as it stands."""
        resting = self.pool.resting(now)
        dns = (self.host_dns or None) if self.spec.dns is None else self.spec.dns
        return NetworkInfo(
            spec=self.spec.model_copy(update={"dns": dns}),
            egress=self.egress,
            capacity=self.pool.capacity(),
            attached=self.pool.live,
            resting=resting,
            skipped=self.skipped,
        )


def check_free(spec: NetworkSpec, used: Used, others: Iterable[LiveNetwork]) -> None:
    """Raise `ConflictError` unless the pools of a new network can be its own."""
    pools: list[tuple[str, Network]] = []
    if spec.ipv4 is not None:
        pools.append(("ipv4", spec.ipv4))
    if spec.ipv6 is not None:
        pools.append(("ipv6", spec.ipv6))
    bridge = spec.topology is Topology.BRIDGE
    others = list(others)
    for other in others:
        if bridge and spec.bridge == other.spec.bridge:
            holder = f"is the bridge of network {other.spec.name!r}; choose another name"
            raise ConflictError("bridge", spec.bridge, holder)
    for key, pool in pools:
        for other in others:
            _check_other(spec, key, pool, other)
        if not bridge:
            continue
        for network, reason in used:
            if overlaps(network, pool):
                raise ConflictError(key, str(pool), f"overlaps the host's {reason}; choose another")
    if not bridge:
        _check_room(spec, pools, used)


def _check_other(spec: NetworkSpec, key: str, pool: Network, other: LiveNetwork) -> None:
    if not any(overlaps(pool, theirs) for theirs in other.pools):
        return
    mixed = spec.topology is not other.spec.topology
    inside = slots_within(other.spec, pool)
    # A bridge's subnet may lie in a routed pool, which then skips it, while no guest is there.
    if mixed and other.spec.topology is Topology.ROUTED:
        if inside is None or not other.pool.any_live(*inside):
            return
        raise ConflictError(key, str(pool), f"guests of network {other.spec.name!r} are in there")
    if mixed:
        return
    raise ConflictError(
        key, str(pool), f"overlaps the pool of network {other.spec.name!r}; give another, or none"
    )


def _check_room(spec: NetworkSpec, pools: list[tuple[str, Network]], used: Used) -> None:
    probe = LiveNetwork(0, spec)
    probe.skip(used)
    if probe.pool.capacity() > 0 or not capacity(spec):
        return
    reasons = ", ".join(sorted({each.reason for each in probe.skipped}))
    key, pool = pools[0]
    raise ConflictError(key, str(pool), f"nothing of it is free: the host has {reasons}")
