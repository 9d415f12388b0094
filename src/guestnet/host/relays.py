"""The gateway as the host sees it: who is told of which guests, and what stands in the kernel.

A gateway runs from the first guest whose policy has rules by name until the host is closed, in the
relayed manner from the first guest. The caller holds the host's lock, but for the pins, which come
from the gateway's own thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address

from ..errors import HostError
from ..gateway import AddPins, Gateway, Handed, SetGuest, default_workers
from ..gateway.doorway import Doorway
from ..kernel.interface import Site
from ..kernel.resolv import host_resolvers
from ..kernel.trust import TrustStore
from ..model import Attachment, Decision, NetworkSpec
from ..naming import read_upstream
from ..plan import SetPlaces
from ..policy import (
    Action,
    DomainTarget,
    FlowName,
    Group,
    Places,
    Policy,
    classify,
    has_names,
)
from ..ruleset import Element, pin_element, policy_id
from .installed import id_of, pinning_rules, read_policy
from .ledger import Ledger

Address = IPv4Address | IPv6Address
#: How long pins that were carried over stand; a question in the meantime renews them.
CARRIED_S = 300

logger = logging.getLogger(__name__)


class Relays:
    """Starts the gateway when it is needed, and keeps it told."""

    def __init__(
        self,
        ledger: Ledger,
        site: Site,
        on_decision: Callable[[Decision], None],
        workers: int | None = None,
    ) -> None:
        self._ledger = ledger
        self._site = site
        self._on_decision = on_decision
        self._trust = TrustStore()
        self._workers = workers or default_workers()
        self.gateway: Gateway | None = None
        #: What the gateway was told last; its own thread reads it.
        self._places = Places(host=frozenset(), guests=())

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

    def carry_pins(
        self, attachment: Attachment, old: Policy, new: Policy
    ) -> dict[Address, FlowName]:
        """Let the pins of rules by name that both policies have stand for the new one too.

        Datagrams that follow them go on; returns the addresses with the names they go by.
        """
        carried: dict[Address, FlowName] = {}
        own = [i.ip for i in (attachment.ipv4, attachment.ipv6) if i is not None]
        for index in pinning_rules(str(old)):
            rule = old.rules[index]
            if not isinstance(rule.target, DomainTarget):
                continue
            for place in (at for at, other in enumerate(new.rules) if other == rule):
                for guest in own:
                    peers = self._site.pinned(policy_id(old), index, guest)
                    pins = [pin_element(policy_id(new), place, guest, peer) for peer in peers]
                    self._site.pin(dict.fromkeys(pins, CARRIED_S))
                    name = FlowName(rule.target.name, verified=True)
                    carried.update(dict.fromkeys(peers, name))
        return carried

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
        if self.gateway is not None:
            self.gateway.close()
            self.gateway = None

    def _started(self) -> Gateway:
        if self.gateway is None:
            # As few doors as need be: those for datagrams can write to guests in others' names.
            synthetic = any(n.spec.synthetic for n in self._ledger.networks.values())
            datagrams = self._site.relays_all or synthetic
            doorways = self._site.within(partial(Doorway.open, self._workers, datagrams))
            handed = Handed.open(doorways, self._site.netns_fd)
            try:
                self._ledger.doors = handed.doorways[0].ports
                places = self._ledger.places(self._site.surroundings().addresses)
                self._site.perform([SetPlaces(places)])
            except BaseException:
                self._ledger.doors = None
                handed.close()
                raise
            self.gateway = Gateway(handed, self._add_pins, self._on_decision)
            self.gateway.come(self._ledger.attachments())
        return self.gateway

    def _tell_guest(self, gateway: Gateway, attachment: Attachment) -> None:
        network = self._ledger.network(attachment.network)
        synthetic = network.spec.synthetic
        own: list[Address | None] = [attachment.gateway_ipv4, attachment.gateway_ipv6]
        if self._site.is_apart:
            # Nobody is at home at the gateway's addresses: they are in another namespace.
            own = sorted(self._site.surroundings().addresses, key=str)
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
        host = {*self._site.surroundings().addresses, *self._ledger.gateways()}
        counted = [part for each in self._ledger.network_places() for part in each.counted]
        self._places = Places(host=frozenset(host), guests=tuple(counted))
        gateway.set_places(sorted(host, key=str), counted)

    def _add_pins(self, reports: Sequence[tuple[AddPins, SetGuest]]) -> None:
        """Let guests reach addresses under their rules by name; one transaction for all.

        What the kernel refuses of one must not keep the others' from standing.
        """
        wanted = [self._elements(*each) for each in reports]
        together: dict[Element, int] = {}
        for elements in wanted:
            for element, lifetime_s in elements.items():
                together[element] = max(lifetime_s, together.get(element, 0))
        try:
            self._site.pin(together)
        except HostError as error:
            if len(reports) == 1:
                logger.warning("pins of %r: %s", reports[0][0].guest, error)
                return
            for each in reports:
                self._add_pins([each])

    def _elements(self, report: AddPins, told: SetGuest) -> dict[Element, int]:
        """The pins of a report, each with its lifetime.

        The gateway reads what guests wrote, so its word opens nothing but public addresses, and
        only under rules by name that the guest's policy has. Raises `ValueError` for anything else.
        """
        policy = read_policy(told.policy)
        own = {address.version: address for address in told.addresses}
        elements = {}
        for index, address in report.pins:
            rule = policy.rules[index] if 0 <= index < len(policy.rules) else None
            guest = own.get(address.version)
            if rule is None or not isinstance(rule.target, DomainTarget) or guest is None:
                raise ValueError(f"pins for rule {index} of {report.guest!r}, which has no name")
            if rule.action is Action.ALLOW and classify(address, self._places) is not Group.PUBLIC:
                raise ValueError(f"a pin of {report.guest!r} to {address}, which is not public")
            elements[pin_element(id_of(told.policy), index, guest, address)] = report.ttl_s
        return elements
