"""Policies in the kernel: made for the first guest that has one, exchanged, and deleted again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from ..errors import HostError
from ..kernel.conntrack import Tracked
from ..kernel.interface import Site
from ..model import Attachment
from ..plan import Exchange, InstallPolicy, RemovePolicies
from ..policy import FlowName, Policy, parse_policy
from ..ruleset.chains import policy_id
from ..ruleset.elements import Element, guest_elements
from ..store import Store
from .explain import Explainer
from .installed import read_policy
from .ledger import Ledger
from .network import LiveNetwork
from .pins import Pins
from .relays import Relays

logger = logging.getLogger(__name__)

Address = IPv4Address | IPv6Address

#: Unused policies are deleted many at a time: each time the dispatch is written anew.
UNUSED_POLICIES_KEPT = 64


class Policies:
    """Those of guests and of networks. Its caller holds the host's lock."""

    def __init__(
        self, ledger: Ledger, store: Store, site: Site, relays: Relays, pins: Pins
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._site = site
        self._relays = relays
        self._pins = pins

    def install(self, policy: Policy) -> None:
        """Count a user of a policy, and make its chains if it is the first."""
        new_chains = self._ledger.installed.use(policy)
        if new_chains is None:
            return
        try:
            self._site.perform([InstallPolicy(new_chains)])
        except BaseException:
            self._ledger.installed.cancel(policy)
            raise

    def sweep(self, at_least: int = 1) -> None:
        """Delete the chains of policies that nobody uses, if they are so many.

        They let nothing pass meanwhile.
        """
        if self._ledger.installed.unused < at_least:
            return
        unused = self._ledger.installed.sweep()
        kept = tuple(self._ledger.installed.chains.values())
        try:
            self._site.perform([RemovePolicies(unused, kept)])
        except HostError as error:
            # Somebody flushed our tables, say; a reconcile finds what is left of them.
            logger.warning("removing unused policies: %s", error)

    def change_network(self, name: str, text: str | None) -> LiveNetwork:
        """Put another policy in the place of a network's, for those of its guests who have it."""
        network = self._ledger.network(name)
        spec = network.spec.model_copy(update={"policy": text})
        self._store.change_network(spec)
        network.spec = spec
        self.follow_network(name)
        return network

    def follow_network(self, name: str) -> None:
        """Give a network's policy to those of its guests who are to have it."""
        new = parse_policy(self._ledger.network(name).spec.policy)
        for guest in self._ledger.guests_of(name):
            attachment = self._ledger.attachment(guest)
            if attachment.inherits_policy:
                self.change(attachment, new, inherits=True)

    def change(self, attachment: Attachment, new: Policy, *, inherits: bool = False) -> Attachment:
        """Put another policy in the place of a guest's, for established flows too.

        On failure the former one holds. `inherits` says whether it follows its network's.
        """
        old = read_policy(attachment.policy)
        changed = attachment.model_copy(update={"policy": str(new), "inherits_policy": inherits})
        if changed == attachment:
            return attachment
        former = self._ledger.attached[attachment.guest]
        lease = replace(former, attachment=changed)
        if new == old:
            self._store.write([lease])
            self._ledger.attached[attachment.guest] = lease
            return changed
        self.install(new)
        try:
            self._store.write([lease])
            self._relays.admit(changed, new)
            names = self._pins.carry(changed, old, new)
            before = guest_elements(attachment, policy_id(old))
            after = guest_elements(changed, policy_id(new))
            self._site.perform([Exchange(_less(before, after), _less(after, before))])
        except BaseException:
            self._ledger.installed.drop(new)
            self._store.write([former])
            self._relays.admit(attachment, old)
            raise
        self._pins.forget([attachment])
        self._ledger.installed.drop(old)
        self._ledger.attached[attachment.guest] = lease
        self._cut_denied(changed, names)
        return changed

    def _cut_denied(self, attachment: Attachment, names: Mapping[Address, FlowName]) -> None:
        """End the forwarded flows that a guest's policy denies; the gateway sees to the others.

        `names` are those by which datagrams go to pinned addresses.
        """
        explainer = Explainer(self._ledger, self._site)

        def keep(flow: Tracked) -> bool:
            name = names.get(flow.destination)
            return flow.is_redirected or explainer.allows(attachment, flow, name)

        flows = self._site.conntrack.find(attachment.addresses)
        self._site.conntrack.delete([each for each in flows if not keep(each.flow)])


def _less(some: Sequence[Element], others: Sequence[Element]) -> tuple[Element, ...]:
    return tuple(each for each in some if each not in others)
