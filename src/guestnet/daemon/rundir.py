"""The run directory: who has it, and the socket in it.

The pid file is also the lock: the kernel lets go of it when the daemon dies, however it dies. Only
its holder touches the socket, which appears under its name when it listens and has its mode.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import socket
import stat
from pathlib import Path

from ..errors import BusyError, ConfigError, HostError
from ..kernel.ownership import describe_process
from ..settings import Settings

PID_FILE = "guestnet.pid"
#: Connections that wait to be accepted.
BACKLOG = 512


class RunDir:
    """A held run directory with a socket that does not listen yet. `close` gives it back."""

    def __init__(self, settings: Settings) -> None:
        self.path = settings.run_dir
        self._address = settings.socket
        self._shown: tuple[int, int] | None = None
        group = _group_id(settings.socket_group)
        make_directory(self.path)
        self._pid_file = self.path / PID_FILE
        self._fd = _lock(self._pid_file)
        try:
            _check_nobody_listens(self._address)
            self.socket = _bind(self._draft, group)
        except BaseException:
            self._let_go()
            raise

    @property
    def _draft(self) -> Path:
        # Beside the real one, so that renaming it is one step; not longer, as paths are limited.
        return self._address.with_name("guestnet.new")

    def show(self) -> None:
        """Give the socket its name; call it once it listens."""
        os.rename(self._draft, self._address)
        seen = os.stat(self._address)
        self._shown = (seen.st_dev, seen.st_ino)

    def close(self) -> None:
        """Remove the socket and the pid file, and let go."""
        self.socket.close()
        self._draft.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            seen = os.stat(self._address)
            if self._shown == (seen.st_dev, seen.st_ino):
                self._address.unlink()
        self._let_go()

    def _let_go(self) -> None:
        if self._fd >= 0:
            # Still locked, so this can only be our own.
            self._pid_file.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1


def make_directory(directory: Path) -> None:
    """Make a run directory, or check one: only its owner and root may write to it."""
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        seen = directory.stat()
    except OSError as error:
        raise HostError.from_os("mkdir", str(directory), error) from None
    if seen.st_uid not in (0, os.geteuid()) or seen.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            "run_dir", str(directory), "others may write here, and so put a socket of theirs"
        )


def _lock(path: Path) -> int:
    """A descriptor of the locked pid file, which holds our pid."""
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise HostError.from_os("open", str(path), error) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(fd, path):
                # Its last holder removed it between our open and our lock.
                os.close(fd)
                continue
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            text = os.pread(fd, 32, 0).decode(errors="replace").strip()
            os.close(fd)
            holder = describe_process(int(text)) if text.isdigit() else "another daemon"
            raise BusyError(
                f"run directory {path.parent}", holder, "use that guestnet, or another directory"
            ) from None
        except OSError as error:
            os.close(fd)
            raise HostError.from_os("lock", str(path), error) from None
        return fd


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _check_nobody_listens(path: Path) -> None:
    """A socket that nobody listens on is what a killed daemon left; it is replaced."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except OSError as error:
            # EAGAIN: somebody listens, and is busy. Anything else is not a socket of ours.
            if not isinstance(error, BlockingIOError):
                raise HostError.from_os("connect", str(path), error) from None
    raise BusyError(f"socket {path}", "another process", "use another run directory")


def _bind(path: Path, group: int | None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The mode must be right from the first moment: no chmod afterwards is soon enough.
    before = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        sock.bind(os.fspath(path))
        if group is not None:
            os.chown(path, -1, group)
            os.chmod(path, 0o660)
    except OSError as error:
        sock.close()
        raise HostError.from_os("bind", str(path), error) from None
    finally:
        os.umask(before)
    return sock


def _group_id(name: str | None) -> int | None:
    if name is None:
        return None
    try:
        group = int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError("socket_group", name, "there is no such group") from None
    if os.geteuid() != 0 and group not in (os.getegid(), *os.getgroups()):
        raise ConfigError("socket_group", name, "is no group of this user's")
    return group
