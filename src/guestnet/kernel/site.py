"""The network namespace in which TAPs and rules live, and everything guestnet does in it.

`Site` owns the sockets. It performs steps that the plan decided on, and tells what stands; it knows
nothing of stores, policies or guests.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import singledispatchmethod
from ipaddress import IPv4Address, IPv6Address, ip_address

from ..errors import GuestnetError, HostError
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
from ..ruleset import Element
from ..ruleset.compile import members_set, pins_set, policy_of, removal_text
from ..ruleset.elements import admission_text
from ..ruleset.names import (
    GROUP_BRIDGE,
    GROUP_PORT,
    GROUP_RETIRED,
    GROUP_ROUTED,
    TABLE,
    Family,
)
from . import conntrack, devices, link, sysctl
from . import netlink as nl
from . import route as routing
from .conntrack import Tracked
from .foreign import ForeignFilters
from .netlink import NetlinkSocket
from .netns import inside, open_netns
from .nft import Nft
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
#: Public addresses in different halves of each family's space: the routing table is asked for the
#: way to them, and nothing is ever sent. Two, as VPNs replace a default route by two half ones.
_PUBLIC_PROBES: tuple[Address, ...] = tuple(
    ipaddress.ip_address(text) for text in ("1.1.1.1", "193.0.14.129", "2001:500::1", "2600::1")
)
_RTN_UNICAST = 1
#: Routes wider than this are ways out, not networks that someone uses: 0/0, and the two halves by
#: which VPNs overlay it.
WIDEST_USED_PREFIX = 2


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What of the namespace's addressing is not for guests."""

    addresses: frozenset[Address]
    #: Networks that addresses and routes use, each with its origin in words.
    used: tuple[tuple[routing.Network, str], ...]


@dataclass(frozen=True, slots=True)
class Way:
    """How the host routes an address: by which route, out of which devices."""

    destination: routing.Network
    devices: tuple[str, ...]
    #: False for the host's own addresses, and for broadcast and anycast addresses of its links.
    is_unicast: bool

    @property
    def words(self) -> str:
        """As `ip route` would put it."""
        return f"route {self.destination} dev {', '.join(self.devices) or 'none'}"


