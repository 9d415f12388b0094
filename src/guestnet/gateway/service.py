"""How the questions of one network's guests are answered: the network's own choices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..dns import Cache, LocalRecords
from ..naming import Upstream
from .messages import SetNetwork


@dataclass(frozen=True, slots=True, eq=False)
class Service:
    """Made anew when one of the choices changes, so that nothing answered before outlives it."""

    #: Resolvers that questions are put to, the first one first.
    upstreams: tuple[Upstream, ...] = ()
    #: Names of the network's own.
    records: LocalRecords = field(default_factory=lambda: LocalRecords({}))
    #: Whether the key to hide a name is taken out of HTTPS and SVCB answers.
    strip_ech: bool = True
    #: Whether public resolvers over HTTPS and TLS exist for rules by their name only.
    deny_encrypted_dns: bool = True
    #: Whether the gateway's routes are its guests'.
    relays_all: bool = False
    #: Answers for all guests of the network, and of others that would answer the same: what its
    #: resolvers answer others may not, as they know a company's own names.
    cache: Cache = field(default_factory=Cache)
    #: What answers in the cache depend on.
    flavour: tuple[object, ...] = ()

    @classmethod
    def of(cls, order: SetNetwork, others: Iterable[Service]) -> Service:
        """As the daemon orders it; `others` may share their answers."""
        # Names with addresses are answered without the cache.
        aliases = sorted(
            (n, data[0]) for n, data in order.records.items() if isinstance(data[0], str)
        )
        flavour = (order.upstreams, tuple(aliases), order.serve_stale_s, order.strip_ech)
        shared = next((each.cache for each in others if each.flavour == flavour), None)
        return cls(
            order.upstreams,
            LocalRecords(order.records),
            order.strip_ech,
            order.deny_encrypted_dns,
            order.relays_all,
            shared if shared is not None else Cache(serve_stale_s=order.serve_stale_s),
            flavour,
        )
