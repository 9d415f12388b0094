"""The start: what the store remembers is taken up again, and what was interrupted is ended."""

from __future__ import annotations

import logging

from ..kernel.interface import Site
from ..store import Lease, LeaseState, Store
from .installed import read_policy
from .leases import Leases, is_there
from .ledger import Ledger
from .marker import refuse_others
from .upkeep import Upkeep

logger = logging.getLogger(__name__)

_NOTE_BOOT = "boot-id"


def recover(ledger: Ledger, store: Store, site: Site, leases: Leases, upkeep: Upkeep) -> None:
    """Read the store into an empty ledger, and repair the kernel."""
    refuse_others(store, site)
    for record in store.networks():
        ledger.enter(record)
    life = site.life
    rebooted = store.note(_NOTE_BOOT) not in (None, life)
    if rebooted:
        logger.info("what stood here is gone with its time: its leases are released")
    interrupted = []
    for lease in store.leases():
        ledger.generation = max(ledger.generation, lease.generation)
        if lease.network not in ledger.networks:
            continue
        if lease.state is LeaseState.ATTACHED and not rebooted and is_there(lease):
            _take_up(ledger, lease)
        elif lease.state is LeaseState.RELEASED:
            ledger.released(lease, lease.changed_at)
        else:
            interrupted.append(lease)
    upkeep.reconcile()
    leases.finish(interrupted)
    store.take_note(_NOTE_BOOT, life)


def _take_up(ledger: Ledger, lease: Lease) -> None:
    ledger.networks[lease.network].pool.take(lease.slot)
    ledger.add(lease)
    if lease.attachment is not None:
        ledger.installed.use(read_policy(lease.attachment.policy))
