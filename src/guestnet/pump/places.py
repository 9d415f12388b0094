"""Socket files: made, owned, found again, and removed, without touching anybody else's.

Whoever may write to the directory could put a link in the place of a file that root is about to
give away. So a directory is one that only root, we or the socket's owner write to, or that is
sticky; and what happens in the owner's happens with the owner's rights.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ..errors import ConfigError, ConflictError, HostError
from ..frames.transport import Kind, Transport
from ..kernel.identity import acting_as

#: Connections that wait while the pump serves another, or is being started again.
BACKLOG = 8
#: How long a VMM that listens may take to have room for a connection.
CONNECT_S = 1.0
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Owner:
    """Who may use a socket beside root: as in an attachment, and 0 is root itself."""

    uid: int | None = None
    gid: int | None = None

    @property
    def user(self) -> int | None:
        """The user that is not root."""
        return self.uid or None


@dataclass(frozen=True, slots=True)
class Place:
    """A bound socket, and which file it is."""

    socket: socket.socket
    path: str
    owner: Owner
    #: Device and inode.
    file: tuple[int, int]

    def remove(self) -> None:
        """Close the socket and remove its file, unless another file stands there by now."""
        self.socket.close()
        with suppress(ConfigError, HostError, OSError), _directory(self.path, self.owner) as at:
            name = os.path.basename(self.path)
            seen = os.stat(name, dir_fd=at, follow_symlinks=False)
            if (seen.st_dev, seen.st_ino) == self.file:
                os.unlink(name, dir_fd=at)


def make(transport: Transport, owner: Owner) -> Place:
    """Bind a transport's socket; its file is the owner's, and nobody else may write to it.

    Raises `ConflictError` when something stands there, `ConfigError` for a directory that is none
    or others write to, `HostError` when the machine refuses.
    """
    path, name = transport.path, os.path.basename(transport.path)
    dgram = transport.kind is Kind.DGRAM
    # Sends to a VMM whose queue is full wait, in the kernel, for a moment (pump.dgram).
    kind = socket.SOCK_DGRAM if dgram else socket.SOCK_STREAM | socket.SOCK_NONBLOCK
    with _directory(path, owner) as at:
        made = socket.socket(socket.AF_UNIX, kind)
        try:
            # The file's mode from its first moment on, whatever the umask.
            os.fchmod(made.fileno(), 0o600)
            made.bind(path)
            if os.geteuid() == 0:
                uid = owner.user if owner.user is not None else -1
                gid = owner.gid if owner.gid is not None else -1
                os.chown(name, uid, gid, dir_fd=at, follow_symlinks=False)
            if owner.gid is not None:
                os.chmod(name, 0o660, dir_fd=at)
            if not dgram:
                made.listen(BACKLOG)
            seen = os.stat(name, dir_fd=at, follow_symlinks=False)
        except OSError as error:
            made.close()
            if error.errno == errno.EADDRINUSE:
                raise _taken(transport) from None
            raise HostError.from_os("bind", path, error) from None
    return Place(made, path, owner, (seen.st_dev, seen.st_ino))


def clear(transport: Transport, owner: Owner) -> bool:
    """Remove the socket file that a former process of ours left; any other thing stays.

    To be called for a path that is an attachment's. False if somebody listens there: a pump that
    has not ended yet, or a socket that is not ours.
    """
    name = os.path.basename(transport.path)
    with suppress(OSError, ConfigError), _directory(transport.path, owner) as at:
        seen = os.stat(name, dir_fd=at, follow_symlinks=False)
        if stat.S_ISSOCK(seen.st_mode):
            if not _is_dead(transport):
                return False
            os.unlink(name, dir_fd=at)
    return True


def connect(transport: Transport, owner: Owner) -> socket.socket:
    """Connect to the stream socket on which a VMM listens, with its owner's rights."""
    with acting_as(owner.user, owner.gid):
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.settimeout(CONNECT_S)
            made.connect(transport.path)
            made.settimeout(None)
        except OSError as error:
            made.close()
            raise HostError.from_os("connect", transport.path, error) from None
    return made


def _is_dead(transport: Transport) -> bool:
    kind = socket.SOCK_DGRAM if transport.kind is Kind.DGRAM else socket.SOCK_STREAM
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(transport.path) == errno.ECONNREFUSED


def _taken(transport: Transport) -> ConflictError:
    return ConflictError(
        "transport",
        str(transport),
        f"{transport.path} exists; guestnet replaces only what it made itself: remove it, "
        "or choose another path",
    )


@contextmanager
def _directory(path: str, owner: Owner) -> Iterator[int]:
    """A descriptor of the path's directory, and in the owner's own one the owner's rights."""
    parent = os.path.dirname(path)
    try:
        fd = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError("transport", path, f"{parent}: {error.strerror}") from None
    try:
        seen = os.fstat(fd)
        if seen.st_uid not in (0, os.geteuid(), owner.user):
            raise ConfigError(
                "transport",
                path,
                f"{parent} belongs to uid {seen.st_uid}, who could put another file there: use a "
                "directory of root's, or of the attachment's owner",
            )
        if seen.st_mode & _OTHERS_WRITE and not seen.st_mode & stat.S_ISVTX:
            raise ConfigError(
                "transport", path, f"{parent} can be written to by others, and is not sticky"
            )
        theirs = seen.st_uid not in (0, os.geteuid())
        with acting_as(owner.user if theirs else None, owner.gid):
            yield fd
    finally:
        os.close(fd)
