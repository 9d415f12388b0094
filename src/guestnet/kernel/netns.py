"""Network namespaces: finding one and stepping into it (setns(2))."""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigError, HostError

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
#: Where `ip netns` keeps its names.
NAMED = Path("/run/netns")
#: linux/capability.h
_CAP_NET_ADMIN = 12
#: linux/nsfs.h
_NS_GET_USERNS, _NS_GET_NSTYPE = 0xB701, 0xB703
_OWN = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


def netns_path(netns: str) -> Path:
    """The file of a namespace given by name (`ip netns`) or by path."""
    return Path(netns) if "/" in netns else NAMED / netns


def open_netns(netns: str) -> int:
    """A descriptor of a namespace; the caller closes it."""
    path = netns_path(netns)
    try:
        # Not blocking: a pipe of that name would be waited for.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        how = f"; `ip netns add {path.name}` makes it" if path.parent == NAMED else ""
        raise ConfigError("netns", netns, f"there is no such namespace{how}") from None
    except OSError as error:
        raise ConfigError("netns", netns, f"{path}: {error.strerror}") from None
    try:
        kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != CLONE_NEWNET:
        os.close(fd)
        raise ConfigError("netns", netns, f"{path} is no network namespace")
    return fd


def setns(fd: int, kind: int, target: str) -> None:
    """Move the calling thread into the namespace behind `fd`."""
    if _libc.setns(fd, kind) != 0:
        code = ctypes.get_errno()
        raise HostError("setns", target, code)


def unshare(kind: int) -> None:
    """Give the calling process a namespace of its own (unshare(2))."""
    if _libc.unshare(kind) != 0:
        raise HostError("unshare", f"{kind:#x}", ctypes.get_errno())


def join_owner(fd: int) -> bool:
    """Move the calling process, of one thread, into the user namespace that a namespace belongs to.

    There it has all rights. False if it is there already, or that one is not below its own.
    """
    try:
        owner = fcntl.ioctl(fd, _NS_GET_USERNS)
    except PermissionError:  # outside of our own: whoever may enter it needs no joining
        return False
    try:
        theirs, ours = os.fstat(owner), os.stat("/proc/self/ns/user")
        if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
            return False
        setns(owner, CLONE_NEWUSER, "user namespace")
        return True
    finally:
        os.close(owner)


def may_enter(fd: int) -> bool:
    """Whether a namespace belongs to the calling process's user namespace, or to one below it."""
    try:
        os.close(fcntl.ioctl(fd, _NS_GET_USERNS))
    except PermissionError:
        return False
    return True


def may_administer_own() -> bool:
    """Whether the calling thread has CAP_NET_ADMIN over its network namespace."""
    status = Path("/proc/thread-self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    fd = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return bool(effective >> _CAP_NET_ADMIN & 1) and may_enter(fd)
    finally:
        os.close(fd)


def own_user_namespace(outside: tuple[int, int], inside: tuple[int, int], flags: int = 0) -> None:
    """Give the calling process, of one thread, a user namespace of its own, and others by `flags`.

    User and group number `outside` of it are `inside` in it, and nobody else exists there.
    """
    unshare(CLONE_NEWUSER | flags)
    for name, text in (
        ("setgroups", "deny"),  # or a group that takes rights away could be left
        ("uid_map", f"{inside[0]} {outside[0]} 1"),
        ("gid_map", f"{inside[1]} {outside[1]} 1"),
    ):
        path = f"/proc/self/{name}"
        try:
            Path(path).write_text(text)
        except OSError as error:
            raise HostError.from_os("write", path, error) from None


def new_netns() -> int:
    """A descriptor of a new network namespace; the caller closes it, and stays where it is."""
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        unshare(CLONE_NEWNET)
        try:
            return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            setns(home, CLONE_NEWNET, "home")
    finally:
        os.close(home)


@contextmanager
def inside(netns_fd: int | None) -> Iterator[None]:
    """Run a block in the namespace behind a descriptor, in this thread alone; None is here.

    A descriptor and not a name: a name may come to mean another namespace between two steps.
    """
    if netns_fd is None:
        yield
        return
    try:
        home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError.from_os("open", _OWN, error) from None
    try:
        setns(netns_fd, CLONE_NEWNET, "namespace")
        try:
            yield
        finally:
            # A thread left in a guest's namespace would do the next step there.
            setns(home, CLONE_NEWNET, "home")
    finally:
        os.close(home)


def is_own(netns_fd: int) -> bool:
    """Whether a descriptor is of the calling thread's own namespace."""
    theirs, ours = os.fstat(netns_fd), os.stat(_OWN)
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)
