"""What processes of ours do at their start."""

from __future__ import annotations

import ctypes
import os
import signal

_libc = ctypes.CDLL(None, use_errno=True)
#: linux/prctl.h
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel end this process when the thread that started it ends."""
    parent = os.getppid()
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended in between
        os._exit(1)


def hear_signals() -> None:
    """Unblock all signals: whoever started us may wait for some, and then they are blocked."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
