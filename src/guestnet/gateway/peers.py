"""The guests of all networks by name and address, those without rules by name included.

Told one by one as guests come and go, so that a network of ten thousand costs an attach no more
than one of ten.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from ..naming import guest_label, guests_zone
from . import messages

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True, eq=False)
class Peer:
    """A guest as others of its network may find it."""

    guest: str
    network: str
    addresses: tuple[Address, ...]
    #: What it is called; `None` if its id is no label.
    name: str | None

    @classmethod
    def of(cls, told: messages.Peer) -> Peer:
        """As the daemon tells it."""
        label = guest_label(told.guest)
        name = None if label is None else f"{label}.{guests_zone(told.network)}"
        return cls(told.guest, told.network, tuple(map(ip_address, told.addresses)), name)


class Peers:
    """Who is there. A name that two guests of a network would have belongs to neither."""

    def __init__(self) -> None:
        self._by_guest: dict[str, Peer] = {}
        self._by_address: dict[Address, Peer] = {}
        #: Guests by name: more than one where ids differ in their case only.
        self._by_name: dict[str, list[Peer]] = {}

    def come(self, told: Iterable[messages.Peer]) -> None:
        """Take over guests; one that is known is what it is now."""
        for peer in map(Peer.of, told):
            self.go([peer.guest])
            self._by_guest[peer.guest] = peer
            self._by_address.update(dict.fromkeys(peer.addresses, peer))
            if peer.name is not None:
                self._by_name.setdefault(peer.name, []).append(peer)

    def go(self, guests: Iterable[str]) -> None:
        """Forget guests; one that is not known is none to forget."""
        for guest in guests:
            peer = self._by_guest.pop(guest, None)
            if peer is None:
                continue
            for address in peer.addresses:
                if self._by_address.get(address) is peer:
                    del self._by_address[address]
            if peer.name is not None:
                self._by_name[peer.name].remove(peer)
                if not self._by_name[peer.name]:
                    del self._by_name[peer.name]

    def named(self, name: str) -> Peer | None:
        """The one guest of this name."""
        found = self._by_name.get(name, ())
        return found[0] if len(found) == 1 else None

    def at(self, address: Address) -> Peer | None:
        """The guest that has this address."""
        return self._by_address.get(address)

    def name_of(self, peer: Peer) -> str | None:
        """The name of a guest, if it has one for itself."""
        return peer.name if peer.name is not None and self.named(peer.name) is peer else None
