"""Networks come and go."""

from __future__ import annotations

import logging

from ..errors import ConfigError, ConflictError, GuestnetError
from ..kernel.interface import Site
from ..model import NetworkSpec
from ..store import Store
from .flows import Flows
from .ledger import Ledger
from .network import LiveNetwork, check_free
from .sameness import check_same_network
from .upkeep import Upkeep

logger = logging.getLogger(__name__)

#: Where no egress interface tells its MTU (a host without a default route): Ethernet's.
_MTU_UNKNOWN = 1500


class Networks:
    """Creates and removes networks. Its caller holds the host's lock."""

    def __init__(
        self, ledger: Ledger, store: Store, site: Site, upkeep: Upkeep, flows: Flows
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._site = site
        self._upkeep = upkeep
        self._flows = flows

    def create(self, wanted: NetworkSpec) -> LiveNetwork:
        """Set a network up, unless it stands so; on failure it is as if it had never been.

        Raises `ConflictError` for other settings under a known name, or a pool that overlaps what
        the host or another network uses; `ConfigError` for an interface that is not there.
        """
        known = self._ledger.networks.get(wanted.name)
        if known is not None:
            check_same_network(wanted, known.spec)
            return known
        check_free(wanted, self._site.outlook.surroundings().used, self._ledger.networks.values())
        self._flows.reconsider()
        network = self._ledger.enter(self._store.add_network(self._resolved(wanted)))
        try:
            self._upkeep.reconcile()
        except BaseException:
            # Out of the store first: whatever else fails now, the next start clears away.
            try:
                self._take_down(wanted.name)
            except GuestnetError as error:
                logger.error("undoing the creation of network %r: %s", wanted.name, error)
            raise
        return network

    def _resolved(self, spec: NetworkSpec) -> NetworkSpec:
        """Fill in what depends on the machine, and stays: the MTU."""
        sizes = []
        for name in self._site.outlook.egress(spec.egress):
            size = self._site.outlook.mtu(name)
            if size is None:
                raise ConfigError("egress", name, "there is no such interface")
            sizes.append(size)
        if spec.mtu is not None:
            return spec
        return NetworkSpec(**{**spec.model_dump(), "mtu": min(sizes, default=_MTU_UNKNOWN)})

    def remove(self, name: str) -> None:
        """Take a network down that has no guests; with the last one all of ours goes.

        Raises `NotFoundError`, or `ConflictError` while guests are attached to it.
        """
        self._ledger.network(name)
        guests = self._ledger.guests_of(name)
        if guests:
            some = ", ".join(repr(guest) for guest in guests[:3])
            more = f" and {len(guests) - 3} more" if len(guests) > 3 else ""
            raise ConflictError("network", name, f"has guests ({some}{more}); detach them first")
        self._take_down(name)
        self._flows.reconsider()

    def _take_down(self, name: str) -> None:
        self._store.remove_network(name)
        del self._ledger.networks[name]
        self._upkeep.reconcile()
