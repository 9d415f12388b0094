"""What processes of ours do at their start, and how they start threads and each other."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import HostError

if TYPE_CHECKING:
    import subprocess

_libc = ctypes.CDLL(None, use_errno=True)
#: linux/prctl.h
_PR_SET_PDEATHSIG = 1
_MORE = "raise the limit of processes (ulimit -u), or the container's (docker: --pids-limit)"


def die_with_parent() -> None:
    """Have the kernel end this process when the thread that started it ends."""
    parent = os.getppid()
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended in between
        os._exit(1)


def start_thread(thread: threading.Thread) -> None:
    """Start a thread; raises `HostError` where the machine gives none."""
    try:
        thread.start()
    except RuntimeError:  # all that Python says
        raise HostError("start", f"thread {thread.name}", errno.EAGAIN, _MORE) from None


def start_process(what: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start `what`, as `subprocess.Popen` does; raises `HostError` where the machine gives none."""
    import subprocess  # which those who start nobody do without

    try:
        return subprocess.Popen(argv, **options)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            raise HostError("start", what, errno.EAGAIN, _MORE) from None
        raise HostError.from_os("start", what, error) from None


def hear_signals() -> None:
    """Unblock all signals: whoever started us may wait for some, and then they are blocked."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
