"""Two processes for one run, so that either cleans up after the other.

What root sets up stands in the machine's own namespace and outlives whoever did it, and so does
anybody's socket file. So the run itself is a child; its parent waits, and clears away what a killed
child left. A child whose parent is killed ends its command, and then itself as ever.
"""

from __future__ import annotations

import os
import select
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .. import directories
from ..kernel.process import start_thread
from .waiting import reaped, wait_for

if TYPE_CHECKING:
    from ..host import Host

#: Of directories for one run.
_PREFIX = f"{directories.run_dir(False).name}-run-"
_DATABASE = "guestnet.db"


class Run:
    """The child's side: a directory of this user's alone, for as long as it takes."""

    def __init__(self, directory: Path, parent: int) -> None:
        #: Of root's state, and of a VMM's socket.
        self.directory = directory
        self._parent = parent
        self.is_orphaned = False

    def done(self) -> None:
        """Everything is taken away; what is left of the directory is the parent's, if it lives."""
        (self.directory / _DATABASE).unlink(missing_ok=True)
        if self.is_orphaned:
            _remove(self.directory)

    def watch(self, orphaned: Callable[[], None]) -> None:
        """Call `orphaned`, from another thread, when the parent has ended."""

        def wait() -> None:
            select.select([self._parent], [], [])
            self.is_orphaned = True
            orphaned()

        start_thread(threading.Thread(target=wait, name="guestnet-janitor", daemon=True))


def part(childs: Iterable[int]) -> Run:
    """Go on as the child; the parent stays here and leaves with the child's status.

    `childs` are descriptors that the parent has no part in.
    """
    parent = os.pidfd_open(os.getpid())
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_beside()))
    try:
        child = os.fork()
    except OSError:
        _remove(directory)
        raise
    if not child:
        return Run(directory, parent)
    for fd in (parent, *childs):
        os.close(fd)
    status = wait_for(child, lambda: reaped(child))
    if (directory / _DATABASE).exists():
        _clear(directory)
    _remove(directory)
    raise typer.Exit(status)


def _beside() -> Path | None:
    """Where such directories are; None is among temporary files."""
    if os.geteuid() == 0:
        return directories.run_dir(False).parent
    session = directories.session_dir()
    return session if session is not None and os.access(session, os.W_OK) else None


def _remove(directory: Path) -> None:
    with suppress(FileNotFoundError):  # it is the command's user's, too
        shutil.rmtree(directory)


def _clear(directory: Path) -> None:
    """What a killed child left, which did not come to it itself."""
    from ..host import Host

    with Host.open(directory) as host:
        leave(host)


def leave(host: Host) -> None:
    """Take away all guests and networks: with the last one the machine is as it was before."""
    for attachment in host.attachments():
        host.detach(attachment.guest)
    for network in host.networks():
        host.remove_network(network.spec.name)
