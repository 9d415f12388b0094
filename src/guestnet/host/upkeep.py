"""Keeping the kernel as the store says, as networks, other tools and the machine change."""

from __future__ import annotations

import logging

from ..errors import GuestnetError
from ..kernel.interface import Site
from ..kernel.resolv import host_resolvers
from ..model import Repairs
from ..plan import Configure, Expel, MakeBridge, MakeDevice, Retire, SetPlaces, Step, repair
from ..ruleset.base import FINGERPRINT
from ..ruleset.elements import guest_elements
from ..store import Store
from .installed import id_of, read_policy
from .leases import Leases, is_there
from .ledger import Ledger
from .marker import marker
from .network import Address
from .sysctls import SysctlChanges

logger = logging.getLogger(__name__)


class Upkeep:
    """The host's housekeeping. Its caller holds the host's lock."""

    def __init__(self, ledger: Ledger, store: Store, site: Site, leases: Leases) -> None:
        self._ledger = ledger
        self._store = store
        self._site = site
        self._leases = leases
        self._sysctls = SysctlChanges(store, site)

    def reconcile(self) -> Repairs:
        """Compare what stands with what must stand and put it right; says what was done."""
        if not self._ledger.networks:
            return self._leave()
        gone = self._release_the_gone()
        for network in self._ledger.networks.values():
            network.forget_noted()
        self._follow_egress()
        self._follow_resolvers()
        around = self._site.outlook.surroundings()
        for network in self._ledger.networks.values():
            network.skip(around.used, self._ledger.bridge_subnets())
        self._enable_forwarding()
        self._steer()
        desired = self._ledger.desired(around.addresses, marker(self._store))
        seen = self._site.observe()
        steps = repair(desired, seen)
        failures = self._perform(steps)
        # Only now: these come with connection tracking, and that with our rules.
        self._sysctls.make(self._site.sysctls.accounting_changes())
        if not seen.chains:
            # What began while our tables were gone met no policy: it must not go on as established.
            self._site.conntrack.forget(list(self._ledger.addresses()))
        self._accept_in_foreign_filters()
        words = [str(step) for step in steps if not isinstance(step, SetPlaces)]
        return Repairs(steps=(*gone, *words, *failures))

    def _leave(self) -> Repairs:
        """Without networks nothing of ours stands: no device, table, foreign accept or sysctl."""
        seen = self._site.observe()
        devices = [each.name for each in seen.devices.values() if self._site.is_ours(each.group)]
        if not (devices or seen.chains or self._sysctls.former()):
            return Repairs()
        self._site.delete_retired(devices)
        self._site.foreign.accept(())
        self._site.remove_tables()
        self._site.steer(wanted=False)
        self._sysctls.undo()
        return Repairs(steps=("leave the machine as it was before the first network",))

    def _perform(self, steps: tuple[Step, ...]) -> list[str]:
        """Do the repair; returns in words what could not be done.

        Devices come one at a time: what one guest did to its namespace must not cut off others.
        """
        devices = [step for step in steps if isinstance(step, (MakeDevice, Configure))]
        if devices or any(isinstance(step, MakeBridge) for step in steps):
            # A device of which the old one still waits for deletion bears the same name.
            self._site.delete_retired()
        self._site.perform(step for step in steps if not isinstance(step, (MakeDevice, Configure)))
        failures = []
        for step in devices:
            try:
                self._site.perform([step])
            except GuestnetError as error:
                failures.append(f"could not {step}: {error}")
                logger.error("could not %s: %s; its guest stays cut off", step, error)
                self._cut(step.device.name)
        if any(isinstance(step, Retire) for step in steps):
            self._site.delete_retired()
        return failures

    def _cut(self, tap: str) -> None:
        """Expel the guest of a device that could not be brought to what it should be."""
        attachment = self._ledger.attachment_at(tap)
        if attachment is not None:
            self._site.perform([Expel(guest_elements(attachment, id_of(attachment.policy)))])

    def _release_the_gone(self) -> list[str]:
        """Release the leases of namespace guests whose namespace is no more."""
        gone = [lease for lease in self._ledger.attached.values() if not is_there(lease)]
        for lease in gone:
            if lease.attachment is not None:
                self._ledger.installed.drop(read_policy(lease.attachment.policy))
            self._ledger.cut(lease)
        if gone:
            self._leases.finish(gone)
        return [f"release {lease.guest!r}: its namespace is gone" for lease in gone]

    def _enable_forwarding(self) -> None:
        networks = self._ledger.networks.values()
        versions = {pool.version for network in networks for pool in network.pools}
        egress = tuple(dict.fromkeys(name for network in networks for name in network.egress))
        self._sysctls.make(self._site.sysctls.forwarding_changes(egress, sorted(versions)))

    def _steer(self) -> None:
        """Have delivered here what is for others, where some of it is taken over."""
        networks = self._ledger.networks.values()
        synthetic = any(network.spec.synthetic for network in networks)
        if self._site.relays_all or synthetic or self._ledger.doors is not None:
            self._site.steer(wanted=True)

    def _accept_in_foreign_filters(self) -> None:
        """Let guests through forward filters of other tools that would drop them."""
        self._site.foreign.accept(self._ledger.foreign_patterns())

    def follow(self) -> bool:
        """Follow default routes, resolvers and other tools' filters; see that our tables stand.

        True if they did not, and were written anew.
        """
        if not self._ledger.networks:
            return False
        if FINGERPRINT not in self._site.chains():
            logger.error("our tables are gone: somebody flushed the ruleset; writing them anew")
            self.reconcile()
            return True
        egress, resolvers = self._follow_egress(), self._follow_resolvers()
        if egress:
            # An uplink that appeared has settings of its own (accept_ra).
            self._enable_forwarding()
        if egress or resolvers:
            around = self._site.outlook.surroundings()
            self._site.perform([SetPlaces(self._ledger.places(around.addresses))])
        self._accept_in_foreign_filters()
        return False

    def _follow_egress(self) -> bool:
        changed = False
        for network in self._ledger.networks.values():
            egress = self._site.outlook.egress(network.spec.egress)
            changed = changed or egress != network.egress
            network.egress = egress
        return changed

    def _host_dns(self) -> tuple[Address, ...]:
        """Resolvers that guests may ask themselves: none where the gateway answers every guest."""
        return () if self._site.is_apart else host_resolvers()

    def _follow_resolvers(self) -> bool:
        now, changed = self._host_dns(), False
        for network in self._ledger.networks.values():
            changed = changed or (network.spec.dns is None and network.host_dns != now)
            network.host_dns = now
        return changed
