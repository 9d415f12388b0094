"""`Host`: every operation an owner has, on this machine, in this process."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Self

from ..errors import ConfigError, GuestnetError, PoolFullError
from ..kernel.interface import Site
from ..kernel.rootless.process import Agent
from ..kernel.rootless.remote import RootlessSite
from ..kernel.site import NamespaceSite
from ..kernel.standard import hold_standard_descriptors
from ..model import (
    Attachment,
    AttachRequest,
    Decision,
    Finding,
    NetworkInfo,
    NetworkSpec,
    Repairs,
    TransportInfo,
    Usage,
)
from ..policy import Direction, Policy, Protocol, Verdict, parse_policy
from ..ruleset.relayed import Manner
from ..store import Lease
from .decisions import Decisions, Watch
from .doctor import examine
from .explain import Explainer
from .flows import Flows
from .guests import Guests
from .leases import Leases
from .ledger import Ledger
from .moment import Moment
from .networks import Networks
from .pins import Pins
from .placing import Placer
from .policies import UNUSED_POLICIES_KEPT, Policies
from .reaper import Reaper
from .recovery import recover
from .relays import Relays
from .state import State
from .suggesting import suggest_for
from .transports import Transports
from .upkeep import Upkeep

logger = logging.getLogger(__name__)

Address = IPv4Address | IPv6Address


class Host:
    """One machine's guestnet. Synchronous and thread-safe; one per state directory and namespace.

    Open it with `Host.open`, close it with `close` or as a context manager. What it has set up in
    the kernel goes on working while nobody has it open.
    """

    def __init__(self, state: State, site: Site, workers: int | None = None) -> None:
        self._lock = threading.RLock()
        self._closed = False
        self._state = state
        self._site = site
        self._ledger = Ledger(
            Manner.RELAYED if site.relays_all else Manner.FORWARDED, is_apart=site.is_apart
        )
        ledger, store = self._ledger, state.store
        self._decisions = Decisions(state.decisions, ledger.is_here)
        self._flows = Flows(self._lock, ledger, site, self._decisions.seen, self._decisions.take)
        self._pins = Pins(site)
        self._relays = Relays(ledger, site, self._pins, self._decisions.take, workers)
        self._transports = Transports(site)
        self._leases = Leases(ledger, store, site, self._pins, self._transports)
        self._upkeep = Upkeep(ledger, store, site, self._leases)
        self._networks = Networks(ledger, store, site, self._upkeep, self._flows)
        self._policies = Policies(ledger, store, site, self._relays, self._pins)
        self._placer = Placer(ledger, site)
        self._guests = Guests(
            ledger,
            store,
            site,
            self._networks,
            self._placer,
            self._policies,
            self._relays,
            self._transports,
            self._leases,
        )
        self._reaper = Reaper(self._clear_away)

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
        hold_standard_descriptors()
        with contextlib.ExitStack() as undo:
            state = State.open(state_dir, rootless=bool(rootless)) if remember else State(None)
            undo.callback(state.close)
            there: Site
            if rootless:
                there = RootlessSite(rootless if isinstance(rootless, Agent) else None)
            else:
                there = NamespaceSite(str(site) if site is not None else None, relays_all)
            undo.callback(there.close)
            host = cls(state, there, gateway_workers)
            there.watch(host._lost)
            recover(host._ledger, state.store, there, host._leases, host._upkeep)
            undo.callback(host._end)
            host._begin()
            host._reaper.start()
            undo.pop_all()
        return host

    def _begin(self) -> None:
        """Start what runs beside, and finish changes of networks' policies."""
        self._relays.start()
        for network in self._ledger.networks:
            try:
                self._policies.follow_network(network)
            except GuestnetError as error:
                logger.error("guests of network %r keep a former policy: %s", network, error)
        self._transports.resume_all(list(self._ledger.attachments()))
        self._flows.start()

    def _end(self) -> None:
        """End what runs beside."""
        self._flows.stop()
        with self._lock:
            self._transports.close()
            self._relays.close()

    def _lost(self, reason: str) -> None:
        """The site ended by itself. Nothing stands any more, so nothing is relayed either."""
        logger.error("the rootless site's process %s: its guests are cut", reason)
        # Its sockets would keep the namespace, and the TAPs in it.
        self._end()

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
            self._reaper.stop(clear=self._state.is_kept)
        finally:
            self._flows.stop()
            # Whoever is in the middle of an operation finishes it first.
            with self._lock:
                # What stands in the kernel goes on standing, but for a rootless host's.
                self._transports.close(keep_places=not self._site.is_apart)
                self._relays.close()
                self._site.close()
                self._state.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
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
            return self._networks.create(wanted).info(time.time())

    def remove_network(self, name: str) -> None:
        """Remove a network without guests; with the last one everything of ours goes.

        Raises `NotFoundError`, or `ConflictError` while guests are attached to it.
        """
        self._reaper.drain()
        with self._lock:
            self._networks.remove(name)

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
        with self._lock:
            is_leaving = self._ledger.is_leaving(guest, request.netns)
        if is_leaving:
            # Address, device name and flows are about to be free; then it gets them back.
            self._reaper.drain()
        try:
            with self._lock:
                return self._guests.attach(request, policy)
        except PoolFullError:
            with self._lock:
                if not self._ledger.detaching:
                    raise
        # Never drain under the lock: clearing away takes it too.
        self._reaper.drain()
        with self._lock:
            return self._guests.attach(request, policy)

    def detach(self, guest: str, generation: int | None = None) -> bool:
        """Cut a guest off; True if it was attached. Nothing passes once this returns.

        With `generation` only that very attachment is ended: a late call does not harm the next.
        The device itself is deleted in the background.
        """
        AttachRequest(guest=guest)
        with self._lock:
            lease = self._guests.detach(guest, generation)
        if lease is None:
            return False
        self._reaper.add(lease)
        return True

    def _clear_away(self, leases: Sequence[Lease]) -> None:
        """What is left of detached guests: devices, flows, counters; then their slots are free.

        May be called again with the same leases if it fails half-way.
        """
        attachments = [lease.attachment for lease in leases if lease.attachment is not None]
        self._site.delete_retired([attachment.tap for attachment in attachments])
        addresses = [address for each in attachments for address in each.addresses]
        self._site.conntrack.forget(addresses)
        self._flows.settle()
        self._site.counts.forget(addresses)
        self._pins.forget(attachments)
        with self._lock:
            self._leases.release(leases)
            self._forget_the_gone()
            self._policies.sweep(at_least=UNUSED_POLICIES_KEPT)

    def _forget_the_gone(self) -> None:
        self._decisions.forget_the_gone()
        self._flows.forget_the_gone()

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
            return self._policies.change(self._ledger.attachment(guest), new)

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
            text = None if policy is None else str(new)
            return self._policies.change_network(name, text).info(time.time())

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
        refused = self._site.counts.refused(attachment.addresses)
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
        self._settle()
        return self._decisions.recent(guest)

    def _settle(self) -> None:
        with self._lock:
            wait = self._relays.settle()
        wait()

    def suggest_policy(self, guest: str, *, suffixes: bool = False) -> str:
        """The smallest policy that allows what a guest was seen to use: names over addresses.

        To be asked after a while in report mode (`mode=report`), where nothing above the floor is
        stopped. With `suffixes` names below a common one become one rule.
        """
        self._settle()
        with self._lock:
            attachment = self._ledger.attachment(guest)
            moment = Moment(self._ledger, self._site)
            seen = self._decisions.seen
            return str(suggest_for(attachment, seen, self._site, moment, suffixes=suffixes))

    def watch(self, guest: str | None = None) -> Watch:
        """Decisions from now on, as an iterator that ends when it or the host is closed."""
        return self._decisions.watch(guest)

    def counters(self) -> dict[str, int]:
        """Packets refused and dropped on this machine so far, by `family/reason`."""
        return self._site.counts.by_reason()

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
            self._policies.sweep()
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
