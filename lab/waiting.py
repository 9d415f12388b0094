"""Waiting for what is to happen, on a machine that does much else."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Far beyond what anything takes: a busy machine starts a process in some seconds.
PATIENCE_S = 30.0
_POLL_S = 0.01


def eventually(found: Callable[[], T | None], what: str = "it did not happen") -> T:
    """What `found` returns as soon as it is true; fails with `what` if that never is."""
    deadline = time.monotonic() + PATIENCE_S
    while not (result := found()):
        assert time.monotonic() < deadline, what
        time.sleep(_POLL_S)
    return result
