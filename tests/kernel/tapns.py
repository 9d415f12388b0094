"""What the TAP tests share: a throwaway network namespace, a witness, and faults on demand.

PYTEST_DONT_REWRITE: test modules import helpers from here before pytest loads its fixtures.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from guestnet.kernel.tap import Tap, attach, control, ioctl

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def descriptors() -> dict[str, str]:
    """What this process has open: number → target."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            continue  # the one by which the directory was listed
    return found


@pytest.fixture
def tap_netns() -> Iterator[None]:
    """Run the test in a network namespace of its own; it dies, with all in it, afterwards.

    Fails the test if a descriptor is left, for that would keep the namespace alive.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root")
    before = descriptors()
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(_libc.unshare(CLONE_NEWNET))
        yield
    finally:
        _checked(_libc.setns(home, CLONE_NEWNET))
        os.close(home)
    gc.collect()
    left = {number: path for number, path in descriptors().items() if number not in before}
    if left:
        pytest.fail(f"descriptors left open: {left}")


def ip(*arguments: str) -> Any:
    """Iproute2's view: an independent witness."""
    text = subprocess.run(
        ["ip", "-j", "-d", *arguments], check=True, capture_output=True, text=True
    ).stdout
    return json.loads(text) if text.strip() else None


def link(name: str) -> dict[str, Any]:
    """One interface, as iproute2 shows it."""
    [found] = ip("link", "show", "dev", name)
    return dict(found)


def names() -> set[str]:
    """The interfaces of the namespace."""
    return {name for _index, name in socket.if_nameindex()}


def make_persistent(name: str, **keywords: Any) -> None:
    """A persistent TAP that nobody holds."""
    Tap.open(name, persistent=True, **keywords).close()


class Faults:
    """Lets the kernel refuse the nth request, whatever it is: open, ioctl or netlink."""

    def __init__(self) -> None:
        self.countdown = 0
        #: The request that failed, or "" while none has.
        self.failed = ""

    def arm(self, nth: int, errno: int) -> None:
        """Fail the nth request from now, once."""
        self.countdown, self.errno, self.failed = nth, errno, ""

    def disarm(self) -> None:
        """Let everything through again."""
        self.countdown = 0

    def step(self, what: str) -> None:
        """Count one request; raise if its number has come."""
        self.countdown -= 1
        if self.countdown == 0:
            self.failed = what
            raise OSError(self.errno, os.strerror(self.errno))


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """Put `Faults` between guestnet and the kernel."""
    faults = Faults()
    real_ioctl, real_open = fcntl.ioctl, os.open
    real_exchange: Callable[..., Any] = control.Control._exchange

    class Fcntl:
        @staticmethod
        def ioctl(fd: int, request: ioctl.Ioctl, argument: Any) -> Any:
            faults.step(request.name)
            return real_ioctl(fd, request, argument)

    def open_(path: Any, *arguments: Any, **keywords: Any) -> int:
        if path == attach.TUN_PATH:
            faults.step("open")
        return real_open(path, *arguments, **keywords)

    def exchange(self: control.Control, *arguments: Any) -> Any:
        faults.step("netlink")
        return real_exchange(self, *arguments)

    monkeypatch.setattr(ioctl, "fcntl", Fcntl)
    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(control.Control, "_exchange", exchange)
    return faults
