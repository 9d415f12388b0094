"""Where the lab keeps what is slow to make: the guest image and the certificates."""

from __future__ import annotations

import os
from pathlib import Path


def root() -> Path:
    """`$GUESTNET_CACHE`, or `guestnet` in the user's cache directory; may not exist yet."""
    if chosen := os.environ.get("GUESTNET_CACHE"):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "guestnet").absolute()


def publish(finished: Path, home: Path) -> None:
    """Move a finished directory into place at once; a parallel run's equal one is as good."""
    try:
        finished.rename(home)
    except OSError:
        if not home.is_dir():
            raise
