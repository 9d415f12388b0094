"""How the questions of one network's guests are answered: the network's own choices."""

from __future__ import annotations

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
    #: Answers for all guests of the network: what its resolvers answer others may not, as they know
    #: a company's own names.
    cache: Cache = field(default_factory=Cache)

    @classmethod
    def of(cls, order: SetNetwork) -> Service:
        """As the daemon orders it."""
        return cls(
            order.upstreams,
            LocalRecords(order.records),
            order.strip_ech,
            order.deny_encrypted_dns,
            Cache(serve_stale_s=order.serve_stale_s),
        )
