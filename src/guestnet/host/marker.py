"""Whose store our tables belong to: an empty chain in them bears its name."""

from __future__ import annotations

import uuid

from ..errors import ConflictError
from ..kernel.interface import Site
from ..store import Store

_NOTE = "store-id"
_PREFIX = "store-"


def marker(store: Store) -> str:
    """The name of a store's chain."""
    known = store.note(_NOTE)
    if known is None:
        known = uuid.uuid4().hex[:16]
        store.take_note(_NOTE, known)
    return f"{_PREFIX}{known}"


def refuse_others(store: Store, site: Site) -> None:
    """Raise `ConflictError` if what stands in a site belongs to another store."""
    others = [c for c in site.chains() if c.startswith(_PREFIX) and c != marker(store)]
    if others:
        raise ConflictError(
            "state_dir",
            others[0].removeprefix(_PREFIX),
            "guests of another state directory stand in this network namespace; open that one, "
            "or, if it is lost, delete its tables: nft delete table inet guestnet",
        )
