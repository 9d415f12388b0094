"""Pins: the addresses that guests may reach under rules by name, beside what the gateway relays."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address

from ..errors import HostError
from ..gateway.messages import AddPins, SetGuest
from ..kernel.interface import Site
from ..model import Attachment
from ..policy import Action, DomainTarget, FlowName, Group, Places, Policy, classify
from ..ruleset.chains import policy_id
from ..ruleset.elements import Element, pin_element
from .installed import id_of, pinning_rules, read_policy

Address = IPv4Address | IPv6Address
#: How long pins that were carried over stand; a question in the meantime renews them.
CARRIED_S = 300

logger = logging.getLogger(__name__)


class Pins:
    """Those of a site. `add` is for the gateway's own thread and needs no lock."""

    def __init__(self, site: Site) -> None:
        self._site = site
        #: Where the host and its guests are, as the gateway was told last.
        self.places = Places(host=frozenset(), guests=())

    def add(self, reports: Sequence[tuple[AddPins, SetGuest]]) -> None:
        """Let guests reach addresses under their rules by name; one transaction for all.

        What the kernel refuses of one must not keep the others' from standing.
        """
        wanted = [self._elements(*each) for each in reports]
        together: dict[Element, int] = {}
        for elements in wanted:
            for element, lifetime_s in elements.items():
                together[element] = max(lifetime_s, together.get(element, 0))
        try:
            self._site.pins.add(together)
        except HostError as error:
            if len(reports) == 1:
                logger.warning("pins of %r: %s", reports[0][0].guest, error)
                return
            for each in reports:
                self.add([each])

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
            if rule.action is Action.ALLOW and classify(address, self.places) is not Group.PUBLIC:
                raise ValueError(f"a pin of {report.guest!r} to {address}, which is not public")
            elements[pin_element(id_of(told.policy), index, guest, address)] = report.ttl_s
        return elements

    def carry(self, attachment: Attachment, old: Policy, new: Policy) -> dict[Address, FlowName]:
        """Let the pins of rules by name that both policies have stand for the new one too.

        Datagrams that follow them go on; returns the addresses with the names they go by.
        """
        carried: dict[Address, FlowName] = {}
        for index in pinning_rules(str(old)):
            rule = old.rules[index]
            if not isinstance(rule.target, DomainTarget):
                continue
            for place in (at for at, other in enumerate(new.rules) if other == rule):
                for guest in attachment.addresses:
                    peers = self._site.pins.peers(policy_id(old), index, guest)
                    pins = [pin_element(policy_id(new), place, guest, peer) for peer in peers]
                    self._site.pins.add(dict.fromkeys(pins, CARRIED_S))
                    name = FlowName(rule.target.name, verified=True)
                    carried.update(dict.fromkeys(peers, name))
        return carried

    def forget(self, attachments: Iterable[Attachment]) -> None:
        """Forget which addresses guests were led to: who has theirs next has asked nothing."""
        for each in attachments:
            rules = pinning_rules(each.policy)
            if rules:
                self._site.pins.remove(id_of(each.policy), rules, each.addresses)
