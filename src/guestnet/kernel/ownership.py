"""One owner per state directory and per namespace; the second is told who the first is.

Both locks are released by the kernel when their holder dies, however it dies.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from pathlib import Path

from ..errors import BusyError, HostError

#: Abstract socket addresses belong to the network namespace, and vanish with their holder.
_NAME = "\0guestnet-site"
_UCRED = struct.Struct("=iII")
#: Characters of a holder's command line in an error.
_SHOWN = 120


def describe_process(pid: int) -> str:
    """`pid N (command)`, as far as this process may know."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return f"pid {pid}"
    text = command.decode(errors="replace").strip()
    return f"pid {pid} ({text if len(text) <= _SHOWN else f'{text[:_SHOWN]}…'})"


class NamespaceLock:
    """Holds the namespace of the calling thread for one guestnet."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.bind(_NAME)
            self._socket.listen(1)
        except OSError as error:
            self._socket.close()
            if error.errno == errno.EADDRINUSE:
                raise BusyError(
                    "this network namespace",
                    _holder_of_socket(),
                    "use that guestnet, or a namespace of its own for this one",
                ) from None
            raise HostError.from_os("bind", "@guestnet-site", error) from None

    def close(self) -> None:
        """Let go."""
        self._socket.close()


def _holder_of_socket() -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(_NAME)
            found = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        except OSError:
            return "another guestnet"
    pid = _UCRED.unpack(found)[0]
    return describe_process(pid) if pid else "a guestnet in another pid namespace"


class DirectoryLock:
    """Holds a state directory for one process (flock(2) on its file `lock`)."""

    def __init__(self, directory: Path) -> None:
        path = directory / "lock"
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError.from_os("open", str(path), error) from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, str(os.getpid()).encode(), 0)
        except BlockingIOError:
            text = os.pread(self._fd, 32, 0).decode(errors="replace").strip()
            os.close(self._fd)
            holder = describe_process(int(text)) if text.isdigit() else "another process"
            raise BusyError(
                f"state directory {directory}", holder, "use that guestnet, or another directory"
            ) from None
        except OSError as error:
            os.close(self._fd)
            raise HostError.from_os("flock", str(path), error) from None

    def close(self) -> None:
        """Let go; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
