"""The ioctls of a TAP and its interface: their numbers, their structs, and the one call.

Numbers and flags: linux/if_tun.h and linux/sockios.h. Structs: `struct ifreq` of linux/if.h, see
netdevice(7). Every ioctl on a TAP goes through `by_pointer` or `by_value`, so that errors are
translated in one place, and tests can make any one of them fail.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from enum import IntEnum, IntFlag
from typing import Final

from ...errors import HostError

#: Most architectures encode "the caller writes" as 1 << 30 (asm-generic/ioctl.h); these as 4 << 29.
_OLD_ENCODING = os.uname().machine.startswith(("alpha", "mips", "ppc", "sparc"))
_WRITE = 4 << 29 if _OLD_ENCODING else 1 << 30
_READ = 2 << 29 if _OLD_ENCODING else 2 << 30
_TUN = ord("T") << 8
_INT_BYTES = 4 << 16


def _set(number: int) -> int:
    return _WRITE | _INT_BYTES | _TUN | number


def _get(number: int) -> int:
    return _READ | _INT_BYTES | _TUN | number


class Ioctl(IntEnum):
    """Requests by their kernel name, which errors show."""

    TUNSETIFF = _set(202)
    TUNSETPERSIST = _set(203)
    TUNSETOWNER = _set(204)
    TUNSETGROUP = _set(206)
    TUNSETOFFLOAD = _set(208)
    TUNGETIFF = _get(210)
    TUNSETVNETHDRSZ = _set(216)
    TUNSETQUEUE = _set(217)
    TUNSETVNETLE = _set(220)
    SIOCGIFFLAGS = 0x8913
    SIOCSIFFLAGS = 0x8914
    SIOCGIFMTU = 0x8921
    SIOCSIFMTU = 0x8922
    SIOCSIFHWADDR = 0x8924
    SIOCGIFHWADDR = 0x8927
    SIOCGIFINDEX = 0x8933


class TunFlag(IntFlag):
    """`ifr_flags` of TUNSETIFF, TUNGETIFF and TUNSETQUEUE (IFF_* of linux/if_tun.h)."""

    TAP = 0x0002
    MULTI_QUEUE = 0x0100
    ATTACH_QUEUE = 0x0200
    DETACH_QUEUE = 0x0400
    #: Read only: the device outlives its last descriptor.
    PERSIST = 0x0800
    #: Frames come bare, without `struct tun_pi`.
    NO_PI = 0x1000
    VNET_HDR = 0x4000
    #: Create, or fail with EBUSY when the name is taken by anything.
    EXCL = 0x8000


class Offload(IntFlag):
    """What the reader of a TAP can finish itself, so that the kernel need not (TUN_F_*).

    TSO and USO mean nothing without CSUM, and the kernel takes USO only as a pair.
    """

    NONE = 0
    #: Transport checksums may be left out.
    CSUM = 0x01
    #: TCP over IPv4 may come as one frame of up to 64 KiB.
    TSO4 = 0x02
    #: The same over IPv6.
    TSO6 = 0x04
    #: UDP over IPv4 may come uncut (kernel 6.2 and later).
    USO4 = 0x20
    #: The same over IPv6.
    USO6 = 0x40


#: What every supported kernel offers.
OFFLOAD_DEFAULT: Final = Offload.CSUM | Offload.TSO4 | Offload.TSO6

IFF_UP: Final = 0x1
ARPHRD_ETHER: Final = 1

# struct ifreq: 16 bytes of name, then a union of 24 (16 on 32-bit machines, where less is read).
_FLAGS = struct.Struct("=16sH22x")
_INT = struct.Struct("=16si20x")
_HARDWARE = struct.Struct("=16sH6s16x")
_C_INT = struct.Struct("=i")


def pack_flags(name: str, flags: int) -> bytes:
    """An ifreq with `ifr_flags`."""
    return _FLAGS.pack(name.encode(), flags)


def unpack_flags(data: bytes) -> tuple[str, int]:
    """Name and `ifr_flags`, of the kernel's answer."""
    name, flags = _FLAGS.unpack(data)
    return _text(name), flags


def pack_int(name: str, value: int = 0) -> bytes:
    """An ifreq with `ifr_mtu` or `ifr_ifindex`."""
    return _INT.pack(name.encode(), value)


def unpack_int(data: bytes) -> int:
    """`ifr_mtu` or `ifr_ifindex`."""
    return int(_INT.unpack(data)[1])


def pack_mac(name: str, mac: str) -> bytes:
    """An ifreq with `ifr_hwaddr`; `mac` is text with colons."""
    return _HARDWARE.pack(name.encode(), ARPHRD_ETHER, bytes.fromhex(mac.replace(":", "")))


def unpack_mac(data: bytes) -> str:
    """`ifr_hwaddr` as text with colons."""
    return str(_HARDWARE.unpack(data)[2].hex(":"))


def pack_c_int(value: int) -> bytes:
    """A bare `int`, as TUNSETVNETHDRSZ and TUNSETVNETLE take it."""
    return _C_INT.pack(value)


def by_pointer(fd: int, request: Ioctl, data: bytes, target: str, detail: str = "") -> bytes:
    """Make an ioctl whose argument is a struct, and return the struct as the kernel left it.

    `target` is the object for the error's text, `detail` what to do about it. Raises `HostError`.
    """
    try:
        return fcntl.ioctl(fd, request, data)
    except OSError as error:
        raise refused(request.name, target, error, detail) from None


def by_value(fd: int, request: Ioctl, value: int, target: str, detail: str = "") -> None:
    """Make an ioctl whose argument is the number itself, of 32 bits. Raises `HostError`."""
    # Python passes a C int; the kernel reads the upper half of uids and gids from the same bits.
    signed = value - (1 << 32) if value >= 1 << 31 else value
    try:
        fcntl.ioctl(fd, request, signed)
    except OSError as error:
        raise refused(request.name, target, error, detail) from None


def refused(call: str, target: str, error: OSError, detail: str = "") -> HostError:
    """An error of a TAP's descriptor; that the interface is gone matters more than `detail`."""
    if error.errno == errno.EBADFD:
        detail = "the interface was deleted: open a new Tap"
    return HostError.from_os(call, target, error, detail)


def _text(name: bytes) -> str:
    return name.partition(b"\0")[0].decode("utf-8", "replace")
