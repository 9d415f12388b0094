"""An ordinary user: no group that anything belongs to, no rights, a home of their own.

What the user runs stands in a namespace of the lab, which is their machine as far as networks go.
This file runs itself as root in that namespace, in a mount namespace of its own (`ip netns exec`
makes one), where nothing of the real machine changes: it opens /dev/net/tun, as distributions do,
and the way to this Python, which may lie in root's home.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from . import processes
from .netns import Namespace

_MS_BIND, _MS_REC = 4096, 16384  # linux/mount.h
_TUN = Path("/dev/net/tun")
_SOURCE = Path(__file__).parents[1]


class User:
    """A user of `machine` until the end of the `with` block, which ends what still runs for it.

    The number is this process's, so that two runs of the tests do not see each other's.
    """

    def __init__(self, machine: Namespace, *, tun: bool = True) -> None:
        self.machine = machine
        self.uid = 1_000_000 + os.getpid()
        self._tun = tun
        self.home = Path(tempfile.mkdtemp(prefix="gnlab-user-"))
        for directory in (self.home, self.home / "run"):
            directory.mkdir(exist_ok=True)
            os.chown(directory, self.uid, self.uid)
        self.home.chmod(0o755)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.processes():
            os.kill(pid, 9)
        shutil.rmtree(self.home)

    @property
    def environ(self) -> dict[str, str]:
        """What the user's programs find in their environment."""
        return {
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.home / "run"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
        }

    def argv(self, argv: Sequence[str]) -> list[str]:
        """The same command as this user on this machine."""
        options = [str(self.uid), str(self.home), "tun" if self._tun else "no-tun"]
        return self.machine.argv([sys.executable, "-P", "-m", "lab.user", *options, *argv])

    def popen(
        self, argv: Sequence[str], environ: Mapping[str, str] | None = None, **kwargs: Any
    ) -> subprocess.Popen[bytes]:
        """Start a command; it becomes the process that is returned."""
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        environ = {**self.environ, "PYTHONPATH": str(_SOURCE), **(environ or {})}
        return subprocess.Popen(self.argv(argv), env=environ, **kwargs)

    def run(
        self,
        argv: Sequence[str],
        environ: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; a failure is for the caller to look at."""
        process = self.popen(argv, environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            processes.stop(process)
            raise
        return subprocess.CompletedProcess(argv, process.returncode, out.decode(), err.decode())

    def guestnet(self, *arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        return self.run([sys.executable, "-P", "-m", "guestnet.cli", *arguments], **how)

    def processes(self) -> set[int]:
        """Everything that runs for this user, whatever it says its number is."""
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    status = (entry / "status").read_text()
                except OSError:
                    continue
                fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
                if fields["Uid"].split()[0] == str(self.uid) and fields["State"][0] not in "ZX":
                    found.add(int(entry.name))
        return found


def _become(uid: int, home: str, open_tun: bool, argv: Sequence[str]) -> None:
    """In the user's mount namespace, as root: lay things open, and become the user."""
    for path in sorted(_closed_directories()):
        _show_below(path)
    if open_tun:
        directory = Path(tempfile.mkdtemp(prefix="gnlab-dev-"))
        _mount("tmpfs", directory, "tmpfs", 0)
        os.mknod(directory / "tun", stat.S_IFCHR, os.makedev(10, 200))
        (directory / "tun").chmod(0o666)
        _mount(str(directory / "tun"), _TUN, None, _MS_BIND)
        _libc.umount2(os.fsencode(directory), 2)
        directory.rmdir()
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    os.chdir(home)
    os.execvp(argv[0], list(argv))


def _closed_directories() -> set[Path]:
    """Directories on the way to this Python and these sources that a user may not enter."""
    wanted = {Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve(), _SOURCE}
    return {
        parent
        for path in wanted
        for parent in path.parents
        if not parent.stat().st_mode & stat.S_IXOTH
    }


def _show_below(directory: Path) -> None:
    """Put an open directory in a closed one's place, with all that is in it."""
    held = os.open(directory, os.O_PATH)
    entries = list(os.scandir(directory))
    _mount("tmpfs", directory, "tmpfs", 0)
    directory.chmod(0o755)
    for entry in entries:
        target = directory / entry.name
        if entry.is_symlink():
            target.symlink_to(os.readlink(f"/proc/self/fd/{held}/{entry.name}"))
        elif entry.name in _names_on_the_way(directory):
            target.mkdir()
            _mount(f"/proc/self/fd/{held}/{entry.name}", target, None, _MS_BIND | _MS_REC)
    os.close(held)


def _names_on_the_way(directory: Path) -> Iterator[str]:
    for path in (Path(sys.prefix), Path(sys.base_prefix), _SOURCE):
        if path.is_relative_to(directory):
            yield path.relative_to(directory).parts[0]


def _mount(source: str, target: Path, kind: str | None, flags: int) -> None:
    arguments = (source.encode(), os.fsencode(target), kind.encode() if kind else None)
    if _libc.mount(*arguments, ctypes.c_ulong(flags), None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {target}: {os.strerror(number)}")


_libc = ctypes.CDLL(None, use_errno=True)

if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2], sys.argv[3] == "tun", sys.argv[4:])
