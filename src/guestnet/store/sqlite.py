"""The store in one SQLite file.

Kernel state dies with the machine's boot, so a lease that a power cut loses was lost anyway: WAL
with `synchronous=NORMAL` never waits for the disk on an attach, and a killed process loses nothing.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigError, HostError
from ..model import Attachment, NetworkSpec
from .journal import Lease, LeaseState, NetworkRecord

#: `PRAGMA user_version` of the file; a newer file is refused, an older one would be brought up.
SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE networks (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    spec TEXT NOT NULL
) STRICT;
CREATE TABLE leases (
    network TEXT NOT NULL,
    slot INTEGER NOT NULL,
    guest TEXT NOT NULL,
    generation INTEGER NOT NULL,
    state TEXT NOT NULL,
    changed_at REAL NOT NULL,
    attachment TEXT,
    PRIMARY KEY (network, slot)
) STRICT, WITHOUT ROWID;
CREATE TABLE notes (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
"""


#: SQLite's word for a database that is no file.
_MEMORY = Path(":memory:")


class SqliteStore:
    """`Store` in a file, or in memory alone. Not thread-safe by itself; its owner holds a lock."""

    def __init__(self, path: Path | None) -> None:
        self._path = path or _MEMORY
        with self._translated("open"):
            if path is not None:
                # Made by hand first, so that others can never read the file, not even briefly.
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        with self._translated("open"):
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise HostError(
                    "open", str(self._path), 0, f"written by a newer guestnet (schema {version})"
                )
            if version == 0:
                self._db.executescript(
                    f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;"
                )

    @contextmanager
    def _translated(self, call: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError, ConfigError) as error:
            # A row that is no lease or network was not written by guestnet: the file is damaged.
            raise HostError(f"sqlite {call}", str(self._path), 0, str(error)) from None
        except OSError as error:
            raise HostError.from_os(call, str(self._path), error) from None

    def networks(self) -> list[NetworkRecord]:
        """All networks, by number."""
        with self._translated("read"):
            rows = self._db.execute("SELECT number, spec FROM networks ORDER BY number").fetchall()
            return [NetworkRecord(n, NetworkSpec.model_validate_json(spec)) for n, spec in rows]

    def add_network(self, spec: NetworkSpec) -> NetworkRecord:
        """Remember a network under the lowest number that is free."""
        with self._translated("write"):
            taken = {n for (n,) in self._db.execute("SELECT number FROM networks")}
            number = next(n for n in range(1, len(taken) + 2) if n not in taken)
            self._db.execute(
                "INSERT INTO networks VALUES (?, ?, ?)", (number, spec.name, spec.model_dump_json())
            )
        return NetworkRecord(number, spec)

    def change_network(self, spec: NetworkSpec) -> None:
        """Remember other settings of a network."""
        with self._translated("write"):
            self._db.execute(
                "UPDATE networks SET spec = ? WHERE name = ?", (spec.model_dump_json(), spec.name)
            )

    def remove_network(self, name: str) -> None:
        """Forget a network and its leases."""
        with self._translated("write"), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM leases WHERE network = ?", (name,))
            self._db.execute("DELETE FROM networks WHERE name = ?", (name,))

    def leases(self) -> list[Lease]:
        """All leases, released ones included."""
        with self._translated("read"):
            rows = self._db.execute(
                "SELECT network, slot, guest, generation, state, changed_at, attachment "
                "FROM leases ORDER BY changed_at, generation"
            ).fetchall()
            return [
                Lease(
                    network,
                    slot,
                    guest,
                    generation,
                    LeaseState(state),
                    changed_at,
                    Attachment.model_validate_json(text) if text is not None else None,
                )
                for network, slot, guest, generation, state, changed_at, text in rows
            ]

    def write(self, leases: Iterable[Lease]) -> None:
        """Put leases, replacing those of the same network and slot."""
        rows = [
            (
                lease.network,
                lease.slot,
                lease.guest,
                lease.generation,
                lease.state.value,
                lease.changed_at,
                lease.attachment.model_dump_json() if lease.attachment is not None else None,
            )
            for lease in leases
        ]
        with self._translated("write"), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def note(self, key: str) -> str | None:
        """A note by its key, or None."""
        with self._translated("read"):
            row = self._db.execute("SELECT value FROM notes WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def take_note(self, key: str, value: str) -> None:
        """Write a note."""
        with self._translated("write"):
            self._db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (key, value))

    def close(self) -> None:
        """Let go; a second call does nothing."""
        self._db.close()
