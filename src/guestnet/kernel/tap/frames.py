"""What sends and receives Ethernet frames, and how long a frame may be."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ...errors import ConfigError
from ...frames.framing import ETHERNET_HEADER_BYTES, VLAN_TAG_BYTES

#: The kernel's own limits for a TAP: 65535 less the Ethernet header (tun_net_initialize()).
TAP_MTU_MIN, TAP_MTU_MAX = 68, 65535 - ETHERNET_HEADER_BYTES

_VLAN_TYPES = (b"\x81\x00", b"\x88\xa8")

Frame = bytes | bytearray | memoryview


@runtime_checkable
class FrameDevice(Protocol):
    """The backend interface: anything that exchanges Ethernet frames with one network.

    `Tap` is one; a socket to a VMM, or a queue in a test, can be another.
    """

    @property
    def mac(self) -> str:
        """The device's own MAC, lower case with colons."""

    @property
    def mtu(self) -> int:
        """Bytes a frame may carry after its Ethernet header."""

    def send(self, frame: Frame, /) -> int:
        """Send one whole frame and return its bytes, or 0 if that would block now."""

    def recv(self) -> bytes:
        """Return one whole frame, or b"" if there is none now."""


def frame_bytes(frame: Frame) -> int:
    """A frame's length; raises `ConfigError` if it is shorter than an Ethernet header."""
    size = memoryview(frame).nbytes
    if size < ETHERNET_HEADER_BYTES:
        raise ConfigError(
            "frame", f"{size} bytes", f"an Ethernet frame has at least {ETHERNET_HEADER_BYTES}"
        )
    return size


def frame_limit(frame: Frame, mtu: int) -> int:
    """The most bytes this frame may have on a link of this MTU: a VLAN tag comes on top."""
    tagged = bytes(memoryview(frame).cast("B")[12:14]) in _VLAN_TYPES
    return mtu + ETHERNET_HEADER_BYTES + (VLAN_TAG_BYTES if tagged else 0)
