"""What a store remembers, whoever keeps it.

A lease's state is the journal: it is written before the kernel is touched, so that whatever was
interrupted is known at the next start.

    (none | released) → attaching → attached → detaching → released
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from ..model import Attachment, NetworkSpec


class LeaseState(StrEnum):
    """How far an attach or detach has come."""

    ATTACHING = "attaching"
    ATTACHED = "attached"
    DETACHING = "detaching"
    #: The slot is free; the row remembers its last holder.
    RELEASED = "released"


@dataclass(frozen=True, slots=True)
class Lease:
    """One slot of a network and who holds it, or held it last."""

    network: str
    slot: int
    guest: str
    #: Grows with every lease of the store: tells this holding of the slot from any other.
    generation: int
    state: LeaseState
    #: Seconds since the epoch of the last change of state.
    changed_at: float
    #: What the guest was given; None once released.
    attachment: Attachment | None = None


@dataclass(frozen=True, slots=True)
class NetworkRecord:
    """A network with the number that its device names carry."""

    number: int
    spec: NetworkSpec


class Store(Protocol):
    """Every method is one transaction."""

    def networks(self) -> list[NetworkRecord]:
        """All networks, by number."""

    def add_network(self, spec: NetworkSpec) -> NetworkRecord:
        """Remember a network under the lowest number that is free."""

    def change_network(self, spec: NetworkSpec) -> None:
        """Remember other settings of a network."""

    def remove_network(self, name: str) -> None:
        """Forget a network and its leases."""

    def leases(self) -> list[Lease]:
        """All leases, released ones included."""

    def write(self, leases: Iterable[Lease]) -> None:
        """Put leases, replacing those of the same network and slot."""

    def note(self, key: str) -> str | None:
        """A note by its key, or None."""

    def take_note(self, key: str, value: str) -> None:
        """Write a note."""

    def close(self) -> None:
        """Let go; a second call does nothing."""
