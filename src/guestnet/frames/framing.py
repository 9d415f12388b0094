"""Frames in a stream: each behind its length, and what a length may be.

The framing is QEMU's (`-netdev stream`, net/stream.c), which passt and libkrun speak too: four
bytes, big-endian, then so many bytes of frame, in which a virtio-net header is counted.
"""

from __future__ import annotations

import struct

from ..errors import GuestnetError
from . import virtio
from .virtio import VirtioHeaderError, VirtioNetHeader

#: Destination, source, type (IEEE 802.3).
ETHERNET_HEADER_BYTES = 14
#: IEEE 802.1Q; the MTU does not count it.
VLAN_TAG_BYTES = 4
#: The longest frame a kernel hands out or takes: a full IPv6 packet, segmentation pending.
FRAME_BYTES_MAX = ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES + 40 + 65535

LENGTH = struct.Struct("!I")
#: Bytes read at once. Several times the longest frame, so that most are read many at a time.
READ_BYTES = 256 * 1024
#: First two bytes of a header that asks for nothing: no flag, no segmentation.
_FINISHED = b"\0\0"


class FrameError(GuestnetError, ValueError):
    """Bytes from a VMM that are no frame, or a length that no frame has."""

    code = "frame"


class FrameRules:
    """What a frame on one link may be: `mtu` bytes of payload, with or without virtio header."""

    def __init__(self, mtu: int, *, vnet_hdr: bool) -> None:
        header = virtio.HEADER_BYTES if vnet_hdr else 0
        self.vnet_hdr = vnet_hdr
        #: A finished frame; one that is to be segmented may be longer.
        self._finished_max = header + mtu + ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES
        self.min_bytes = header + ETHERNET_HEADER_BYTES
        self.max_bytes = header + FRAME_BYTES_MAX if vnet_hdr else self._finished_max

    def check_size(self, size: int) -> None:
        """Raise `FrameError` for a length that no frame on this link has."""
        if not self.min_bytes <= size <= self.max_bytes:
            raise FrameError(
                f"a frame of {size} bytes: on this link it is {self.min_bytes} to {self.max_bytes}"
            )

    def check_header(self, frame: memoryview) -> None:
        """Raise `FrameError` if a frame's virtio header does not fit it; without one, do nothing.

        The offsets in it are what a kernel acts on.
        """
        if not self.vnet_hdr:
            return
        is_gso = False
        if frame[:2] != _FINISHED:
            header, size = virtio.HEADER_BYTES, len(frame)
            try:
                said = VirtioNetHeader.parse(bytes(frame[:header]))
                said.check(size - header)
            except VirtioHeaderError as error:
                raise FrameError(f"virtio header: {error}") from None
            is_gso = said.is_gso
        if len(frame) > self._finished_max and not is_gso:
            raise FrameError(f"a frame of {len(frame)} bytes that is not to be segmented")


class StreamReader:
    """Cuts a stream into frames. Memory is one buffer, however the bytes come.

        count = socket.recv_into(reader.room())
        reader.filled(count)
        for frame in reader.frames(): …      # valid until the next room()

    A length that cannot be raises `FrameError`, after the frames before it were given out.
    """

    def __init__(self, rules: FrameRules) -> None:
        self._rules = rules
        self._buffer = memoryview(bytearray(max(READ_BYTES, LENGTH.size + rules.max_bytes)))
        self._begin = 0
        self._end = 0

    def room(self) -> memoryview:
        """Where the next bytes go; never empty. Frames given out before are gone."""
        rest = self._end - self._begin
        if self._begin:
            # At most one frame, which is incomplete.
            self._buffer[:rest] = bytes(self._buffer[self._begin : self._end])
            self._begin, self._end = 0, rest
        return self._buffer[rest:]

    def filled(self, count: int) -> None:
        """Take note that so many bytes were put where `room` said."""
        self._end += count

    def frames(self) -> list[memoryview]:
        """The frames that are complete, in order."""
        found: list[memoryview] = []
        begin, end, buffer = self._begin, self._end, self._buffer
        while end - begin >= LENGTH.size:
            (size,) = LENGTH.unpack_from(buffer, begin)
            try:
                self._rules.check_size(size)
            except FrameError:
                if found:
                    break  # these first; the next call comes here again
                raise
            stop = begin + LENGTH.size + size
            if stop > end:
                break
            found.append(buffer[begin + LENGTH.size : stop])
            begin = stop
        self._begin = begin
        return found

    def end(self) -> None:
        """Take note that the stream ended; raises `FrameError` in the middle of a frame."""
        left = self._end - self._begin
        if left:
            raise FrameError(f"the stream ended {left} bytes into a frame")
