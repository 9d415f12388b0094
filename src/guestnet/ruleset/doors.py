"""Where flows are handed over."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Doors:
    """The ports at which a gateway takes over flows, of every address of the site."""

    #: Each worker's.
    relay_tcp: tuple[int, ...]
    resolver_udp: int
    resolver_tcp: int
    #: Where there is one: the relayed manner's, whose datagrams keep their destination.
    relay_udp: int | None = None
