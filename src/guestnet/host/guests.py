"""Guests come and go: what an attach sets up, in order, and a detach takes away."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from ..address.derive import Placement
from ..errors import ConfigError
from ..kernel.interface import Site
from ..kernel.netns import netns_path
from ..model import MTU_MIN_IPV6, Attachment, AttachRequest, NetworkSpec, Topology
from ..plan import Admit, Expel, MakeDevice, Retire
from ..policy import Policy, has_names, parse_policy
from ..ruleset.chains import policy_id
from ..ruleset.elements import guest_elements
from ..ruleset.names import DEVICE_PREFIX
from ..store import Lease, LeaseState, Store
from .installed import read_policy
from .leases import Leases
from .ledger import Ledger, check_tap_is_free
from .namespaces import NEW_NAMESPACE, GuestNamespaces
from .network import LiveNetwork
from .networks import Networks
from .placing import Placer
from .policies import Policies
from .relays import Relays
from .sameness import check_same_attachment
from .transports import Transports

Address = IPv4Address | IPv6Address

#: The network that comes into being when it is first used.
DEFAULT_NETWORK = "default"


class Guests:
    """Attaches and detaches. Its caller holds the host's lock."""

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        site: Site,
        networks: Networks,
        placer: Placer,
        policies: Policies,
        relays: Relays,
        transports: Transports,
        leases: Leases,
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._site = site
        self._networks = networks
        self._placer = placer
        self._policies = policies
        self._relays = relays
        self._transports = transports
        self._leases = leases
        self._namespaces = GuestNamespaces(site)

    def attach(self, request: AttachRequest, policy: Policy | None) -> Attachment:
        """Give a guest its network; with `policy` None it gets that of its network.

        Raises `ConflictError` if it is attached otherwise, and `PoolFullError`.
        """
        if request.netns != NEW_NAMESPACE:
            return self._attach(request, policy)
        known = self._ledger.attached.get(request.guest)
        standing = self._namespaces.of(known.attachment) if known is not None else None
        path = standing or self._namespaces.make()
        try:
            return self._attach(request.model_copy(update={"netns": path}), policy)
        except BaseException:
            if path != standing:
                self._namespaces.drop(path)
            raise

    def _attach(self, request: AttachRequest, policy: Policy | None) -> Attachment:
        if request.guest in self._ledger.attached:
            known = self._ledger.attachment(request.guest)
            check_same_attachment(request, policy, known)
            return known
        network = self._network(request.network)
        if policy is None:
            policy = parse_policy(network.spec.policy)
        place = self._placer.place(network, request, time.time())
        attachment = self._describe(network, request, policy, place)
        lease = Lease(
            network.spec.name,
            place.slot,
            request.guest,
            attachment.generation,
            LeaseState.ATTACHING,
            time.time(),
            attachment,
        )
        self._store.write([lease])
        network.pool.take(place.slot)
        try:
            self._policies.install(policy)
        except BaseException:
            self._leases.release([lease])
            raise
        self._ledger.add(self._bring_up(lease, attachment, policy))
        if not attachment.tap.startswith(DEVICE_PREFIX):
            self._site.foreign.accept(self._ledger.foreign_patterns())
        return attachment

    def _network(self, name: str) -> LiveNetwork:
        if name == DEFAULT_NETWORK and name not in self._ledger.networks:
            return self._networks.create(NetworkSpec.from_env(os.environ, name=name))
        return self._ledger.network(name)

    def _bring_up(self, lease: Lease, attachment: Attachment, policy: Policy) -> Lease:
        """Have everything stand that a guest needs beside its policy's chains; undone on failure.

        Returns the lease, which is attached then.
        """
        elements = guest_elements(attachment, policy_id(policy))
        try:
            self._relays.admit(attachment, policy)
            # Elements last: until they stand nothing of the guest passes.
            self._site.perform([MakeDevice(self._ledger.device(attachment)), Admit(elements)])
            # The VMM's socket after that: who connects has the network.
            self._transports.serve(attachment)
            attached = replace(lease, state=LeaseState.ATTACHED)
            self._store.write([attached])
        except BaseException:
            self._ledger.installed.drop(policy)
            self._relays.forget(attachment.guest)
            self._transports.end(attachment.guest)
            # Where even this fails the lease stays `attaching` and its slot taken: nobody else
            # gets the address, and the next start clears away.
            self._site.perform([Expel(elements)])
            self._site.delete_retired([attachment.tap] if self._made(attachment) else [])
            self._leases.release([lease])
            raise
        return attached

    def _made(self, attachment: Attachment) -> bool:
        """Whether the attachment's device is there, and ours: not somebody's of the same name."""
        device = self._site.device(attachment.tap)
        return device is not None and self._site.is_ours(device.group)

    def _describe(
        self, network: LiveNetwork, request: AttachRequest, policy: Policy, place: Placement
    ) -> Attachment:
        """What a guest gets; raises `ConfigError` or `ConflictError` for what it cannot have."""
        spec = network.spec
        mtu, tap = _mtu(spec, request, place), self._tap(request, place)
        return Attachment(
            guest=request.guest,
            network=spec.name,
            topology=spec.topology,
            generation=self._ledger.next_generation(),
            slot=place.slot,
            tap=tap,
            mac=self._placer.mac(network, request, place),
            ipv4=place.ipv4,
            ipv6=place.ipv6,
            gateway_ipv4=place.gateway_ipv4,
            gateway_ipv6=place.gateway_ipv6,
            mtu=mtu,
            # Whatever resolver a guest asks, the gateway answers where rules by name need it.
            dns=_gateways(place) if self._answers(policy) else network.dns,
            policy=str(policy),
            inherits_policy=request.policy is None,
            netns=str(netns_path(request.netns)) if request.netns is not None else None,
            guest_interface=request.guest_interface,
            queues=request.queues,
            owner=request.owner,
            group=request.group,
            transport=request.transport,
        )

    def _tap(self, request: AttachRequest, place: Placement) -> str:
        if request.tap and request.tap.startswith(DEVICE_PREFIX) and request.tap != place.tap:
            right = f"{DEVICE_PREFIX!r} begins guestnet's own names; here that is {place.tap}"
            raise ConfigError("tap", request.tap, right)
        return check_tap_is_free(self._ledger, request.tap or place.tap)

    def _answers(self, policy: Policy) -> bool:
        """Whether the gateway answers a guest's questions to resolvers."""
        return self._site.relays_all or has_names(policy)

    def detach(self, guest: str, generation: int | None) -> Lease | None:
        """Cut a guest off, if it is attached, and as that generation if one is given.

        Returns its lease, which is detaching then: its device and flows are still there.
        """
        lease = self._ledger.attached.get(guest)
        if lease is None or generation not in (None, lease.generation):
            return None
        attachment = self._ledger.attachment(guest)
        lease = replace(lease, state=LeaseState.DETACHING, changed_at=time.time())
        self._store.write([lease])
        policy = read_policy(attachment.policy)
        elements = guest_elements(attachment, policy_id(policy))
        device = self._ledger.device(attachment)
        self._site.perform([Expel(elements), Retire(attachment.tap, device)])
        self._ledger.cut(lease)
        self._ledger.installed.drop(policy)
        self._relays.forget(guest)
        self._transports.end(guest)
        self._namespaces.drop(attachment.netns)
        return lease


def _mtu(spec: NetworkSpec, request: AttachRequest, place: Placement) -> int:
    mtu = request.mtu or spec.mtu
    if mtu is None or (place.ipv6 is not None and mtu < MTU_MIN_IPV6):
        raise ConfigError("mtu", mtu, f"IPv6 needs {MTU_MIN_IPV6} bytes")
    if spec.topology is Topology.BRIDGE and mtu != spec.mtu:
        raise ConfigError("mtu", mtu, f"guests of a bridge share its MTU, {spec.mtu}")
    return mtu


def _gateways(place: Placement) -> tuple[Address, ...]:
    return tuple(each for each in (place.gateway_ipv4, place.gateway_ipv6) if each is not None)
