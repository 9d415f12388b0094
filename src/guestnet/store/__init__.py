"""Remembering: networks, leases and the journal of what is half done."""

from .journal import Lease, LeaseState, NetworkRecord, Store
from .sqlite import SqliteStore

__all__ = ["Lease", "LeaseState", "NetworkRecord", "SqliteStore", "Store"]