class Site:
    """One namespace: `netns` by name or path, or None for the calling process's own."""

    def __init__(self, netns: str | None = None) -> None:
        self._lock = threading.RLock()
        self._reaping = threading.Lock()
        self._tracking = threading.Lock()
        self._netns_fd = open_netns(netns) if netns is not None else None
        with self.inside():
            self._owner = NamespaceLock()
            try:
                self._route = NetlinkSocket(nl.NETLINK_ROUTE)
                self._netfilter = NetlinkSocket(nl.NETLINK_NETFILTER)
                self._reaper_route = NetlinkSocket(nl.NETLINK_ROUTE)
                self._nft = Nft()
            except BaseException:
                self.close()
                raise
        self.foreign = ForeignFilters(self._nft)

    def close(self) -> None:
        """Let go of the namespace; what stands in it goes on standing."""
        for name in ("_route", "_netfilter", "_reaper_route", "_nft", "_owner"):
            part = getattr(self, name, None)
            if part is not None:
                part.close()
        if self._netns_fd is not None:
            os.close(self._netns_fd)
            self._netns_fd = None

    @property
    def netns_fd(self) -> int | None:
        """The namespace's descriptor; `None` is the process's own."""
        return self._netns_fd

    def inside(self) -> AbstractContextManager[None]:
        """Run a block in the site's namespace, in this thread alone."""
        return inside(self._netns_fd)

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

    def forget_flows(
        self, addresses: Collection[Address], keep: Callable[[Tracked], bool] | None = None
    ) -> int:
        """Delete the conntrack entries of addresses, but those to `keep`; returns how many."""
        # A socket and a lock of their own: a table of many flows takes a while to look through.
        with self._tracking:
            return conntrack.forget(self._netfilter, addresses, keep)

    def pin(
        self, policy: str, pins: Sequence[tuple[int, Address, Address]], lifetime_s: int
    ) -> None:
        """Let guests' packets follow a rule by name: (rule, guest's address, peer) for a time."""
        lines = []
        for rule, guest, peer in pins:
            name = pins_set(policy, rule, guest.version)
            # Added, deleted and added: so an element that stands gets its new lifetime too.
            key = f"element inet {TABLE} {name} {{ {guest} . {peer}"
            lines += [
                f"add {key} }}",
                f"delete {key} }}",
                f"add {key} timeout {lifetime_s}s }}",
            ]
        with self._lock:
            self._nft.run("\n".join(lines) + "\n", about=f"pins of {policy}")

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

    def forget_refusals(self, elements: Sequence[Element]) -> None:
        """Delete guests' refusal counters, as far as they exist."""
        by_set: dict[str, list[Element]] = {}
        for element in elements:
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

    def is_ours(self, group: int) -> bool:
        """Whether a link group is one of guestnet's."""
        return group in OUR_GROUPS

    def chains(self) -> set[str]:
        """Names of the chains in our inet table."""
        with self._lock:
            return self._nft.chains()

    def egress(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Interfaces by which guests leave: those named, or where public addresses are routed."""
        if wanted != ("auto",):
            return wanted
        with self._lock, self.inside():
            names = [
                name
                for probe in _PUBLIC_PROBES
                if (way := routing.lookup(self._route, probe)) is not None
                and way.type == _RTN_UNICAST
                for name in _device_names(way.devices)
            ]
        return tuple(dict.fromkeys(names))

    def mtu(self, name: str) -> int | None:
        """The MTU of a device in bytes, or None if there is no such device."""
        with self._lock, self.inside():
            found = link.link(self._route, name)
        return found.mtu if found is not None else None

    def device(self, name: str) -> link.Link | None:
        """A device with its counters, or None."""
        with self._lock, self.inside():
            return link.link(self._route, name)

    def way_to(self, address: Address) -> Way | None:
        """The route that decides about an address, or None if there is none. Sends nothing."""
        with self._lock, self.inside():
            way = routing.lookup(self._route, address)
            if way is None:
                return None
            names = tuple(_device_names(way.devices))
            return Way(way.destination, names, way.type == _RTN_UNICAST)

    def surroundings(self) -> Surroundings:
        """Addresses and routes of the host that have nothing to do with guests."""
        with self._lock, self.inside():
            seen = {each.index: each for each in link.links(self._route)}
            ours = {index for index, each in seen.items() if each.group in OUR_GROUPS}
            addresses = [
                (address, seen[index].name)
                for index, address in routing.addresses(self._route)
                # Loopback addresses never leave the machine: no packet of a guest may bear one.
                if index not in ours and index in seen and not address.is_loopback
            ]
            used: dict[routing.Network, str] = {}
            for version in (4, 6):
                for way in routing.routes(self._route, version):
                    if way.destination.prefixlen < WIDEST_USED_PREFIX or set(way.devices) & ours:
                        continue
                    on = ", ".join(seen[i].name for i in way.devices if i in seen) or "none"
                    used.setdefault(way.destination, f"route {way.destination} dev {on}")
        for address, device in addresses:
            used.setdefault(address.network, f"address {address} dev {device}")
        return Surroundings(frozenset(a.ip for a, _device in addresses), tuple(used.items()))

    def refused(self, elements: Sequence[Element]) -> int:
        """Packets refused to a guest, by the elements that count them."""
        with self._lock:
            return sum(self._nft.counted_one(element) for element in elements)

    def counters(self) -> dict[str, int]:
        """Packets counted by each named counter of ours, as `family/name`."""
        with self._lock:
            return self._nft.counters()


def _nothing() -> None:
    """Undo of a step that leaves nothing to undo."""


def _member_sets(chains: Iterable[str]) -> list[tuple[Family, str]]:
    policies = {policy_of(name) for name in chains if name.startswith("policy-")}
    return [(Family.INET, members_set(policy, v)) for policy in sorted(policies) for v in (4, 6)]


def _device_names(indices: Iterable[int]) -> list[str]:
    names = []
    for index in indices:
        with suppress(OSError):  # gone between the two questions
            names.append(socket.if_indextoname(index))
    return names
