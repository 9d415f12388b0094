"""A guest's wire inside this process: for a VMM that is written in Python, or bound to it."""

from __future__ import annotations

import os
import socket
from typing import Self

from ..errors import ConfigError
from ..frames import virtio
from ..frames.transport import Kind, Transport
from ..frames.virtio import VirtioNetHeader
from ..kernel.tap import Tap
from ..kernel.tap.frames import Frame
from ..model import Attachment
from .places import Owner
from .supervisor import Pump


class FramePort:
    """The VMM's end of an attachment's TAP, which no other VMM may have open.

    Either this process reads and writes the frames:

        async with FramePort.open(attachment) as port:
            frame = await port.recv()        # what the network sends to the guest
            await port.send(answer)          # what the guest sends

    or a VMM library does, on a socket that `lend` returns: `krun_add_net_unixstream(fd=…)`, or
    QEMU's `-netdev stream,addr.type=fd`.
    """

    def __init__(self, tap: Tap) -> None:
        """Take over an open TAP; not for callers, who use `open`."""
        self._tap = tap
        self._pump: Pump | None = None

    @classmethod
    def open(cls, attachment: Attachment, *, vnet_hdr: bool = False) -> Self:
        """Open an attachment's TAP, in the calling thread's network namespace.

        With `vnet_hdr` frames may be large segments, behind a 12-byte virtio-net header. Raises
        `ConfigError` for an attachment without a TAP of its VMM's own, `BusyError` when a process
        holds it, and what else `Tap.open` raises.
        """
        if attachment.netns is not None or attachment.transport is not None:
            key = "netns" if attachment.netns is not None else "transport"
            right = "attach the guest as a VM that opens its TAP: without netns and transport"
            raise ConfigError(key, getattr(attachment, key), right)
        return cls(Tap.open(attachment.tap, vnet_hdr=vnet_hdr, existing="require"))

    def close(self) -> None:
        """Let go of the TAP; what was lent is hung up on. The attachment stands."""
        if self._pump is not None:
            self._pump.close(keep_place=False)
            self._pump = None
        self._tap.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    @property
    def mtu(self) -> int:
        """Bytes a frame carries after its Ethernet header."""
        return self._tap.mtu

    async def recv(self) -> bytes:
        """The next frame to the guest, of a port without virtio header. Cancelling loses none."""
        self._check_own()
        return await self._tap.recv_async()

    async def recv_with_header(self) -> tuple[VirtioNetHeader, bytes]:
        """The next header and frame, of a port with virtio header. Cancelling loses none."""
        self._check_own()
        return await self._tap.recv_with_header_async()

    async def send(self, frame: Frame, /, *, header: VirtioNetHeader = virtio.PLAIN) -> int:
        """Send a frame of the guest's and return its length; waits while the kernel is full."""
        self._check_own()
        return await self._tap.send_async(frame, header=header)

    def lend(self) -> socket.socket:
        """A stream socket for a VMM library: each frame behind its length in 4 bytes, big-endian.

        The caller owns the socket; its number is `fileno()`, or `detach()` to give it away. An
        unprivileged process carries the frames until the other end or this port is closed.
        """
        self._check_own()
        ours, theirs = socket.socketpair()
        try:
            transport = Transport(Kind.STREAM, self._tap.name, self._tap.has_vnet_hdr)
            tap = self._tap.queues[0]
            self._pump = Pump(
                transport, Owner(), self._tap.mtu, None, lambda: os.dup(tap), "a port", ours
            )
        except BaseException:
            ours.close()
            theirs.close()
            raise
        return theirs

    def _check_own(self) -> None:
        if self._pump is not None:
            raise ConfigError("port", self._tap.name, "is lent already: one end has the frames")
