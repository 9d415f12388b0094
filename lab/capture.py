"""What passed an interface: the proof that a packet left, or that none did.

An AF_PACKET socket rather than a tcpdump process: it sees everything from the moment `start()`
returns, and whatever was sent before `frames()` is called is already in its queue. There is nothing
to wait for at either end, so "nothing was seen" is an observation and not a race.
"""

from __future__ import annotations

import array
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from .netns import Namespace

#: Bytes of kernel memory for frames not read yet: some 40,000 small ones.
BUFFER_BYTES = 64 << 20
#: A GSO frame is at most 64 KiB plus its headers; longer BIG TCP frames are cut.
FRAME_MAX_BYTES = 1 << 17

# linux/if_ether.h, linux/if_packet.h, asm-generic/socket.h
_ETH_P_ALL = 0x0003
_SOL_PACKET, _PACKET_STATISTICS, _PACKET_AUXDATA = 263, 6, 8
_PACKET_OUTGOING = 4
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_TP_STATUS_VLAN_VALID, _TP_STATUS_VLAN_TPID_VALID = 0x10, 0x40
_AUXDATA = struct.Struct("=IIIHHHH")  # status, len, snaplen, mac, net, vlan_tci, vlan_tpid


class CaptureError(RuntimeError):
    """Frames were lost, or the filter cannot be compiled: nothing can be concluded."""


@dataclass(frozen=True)
class Frame:
    """One Ethernet frame as it stood on the wire, with its VLAN tag if it had one."""

    data: bytes
    #: Sent by the interface's own side, rather than received.
    outgoing: bool


class Capture:
    """Collect the frames of `interface` in `namespace` that match a pcap-filter(7) expression.

    The kernel lifts VLAN tags off before filters run, so an expression cannot ask for them; the
    frames have them.
    """

    def __init__(self, namespace: Namespace, interface: str, expression: str = "") -> None:
        self.namespace = namespace
        self.interface = interface
        self.expression = expression
        self._frames: list[Frame] = []
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Capture from here on."""
        program = _compile(self.expression)
        with self.namespace.enter():
            # Protocol 0 receives nothing: no frame slips in before the filter stands.
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
            try:
                sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)
                sock.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
                if program:
                    _attach(sock, program)
                sock.bind((self.interface, _ETH_P_ALL))
                sock.setblocking(False)
            except BaseException:
                sock.close()
                raise
        self._socket = sock
        return self

    def stop(self) -> None:
        """Read what is there and end; the frames stay readable."""
        if self._socket is not None:
            try:
                self._drain(self._socket)
            finally:
                self._socket.close()
                self._socket = None

    def frames(self) -> list[Frame]:
        """Every frame so far; raises `CaptureError` if any was lost."""
        if self._socket is not None:
            self._drain(self._socket)
        return list(self._frames)

    def packets(self) -> list[Any]:
        """Every frame so far, as scapy's `Ether`."""
        # Half a second, so only for those who ask; inet and inet6 teach `Ether` what it carries.
        from scapy.layers import inet, inet6, l2  # noqa: F401

        return [l2.Ether(frame.data) for frame in self.frames()]

    def lines(self) -> list[str]:
        """Every frame so far, in tcpdump's words, without times or names."""
        result = subprocess.run(
            ["tcpdump", "-entr", "-"], input=self.pcap(), capture_output=True, check=True
        )
        return result.stdout.decode(errors="replace").splitlines()

    def pcap(self) -> bytes:
        """Every frame so far as a capture file (draft-ietf-opsawg-pcap); times are zero."""
        out = bytearray(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, FRAME_MAX_BYTES, 1))
        for frame in self.frames():
            out += struct.pack("=IIII", 0, 0, len(frame.data), len(frame.data)) + frame.data
        return bytes(out)

    def wait_for(self, wanted: Callable[[Any], bool], timeout_s: float = 5.0) -> Any:
        """The first packet that `wanted` (of a scapy packet) accepts; raises `TimeoutError`."""
        deadline = time.monotonic() + timeout_s
        while True:
            for packet in self.packets():
                if wanted(packet):
                    return packet
            if time.monotonic() > deadline:
                seen = "\n".join(self.lines()) or "nothing"
                raise TimeoutError(f"not seen on {self.interface} in {timeout_s} s; seen: {seen}")
            time.sleep(0.01)

    def _drain(self, sock: socket.socket) -> None:
        while True:
            try:
                data, ancillary, _, address = sock.recvmsg(FRAME_MAX_BYTES, 64)
            except BlockingIOError:
                break
            self._frames.append(Frame(_with_tag(data, ancillary), address[2] == _PACKET_OUTGOING))
        statistics = sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        lost = struct.unpack("=II", statistics)[1]
        if lost:
            raise CaptureError(f"{lost} frames lost on {self.interface}: narrow the filter")


def _with_tag(data: bytes, ancillary: list[tuple[int, int, bytes]]) -> bytes:
    """Put back the VLAN tag that the kernel reports beside the frame (packet(7))."""
    for level, kind, value in ancillary:
        if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA) and len(value) >= _AUXDATA.size:
            status, _, _, _, _, tci, tpid = _AUXDATA.unpack_from(value)
            if status & _TP_STATUS_VLAN_VALID:
                kind_of_tag = tpid if status & _TP_STATUS_VLAN_TPID_VALID else 0x8100
                return data[:12] + struct.pack("!HH", kind_of_tag, tci) + data[12:]
    return data


def _compile(expression: str) -> list[tuple[int, int, int, int]]:
    """A pcap-filter(7) expression as classic BPF instructions; none for the empty one."""
    if not expression:
        return []
    result = subprocess.run(
        ["tcpdump", "-y", "EN10MB", "-s", str(FRAME_MAX_BYTES), "-ddd", expression],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise CaptureError(f"filter {expression!r}: {result.stderr.strip()}")
    rows = (line.split() for line in result.stdout.splitlines()[1:])
    return [(int(code), int(yes), int(no), int(k)) for code, yes, no, k in rows]


def _attach(sock: socket.socket, program: list[tuple[int, int, int, int]]) -> None:
    """SO_ATTACH_FILTER takes a struct sock_fprog: a length and a pointer (linux/filter.h)."""
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    memory = array.array("B", packed)
    address, _ = memory.buffer_info()
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), address))
