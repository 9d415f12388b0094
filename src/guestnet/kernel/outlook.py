"""What the machine around guests looks like: by which devices they leave, what is taken already.

Asked of routes and addresses of one network namespace; nothing is sent and nothing changes, so
an ordinary user may ask too.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from . import link
from . import netlink as nl
from . import route as routing
from .netlink import NetlinkSocket
from .netns import inside

Address = IPv4Address | IPv6Address

#: Public addresses in different halves of each family's space: the routing table is asked for the
#: way to them, and nothing is ever sent. Two, as VPNs replace a default route by two half ones.
_PUBLIC_PROBES: tuple[Address, ...] = tuple(
    ip_address(text) for text in ("1.1.1.1", "193.0.14.129", "2001:500::1", "2600::1")
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


class Outlook:
    """One namespace, seen through a socket of its own; `ours` are the link groups of guests.

    Thread-safe. `netns_fd` must stay open meanwhile; None is the calling process's namespace.
    """

    def __init__(self, netns_fd: int | None = None, ours: Collection[int] = ()) -> None:
        self._lock = threading.Lock()
        self._netns_fd = netns_fd
        self._ours = frozenset(ours)
        with inside(netns_fd):
            self._route = NetlinkSocket(nl.NETLINK_ROUTE)

    def close(self) -> None:
        """Close the socket."""
        self._route.close()

    def egress(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Interfaces by which guests leave: those named, or where public addresses are routed."""
        if wanted != ("auto",):
            return wanted
        with self._lock, inside(self._netns_fd):
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
        with self._lock:
            found = link.link(self._route, name)
        return found.mtu if found is not None else None

    def way_to(self, address: Address) -> Way | None:
        """The route that decides about an address, or None if there is none. Sends nothing."""
        with self._lock, inside(self._netns_fd):
            way = routing.lookup(self._route, address)
            if way is None:
                return None
            names = tuple(_device_names(way.devices))
            return Way(way.destination, names, way.type == _RTN_UNICAST)

    def surroundings(self) -> Surroundings:
        """Addresses and routes of the host that have nothing to do with guests."""
        with self._lock:
            seen = {each.index: each for each in link.links(self._route)}
            ours = {index for index, each in seen.items() if each.group in self._ours}
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


def _device_names(indices: Iterable[int]) -> list[str]:
    names = []
    for index in indices:
        with suppress(OSError):  # gone between the two questions
            names.append(socket.if_indextoname(index))
    return names
