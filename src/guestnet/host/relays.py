"""The gateway as the host sees it: when there is one, and what it is told.

A gateway runs from the first guest whose policy has rules by name until the host is closed, in the
relayed manner from the first guest. The caller holds the host's lock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address, IPv6Address

from ..errors import HostError
from ..gateway.doorway import Doorway, doors_of
from ..gateway.process import Handed
from ..gateway.supervisor import Gateway, default_workers
from ..kernel.interface import Site
from ..kernel.resolv import host_resolvers
from ..kernel.trust import TrustStore
from ..model import Attachment, Decision, NetworkSpec
from ..naming import read_upstream
from ..plan import SetPlaces
from ..policy import Places, Policy, has_names
from ..ruleset.names import DOOR_ADDRESSES
from .installed import read_policy
from .ledger import Ledger
from .pins import Pins

Address = IPv4Address | IPv6Address

logger = logging.getLogger(__name__)


class Relays:
    """Starts the gateway when it is needed, and keeps it told."""

    def __init__(
        self,
        ledger: Ledger,
        site: Site,
        pins: Pins,
        on_decision: Callable[[Decision], None],
        workers: int | None = None,
    ) -> None:
        self._ledger = ledger
        self._site = site
        self._pins = pins
        self._on_decision = on_decision
        self._trust = TrustStore()
        self._workers = workers or default_workers()
        self.gateway: Gateway | None = None

    def admit(self, attachment: Attachment, policy: Policy) -> None:
        """Tell the gateway of a guest: its name, and the rest if it has rules by name or no root.

        One that it knows goes on being its guest, for the flows that it relays.
        """
        if self.gateway is not None:
            self.gateway.come([attachment])
        known = self.gateway is not None and self.gateway.knows(attachment.guest)
        if not (known or self._site.relays_all or has_names(policy)):
            return
        gateway = self._started()
        gateway.come([attachment])
        self._tell_places(gateway)
        self._tell_network(gateway, self._ledger.network(attachment.network).spec)
        self._tell_guest(gateway, attachment)

    def settle(self) -> Callable[[], None]:
        """Have the gateway tell what it has decided so far; what is returned waits for that.

        To be waited for without the host's lock: a gateway that is stopped takes its time.
        """
        return self.gateway.settle() if self.gateway is not None else lambda: None

    def forget(self, guest: str) -> None:
        """End what is relayed for a guest."""
        if self.gateway is not None:
            self.gateway.forget(guest)

    def follow(self) -> None:
        """Tell the gateway of what changed around it: addresses, resolvers, egress interfaces."""
        gateway = self.gateway
        if gateway is None:
            return
        gateway.keep(self._ledger.attached)
        told = [each for each in self._ledger.attachments() if gateway.knows(each.guest)]
        for name in {attachment.network for attachment in told}:
            self._tell_network(gateway, self._ledger.network(name).spec)
        for attachment in told:
            self._tell_guest(gateway, attachment)
        self._tell_places(gateway)

    def tell_again(self) -> None:
        """After a repair: the sets of pins may have been made anew."""
        if self.gateway is not None:
            self.gateway.tell_again()

    def start(self) -> None:
        """Tell of the guests that were attached before this process began."""
        for attachment in list(self._ledger.attachments()):
            self.admit(attachment, read_policy(attachment.policy))

    def close(self) -> None:
        """End the gateway; named flows are refused until there is one again."""
        if self.gateway is None:
            return
        self._ledger.doors = None
        try:
            self._site.perform([SetPlaces(self._places())])
        except HostError as error:  # a site that is gone already
            logger.warning("connections by name are not refused, but unanswered: %s", error)
        self.gateway.close()
        self.gateway = None

    def _started(self) -> Gateway:
        if self.gateway is None:
            # As few doors as need be: those for datagrams can write to guests in others' names.
            synthetic = any(n.spec.synthetic for n in self._ledger.networks.values())
            datagrams = self._site.relays_all or synthetic
            opened = partial(Doorway.open, self._workers, datagrams, self._site.is_apart)
            doorways = self._site.within(opened)
            handed = Handed.open(doorways, self._site.netns_fd)
            try:
                self._ledger.doors = doors_of(doorways)
                self._site.steer(wanted=True)
                self._site.perform([SetPlaces(self._places())])
            except BaseException:
                self._ledger.doors = None
                handed.close()
                raise
            self.gateway = Gateway(handed, self._pins.add, self._on_decision)
            self.gateway.come(self._ledger.attachments())
        return self.gateway

    def _places(self) -> str:
        return self._ledger.places(self._site.outlook.surroundings().addresses)

    def _tell_guest(self, gateway: Gateway, attachment: Attachment) -> None:
        network = self._ledger.network(attachment.network)
        synthetic = network.spec.synthetic
        own: list[Address | None] = [attachment.gateway_ipv4, attachment.gateway_ipv6]
        if self._site.is_apart:
            # Nobody is at home at the gateway's addresses: they are in another namespace.
            own = sorted(self._site.outlook.surroundings().addresses, key=str)
        host = [each for each in own if each is not None and not each.is_link_local]
        gateway.set_guest(attachment, network.egress, synthetic=synthetic, host=host)

    def _tell_network(self, gateway: Gateway, spec: NetworkSpec) -> None:
        resolvers = spec.dns or host_resolvers(loopback=True)
        upstreams = [read_upstream(each) for each in resolvers]
        if any(each.tls for each in upstreams):
            try:
                gateway.trust(self._trust.read())
            except HostError as error:
                # Whatever was trusted before still is; without anything such resolvers fail.
                logger.error("resolvers of network %r: %s", spec.name, error)
        gateway.set_network(spec, upstreams, relays_all=self._site.relays_all)

    def _tell_places(self, gateway: Gateway) -> None:
        around = self._site.outlook.surroundings().addresses
        host = {*around, *self._ledger.gateways(), *DOOR_ADDRESSES.values()}
        counted = [part for each in self._ledger.network_places() for part in each.counted]
        self._pins.places = Places(host=frozenset(host), guests=tuple(counted))
        gateway.set_places(sorted(host, key=str), counted)
