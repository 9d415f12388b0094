"""`Host`: every operation an owner has, on this machine, in this process."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .. import directories
from ..address.derive import Placement
from ..errors import ConfigError, ConflictError, GuestnetError, HostError, PoolFullError
from ..kernel.conntrack import Tracked
from ..kernel.interface import Site
from ..kernel.netns import netns_path
from ..kernel.ownership import DirectoryLock
from ..kernel.rootless.process import Agent
from ..kernel.rootless.remote import RootlessSite
from ..kernel.site import NamespaceSite
from ..model import (
    MTU_MIN_IPV6,
    Attachment,
    AttachRequest,
    Decision,
    Finding,
    NetworkInfo,
    NetworkSpec,
    Repairs,
    Topology,
    TransportInfo,
    Usage,
)
from ..plan import Admit, Exchange, Expel, InstallPolicy, MakeDevice, RemovePolicies, Retire
from ..policy import Direction, FlowName, Policy, Protocol, Verdict, has_names, parse_policy
from ..ruleset import Element, Manner, guest_elements, policy_id
from ..ruleset.names import DEVICE_PREFIX
from ..store import Lease, LeaseState, SqliteStore, Store
from .decisions import Decisions, Watch
from .doctor import examine
from .explain import Explainer
from .flows import Flows
from .installed import read_policy
from .ledger import Ledger, check_tap_is_free
from .network import check_free
from .pins import Pins
from .placing import Placer
from .reaper import Reaper
from .relays import Relays
from .sameness import check_same_attachment, check_same_network
from .transports import Transports
from .upkeep import Upkeep

logger = logging.getLogger(__name__)

Address = IPv4Address | IPv6Address

DEFAULT_NETWORK = "default"
#: Asked for as a guest's namespace: one of its own. A name `new` is written as a path.
NEW_NAMESPACE = "new"
#: Unused policies are deleted many at a time: each time the dispatch is written anew.
UNUSED_POLICIES_KEPT = 64


class Host:
    """One machine's guestnet. Synchronous and thread-safe; one per state directory and namespace.

    Open it with `Host.open`, close it with `close` or as a context manager. What it has set up in
    the kernel goes on working while nobody has it open.
    """

    def __init__(
        self,
        store: Store,
        site: Site,
        directory_lock: DirectoryLock | None,
        decisions: Path | None,
        workers: int | None = None,
    ) -> None:
        self._lock = threading.RLock()
        self._store = store
        self._site = site
        self._directory_lock = directory_lock
        self._ledger = Ledger(
            Manner.RELAYED if site.relays_all else Manner.FORWARDED, is_apart=site.is_apart
        )
        self._placer = Placer(self._ledger, site)
        self._transports = Transports(site)
        self._pins = Pins(site)
        self._upkeep = Upkeep(self._ledger, store, site, self._transports, self._pins)
        self._reaper = Reaper(self._clear_away)
        self._decisions = Decisions(decisions, self._ledger.is_here)
        self._relays = Relays(self._ledger, site, self._pins, self._decisions.take, workers)
        self._flows = Flows(
            self._lock, self._ledger, site, self._decisions.seen, self._decisions.take
        )
        self._generation = 0
        #: Paths of the namespaces that were made for guests.
        self._namespaces: set[str] = set()
        self._closed = False

    @classmethod
    def open(
        cls,
        state_dir: str | Path | None = None,
        *,
        site: str | Path | None = None,
        gateway_workers: int | None = None,
        rootless: bool | Agent = False,
        remember: bool = True,
        relays_all: bool = False,
    ) -> Self:
        """Open the host's guestnet and repair whatever was interrupted or changed.

        `state_dir` defaults to `$GUESTNET_STATE_DIR` or `directories.state_dir`; `site` is a
        network namespace (name or path) to work in instead of the process's own; `gateway_workers`
        are as many as the process may use processors, but for 8 at most. With `rootless`
        guests live in a private user and network namespace, which any user may have and which ends
        with this object (give an `Agent` to have its process started ahead); it may then be told to
        `remember` nothing, and needs no directory. There, or with `relays_all`, nothing is
        forwarded outward: the gateway takes every flow. Raises
        `BusyError` when another process has the directory or the namespace, `HostError` when the
        machine refuses.
        """
        if rootless and site is not None:
            raise ConfigError("site", str(site), "a rootless host has a namespace of its own")
        if not rootless and not remember:
            raise ConfigError("remember", remember, "only what a rootless host made goes with it")
        with contextlib.ExitStack() as stack:
            directory = _directory(state_dir, bool(rootless)) if remember else None
            lock = None
            if directory is not None:
                lock = DirectoryLock(directory)
                stack.callback(lock.close)
            store = SqliteStore(directory / "guestnet.db" if directory is not None else None)
            stack.callback(store.close)
            there: Site
            if rootless:
                there = RootlessSite(rootless if isinstance(rootless, Agent) else None)
            else:
                there = NamespaceSite(str(site) if site is not None else None, relays_all)
            stack.callback(there.close)
            decisions = directory / "decisions.jsonl" if directory is not None else None
            host = cls(store, there, lock, decisions, gateway_workers)
            there.watch(host._lost)
            host._generation = host._upkeep.recover(time.time())
            stack.callback(host._end)
            host._begin()
            stack.pop_all()
        host._reaper.start()
        return host

    def _begin(self) -> None:
        """Start what runs beside, and finish changes of networks' policies."""
        self._relays.start()
        for network in self._ledger.networks:
            try:
                self._follow_network_policy(network)
            except GuestnetError as error:
                logger.error("guests of network %r keep a former policy: %s", network, error)
        self._transports.resume_all(list(self._ledger.attachments()))
        self._flows.start()

    def _end(self) -> None:
        self._flows.stop()
        self._transports.close()
        self._relays.close()

    def _lost(self, reason: str) -> None:
        """The site ended by itself. Nothing stands any more, so nothing is relayed either."""
        logger.error("the rootless site's process %s: its guests are cut", reason)
        # Its sockets would keep the namespace, and the TAPs in it.
        self._flows.stop()
        with self._lock:
            self._transports.close()
            self._relays.close()

    def watch_site(self, lost: Callable[[str], None]) -> None:
        """Call `lost` with the reason, from another thread, should the site end by itself.

        Only a rootless one can: its process may be killed. Every call after that is a `HostError`.
        """
        self._site.watch(lost)

    @property
    def namespace(self) -> str:
        """The path of the network namespace in which TAPs are: a VMM that opens one is to be there.

        A rootless host's belongs to a user namespace, which is to be entered first.
        """
        return self._site.namespace

    def close(self) -> None:
        """Finish pending detaches and let go; guests keep their network."""
        if self._closed:
            return
        self._closed = True
        self._decisions.close()
        try:
            # What nobody remembers goes with its namespace.
            self._reaper.stop(clear=self._directory_lock is not None)
        finally:
            self._flows.stop()
            # Whoever is in the middle of an operation finishes it first.
            with self._lock:
                # What stands in the kernel goes on standing, but for a rootless host's.
                self._transports.close(keep_places=not self._site.is_apart)
                self._relays.close()
                self._store.close()
                self._site.close()
                if self._directory_lock is not None:
                    self._directory_lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- networks ----------------------------------------------------------------------------

    def create_network(self, spec: NetworkSpec | Mapping[str, Any]) -> NetworkInfo:
        """Create a network; one that exists with the same settings is returned as it is.

        Raises `ConflictError` for other settings under the same name, or a pool that overlaps what
        the host or another network uses; `ConfigError` for settings that cannot be.
        """
        wanted = spec if isinstance(spec, NetworkSpec) else NetworkSpec.read(dict(spec))
        if wanted.policy is not None:
            parse_policy(wanted.policy)
        with self._lock:
            known = self._ledger.networks.get(wanted.name)
            if known is not None:
                check_same_network(wanted, known.spec)
                return known.info(time.time())
            check_free(wanted, self._site.surroundings().used, self._ledger.networks.values())
            self._flows.reconsider()
            return self._upkeep.add_network(wanted).info(time.time())

    def remove_network(self, name: str) -> None:
        """Remove a network without guests; with the last one everything of ours goes.

        Raises `NotFoundError`, or `ConflictError` while guests are attached to it.
        """
        self._reaper.drain()
        with self._lock:
            self._ledger.network(name)
            guests = self._ledger.guests_of(name)
            if guests:
                some = ", ".join(repr(guest) for guest in guests[:3])
                raise ConflictError(
                    "network", name, f"{len(guests)} guests are attached ({some}); detach them"
                )
            self._upkeep.remove_network(name)
            self._flows.reconsider()

    def networks(self) -> list[NetworkInfo]:
        """All networks, by name."""
        with self._lock:
            now = time.time()
            return [network.info(now) for _name, network in sorted(self._ledger.networks.items())]

    def network(self, name: str) -> NetworkInfo:
        """One network, with the parts of its pools that the host uses looked up anew."""
        with self._lock:
            network = self._ledger.network(name)
            self._placer.skip_used()
            return network.info(time.time())

    # -- guests ------------------------------------------------------------------------------

    def attach(self, guest: str, **options: Any) -> Attachment:
        """Give a guest its network: device, addresses, rules. Returns what it was given.

        `options` are the fields of `AttachRequest`: network, policy, ipv4, ipv6, mac, mtu, tap,
        netns, guest_interface, queues, owner, group, transport. A guest that is attached just so is
        returned as it is; otherwise `ConflictError`. The network `default` comes into being when
        first used.
        `netns="new"` makes a namespace for the guest, which goes with it or with this object.
        """
        request = AttachRequest(guest=guest, **options)
        policy = parse_policy(request.policy) if request.policy is not None else None
        if request.netns != NEW_NAMESPACE:
            return self._attach(request, policy)
        with self._lock:
            known = self._ledger.attached.get(guest)
            standing = known.attachment.netns if known and known.attachment else None
        is_ours = standing is not None and standing in self._namespaces
        path = standing if is_ours else self._new_namespace()
        try:
            return self._attach(request.model_copy(update={"netns": path}), policy)
        except BaseException:
            if path != standing:
                self._drop_namespace(path)
            raise

    def _new_namespace(self) -> str:
        path = self._site.new_namespace()
        self._namespaces.add(path)
        return path

    def _drop_namespace(self, path: str | None) -> None:
        """Let go of a namespace that was made for a guest; what runs in it keeps it."""
        if path is not None and path in self._namespaces:
            self._namespaces.discard(path)
            self._site.drop_namespace(path)

    def _attach(self, request: AttachRequest, policy: Policy | None) -> Attachment:
        with self._lock:
            is_leaving = self._ledger.is_leaving(request.guest, request.netns)
        if is_leaving:
            # Address, device name and flows are about to be free; then it gets them back.
            self._reaper.drain()
        try:
            return self._attach_now(request, policy)
        except PoolFullError:
            with self._lock:
                if not self._ledger.detaching:
                    raise
            # Never drain under the lock: clearing away takes it too.
            self._reaper.drain()
            return self._attach_now(request, policy)

    def _attach_now(self, request: AttachRequest, policy: Policy | None) -> Attachment:
        with self._lock:
            if request.guest in self._ledger.attached:
                known = self._ledger.attachment(request.guest)
                check_same_attachment(request, policy, known)
                return known
            if request.network == DEFAULT_NETWORK and DEFAULT_NETWORK not in self._ledger.networks:
                self.create_network(NetworkSpec.from_env(os.environ, name=DEFAULT_NETWORK))
            network = self._ledger.network(request.network)
            if policy is None:
                policy = parse_policy(network.spec.policy)
            place = self._placer.place(network, request, time.time())
            attachment = self._describe(request, policy, place)
            lease = Lease(
                network.spec.name,
                place.slot,
                request.guest,
                attachment.generation,
                LeaseState.ATTACHING,
                time.time(),
                attachment,
            )
            self._store.write([lease])
            network.pool.take(place.slot)
            try:
                self._install(policy)
            except BaseException:
                self._release([lease])
                raise
            elements = guest_elements(attachment, policy_id(policy))
            try:
                self._relays.admit(attachment, policy)
                # Elements last: until they stand nothing of the guest passes.
                self._site.perform([MakeDevice(self._ledger.device(attachment)), Admit(elements)])
                # The VMM's socket after that: who connects has the network.
                self._transports.serve(attachment)
                lease = replace(lease, state=LeaseState.ATTACHED)
                self._store.write([lease])
            except BaseException:
                self._ledger.policies.drop(policy)
                self._relays.forget(attachment.guest)
                self._transports.end(attachment.guest)
                # Where even this fails the lease stays `attaching` and its slot taken: nobody else
                # gets the address, and the next start clears away.
                self._site.perform([Expel(elements)])
                self._site.delete_retired([attachment.tap] if self._made(attachment) else [])
                self._release([lease])
                raise
            self._ledger.add(lease)
            if not attachment.tap.startswith(DEVICE_PREFIX):
                self._upkeep.accept_in_foreign_filters()
            return attachment

    def _install(self, policy: Policy) -> None:
        """Count a user of a policy, and make its chains if it is the first."""
        new_chains = self._ledger.policies.use(policy)
        if new_chains is None:
            return
        try:
            self._site.perform([InstallPolicy(new_chains)])
        except BaseException:
            self._ledger.policies.cancel(policy)
            raise

    def _made(self, attachment: Attachment) -> bool:
        """Whether the attachment's device is there, and ours: not somebody's of the same name."""
        device = self._site.device(attachment.tap)
        return device is not None and self._site.is_ours(device.group)

    def _describe(self, request: AttachRequest, policy: Policy, place: Placement) -> Attachment:
        network = self._ledger.network(request.network)
        spec = network.spec
        mtu = request.mtu or spec.mtu
        if mtu is None or (place.ipv6 is not None and mtu < MTU_MIN_IPV6):
            raise ConfigError("mtu", mtu, f"IPv6 needs {MTU_MIN_IPV6} bytes")
        if spec.topology is Topology.BRIDGE and mtu != spec.mtu:
            raise ConfigError("mtu", mtu, f"guests of a bridge share its MTU, {spec.mtu}")
        if request.tap and request.tap.startswith(DEVICE_PREFIX) and request.tap != place.tap:
            right = f"{DEVICE_PREFIX!r} begins guestnet's own names; here that is {place.tap}"
            raise ConfigError("tap", request.tap, right)
        self._generation += 1
        return Attachment(
            guest=request.guest,
            network=spec.name,
            topology=spec.topology,
            generation=self._generation,
            slot=place.slot,
            tap=check_tap_is_free(self._ledger, request.tap or place.tap),
            mac=self._placer.mac(network, request, place),
            ipv4=place.ipv4,
            ipv6=place.ipv6,
            gateway_ipv4=place.gateway_ipv4,
            gateway_ipv6=place.gateway_ipv6,
            mtu=mtu,
            # Whatever resolver a guest asks, the gateway answers where rules by name need it.
            dns=_gateways(place) if self._answers(policy) else network.dns,
            policy=str(policy),
            inherits_policy=request.policy is None,
            netns=str(netns_path(request.netns)) if request.netns is not None else None,
            guest_interface=request.guest_interface,
            queues=request.queues,
            owner=request.owner,
            group=request.group,
            transport=request.transport,
        )

    def _answers(self, policy: Policy) -> bool:
        """Whether the gateway answers a guest's questions to resolvers."""
        return self._site.relays_all or has_names(policy)

    def detach(self, guest: str, generation: int | None = None) -> bool:
        """Cut a guest off; True if it was attached. Nothing passes once this returns.

        With `generation` only that very attachment is ended: a late call does not harm the next.
        The device itself is deleted in the background.
        """
        AttachRequest(guest=guest)
        with self._lock:
            lease = self._ledger.attached.get(guest)
            if lease is None or generation not in (None, lease.generation):
                return False
            attachment = self._ledger.attachment(guest)
            lease = replace(lease, state=LeaseState.DETACHING, changed_at=time.time())
            self._store.write([lease])
            policy = read_policy(attachment.policy)
            elements = guest_elements(attachment, policy_id(policy))
            device = self._ledger.device(attachment)
            self._site.perform([Expel(elements), Retire(attachment.tap, device)])
            self._ledger.cut(lease)
            self._ledger.policies.drop(policy)
            self._relays.forget(guest)
            self._transports.end(guest)
            self._drop_namespace(attachment.netns)
        self._reaper.add(lease)
        return True

    def set_policy(
        self, guest: str, policy: str | Mapping[str, Any] | Sequence[Any] | Policy
    ) -> Attachment:
        """Put another policy in the place of a guest's, at once.

        When this returns the new one holds for established flows too: those that it denies are
        cut, those that it still allows go on. From then on the guest has a policy of its own,
        whatever its network's is. Raises `NotFoundError`, or `PolicyError` and then nothing has
        changed.
        """
        new = parse_policy(policy)
        with self._lock:
            return self._set_policy(self._ledger.attachment(guest), new, inherits=False)

    def set_network_policy(
        self, name: str, policy: str | Mapping[str, Any] | Sequence[Any] | Policy | None
    ) -> NetworkInfo:
        """Put another policy in the place of a network's, for those of its guests who have it too.

        Guests that were attached with a policy of their own, or given one since, keep theirs. Each
        of the others changes as by `set_policy`, one after the other; where that fails in between,
        the rest follow when this is done again or the host is next opened.
        """
        new = parse_policy(policy)
        with self._lock:
            network = self._ledger.network(name)
            text = None if policy is None else str(new)
            spec = network.spec.model_copy(update={"policy": text})
            self._store.change_network(spec)
            network.spec = spec
            self._follow_network_policy(name)
            return network.info(time.time())

    def _follow_network_policy(self, name: str) -> None:
        """Give a network's policy to those of its guests who are to have it."""
        new = parse_policy(self._ledger.network(name).spec.policy)
        for guest in self._ledger.guests_of(name):
            attachment = self._ledger.attachment(guest)
            if attachment.inherits_policy:
                self._set_policy(attachment, new, inherits=True)

    def _set_policy(self, attachment: Attachment, new: Policy, *, inherits: bool) -> Attachment:
        lease = self._ledger.attached[attachment.guest]
        old = read_policy(attachment.policy)
        changed = attachment.model_copy(update={"policy": str(new), "inherits_policy": inherits})
        if changed == attachment:
            return attachment
        if new == old:
            self._store.write([replace(lease, attachment=changed)])
            self._ledger.attached[attachment.guest] = replace(lease, attachment=changed)
            return changed
        self._install(new)
        try:
            self._store.write([replace(lease, attachment=changed)])
            self._relays.admit(changed, new)
            names = self._pins.carry(changed, old, new)
            before = guest_elements(attachment, policy_id(old))
            after = guest_elements(changed, policy_id(new))
            self._site.perform([Exchange(_less(before, after), _less(after, before))])
        except BaseException:
            self._ledger.policies.drop(new)
            self._store.write([lease])
            self._relays.admit(attachment, old)
            raise
        self._pins.forget([attachment])
        self._ledger.policies.drop(old)
        self._ledger.attached[attachment.guest] = replace(lease, attachment=changed)
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

        flows = self._site.flows_of(attachment.addresses)
        self._site.delete_flows([each for each in flows if not keep(each.flow)])

    def _clear_away(self, leases: Sequence[Lease]) -> None:
        """What is left of detached guests: devices, flows, counters; then their slots are free.

        May be called again with the same leases if it fails half-way.
        """
        attachments = [lease.attachment for lease in leases if lease.attachment is not None]
        self._site.delete_retired([attachment.tap for attachment in attachments])
        self._site.forget_flows([address for each in attachments for address in each.addresses])
        self._flows.settle()
        self._site.forget_counts(attachments)
        self._pins.forget(attachments)
        with self._lock:
            self._release(leases)
            self._forget_the_gone()
            if self._ledger.policies.unused >= UNUSED_POLICIES_KEPT:
                self._sweep_policies()

    def _forget_the_gone(self) -> None:
        self._decisions.forget_the_gone()
        self._flows.forget_the_gone()

    def _sweep_policies(self) -> None:
        """Delete the chains of policies that nobody uses; they let nothing pass meanwhile."""
        unused = self._ledger.policies.sweep()
        if not unused:
            return
        kept = tuple(self._ledger.policies.chains.values())
        try:
            self._site.perform([RemovePolicies(unused, kept)])
        except HostError as error:
            # Somebody flushed our tables, say; a reconcile finds what is left of them.
            logger.warning("removing unused policies: %s", error)

    def _release(self, leases: Sequence[Lease]) -> None:
        now = time.time()
        self._store.write(
            replace(lease, state=LeaseState.RELEASED, changed_at=now, attachment=None)
            for lease in leases
        )
        for lease in leases:
            self._ledger.released(lease, now)

    def attachments(self, network: str | None = None) -> list[Attachment]:
        """All attachments, or those of one network, by guest id."""
        with self._lock:
            if network is not None:
                self._ledger.network(network)
            found = [a for a in self._ledger.attachments() if network in (None, a.network)]
            return sorted(found, key=lambda attachment: attachment.guest)

    def attachment(self, guest: str) -> Attachment:
        """One guest's attachment, or `NotFoundError`."""
        with self._lock:
            return self._ledger.attachment(guest)

    def usage(self, guest: str) -> Usage:
        """A guest's traffic counters; zeros where its device is gone."""
        attachment = self.attachment(guest)
        device = self._site.device(attachment.tap)
        refused = self._site.refused(attachment)
        # What the host's end sends the guest receives.
        return Usage(
            guest=guest,
            rx_bytes=device.tx_bytes if device else 0,
            tx_bytes=device.rx_bytes if device else 0,
            rx_packets=device.tx_packets if device else 0,
            tx_packets=device.rx_packets if device else 0,
            refused=refused,
        )

    def transport(self, guest: str) -> TransportInfo | None:
        """How a guest's transport goes, or None if its VMM opens the TAP; or `NotFoundError`."""
        with self._lock:
            return self._transports.info(self._ledger.attachment(guest))

    # -- asking ------------------------------------------------------------------------------

    def explain(
        self,
        guest: str,
        protocol: Protocol | str,
        address: Address | str,
        port: int | None = None,
        direction: Direction | str = Direction.EGRESS,
    ) -> Verdict:
        """What would happen to a flow between a guest and an address, and which rule decides.

        `address` is the other end, `port` the service's. Reads the host's addresses and routes;
        nothing is sent and nothing changes.
        """
        with self._lock:
            explainer = Explainer(self._ledger, self._site)
            attachment = self._ledger.attachment(guest)
            return explainer.explain(attachment, direction, protocol, address, port)

    def decisions(self, guest: str | None = None) -> list[Decision]:
        """The last decisions, of all guests or of one, oldest first.

        All of them are in `decisions.jsonl` in the state directory.
        """
        return self._decisions.recent(guest)

    def suggest_policy(self, guest: str, *, suffixes: bool = False) -> str:
        """The smallest policy that allows what a guest was seen to use: names over addresses.

        To be asked after a while in report mode (`mode=report`), where nothing above the floor is
        stopped. With `suffixes` names below a common one become one rule.
        """
        with self._lock:
            attachment = self._ledger.attachment(guest)
            explainer = Explainer(self._ledger, self._site)
            return str(explainer.suggest(attachment, self._decisions.seen, suffixes=suffixes))

    def watch(self, guest: str | None = None) -> Watch:
        """Decisions from now on, as an iterator that ends when it or the host is closed."""
        return self._decisions.watch(guest)

    def counters(self) -> dict[str, int]:
        """Packets refused and dropped on this machine so far, by `family/reason`."""
        return self._site.counters()

    def reconcile(self) -> Repairs:
        """Compare the kernel with the store and put right what differs; says what that was."""
        self._reaper.drain()
        with self._lock:
            repairs = self._upkeep.reconcile()
            self._forget_the_gone()
            self._flows.reconsider()
            if repairs.steps:
                self._relays.tell_again()
            return repairs

    def follow(self) -> None:
        """Follow what changes outside: egress interfaces, other tools' filters. Call it often."""
        with self._lock:
            self._sweep_policies()
            self._flows.reconsider()
            if self._upkeep.follow():
                self._relays.tell_again()
            self._relays.follow()
            for attachment in list(self._ledger.attachments()):
                self._transports.resume(attachment)

    def doctor(self) -> list[Finding]:
        """Look for what keeps guests from working on this machine, each finding with its remedy."""
        with self._lock:
            return examine(self._site, self._ledger, self._relays.gateway)


def _directory(state_dir: str | Path | None, rootless: bool) -> Path:
    """The state directory; it is made if it is missing."""
    chosen = state_dir or os.environ.get("GUESTNET_STATE_DIR")
    directory = Path(chosen) if chosen else directories.state_dir(rootless)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        hint = "" if rootless else "run as root, or without it: rootless=True"
        raise HostError.from_os("mkdir", str(directory), error, hint) from None
    return directory


def _gateways(place: Placement) -> tuple[Address, ...]:
    return tuple(each for each in (place.gateway_ipv4, place.gateway_ipv6) if each is not None)


def _less(some: Sequence[Element], others: Sequence[Element]) -> tuple[Element, ...]:
    return tuple(each for each in some if each not in others)
