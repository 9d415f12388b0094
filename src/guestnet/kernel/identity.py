"""Doing something to files as another user, in one thread.

Where a user's own directory is concerned, root's rights would be the user's to borrow: by a link
put in the place of a file. The kernel checks as whom a thread touches files apart from everything
else (setfsuid(2)).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import HostError

_libc = ctypes.CDLL(None, use_errno=True)
#: No user's number: asks which one it is now.
_ASK = ctypes.c_uint32(0xFFFFFFFF)


@contextmanager
def acting_as(uid: int | None, gid: int | None) -> Iterator[None]:
    """Touch files as this user and group in a block; `None`, or not being root, changes nothing."""
    if os.geteuid() != 0 or uid is None:
        yield
        return
    group = gid if gid is not None else os.getegid()
    _libc.setfsgid(group)
    try:
        _libc.setfsuid(uid)  # root's rights to files go with it
        if _libc.setfsuid(_ASK) != uid or _libc.setfsgid(_ASK) != group:
            raise HostError("setfsuid", f"uid {uid}, gid {group}")
        yield
    finally:
        _libc.setfsuid(os.geteuid())
        _libc.setfsgid(os.getegid())
