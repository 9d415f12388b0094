"""A site in a namespace that stands already: everything guestnet does in it.

`NamespaceSite` owns the sockets. It performs steps that the plan decided on, and tells what stands;
it knows nothing of stores or policies.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import singledispatchmethod
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TypeVar

from ..errors import GuestnetError, HostError
from ..model import Attachment
from ..plan import (
    Admit,
    Configure,
    Exchange,
    Expel,
    InstallBase,
    InstallPolicy,
    MakeBridge,
    MakeDevice,
    Observed,
    RemovePolicies,
    Retire,
    SeenDevice,
    SetPlaces,
    Step,
)
from ..ruleset import Element, counting_elements
from ..ruleset.chains import members_set, pins_set, policy_of, removal_text
from ..ruleset.elements import admission_text
from ..ruleset.names import (
    GROUP_BRIDGE,
    GROUP_PORT,
    GROUP_RETIRED,
    GROUP_ROUTED,
    TABLE,
    Family,
)
from ..ruleset.telling import COUNTING, LOGGED, REFUSED, UNTOLD_FLOWS
from . import conntrack, devices, link, steering, sysctl
from . import netlink as nl
from .conntrack import Entry
from .foreign import ForeignChain, ForeignFilters
from .netlink import NetlinkSocket
from .netns import inside, new_netns, open_netns
from .nft import Nft
from .outlook import Outlook, Surroundings, Way
from .ownership import NamespaceLock

logger = logging.getLogger(__name__)

Address = IPv4Address | IPv6Address

OUR_GROUPS = frozenset({GROUP_ROUTED, GROUP_BRIDGE, GROUP_PORT, GROUP_RETIRED})
#: Sets whose elements stand for guests, beside the members of each policy.
_GUEST_SETS = (
    *((Family.INET, f"{word}{v}") for word in ("live", "identity") for v in (4, 6)),
    (Family.INET, "announce6"),
    (Family.ARP, "identity4"),
    (Family.BRIDGE, "identity4"),
    (Family.BRIDGE, "identity6"),
    (Family.BRIDGE, "announce6"),
)

T = TypeVar("T")

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class NamespaceSite:
    """`Site` in a namespace that stands already: by name or path, or None for the process's own."""

    #: Relayed flows leave from this very namespace.
    is_apart = False

    def __init__(self, netns: str | None = None, relays_all: bool = False) -> None:
        #: Whether what addresses decide is relayed as well, and not forwarded.
        self.relays_all = relays_all
        self._lock = threading.RLock()
        self._reaping = threading.Lock()
        self._tracking = threading.Lock()
        self._made: dict[str, int] = {}
        self._netns_fd = open_netns(netns) if netns is not None else None
        with self.inside():
            self._owner = NamespaceLock()
            try:
                self._outlook = Outlook(self._netns_fd, OUR_GROUPS)
                self._route = NetlinkSocket(nl.NETLINK_ROUTE)
                self._netfilter = NetlinkSocket(nl.NETLINK_NETFILTER)
                self._reaper_route = NetlinkSocket(nl.NETLINK_ROUTE)
                self._nft = Nft()
            except BaseException:
                self.close()
                raise
        self._foreign = ForeignFilters(self._nft)

    def close(self) -> None:
        """Let go of the namespace; what stands in it goes on standing."""
        for name in ("_route", "_netfilter", "_reaper_route", "_nft", "_outlook", "_owner"):
            part = getattr(self, name, None)
            if part is not None:
                part.close()
        for path in list(self._made):
            self.drop_namespace(path)
        if self._netns_fd is not None:
            os.close(self._netns_fd)
            self._netns_fd = None

    @property
    def netns_fd(self) -> int | None:
        """The namespace that relayed flows leave from; `None` is the process's own."""
        return self._netns_fd

    @property
    def life(self) -> str:
        """Names the life of what stands here: another one, and nothing stands any more."""
        return _BOOT_ID.read_text().strip()

    @property
    def namespace(self) -> str:
        """The namespace's path, for whoever is to be in it; it is valid while the site is open."""
        where = f"fd/{self._netns_fd}" if self._netns_fd is not None else "ns/net"
        return f"/proc/{os.getpid()}/{where}"

    def inside(self) -> AbstractContextManager[None]:
        """Run a block in the site's namespace, in this thread alone."""
        return inside(self._netns_fd)

    def within(self, work: Callable[[], T]) -> T:
        """Do something in the site's namespace; sockets in what it returns come along."""
        with self.inside():
            return work()

    def new_namespace(self) -> str:
        """The path of a new network namespace, for a guest; it goes with this site's closing."""
        fd = new_netns()
        path = f"/proc/{os.getpid()}/fd/{fd}"
        self._made[path] = fd
        return path

    def drop_namespace(self, path: str) -> None:
        """Let go of a namespace that was made here; it goes unless something runs in it."""
        os.close(self._made.pop(path))

    def watch(self, lost: Callable[[str], None]) -> None:
        """Call `lost` with the reason should the site end by itself; a namespace never does."""

    # -- doing -------------------------------------------------------------------------------

    def perform(self, steps: Iterable[Step]) -> None:
        """Do the steps in order; when one fails, undo the earlier ones and raise its error."""
        undo: list[Callable[[], None]] = []
        with self._lock, self.inside():
            try:
                for step in steps:
                    undo.append(self._do(step))
            except BaseException:
                for back in reversed(undo):
                    try:
                        back()
                    except GuestnetError as error:
                        logger.error("undoing a step failed: %s", error)
                raise

    @singledispatchmethod
    def _do(self, step: object) -> Callable[[], None]:
        """Do one step, and return what undoes it."""
        raise TypeError(f"no way to do {step!r}")

    @_do.register
    def _(self, step: InstallBase) -> Callable[[], None]:
        text = step.base + "".join(p.install_text() for p in step.policies) + step.places
        # One transaction: guests that are attached must not be cut off in between.
        self._nft.run(text + admission_text(step.elements), about="base ruleset")
        return _nothing

    @_do.register
    def _(self, step: SetPlaces) -> Callable[[], None]:
        self._nft.run(step.places, about="pools, egress and resolvers")
        return _nothing

    @_do.register
    def _(self, step: InstallPolicy) -> Callable[[], None]:
        # Left standing when a later step fails: unused chains let nothing pass, and go in time.
        self._nft.run(step.chains.install_text(), about=step.chains.id)
        return _nothing

    @_do.register
    def _(self, step: RemovePolicies) -> Callable[[], None]:
        self._nft.run(removal_text(step.names, step.kept), about="unused policies")
        return _nothing

    @_do.register
    def _(self, step: MakeBridge) -> Callable[[], None]:
        existed = link.index_of(self._route, step.bridge.name) != 0
        devices.make_bridge(self._route, step.bridge)
        if existed:
            return _nothing
        return lambda: self._route.request([link.delete_link(step.bridge.name)])

    @_do.register
    def _(self, step: MakeDevice) -> Callable[[], None]:
        devices.make_guest_device(self._route, step.device)
        return lambda: self._route.request([link.delete_link(step.device.name)])

    @_do.register
    def _(self, step: Configure) -> Callable[[], None]:
        devices.configure(self._route, step.device)
        return _nothing

    @_do.register
    def _(self, step: Admit) -> Callable[[], None]:
        self._nft.change(add=step.elements)
        return lambda: self._nft.change(remove=step.elements)

    @_do.register
    def _(self, step: Exchange) -> Callable[[], None]:
        self._nft.change(add=step.new, remove=step.old)
        return lambda: self._nft.change(add=step.old, remove=step.new)

    @_do.register
    def _(self, step: Expel) -> Callable[[], None]:
        self._nft.change(remove=step.elements)
        return _nothing

    @_do.register
    def _(self, step: Retire) -> Callable[[], None]:
        if step.device is not None and not step.device.master:
            # Its elements are gone, so nothing passes; its group can wait for its deletion.
            devices.strip(self._route, step.device)
        else:
            devices.retire(self._route, [step.name])
        return _nothing

    def delete_retired(self, names: Sequence[str] = ()) -> None:
        """Delete `names` and all retired devices together: one grace period for all of them.

        On a socket of its own: others need not wait for more than the kernel makes them.
        """
        with self._reaping, self.inside():
            devices.retire(self._reaper_route, names)
            self._reaper_route.request([link.delete_group(GROUP_RETIRED)])

    def flows_of(self, addresses: Collection[Address]) -> list[Entry]:
        """The conntrack entries of addresses."""
        # A socket and a lock of their own: a table of many flows takes a while to look through.
        with self._tracking:
            return conntrack.find(self._netfilter, addresses)

    def forget_flows(self, addresses: Collection[Address]) -> None:
        """Delete the conntrack entries of addresses: who gets one next begins without them."""
        self.delete_flows(self.flows_of(addresses))

    def delete_flows(self, entries: Sequence[Entry]) -> None:
        """Delete conntrack entries."""
        with self._tracking:
            conntrack.delete(self._netfilter, entries)

    def pin(self, lifetimes_s: Mapping[Element, int]) -> None:
        """Let guests' packets follow rules by name (`pin_element`), each for a time."""
        with self._lock:
            self._nft.renew(lifetimes_s)

    def unpin(self, policy: str, rules: Iterable[int], guests: Collection[Address]) -> None:
        """Take guests' pins under rules of a policy away: the next holder has asked nothing."""
        with self._lock:
            for rule in rules:
                for guest in guests:
                    name = pins_set(policy, rule, guest.version)
                    key = guest.packed
                    gone = [
                        e for e in self._nft.elements(Family.INET, name) if e.key[: len(key)] == key
                    ]
                    if gone:
                        self._nft.change(remove=gone)

    def pinned(self, policy: str, rule: int, guest: Address) -> list[Address]:
        """Peers that a guest's packets may follow a rule by name to."""
        size = len(guest.packed)
        with self._lock:
            return [
                ip_address(each.key[size:])
                for each in self._nft.elements(Family.INET, pins_set(policy, rule, guest.version))
                if each.key[:size] == guest.packed
            ]

    def seen(self, guest: Address) -> list[tuple[Address, int, int]]:
        """What a guest in report mode sent beside TCP: (peer, IP protocol, port or 0)."""
        found: list[tuple[Address, int, int]] = []
        size = len(guest.packed)
        with self._lock:
            for word in ("seen", "seen_other"):
                for each in self._nft.elements(Family.INET, f"{word}{guest.version}"):
                    if each.key[:size] != guest.packed:
                        continue
                    peer = ip_address(each.key[size : 2 * size])
                    rest = each.key[2 * size :]
                    if word == "seen":
                        found.append((peer, socket.IPPROTO_UDP, int.from_bytes(rest[:2], "big")))
                    else:
                        found.append((peer, rest[0], 0))
        return found

    def forget_counts(self, attachments: Iterable[Attachment]) -> None:
        """Delete what was counted of guests."""
        by_set: dict[str, list[Element]] = {}
        for attachment in attachments:
            for word in COUNTING:
                for element in counting_elements(word, attachment):
                    by_set.setdefault(element.set_name, []).append(element)
        with self._lock:
            for name, members in by_set.items():
                standing = self._nft.counted(Family.INET, name)
                self._nft.change(remove=[e for e in members if e.key in standing])

    def remove_tables(self) -> None:
        """Delete our tables; the last thing done on a machine that guestnet leaves."""
        with self._lock:
            text = "".join(
                f"add table {f.word} {TABLE}\ndelete table {f.word} {TABLE}\n" for f in Family
            )
            self._nft.run(text, about="removal of our tables")

    def steer(self, *, wanted: bool) -> None:
        """Have what the gateway takes over delivered here whatever its destination, or no more."""
        with self._lock, self.inside():
            change = steering.steer if wanted else steering.unsteer
            change(self._route)

    def restore_sysctls(self, former: Mapping[str, str]) -> None:
        """Write former values back, as far as what they belong to is still there."""
        with self.inside():
            for key, value in former.items():
                try:
                    if sysctl.read(key) is not None:
                        sysctl.write(key, value)
                except HostError as error:
                    logger.warning("a former setting could not be put back: %s", error)

    def forwarding_changes(
        self, egress: tuple[str, ...], versions: Iterable[int]
    ) -> dict[str, tuple[str, str | None]]:
        """What to change for forwarding to be on: (former, wanted) by sysctl path below net/."""
        with self.inside():
            return {
                key: change
                for version in versions
                for key, change in sysctl.forwarding_changes(version, egress).items()
            }

    def accounting_changes(self) -> dict[str, tuple[str, str | None]]:
        """The same for flows' bytes and times to be taken."""
        with self.inside():
            return sysctl.accounting_changes()

    def set_sysctls(self, values: Mapping[str, str]) -> None:
        """Write settings by their path below net/."""
        with self.inside():
            for key, value in values.items():
                sysctl.write(key, value)

    def sysctl(self, key: str) -> str | None:
        """A setting by its path below net/; None where the kernel has none."""
        with self.inside():
            return sysctl.read(key)

    # -- looking -----------------------------------------------------------------------------

    def observe(self) -> Observed:
        """What stands in the namespace."""
        with self._lock, self.inside():
            seen = link.links(self._route)
            names = {each.index: each.name for each in seen}
            found = {
                each.name: SeenDevice(
                    each.name,
                    each.group,
                    each.mac,
                    each.mtu,
                    names.get(each.master, ""),
                    each.up,
                )
                for each in seen
            }
            chains = frozenset(self._nft.chains())
            elements: frozenset[Element] = frozenset()
            if chains:
                elements = frozenset(
                    element
                    for family, name in (*_GUEST_SETS, *_member_sets(chains))
                    for element in self._nft.elements(family, name)
                )
            return Observed(found, chains, elements)

    @staticmethod
    def is_ours(group: int) -> bool:
        """Whether a link group is one of guestnet's."""
        return group in OUR_GROUPS

    def chains(self) -> set[str]:
        """Names of the chains in our inet table."""
        with self._lock:
            return self._nft.chains()

    def egress(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Interfaces by which guests leave: those named, or where public addresses are routed."""
        return self._outlook.egress(wanted)

    def mtu(self, name: str) -> int | None:
        """The MTU of a device in bytes, or None if there is no such device."""
        return self._outlook.mtu(name)

    def way_to(self, address: Address) -> Way | None:
        """The route that decides about an address, or None if there is none. Sends nothing."""
        return self._outlook.way_to(address)

    def surroundings(self) -> Surroundings:
        """Addresses and routes of the host that have nothing to do with guests."""
        return self._outlook.surroundings()

    def device(self, name: str) -> link.Link | None:
        """A device with its counters, or None."""
        with self._lock, self.inside():
            return link.link(self._route, name)

    def refused(self, attachment: Attachment) -> int:
        """Packets refused to a guest."""
        return self._counted(REFUSED, attachment)

    def left_out(self, attachment: Attachment) -> int:
        """Flows and refusals of a guest that were beyond its share of what is told."""
        # In this order: what happens meanwhile is not taken for left out.
        refused = self._counted(REFUSED, attachment)
        logged = self._counted(LOGGED, attachment)
        return max(0, refused - logged) + self._counted(UNTOLD_FLOWS, attachment)

    def left_out_so_far(self) -> dict[Address, int]:
        """The same of every address, as far as it is not 0."""
        found: dict[Address, int] = {}
        with self._lock:
            for word, sign in ((REFUSED, 1), (LOGGED, -1), (UNTOLD_FLOWS, 1)):
                for version in (4, 6):
                    for key, count in self._nft.counted(Family.INET, f"{word}{version}").items():
                        address = ip_address(key)
                        found[address] = found.get(address, 0) + sign * count
        return {address: count for address, count in found.items() if count > 0}

    def _counted(self, word: str, attachment: Attachment) -> int:
        with self._lock:
            found = counting_elements(word, attachment)
            return sum(self._nft.counted_one(element) for element in found)

    def foreign_filters(self) -> list[ForeignChain]:
        """Filters of other tools that drop what guests send or get."""
        with self._lock:
            return self._foreign.find()

    def accept_in_foreign_filters(self, devices: Sequence[str]) -> None:
        """Let these devices, and no others of ours, through other tools' filters."""
        with self._lock:
            self._foreign.accept(devices)

    def counters(self) -> dict[str, int]:
        """Packets counted by each named counter of ours, as `family/name`."""
        with self._lock:
            return self._nft.counters()


def _nothing() -> None:
    """Undo of a step that leaves nothing to undo."""


def _member_sets(chains: Iterable[str]) -> list[tuple[Family, str]]:
    policies = {policy_of(name) for name in chains if name.startswith("policy-")}
    return [(Family.INET, members_set(policy, v)) for policy in sorted(policies) for v in (4, 6)]
