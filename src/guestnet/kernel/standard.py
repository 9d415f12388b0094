"""Descriptors 0, 1 and 2, which a process may have been started without."""

from __future__ import annotations

import os

_LAST = 2


def hold_standard_descriptors() -> None:
    """Open /dev/null where this process was started without its descriptors 0, 1 or 2.

    Else the next socket has such a number: what anybody prints goes there, and it cannot be handed
    to a child that has these three of its own.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= _LAST:
        os.set_inheritable(fd, True)
    os.close(fd)
