"""What was found on the machine, and put right."""

from __future__ import annotations

from typing import Literal

from .value import Value


class Finding(Value):
    """One thing `doctor` looked at."""

    check: str
    status: Literal["ok", "warning", "error"]
    detail: str
    #: What to do about it; empty when nothing is wrong.
    remedy: str = ""


class Repairs(Value):
    """What `reconcile` found different from the store and put right, in words, in order."""

    steps: tuple[str, ...] = ()
