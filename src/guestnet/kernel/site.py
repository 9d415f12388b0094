"""A site in a namespace that stands already: everything guestnet does in it.

`NamespaceSite` owns the sockets, and the parts that use them. It knows nothing of stores or
policies.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from ..plan import Observed, SeenDevice, Step
from ..ruleset.chains import members_set, policy_of
from ..ruleset.elements import Element
from ..ruleset.names import GROUP_BRIDGE, GROUP_PORT, GROUP_RETIRED, GROUP_ROUTED, TABLE, Family
from . import devices, link, steering
from . import netlink as nl
from .conntrack import Conntrack
from .counts import Counts
from .foreign import ForeignFilters
from .netlink import NetlinkSocket
from .netns import inside, new_netns, open_netns
from .nft import Nft
from .outlook import Outlook
from .ownership import NamespaceLock
from .performing import Performer
from .pins import PinSets
from .sysctl import Sysctls

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
        self._made: dict[str, int] = {}
        self._netns_fd = open_netns(netns) if netns is not None else None
        with self.inside():
            self._owner = NamespaceLock()
            try:
                self.outlook = Outlook(self._netns_fd, OUR_GROUPS)
                self._route = NetlinkSocket(nl.NETLINK_ROUTE)
                self._reaper_route = NetlinkSocket(nl.NETLINK_ROUTE)
                self.conntrack = Conntrack()
                self._nft = Nft()
            except BaseException:
                self.close()
                raise
        self._performer = Performer(self._route, self._nft)
        self.pins = PinSets(self._nft, self._lock)
        self.counts = Counts(self._nft, self._lock)
        self.foreign = ForeignFilters(self._nft, self._lock)
        self.sysctls = Sysctls(self._netns_fd)

    def close(self) -> None:
        """Let go of the namespace; what stands in it goes on standing."""
        for name in ("_route", "conntrack", "_reaper_route", "_nft", "outlook", "_owner"):
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
        with self._lock, self.inside():
            self._performer.perform(steps)

    def delete_retired(self, names: Sequence[str] = ()) -> None:
        """Delete `names` and all retired devices together: one grace period for all of them.

        On a socket of its own: others need not wait for more than the kernel makes them.
        """
        with self._reaping, self.inside():
            devices.retire(self._reaper_route, names)
            self._reaper_route.request([link.delete_group(GROUP_RETIRED)])

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

    def device(self, name: str) -> link.Link | None:
        """A device with its counters, or None."""
        with self._lock, self.inside():
            return link.link(self._route, name)


def _member_sets(chains: Iterable[str]) -> list[tuple[Family, str]]:
    policies = {policy_of(name) for name in chains if name.startswith("policy-")}
    return [(Family.INET, members_set(policy, v)) for policy in sorted(policies) for v in (4, 6)]
