"""Whoever started this process, by descriptors it passed on: told of ready, and heard hang up.

As slirp4netns has them (`--ready-fd`, `--exit-fd`).
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import stat
import threading
from collections.abc import Callable
from contextlib import suppress

from ..errors import ConfigError
from .process import start_thread

#: What is written when all is ready: a byte for who reads one, a line for who reads a line.
READY = b"1\n"
#: Below are the standard streams.
_FIRST_FD = 3
#: POLLHUP and POLLERR are told anyway; a TCP peer that closed shows in this alone.
_HUNG_UP = select.POLLRDHUP


class Caller:
    """The other ends of two descriptors, either of which may be absent.

    They are nobody else's from here on: what this process starts does not inherit them. Raises
    `ConfigError` for one that is closed or cannot do what it is for.
    """

    def __init__(self, ready_fd: int | None = None, exit_fd: int | None = None) -> None:
        if ready_fd is not None:
            _check_ready(ready_fd)
        if exit_fd is not None:
            _check_exit(exit_fd)
        if ready_fd is not None and ready_fd == exit_fd:
            right = "is given as ready_fd too, which is closed after its word: give another"
            raise ConfigError("exit_fd", exit_fd, right)
        self._ready_fd = ready_fd
        self._exit_fd = exit_fd
        for fd in self.fds:
            os.set_inheritable(fd, False)

    @property
    def fds(self) -> list[int]:
        """The descriptors that are open still."""
        return [fd for fd in (self._ready_fd, self._exit_fd) if fd is not None]

    def tell_ready(self) -> None:
        """Write the word and close; who lost interest is not told."""
        fd, self._ready_fd = self._ready_fd, None
        if fd is not None:
            with suppress(OSError):
                os.write(fd, READY)
            os.close(fd)

    def is_gone(self) -> bool:
        """Whether the other end of `exit_fd` is closed."""
        return self._exit_fd is not None and bool(_poll(self._exit_fd).poll(0))

    def watch(self, gone: Callable[[], None]) -> None:
        """Call `gone`, from a thread of its own, when the other end of `exit_fd` is closed."""
        if self._exit_fd is None:
            return
        poll = _poll(self._exit_fd)

        def wait() -> None:
            poll.poll()
            gone()

        start_thread(threading.Thread(target=wait, name="guestnet-caller", daemon=True))


def _poll(fd: int) -> select.poll:
    poll = select.poll()
    poll.register(fd, _HUNG_UP)
    return poll


def _check_ready(fd: int) -> None:
    _check_open("ready_fd", fd)
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise ConfigError("ready_fd", fd, "cannot be written to: give a pipe's writing end")


def _check_exit(fd: int) -> None:
    """Only what hangs up: a file never does, nor does a datagram socket."""
    mode = _check_open("exit_fd", fd)
    if stat.S_ISSOCK(mode):
        with socket.socket(fileno=os.dup(fd)) as held:
            hangs_up = held.type in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)
    else:
        hangs_up = stat.S_ISFIFO(mode)
    if not hangs_up:
        right = "never hangs up: give an end of a pipe or of a stream socket, and keep the other"
        raise ConfigError("exit_fd", fd, right)


def _check_open(key: str, fd: int) -> int:
    """The mode of an open descriptor."""
    if fd < _FIRST_FD:
        raise ConfigError(key, fd, f"0, 1 and 2 are the standard streams: give {_FIRST_FD} or more")
    try:
        return os.fstat(fd).st_mode
    except (OSError, OverflowError):
        raise ConfigError(
            key, fd, "is not open here: whoever starts guestnet passes it on"
        ) from None
