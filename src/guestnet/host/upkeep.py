"""Keeping the kernel as the store says: at the start, and as networks and the machine change."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from ..errors import ConfigError, ConflictError, GuestnetError
from ..kernel.interface import Site
from ..kernel.resolv import host_resolvers
from ..model import NetworkSpec, Repairs
from ..plan import Configure, Expel, MakeBridge, MakeDevice, Retire, SetPlaces, Step, repair
from ..ruleset import FINGERPRINT, guest_elements
from ..store import Lease, LeaseState, NetworkRecord, Store
from .installed import id_of, read_policy
from .ledger import Ledger
from .network import Address, LiveNetwork
from .pins import Pins
from .transports import Transports

logger = logging.getLogger(__name__)

_NOTE_BOOT = "boot-id"
_NOTE_SYSCTL = "sysctl-before"
_NOTE_STORE = "store-id"
_MARKER = "store-"
#: Where no egress interface tells its MTU (a host without a default route): Ethernet's.
_MTU_UNKNOWN = 1500


class Upkeep:
    """The host's housekeeping. Its caller holds the host's lock."""

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        site: Site,
        transports: Transports,
        pins: Pins,
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._site = site
        self._transports = transports
        self._pins = pins

    # -- start -------------------------------------------------------------------------------

    def _marker(self) -> str:
        """The name of the empty chain that says whose store the tables belong to."""
        known = self._store.note(_NOTE_STORE)
        if known is None:
            known = uuid.uuid4().hex[:16]
            self._store.take_note(_NOTE_STORE, known)
        return f"{_MARKER}{known}"

    def _refuse_others_guests(self) -> None:
        """Raise `ConflictError` if what stands here belongs to another state directory."""
        others = [c for c in self._site.chains() if c.startswith(_MARKER) and c != self._marker()]
        if others:
            raise ConflictError(
                "state_dir",
                others[0].removeprefix(_MARKER),
                "guests of another state directory stand in this network namespace; open that one, "
                "or, if it is lost, delete its tables: nft delete table inet guestnet",
            )

    def recover(self, now: float) -> int:
        """Read the store, repair the kernel; returns the highest generation of any lease."""
        self._refuse_others_guests()
        for record in self._store.networks():
            self._enter(record)
        leases = self._store.leases()
        life = self._site.life
        rebooted = self._store.note(_NOTE_BOOT) not in (None, life)
        if rebooted:
            logger.info("what stood here is gone with its time: its leases are released")
        interrupted: list[Lease] = []
        for lease in leases:
            if lease.network not in self._ledger.networks:
                continue
            if lease.state is LeaseState.ATTACHED and not rebooted and _is_there(lease):
                self._ledger.networks[lease.network].pool.take(lease.slot)
                self._ledger.add(lease)
                if lease.attachment is not None:
                    self._ledger.policies.use(read_policy(lease.attachment.policy))
            elif lease.state is LeaseState.RELEASED:
                self._ledger.released(lease, lease.changed_at)
            else:
                interrupted.append(lease)
        self.reconcile()
        self._finish(interrupted, now)
        self._store.take_note(_NOTE_BOOT, life)
        return max((lease.generation for lease in leases), default=0)

    def _finish(self, interrupted: Iterable[Lease], now: float) -> None:
        """Roll back what was attaching and complete what was detaching: both end released.

        The repair has expelled their elements and retired their devices, as nothing called for
        them any more; what is left are the flows, and the rows.
        """
        gone = list(interrupted)
        attachments = [lease.attachment for lease in gone if lease.attachment is not None]
        self._site.forget_flows([address for each in attachments for address in each.addresses])
        self._site.forget_counts(attachments)
        self._pins.forget(attachments)
        for each in attachments:
            self._transports.clear(each)
        self._store.write(
            replace(lease, state=LeaseState.RELEASED, changed_at=now, attachment=None)
            for lease in gone
        )
        for lease in gone:
            logger.info("guest %r: its interrupted %s was undone", lease.guest, lease.state)
            self._ledger.released(lease, now)

    def _enter(self, record: NetworkRecord) -> LiveNetwork:
        network = LiveNetwork(record.number, record.spec)
        network.host_dns = self._host_dns()
        self._ledger.networks[record.spec.name] = network
        return network

    # -- networks ----------------------------------------------------------------------------

    def add_network(self, spec: NetworkSpec) -> LiveNetwork:
        """Remember a network and set it up; on failure it is as if it had never been."""
        network = self._enter(self._store.add_network(self._resolved(spec)))
        try:
            self.reconcile()
        except BaseException:
            # Out of the store first: whatever else fails now, the next start clears away.
            try:
                self.remove_network(spec.name)
            except GuestnetError as error:
                logger.error("undoing the creation of network %r: %s", spec.name, error)
            raise
        return network

    def _resolved(self, spec: NetworkSpec) -> NetworkSpec:
        """Fill in what depends on the machine, and stays: the MTU."""
        sizes = []
        for name in self._site.egress(spec.egress):
            size = self._site.mtu(name)
            if size is None:
                raise ConfigError("egress", name, "there is no such interface")
            sizes.append(size)
        if spec.mtu is not None:
            return spec
        return NetworkSpec(**{**spec.model_dump(), "mtu": min(sizes, default=_MTU_UNKNOWN)})

    def remove_network(self, name: str) -> None:
        """Forget a network and take down what stands for it; with the last one all of ours goes."""
        self._store.remove_network(name)
        del self._ledger.networks[name]
        self.reconcile()

    def _leave(self) -> Repairs:
        """Without networks nothing of ours stands: no device, table, foreign accept or sysctl."""
        seen = self._site.observe()
        devices = [each.name for each in seen.devices.values() if self._site.is_ours(each.group)]
        before = self._sysctls_before()
        if not (devices or seen.chains or before):
            return Repairs()
        self._site.delete_retired(devices)
        self._site.accept_in_foreign_filters(())
        self._site.remove_tables()
        self._site.steer(wanted=False)
        self._site.restore_sysctls(before)
        self._store.take_note(_NOTE_SYSCTL, "{}")
        return Repairs(steps=("leave the machine as it was before the first network",))

    def _sysctls_before(self) -> dict[str, str]:
        found = json.loads(self._store.note(_NOTE_SYSCTL) or "{}")
        return {str(key): str(value) for key, value in found.items()}

    def _steer(self) -> None:
        """Have datagrams delivered here that are for others, where some are taken over."""
        networks = self._ledger.networks.values()
        if self._site.relays_all or any(network.spec.synthetic for network in networks):
            self._site.steer(wanted=True)

    # -- repair ------------------------------------------------------------------------------

    def reconcile(self) -> Repairs:
        """Compare what stands with what must stand and put it right; says what was done."""
        if not self._ledger.networks:
            return self._leave()
        gone = self._forget_the_gone(time.time())
        for network in self._ledger.networks.values():
            network.forget_noted()
        self._follow_egress()
        around = self._site.surroundings()
        for network in self._ledger.networks.values():
            network.skip(around.used, self._ledger.bridge_subnets())
        self._enable_forwarding()
        self._steer()
        desired = self._ledger.desired(around.addresses, self._marker())
        seen = self._site.observe()
        steps = repair(desired, seen)
        failures = self._perform(steps)
        # Only now: these come with connection tracking, and that with our rules.
        self._change(self._site.accounting_changes())
        if not seen.chains:
            # What began while our tables were gone met no policy: it must not go on as established.
            self._site.forget_flows(list(self._ledger.addresses()))
        self.accept_in_foreign_filters()
        words = [str(step) for step in steps if not isinstance(step, SetPlaces)]
        return Repairs(steps=(*gone, *words, *failures))

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
        guest = self._ledger.holder_of_tap(tap)
        lease = self._ledger.attached.get(guest) if guest is not None else None
        if lease is not None and lease.attachment is not None:
            policy = id_of(lease.attachment.policy)
            self._site.perform([Expel(guest_elements(lease.attachment, policy))])

    def _forget_the_gone(self, now: float) -> list[str]:
        """Release the leases of namespace guests whose namespace is no more."""
        gone = [lease for lease in self._ledger.attached.values() if not _is_there(lease)]
        for lease in gone:
            if lease.attachment is not None:
                self._ledger.policies.drop(read_policy(lease.attachment.policy))
            self._ledger.cut(lease)
        if gone:
            self._finish(gone, now)
        return [f"release {lease.guest!r}: its namespace is gone" for lease in gone]

    def _enable_forwarding(self) -> None:
        networks = self._ledger.networks.values()
        versions = {pool.version for network in networks for pool in network.pools}
        egress = tuple(dict.fromkeys(name for network in networks for name in network.egress))
        self._change(self._site.forwarding_changes(egress, sorted(versions)))

    def _change(self, changes: Mapping[str, tuple[str, str | None]]) -> None:
        """Change settings of the machine, and remember what they were."""
        if not changes:
            return
        # Noted first: whatever happens in between, the former values are known.
        former = {key: before for key, (before, _wanted) in changes.items()}
        self._store.take_note(_NOTE_SYSCTL, json.dumps({**former, **self._sysctls_before()}))
        self._site.set_sysctls({k: new for k, (_before, new) in changes.items() if new is not None})

    def accept_in_foreign_filters(self) -> None:
        """Let guests through forward filters of other tools that would drop them."""
        self._site.accept_in_foreign_filters(self._ledger.foreign_patterns())

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
            around = self._site.surroundings()
            self._site.perform([SetPlaces(self._ledger.places(around.addresses))])
        self.accept_in_foreign_filters()
        return False

    def _follow_egress(self) -> bool:
        changed = False
        for network in self._ledger.networks.values():
            egress = self._site.egress(network.spec.egress)
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


def _is_there(lease: Lease) -> bool:
    """Whether a namespace guest's namespace still exists; a TAP waits for its VMM."""
    netns = lease.attachment.netns if lease.attachment is not None else None
    return netns is None or Path(netns).exists()
