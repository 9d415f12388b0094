"""Many datagrams in one system call: recvmmsg(2) and sendmmsg(2), which Python does not have.

The kernel's structures (linux/socket.h) and all room for what comes and goes are made once. A call
then costs what one for a single datagram does.
"""

from __future__ import annotations

import array
import ctypes
import errno
import mmap
import os
import socket
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address
#: Control messages: (level, type, data).
Ancillary = list[tuple[int, int, bytes]]

#: Datagrams in one call.
SLOTS = 64
#: Room for one: an IPv6 header, UDP's, and the most that it may have in it; in whole cache lines.
_DATA_BYTES = 65 * 1024
#: Room for what is said about one: its destination, that it came in pieces, the size of segments.
_ANCILLARY_BYTES = 128
#: struct sockaddr_in, sockaddr_in6
NAME_BYTES = {4: 16, 6: 28}
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

#: struct mmsghdr: name and its length, iovec and their number, ancillary data and its length,
#: flags; then the datagram's length.
_HEADER = struct.Struct("@PIPNPNi0PI0P")
#: Of it what a call says anew: lengths of the ancillary data and of the datagram.
_SAID = struct.Struct(f"@{struct.calcsize('@PIPNP0N')}xNi0PI0P")
_IOVEC = struct.Struct("@PN")
#: struct cmsghdr: length with the header, level, type.
_ANCILLARY = struct.Struct("@Nii")
_WORD = struct.calcsize("@N")

_libc = ctypes.CDLL(None, use_errno=True)
_CALL = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
_recvmmsg, _sendmmsg = _libc.recvmmsg, _libc.sendmmsg
_recvmmsg.argtypes = (*_CALL, ctypes.c_void_p)
_sendmmsg.argtypes = _CALL


def socket_address(address: Address, port: int) -> bytes:
    """The struct sockaddr_in or sockaddr_in6 of an address."""
    family = struct.pack("@H", _FAMILIES[address.version]) + port.to_bytes(2, "big")
    if address.version == 4:
        return family + address.packed + bytes(8)
    return family + bytes(4) + address.packed + bytes(4)


def read_socket_address(raw: bytes) -> tuple[Address, int]:
    """The address and port in a struct sockaddr_in or sockaddr_in6, of which more may follow."""
    port = int.from_bytes(raw[2:4], "big")
    if raw[:2] == struct.pack("@H", socket.AF_INET):
        return IPv4Address(raw[4:8]), port
    return IPv6Address(raw[8:24]), port


def read_ancillary(raw: bytes) -> Ancillary:
    """The control messages in what the kernel puts (cmsg(3))."""
    found: Ancillary = []
    at = 0
    while at + _ANCILLARY.size <= len(raw):
        size, level, kind = _ANCILLARY.unpack_from(raw, at)
        found.append((level, kind, raw[at + _ANCILLARY.size : at + size]))
        at += max(size, _ANCILLARY.size) + _WORD - 1 & -_WORD
    return found


def ancillary(level: int, kind: int, data: bytes) -> bytes:
    """One control message as the kernel puts it."""
    size = _ANCILLARY.size + len(data)
    return _ANCILLARY.pack(size, level, kind) + data + bytes(-size % _WORD)


