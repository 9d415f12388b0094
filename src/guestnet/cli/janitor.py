"""Two processes for one run as root, so that either cleans up after the other.

What root sets up stands in the machine's own namespace and outlives whoever did it. So the run
itself is a child; its parent waits, and clears away what a killed child left. A child whose parent
is killed ends its command, and then itself as ever.
"""

from __future__ import annotations

import os
import select
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .. import directories
from .waiting import reaped, wait_for

if TYPE_CHECKING:
    from ..host import Host

#: Of state directories, which lie beside the daemon's run directory.
_PREFIX = f"{directories.run_dir(False).name}-run-"


class Run:
    """The child's side: a state directory for as long as it takes."""

    def __init__(self, state_dir: Path, parent: int) -> None:
        self.state_dir = state_dir
        self._parent = parent
        self.is_orphaned = False

    def done(self) -> None:
        """Everything is taken away; what is left of the directory is the parent's, if it lives."""
        (self.state_dir / "guestnet.db").unlink()
        if self.is_orphaned:
            shutil.rmtree(self.state_dir)

    def watch(self, orphaned: Callable[[], None]) -> None:
        """Call `orphaned`, from another thread, when the parent has ended."""

        def wait() -> None:
            select.select([self._parent], [], [])
            self.is_orphaned = True
            orphaned()

        threading.Thread(target=wait, name="guestnet-janitor", daemon=True).start()


def part() -> Run:
    """Go on as the child; the parent stays here and leaves with the child's status."""
    parent = os.pidfd_open(os.getpid())
    state_dir = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=directories.run_dir(False).parent))
    child = os.fork()
    if not child:
        return Run(state_dir, parent)
    os.close(parent)
    status = wait_for(child, lambda: reaped(child))
    if (state_dir / "guestnet.db").exists():
        _clear(state_dir)
    shutil.rmtree(state_dir)
    raise typer.Exit(status)


def _clear(state_dir: Path) -> None:
    """What a killed child left, which did not come to it itself."""
    from ..host import Host

    with Host.open(state_dir) as host:
        leave(host)


def leave(host: Host) -> None:
    """Take away all guests and networks: with the last one the machine is as it was before."""
    for attachment in host.attachments():
        host.detach(attachment.guest)
    for network in host.networks():
        host.remove_network(network.spec.name)
