"""Whose an address is, at one moment, to one guest."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address

from ..kernel.interface import Site
from ..model import Attachment
from ..policy import Places, has_names
from ..ruleset.names import DOOR_ADDRESSES
from .installed import read_policy
from .ledger import Ledger

Address = IPv4Address | IPv6Address


class Moment:
    """What is around guests, looked at once. Its caller holds the host's lock."""

    def __init__(self, ledger: Ledger, site: Site) -> None:
        self._ledger = ledger
        self._site = site

    @cached_property
    def _around(self) -> Places:
        """The machine's addresses, and where guests' are."""
        return Places(
            host=self._site.outlook.surroundings().addresses | set(DOOR_ADDRESSES.values()),
            # What one network's pool leaves out may be another's pool.
            guests=tuple(
                part for places in self._ledger.network_places() for part in places.counted
            ),
        )

    @cached_property
    def _gateways(self) -> set[Address]:
        return self._ledger.gateways()

    def places(self, attachment: Attachment, peer: Address) -> Places:
        """As far as it matters for a flow between a guest and a peer."""
        host = self._around.host
        # The guest's own beside the others', as it may be here since this moment only.
        if peer in self._gateways or peer in (attachment.gateway_ipv4, attachment.gateway_ipv6):
            host |= {peer}
        return replace(self._around, host=host, dns=self._resolvers(attachment))

    def _resolvers(self, attachment: Attachment) -> tuple[Address, ...]:
        """What a rule that names `dns` opens to a guest."""
        if self._site.relays_all or has_names(read_policy(attachment.policy)):
            return attachment.dns
        network = self._ledger.network(attachment.network)
        return tuple({*attachment.dns, *network.dns, *self._ledger.told_dns(attachment.network)})
