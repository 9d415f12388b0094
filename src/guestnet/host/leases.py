"""How a lease ends: nothing is left of its guest, and its slot is free."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ..kernel.interface import Site
from ..store import Lease, LeaseState, Store
from .ledger import Ledger
from .pins import Pins
from .transports import Transports

logger = logging.getLogger(__name__)


class Leases:
    """Ends leases, in the store and in memory. Its caller holds the host's lock."""

    def __init__(
        self, ledger: Ledger, store: Store, site: Site, pins: Pins, transports: Transports
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._site = site
        self._pins = pins
        self._transports = transports

    def release(self, leases: Iterable[Lease]) -> None:
        """Let others have the slots of leases of which nothing is left in the kernel."""
        now = time.time()
        gone = list(leases)
        self._store.write(
            replace(lease, state=LeaseState.RELEASED, changed_at=now, attachment=None)
            for lease in gone
        )
        for lease in gone:
            self._ledger.released(lease, now)

    def finish(self, interrupted: Iterable[Lease]) -> None:
        """Roll back what was attaching and complete what was detaching: both end released.

        A repair has expelled their elements and retired their devices, as nothing called for
        them any more; what is left are the flows, and the rows.
        """
        gone = list(interrupted)
        attachments = [lease.attachment for lease in gone if lease.attachment is not None]
        addresses = [address for each in attachments for address in each.addresses]
        self._site.conntrack.forget(addresses)
        self._site.counts.forget(addresses)
        self._pins.forget(attachments)
        for each in attachments:
            self._transports.clear(each)
        self.release(gone)
        for lease in gone:
            logger.info("guest %r: its interrupted %s was undone", lease.guest, lease.state)


def is_there(lease: Lease) -> bool:
    """Whether a namespace guest's namespace still exists; a TAP waits for its VMM."""
    netns = lease.attachment.netns if lease.attachment is not None else None
    return netns is None or Path(netns).exists()