class Receiver:
    """Room for what sockets of one IP version get; what it gave is gone with the next call."""

    def __init__(self, version: int) -> None:
        name_bytes = NAME_BYTES[version]
        self._place_bytes = place_bytes = name_bytes + _ANCILLARY_BYTES
        self._name_bytes = name_bytes
        self._data = mmap.mmap(-1, SLOTS * _DATA_BYTES)
        self._slots = _cut(self._data)
        #: For each slot a name, and what is said after it; nothing of what was said before.
        self._places = bytearray(SLOTS * place_bytes)
        self._no_places = bytes(self._places)
        data, places = _address_of(self._data), _address_of(self._places)
        self._vectors = bytearray(
            b"".join(_IOVEC.pack(data + slot * _DATA_BYTES, _DATA_BYTES) for slot in range(SLOTS))
        )
        vectors = _address_of(self._vectors)
        self._blank = b"".join(
            _HEADER.pack(
                places + slot * place_bytes, name_bytes, vectors + slot * _IOVEC.size, 1,
                places + slot * place_bytes + name_bytes, _ANCILLARY_BYTES, 0, 0,
            )
            for slot in range(SLOTS)
        )  # fmt: skip
        self._headers = bytearray(self._blank)
        self._headers_at = _address_of(self._headers)

    def receive(self, fd: int) -> list[tuple[bytes, memoryview]]:
        """What waits, at most `SLOTS`: (where, data).

        `where` is the source's socket address, and then what the socket says in control messages.
        Fewer than `SLOTS` are all that waited. Raises `OSError`, but not if nothing waits.
        """
        count = _recvmmsg(fd, self._headers_at, SLOTS, socket.MSG_DONTWAIT, None)
        if count < 0:
            if (number := ctypes.get_errno()) == errno.EAGAIN:
                return []
            raise OSError(number, os.strerror(number))
        used, placed = count * _HEADER.size, count * self._place_bytes
        said = _SAID.iter_unpack(self._headers[:used])
        places = bytes(self._places[:placed])
        self._headers[:used] = self._blank[:used]
        self._places[:placed] = self._no_places[:placed]
        starts, before = range(0, placed, self._place_bytes), self._name_bytes
        return [
            (places[start : start + before + along], slot[:size])
            for slot, start, (along, _flags, size) in zip(self._slots, starts, said, strict=False)
        ]


class Sender:
    """Room for what one socket sends: each to an address, and with control messages, of its own."""

    def __init__(self, fd: int, version: int, ancillary_bytes: int = 0) -> None:
        name_bytes = NAME_BYTES[version]
        self._fd = fd
        self._count = 0
        self._data = mmap.mmap(-1, SLOTS * _DATA_BYTES)
        self._slots = _cut(self._data)
        self._place_bytes = place_bytes = name_bytes + ancillary_bytes
        self._places = bytearray(SLOTS * place_bytes)
        #: What is in the places, which is mostly what is wanted there once more.
        self._to = [bytes(place_bytes)] * SLOTS
        data, places = _address_of(self._data), _address_of(self._places)
        #: struct iovec of each: where, and how much.
        self._vectors = array.array("L")
        for slot in range(SLOTS):
            self._vectors.extend((data + slot * _DATA_BYTES, 0))
        vectors, _items = self._vectors.buffer_info()
        self._headers = bytearray(
            b"".join(
                _HEADER.pack(
                    places + slot * place_bytes, name_bytes, vectors + slot * _IOVEC.size, 1,
                    places + slot * place_bytes + name_bytes if ancillary_bytes else 0,
                    ancillary_bytes, 0, 0,
                )
                for slot in range(SLOTS)
            )
        )  # fmt: skip
        self._headers_at = _address_of(self._headers)

    def put(self, data: Sequence[bytes], to: bytes) -> int:
        """Have some sent by the next `flush`; returns for how many there was room.

        `to` is a socket address, and control messages after it.
        """
        first = self._count
        slots, vectors, known = self._slots, self._vectors, self._to
        for slot, each in enumerate(data[: SLOTS - first], first):
            size = vectors[2 * slot + 1] = len(each)
            slots[slot][:size] = each
            if known[slot] is not to:
                at = slot * self._place_bytes
                self._places[at : at + self._place_bytes] = to
                known[slot] = to
        self._count = min(SLOTS, first + len(data))
        return self._count - first

    def flush(self) -> list[tuple[int, bytes, bytes]]:
        """Send what was put; returns what could not be sent: (errno, data, to)."""
        failed = []
        first, count, self._count = 0, self._count, 0
        while first < count:
            at = self._headers_at + first * _HEADER.size
            sent = _sendmmsg(self._fd, at, count - first, socket.MSG_DONTWAIT)
            if sent > 0:
                first += sent
                continue
            data = bytes(self._slots[first][: self._vectors[2 * first + 1]])
            failed.append((ctypes.get_errno(), data, self._to[first]))
            first += 1
        return failed


def _cut(data: mmap.mmap) -> list[memoryview]:
    """The room of each slot."""
    whole = memoryview(data)
    return [whole[start : start + _DATA_BYTES] for start in range(0, len(whole), _DATA_BYTES)]


def _address_of(held: bytearray | mmap.mmap) -> int:
    """Where its bytes are; it can neither grow nor be closed from now on."""
    return ctypes.addressof(ctypes.c_char.from_buffer(held))
