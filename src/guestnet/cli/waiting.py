"""Waiting for a child as if it were ourselves: signals go on to it, its status is ours."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

#: What a shell adds to the number of the signal that ended a command.
SIGNALLED = 128
#: Faults of our own, what cannot be caught, and what the terminal's job control is about.
_OUR_OWN = {
    *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS),
    *(signal.SIGKILL, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
    *(signal.SIGPIPE, signal.SIGABRT, signal.SIGCONT, signal.SIGWINCH),
}
WAITED_FOR = frozenset(signal.valid_signals() - _OUR_OWN)
#: si_code of signals that the kernel itself sends (asm-generic/siginfo.h), as the terminal's: the
#: whole foreground group has had those, and one more would be one too many.
_SI_KERNEL = 0x80


def block() -> None:
    """Keep signals for `wait_for`. Before anything that could cause one: children, threads."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITED_FOR)


def unblock() -> None:
    """Be as new, for a command that is about to be run."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def told_to_end() -> int | None:
    """A signal that would have ended this process, had it not been kept."""
    ending = signal.sigpending() & {
        signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT,
    }  # fmt: skip
    return min(ending) if ending else None


def wait_for(pid: int, status: Callable[[], int | None]) -> int:
    """Pass signals on to a child until `status` knows how it ended; returns the exit status."""
    while True:
        ended = status()
        if ended is not None:
            return ended
        heard = signal.sigwaitinfo(WAITED_FOR)
        if heard.si_signo != signal.SIGCHLD and heard.si_code != _SI_KERNEL:
            os.kill(pid, heard.si_signo)


def reaped(pid: int) -> int | None:
    """The exit status of a child that has ended; other children are reaped on the way."""
    while True:
        found, status = os.waitpid(-1, os.WNOHANG)
        if found == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else SIGNALLED - code
        if not found:
            return None
