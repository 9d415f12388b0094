"""What a host remembers, and where."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from .. import directories
from ..errors import HostError
from ..kernel.ownership import DirectoryLock
from ..store import SqliteStore


class State:
    """A store, and a place to write decisions down: in a directory that is this process's alone.

    Without a directory it ends with this object. Raises `BusyError` where another process has it.
    """

    def __init__(self, directory: Path | None) -> None:
        self._lock = DirectoryLock(directory) if directory is not None else None
        try:
            self.store = SqliteStore(directory / "guestnet.db" if directory is not None else None)
        except BaseException:
            self._unlock()
            raise
        self.decisions = directory / "decisions.jsonl" if directory is not None else None
        #: Whether a later process can take it up.
        self.is_kept = directory is not None

    @classmethod
    def open(cls, asked: str | Path | None, *, rootless: bool) -> Self:
        """That of the directory asked for, of `$GUESTNET_STATE_DIR`, or of the usual one.

        A missing directory is made; raises `HostError` where it cannot be.
        """
        chosen = asked or os.environ.get("GUESTNET_STATE_DIR")
        directory = Path(chosen) if chosen else directories.state_dir(rootless)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            hint = "" if rootless else "run as root, or without it: rootless=True"
            raise HostError.from_os("mkdir", str(directory), error, hint) from None
        return cls(directory)

    def close(self) -> None:
        """Let the next process have it."""
        self.store.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
