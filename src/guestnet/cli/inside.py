"""Entering a namespace guest: its network, and files of /etc that fit it.

This process gets a mount namespace of its own first, so nobody else sees the files, and nothing is
left of them when it ends, however it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from .. import directories
from ..errors import ConfigError, HostError
from ..kernel.netns import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    join_owner,
    open_netns,
    own_user_namespace,
    setns,
    unshare,
)
from ..settings import VARIABLES

# linux/mount.h
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC = 2, 4, 8, 4096, 16384
_MS_SLAVE = 1 << 19
_MNT_DETACH = 2

#: Resolvers that the C library asks (MAXNS in resolv.h).
_RESOLVERS_MAX = 3
#: Sockets by which the C library has others resolve names, beside the guest's network: nscd(8),
#: nss-resolve(8). Without them it asks the guest's own resolvers.
_RESOLVING_HELPERS = (
    Path("/run/nscd/socket"),
    Path("/run/systemd/resolve/io.systemd.Resolve"),
)
#: Where files are made, for this process alone and for a moment: it is everywhere, and needs no
#: room on a disk, nor the right to write there.
_SCRATCH = Path("/etc")
#: What covers a socket, and a directory of them.
_FILE, _DIRECTORY = _SCRATCH / "file", _SCRATCH / "directory"
_HOSTNAME = re.compile(
    r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*", re.I
)

_libc = ctypes.CDLL(None, use_errno=True)


def enter(
    path: str, attachment: Mapping[str, Any] | None, run_dirs: Iterable[Path] = ()
) -> list[str]:
    """Move this process into a network namespace; returns remarks for its owner.

    If it is a guest's, `attachment` is the API's document about that. A rootless site's guest is
    entered with all rights of that site: `leave_rights` gives them up. The daemons of its user are
    closed to it, which would let it choose its own policy: those where daemons usually are, and
    in `run_dirs`.
    """
    closed = [*run_dirs, *_usual_run_dirs()]
    netns = open_netns(path)
    try:
        is_rootless = join_owner(netns)
        unshare(CLONE_NEWNS)
        # Slave: mounts of the machine still come in, ours do not get out.
        _mount(None, "/", None, _MS_SLAVE | _MS_REC)
        remarks = _lay_over(attachment, closed if is_rootless else ())
        setns(netns, CLONE_NEWNET, path)
    finally:
        os.close(netns)
    with contextlib.suppress(HostError):
        # /sys shows the network namespace it was mounted in. Where a container forbids mounting
        # it, the command sees the names of the host's devices, and cannot use them.
        _mount("sysfs", "/sys", "sysfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    return remarks


def leave_rights(uid: int, gid: int) -> None:
    """Be the ordinary user again who entered a rootless site.

    In a user namespace of its own below the site's: what runs there has no rights over the site's
    network, and none over the processes outside, though these are the same user's.
    """
    if (os.getuid(), os.getgid()) != (uid, gid):
        own_user_namespace((os.getuid(), os.getgid()), (uid, gid))


def mount_proc() -> None:
    """Show this process's own pid namespace in /proc, where a container does not forbid it."""
    with contextlib.suppress(HostError):
        _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def _usual_run_dirs() -> list[Path]:
    """Where a daemon that this user may ask has its socket, unless it was told otherwise."""
    found = [directories.run_dir(False)]
    with contextlib.suppress(ConfigError):  # there is no home
        found.append(directories.run_dir(True))
    told = os.environ.get(VARIABLES["run_dir"])
    return [*found, Path(told)] if told else found


def _lay_over(attachment: Mapping[str, Any] | None, closed: Iterable[Path]) -> list[str]:
    """Lay the guest's files over this machine's, and nothing over what is closed to it."""
    files: dict[Path, str] = {}
    if attachment is not None:
        files[Path("/etc/resolv.conf")] = resolv_conf(attachment)
        files[Path("/etc/hosts")] = hosts(attachment, socket.gethostname())
    remarks = []
    with contextlib.ExitStack() as stack:
        # Opened before anything is laid over: all of it may lie below the scratch directory.
        targets = {path: stack.enter_context(_opened(path)) for path in files}
        helpers = _RESOLVING_HELPERS if files else ()
        covers = [(_FILE, stack.enter_context(_opened(path))) for path in helpers]
        covers += [(_DIRECTORY, stack.enter_context(_opened(path))) for path in closed]
        _mount("tmpfs", str(_SCRATCH), "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
        stack.callback(_unmount, str(_SCRATCH))
        _FILE.touch()
        _DIRECTORY.mkdir()
        for cover, target in covers:
            if target is not None:
                _mount(str(cover), f"/proc/self/fd/{target}", None, _MS_BIND)
        for path, text in files.items():
            if (target := targets[path]) is None:
                remarks.append(f"this machine has no {path}, so the command has none either")
                continue
            (_SCRATCH / path.name).write_text(text)
            (_SCRATCH / path.name).chmod(0o644)
            try:
                # The descriptor, not the path: a link must be covered where it leads to.
                _mount(str(_SCRATCH / path.name), f"/proc/self/fd/{target}", None, _MS_BIND)
            except HostError as error:
                remarks.append(f"the command has this machine's {path}: {error}")
    return remarks


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """A descriptor of the file, or of the link that leads nowhere; None where neither is seen."""
    fd = None
    for flags in (os.O_PATH, os.O_PATH | os.O_NOFOLLOW):
        with contextlib.suppress(OSError):
            fd = os.open(path, flags | os.O_CLOEXEC)
            break
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def resolv_conf(attachment: Mapping[str, Any]) -> str:
    """The guest's resolv.conf: those of its resolvers that it has a family for."""
    versions = {version for version in (4, 6) if attachment[f"ipv{version}"]}
    servers = [text for text in attachment["dns"] if ip_address(text).version in versions]
    lines = [f"nameserver {server}" for server in servers[:_RESOLVERS_MAX]]
    return "\n".join(["# by guestnet, for this command alone", *lines, ""])


def hosts(attachment: Mapping[str, Any], hostname: str) -> str:
    """The guest's hosts file: itself, by its id where that is a name, and by this machine's."""
    candidates = (attachment["guest"], hostname)
    names = [name for name in dict.fromkeys(candidates) if _HOSTNAME.fullmatch(name)]
    names = [name for name in names if name != "localhost"]
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    for family in ("ipv4", "ipv6"):
        if attachment[family] and names:
            lines.append(" ".join([attachment[family].partition("/")[0], *names]))
    return "\n".join([*lines, ""])


def _mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    arguments = [text.encode() if text is not None else None for text in (source, target, kind)]
    if _libc.mount(*arguments, ctypes.c_ulong(flags), None) != 0:
        raise HostError("mount", target, ctypes.get_errno())


def _unmount(target: str) -> None:
    if _libc.umount2(os.fsencode(target), _MNT_DETACH) != 0:
        raise HostError("umount2", target, ctypes.get_errno())
