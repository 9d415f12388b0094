"""The TAP device: an Ethernet interface of the kernel whose wire ends in this process.

    with Tap.open("gn0", mtu=1400) as tap:
        tap.set_ip("10.0.0.1/24")
        tap.bring_up()
        frame = tap.recv()      # what the kernel sends to the guest
        tap.send(answer)        # what the guest sends to the kernel

The interface's MAC and addresses are the *host's* end; a guest has its own. See docs/tap.md.
"""

from __future__ import annotations

import errno
import math
import os
import secrets
import select
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Literal, Self

from ...errors import ConfigError, HostError
from ...frames import virtio
from ...frames.framing import ETHERNET_HEADER_BYTES, FRAME_BYTES_MAX
from ...frames.virtio import VirtioNetHeader
from . import attach, ioctl
from .attach import Attached, TapSpec
from .control import Control
from .frames import Frame, FrameDevice, frame_bytes, frame_limit
from .interface import TapInterface
from .ioctl import Offload

__all__ = ["FrameDevice", "Offload", "Tap", "random_mac"]

#: Frames `recv_many` returns at most: a full queue of a TAP (TUN_READQ_SIZE).
BATCH_MAX = 500


def random_mac() -> str:
    """A random MAC: locally administered, unicast (IEEE 802 section 8.4), 46 random bits."""
    first, *rest = secrets.token_bytes(6)
    return bytes([first & 0xFC | 0x02, *rest]).hex(":")


