"""A Host with as many guests as a measurement wants, and one guest more or less, timed."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from guestnet import Host
from guestnet.model import Attachment

from .phases import Profile
from .stage import Stage

NETWORK = "default"
#: What the guests that only make up the number may do.
POLICY = "public"
#: Longer than any deletion that is not stuck.
_GONE_TIMEOUT_S = 120.0


class Crowd:
    """`size` guests, named vm-0, vm-1, … The calling thread stands in the site's namespace."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.size = 0
        self._extra = 0

    def grow(self, size: int, *, policy: str = POLICY) -> None:
        """Attach more, up to `size`."""
        while self.size < size:
            self.host.attach(f"vm-{self.size}", policy=policy)
            self.size += 1

    def attach(self, **options: Any) -> tuple[Attachment, float]:
        """One more guest; returns its attachment and the seconds it took."""
        self._extra += 1
        options.setdefault("policy", POLICY)
        begin = time.perf_counter()
        attachment = self.host.attach(f"extra-{self._extra}", **options)
        return attachment, time.perf_counter() - begin

    def detach(self, attachment: Attachment, *, profile: Profile | None = None) -> float:
        """Detach one; returns the seconds of the call, and waits until its device is deleted."""
        with profile.call() if profile is not None else contextlib.nullcontext():
            begin = time.perf_counter()
            self.host.detach(attachment.guest)
            seconds = time.perf_counter() - begin
        await_gone(attachment.tap)
        return seconds


def await_gone(device: str) -> None:
    """Wait until a device of the calling thread's namespace is deleted."""
    deadline = time.monotonic() + _GONE_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            socket.if_nametoindex(device)
        except OSError:
            return
        time.sleep(0.001)
    raise TimeoutError(f"{device} was not deleted in {_GONE_TIMEOUT_S:.0f} s")


@contextlib.contextmanager
def state_directory() -> Iterator[Path]:
    """Where a Host of a benchmark remembers; on the disk, as in life."""
    with tempfile.TemporaryDirectory(prefix="gnbench-") as directory:
        yield Path(directory)


@contextlib.contextmanager
def crowd(stage: Stage, state: Path, network: Mapping[str, Any]) -> Iterator[Crowd]:
    """A Host at work in the stage's site, which the calling thread enters for so long.

    The Host works in "its own" namespace, as it does on a machine of its own: threads that it
    starts inherit the caller's.
    """
    with stage.site.enter(), Host.open(state) as host:
        host.create_network({"name": NETWORK, **network})
        yield Crowd(host)
