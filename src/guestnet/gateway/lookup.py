"""Which addresses a name really has, for connections: asked by the gateway, not by the guest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address

from ..dns import Response, Rtype
from ..flow.reactor import Reactor
from ..naming import Upstream
from .asking import Asking
from .guests import Guest

Address = IPv4Address | IPv6Address
#: Has the last called with the addresses that a name has, of the families (4, 6) asked for.
Resolve = Callable[[Guest, str, Sequence[int], Callable[[tuple[Address, ...]], None]], None]
Key = tuple[tuple[Upstream, ...], str, int]

#: Names that are remembered for as long as their answers say.
MAX_KNOWN = 8192


class Lookup:
    """Resolves names, and remembers what it found by resolvers, name and family."""

    def __init__(self, reactor: Reactor, asking: Asking) -> None:
        self._reactor = reactor
        self._asking = asking
        self._known: dict[Key, tuple[tuple[Address, ...], float]] = {}

    def resolve(
        self,
        guest: Guest,
        name: str,
        versions: Sequence[int],
        done: Callable[[tuple[Address, ...]], None],
    ) -> None:
        """Have `done` called with the addresses of these families; none where nobody answered."""
        ours = guest.service.records.find(name)
        if ours is not None:
            if ours.addresses is not None:
                done(tuple(each for each in ours.addresses if each.version in versions))
                return
            name = ours.chain[-1]
        found: dict[int, tuple[Address, ...]] = {}

        def take(version: int, addresses: tuple[Address, ...]) -> None:
            found[version] = addresses
            if len(found) == len(versions):
                done(tuple(address for each in versions for address in found[each]))

        for version in versions:
            self._resolve(guest, name, version, partial(take, version))

    def _resolve(
        self,
        guest: Guest,
        name: str,
        version: int,
        done: Callable[[tuple[Address, ...]], None],
    ) -> None:
        key = (guest.service.upstreams, name, version)
        known = self._known.get(key)
        if known is not None and self._reactor.now() < known[1]:
            done(known[0])
            return
        if guest.is_asking_too_much or self._asking.is_full:
            done(())
            return
        guest.asking += 1

        def answered(result: Response | str) -> None:
            guest.asking -= 1
            addresses: tuple[Address, ...] = ()
            if isinstance(result, Response):
                addresses = tuple(address for address, _ttl in result.addresses)
                self._remember(key, addresses, self._reactor.now() + result.cache_ttl_s)
            done(addresses)

        self._asking.ask(guest.service.upstreams, name, _TYPES[version], answered)

    def _remember(self, key: Key, addresses: tuple[Address, ...], until: float) -> None:
        self._known.pop(key, None)
        self._known[key] = addresses, until
        if len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]


_TYPES = {4: Rtype.A, 6: Rtype.AAAA}
