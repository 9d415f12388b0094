"""The virtio-net header that precedes every frame of a TAP opened with `vnet_hdr`.

It carries what an Ethernet frame cannot: that a checksum is still to be computed, and that one
"frame" is really many segments which the receiver's hardware, or kernel, cuts. Layout and meaning:
linux/virtio_net.h `struct virtio_net_hdr_mrg_rxbuf`, virtio 1.3 section 5.1.6. Pure: no I/O.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from ..errors import GuestnetError

#: The modern header: always with `num_buffers`, always little-endian.
HEADER_BYTES = 12

_LAYOUT = struct.Struct("<BBHHHHH")
_LIMITS = {
    "flags": 0xFF,
    "gso_type": 0xFF,
    "hdr_len": 0xFFFF,
    "gso_size": 0xFFFF,
    "csum_start": 0xFFFF,
    "csum_offset": 0xFFFF,
    "num_buffers": 0xFFFF,
}
_CHECKSUM_BYTES = 2


class HeaderFlag(IntFlag):
    """Bits of `VirtioNetHeader.flags` (VIRTIO_NET_HDR_F_*)."""

    #: The checksum at `csum_start + csum_offset` is still to be computed.
    NEEDS_CSUM = 1
    #: The sender vouches for the checksum.
    DATA_VALID = 2
    #: `csum_start` and `csum_offset` hold receive-segment counts instead.
    RSC_INFO = 4


class Gso(IntEnum):
    """Values of `VirtioNetHeader.gso_type` without its ECN bit (VIRTIO_NET_HDR_GSO_*)."""

    NONE = 0
    TCPV4 = 1
    UDP = 3
    TCPV6 = 4
    UDP_L4 = 5


#: Bit of `gso_type`: the TCP segments carry ECN.
GSO_ECN = 0x80


class VirtioHeaderError(GuestnetError, ValueError):
    """Bytes that are no virtio-net header, a field too wide, or a header unfit for its frame."""

    code = "virtio-header"


@dataclass(frozen=True, slots=True)
class VirtioNetHeader:
    """One header. The default is that of a plain, finished frame: all zero.

    Any byte values parse and survive `pack()` unchanged, unknown flags and segmentation types
    included: a device must ignore flags it does not know, and a relay must pass them on. Whether
    a header makes sense for a frame is a separate question, which `check()` answers strictly.
    Raises `VirtioHeaderError` when a field does not fit its width.
    """

    #: Bits of `HeaderFlag`; 8 bits.
    flags: int = 0
    #: One of `Gso`, plus `GSO_ECN`; 8 bits.
    gso_type: int = Gso.NONE
    #: Bytes of Ethernet, IP and transport header, a hint; 16 bits.
    hdr_len: int = 0
    #: Payload bytes of each segment; 0 when there is no segmentation; 16 bits.
    gso_size: int = 0
    #: Where checksumming begins, bytes from the frame's start; 16 bits.
    csum_start: int = 0
    #: Where the checksum is stored, bytes from `csum_start`; 16 bits.
    csum_offset: int = 0
    #: Receive buffers a frame was merged from; a TAP leaves 0 or 1; 16 bits.
    num_buffers: int = 0

    def __post_init__(self) -> None:
        for field, limit in _LIMITS.items():
            value = getattr(self, field)
            if not 0 <= value <= limit:
                raise VirtioHeaderError(f"{field}={value}: is 0 to {limit}")

    @property
    def needs_checksum(self) -> bool:
        """The frame's transport checksum is not there yet."""
        return bool(self.flags & HeaderFlag.NEEDS_CSUM)

    @property
    def is_gso(self) -> bool:
        """The frame is several segments in one."""
        return self.gso_type & ~GSO_ECN != Gso.NONE

    def pack(self) -> bytes:
        """Twelve bytes, little-endian."""
        return _LAYOUT.pack(
            self.flags,
            self.gso_type,
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
            self.num_buffers,
        )

    @classmethod
    def parse(cls, data: bytes) -> VirtioNetHeader:
        """Read exactly twelve bytes; raises `VirtioHeaderError` for any other number."""
        if len(data) != HEADER_BYTES:
            raise VirtioHeaderError(f"a header is {HEADER_BYTES} bytes, this has {len(data)}")
        return cls(*_LAYOUT.unpack(data))

    @classmethod
    def split(cls, data: bytes) -> tuple[VirtioNetHeader, bytes]:
        """Part a TAP's read into header and frame; raises `VirtioHeaderError` if cut short."""
        return cls.parse(data[:HEADER_BYTES]), data[HEADER_BYTES:]

    def check(self, frame_bytes: int) -> None:
        """Raise `VirtioHeaderError` unless a kernel can act on this header of such a frame.

        The kernel answers all of these with one EINVAL (tun_get_user(), virtio_net_hdr_to_skb()),
        and offsets past the frame's end have been its exploitable bugs; so they stop here, named.
        Unknown flags pass; an unknown segmentation type does not, for nobody could cut the frame.
        """
        if self.hdr_len > frame_bytes:
            raise VirtioHeaderError(f"hdr_len={self.hdr_len}: the frame has {frame_bytes} bytes")
        end = self.csum_start + self.csum_offset + _CHECKSUM_BYTES
        if self.needs_checksum and end > frame_bytes:
            raise VirtioHeaderError(
                f"csum_start={self.csum_start}, csum_offset={self.csum_offset}: "
                f"the checksum ends at {end}, the frame at {frame_bytes}"
            )
        self._check_segmentation()

    def _check_segmentation(self) -> None:
        kind = self.gso_type & ~GSO_ECN
        if kind not in tuple(Gso):
            raise VirtioHeaderError(f"gso_type={self.gso_type:#x}: no known segmentation")
        if self.gso_type & GSO_ECN and kind not in (Gso.TCPV4, Gso.TCPV6):
            raise VirtioHeaderError(f"gso_type={self.gso_type:#x}: only TCP segments carry ECN")
        if self.is_gso and not self.gso_size:
            raise VirtioHeaderError("gso_size=0: segments need a size")


#: What `Tap.send` puts before a frame that is complete as it is.
PLAIN = VirtioNetHeader()