class Tap(TapInterface):
    """An open TAP. Make it with `Tap.open`; close it with `close()` or a `with` block.

    Every method raises `HostError` (call, interface, errno) when the kernel refuses, also EBADF
    after `close()`, and `ConfigError` for an argument that can never be right. Different queues may
    be used by different threads; one queue, and `close()`, belong to one thread at a time.
    """

    def __init__(
        self, control: Control, attached: Attached, *, vnet_hdr: bool, blocking: bool
    ) -> None:
        """Take over descriptors that are set up; not for callers, who use `open`."""
        super().__init__(control, attached)
        self._offload = attached.offload
        self._vnet_hdr = vnet_hdr
        self._blocking = blocking

    @classmethod
    def open(
        cls,
        name: str | None = None,
        *,
        mac: str | None = None,
        mtu: int | None = None,
        vnet_hdr: bool = False,
        offload: Offload | None = None,
        queues: int = 1,
        persistent: bool = False,
        owner: int | None = None,
        group: int | None = None,
        blocking: bool = True,
        existing: Literal["attach", "refuse", "require"] = "attach",
    ) -> Self:
        """Create a TAP, or attach to a persistent one that no process holds.

        - `name`: at most 15 bytes; `None` takes the next free of `gntap0`, `gntap1`, …
        - `mac`, `mtu` (68 to 65521 bytes): of the interface, the host's end. `None` leaves a new
          TAP the kernel's (random, 1500) and an existing one its own.
        - `vnet_hdr`: frames are preceded by a 12-byte `VirtioNetHeader`; `offload` then says what
          may be left unfinished, by default CSUM, TSO4 and TSO6. What the kernel refuses is logged
          as a warning; `Tap.offload` is what is on.
        - `queues`: 1 to 256; more than 1 makes a multi-queue TAP.
        - `persistent`: it stays after `close()`, until `persist(False)` or `Tap.delete`.
        - `owner`, `group`: uid and gid that may attach without privileges; both given, both must
          match. A new TAP with neither belongs to the effective uid, not to everybody.
        - `blocking`: whether `send` and `recv` wait. The descriptors never block.
        - `existing`: what to do about a persistent TAP of that name that nobody holds: `"attach"`
          to it or create it, `"refuse"` it, or `"require"` it.

        Raises `ConfigError` (an argument), `ConflictError` (the name belongs to something else),
        `NotFoundError` (required but missing), `BusyError` (a process holds it; it is left as it
        is) or `HostError`. After an error nothing made or changed here remains.
        """
        spec = TapSpec.read(
            {
                "name": name,
                "mac": mac,
                "mtu": mtu,
                "vnet_hdr": vnet_hdr,
                "offload": offload,
                "queues": queues,
                "persistent": persistent,
                "owner": owner,
                "group": group,
                "existing": existing,
            }
        )
        with ExitStack() as undo:
            control = Control()
            undo.callback(control.close)
            attached = attach.attach(control, spec, undo)
            tap = cls(control, attached, vnet_hdr=vnet_hdr, blocking=blocking)
            undo.pop_all()
        return tap

    @staticmethod
    def delete(name: str) -> bool:
        """Delete the persistent TAP `name`, in the calling thread's network namespace.

        False if there is no such interface. Raises `BusyError` while a process holds it,
        `ConflictError` for an interface that is no TAP.
        """
        with ExitStack() as stack:
            control = Control()
            stack.callback(control.close)
            return attach.delete(control, name)

    # -- frames --------------------------------------------------------------------------------

    @property
    def has_vnet_hdr(self) -> bool:
        """Whether every frame is preceded by a virtio-net header."""
        return self._vnet_hdr

    @property
    def offload(self) -> Offload:
        """What the kernel may leave unfinished in the frames it hands out."""
        return self._offload

    def has_data(self, timeout_s: float | None = 0, *, queue: int = 0) -> bool:
        """Whether `recv` would return at once; waits up to `timeout_s` seconds (None: for ever).

        True also when the interface was deleted: `recv` then says so.
        """
        if timeout_s is not None and not timeout_s >= 0:
            raise ConfigError("timeout_s", timeout_s, "seconds from 0, or None")
        return self._poll(self._descriptor(queue), select.POLLIN, timeout_s)

    def send(
        self, frame: Frame, /, *, header: VirtioNetHeader = virtio.PLAIN, queue: int = 0
    ) -> int:
        """Send one Ethernet frame into the kernel; returns its length, or 0 if it would block.

        Raises `ConfigError` for a frame of fewer than 14 bytes or of more than the MTU, the
        Ethernet header and a VLAN tag if there is one (65593 bytes when `header` asks for
        segmentation). A `header` of other than the default needs `vnet_hdr`, and must fit the
        frame (`VirtioHeaderError`).
        """
        fd = self._descriptor(queue)
        parts = self._packet(frame, header)
        while not (sent := self._write(fd, parts)):
            if not self._blocking:
                return 0
            self._poll(fd, select.POLLOUT, None)
        return sent

    def recv(self, max_bytes: int = FRAME_BYTES_MAX, *, queue: int = 0) -> bytes:
        """Return one frame that the kernel sent; b"" if none waits and the Tap is non-blocking.

        A frame longer than `max_bytes` is dropped with `HostError` EMSGSIZE, never cut. A Tap with
        `vnet_hdr` is read by `recv_with_header`, for its frames may be unfinished.
        """
        self._check_plain()
        return self._read(queue, max_bytes, self._blocking)

    def recv_with_header(
        self, max_bytes: int = FRAME_BYTES_MAX, *, queue: int = 0
    ) -> tuple[VirtioNetHeader, bytes] | None:
        """Return header and frame of a Tap with `vnet_hdr`; None where `recv` returns b""."""
        self._check_header()
        data = self._read(queue, max_bytes, self._blocking)
        return VirtioNetHeader.split(data) if data else None

    def send_many(self, frames: Iterable[Frame], *, queue: int = 0) -> int:
        """Send plain frames in order; returns how many went before one would have blocked."""
        count = 0
        for frame in frames:
            if not self.send(frame, queue=queue):
                break
            count += 1
        return count

    def recv_many(self, limit: int = BATCH_MAX, *, queue: int = 0) -> list[bytes]:
        """Return the frames that wait, at most `limit`; a blocking Tap waits for the first."""
        self._check_plain()
        frames: list[bytes] = []
        while len(frames) < limit:
            wait = self._blocking and not frames
            if not (frame := self._read(queue, FRAME_BYTES_MAX, wait)):
                break
            frames.append(frame)
        return frames

    # -- frames, in asyncio --------------------------------------------------------------------

    async def send_async(
        self, frame: Frame, /, *, header: VirtioNetHeader = virtio.PLAIN, queue: int = 0
    ) -> int:
        """`send`, waiting in the running event loop, whether or not the Tap is `blocking`."""
        fd = self._descriptor(queue)
        parts = self._packet(frame, header)
        while not (sent := self._write(fd, parts)):
            await self._readiness.wait(fd, writing=True)
            self._descriptor(queue)
        return sent

    async def recv_async(self, max_bytes: int = FRAME_BYTES_MAX, *, queue: int = 0) -> bytes:
        """`recv`, waiting in the running event loop; cancelling it loses no frame."""
        self._check_plain()
        return await self._read_async(queue, max_bytes)

    async def recv_with_header_async(
        self, max_bytes: int = FRAME_BYTES_MAX, *, queue: int = 0
    ) -> tuple[VirtioNetHeader, bytes]:
        """`recv_with_header`, waiting in the running event loop; cancelling it loses no frame."""
        self._check_header()
        return VirtioNetHeader.split(await self._read_async(queue, max_bytes))

    # -- inside --------------------------------------------------------------------------------

    def _check_plain(self) -> None:
        if self._vnet_hdr:
            raise ConfigError("vnet_hdr", True, "frames have headers: use recv_with_header()")

    def _check_header(self) -> None:
        if not self._vnet_hdr:
            raise ConfigError("vnet_hdr", False, "frames have no headers: use recv()")

    def _packet(self, frame: Frame, header: VirtioNetHeader) -> list[Frame]:
        """What is written for a frame, all of it checked."""
        size = frame_bytes(frame)
        if header is not virtio.PLAIN and header != virtio.PLAIN:
            self._check_header()
            header.check(size)
        if size > self._mtu_seen + ETHERNET_HEADER_BYTES:
            self._check_long(frame, size, header.is_gso)
        return [header.pack(), frame] if self._vnet_hdr else [frame]

    def _check_long(self, frame: Frame, size: int, is_gso: bool) -> None:
        # The kernel takes any length; a link of this MTU would not have delivered it. The MTU is
        # asked for again because another process may have raised it.
        limit = FRAME_BYTES_MAX if is_gso else frame_limit(frame, self.mtu)
        if size > limit:
            raise ConfigError("frame", f"{size} bytes", f"this link takes frames of up to {limit}")

    def _write(self, fd: int, parts: list[Frame]) -> int:
        try:
            written = os.writev(fd, parts)
        except BlockingIOError:
            return 0
        except OSError as error:
            down = "the interface is down: bring_up() first" if error.errno == errno.EIO else ""
            raise ioctl.refused("write", self._name, error, down) from None
        return written - (virtio.HEADER_BYTES if self._vnet_hdr else 0)

    def _read(self, queue: int, max_bytes: int, wait: bool) -> bytes:
        fd = self._descriptor(queue)
        if max_bytes < ETHERNET_HEADER_BYTES:
            raise ConfigError("max_bytes", max_bytes, f"at least {ETHERNET_HEADER_BYTES}")
        # One byte more than allowed tells a frame that is too long from one that just fits.
        room = max_bytes + 1 + (virtio.HEADER_BYTES if self._vnet_hdr else 0)
        while True:
            try:
                data = os.read(fd, room)
            except BlockingIOError:
                if not wait:
                    return b""
                self._poll(fd, select.POLLIN, None)
            except OSError as error:
                raise ioctl.refused("read", self._name, error) from None
            else:
                break
        if len(data) == room:
            detail = f"a frame of more than {max_bytes} bytes was dropped"
            raise HostError("read", self._name, errno.EMSGSIZE, detail)
        return data

    async def _read_async(self, queue: int, max_bytes: int) -> bytes:
        while not (data := self._read(queue, max_bytes, False)):
            await self._readiness.wait(self._descriptor(queue))
        return data

    def _poll(self, fd: int, event: int, timeout_s: float | None) -> bool:
        poll = select.poll()
        poll.register(fd, event)
        milliseconds = None if timeout_s is None else math.ceil(timeout_s * 1000)
        return bool(poll.poll(milliseconds))
