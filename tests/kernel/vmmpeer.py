"""A VMM played by the test: a namespace's own TCP/IP behind a TAP, whose wire is a VMM's socket.

PYTEST_DONT_REWRITE: test modules import helpers from here before pytest loads its fixtures.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
from pathlib import Path
from typing import Self

from guestnet.frames.transport import Kind, Transport
from guestnet.kernel.tap import Tap
from guestnet.model import Attachment
from lab.netns import Namespace
from lab.waiting import PATIENCE_S

_LENGTH = struct.Struct("!I")
_FRAME_MAX = 70_000


class Line:
    """A VMM's socket: whole frames, blocking for at most `timeout_s`."""

    def __init__(self, transport: Transport, *, greeting: bytes = b"") -> None:
        self.transport = transport
        self._rest = b""
        if transport.kind is Kind.DGRAM:
            self.own = f"{transport.path}.{os.urandom(2).hex()}"
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self.socket.bind(self.own)
            self.socket.connect(transport.path)
            if greeting:
                self.socket.send(greeting)
        elif transport.kind is Kind.STREAM_CLIENT:
            with socket.socket(socket.AF_UNIX) as listener:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(transport.path)
                listener.bind(transport.path)
                listener.listen(1)
                listener.settimeout(PATIENCE_S)
                self.socket, _ = listener.accept()
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(transport.path)
        self.socket.settimeout(PATIENCE_S)

    @classmethod
    def of(cls, connected: socket.socket) -> Self:
        """The same on a stream socket that is there already."""
        made = cls.__new__(cls)
        made.transport, made._rest, made.socket = Transport(Kind.STREAM, "/"), b"", connected
        connected.settimeout(PATIENCE_S)
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()
        if self.transport.kind is Kind.DGRAM:
            Path(self.own).unlink(missing_ok=True)
        if self.transport.kind is Kind.STREAM_CLIENT:
            Path(self.transport.path).unlink(missing_ok=True)

    def send(self, *frames: bytes) -> None:
        """Send frames, in one go where that can be."""
        if self.transport.kind is Kind.DGRAM:
            for frame in frames:
                self.socket.send(frame)
        else:
            self.socket.sendall(b"".join(_LENGTH.pack(len(f)) + f for f in frames))

    def receive(self) -> list[bytes]:
        """The frames that came since; waits for the first. Empty: the other end hung up."""
        if self.transport.kind is Kind.DGRAM:
            return [self.socket.recv(_FRAME_MAX)]
        while True:
            data = self.socket.recv(1 << 20)
            if not data:
                return []
            found, self._rest = _split(self._rest + data)
            if found:
                return found

    def drain(self, quiet_s: float = 0.5) -> int:
        """Read all that waits, until it is quiet; returns how many frames that was."""
        count = 0
        while select.select([self.socket], [], [], quiet_s)[0]:
            count += len(self.receive())
        return count

    def hung_up(self) -> bool:
        """Whether the other end closes; what comes before that is thrown away."""
        with contextlib.suppress(ConnectionError):
            while self.socket.recv(1 << 20):
                pass
        return True


def _split(data: bytes) -> tuple[list[bytes], bytes]:
    found = []
    while len(data) >= 4:
        (size,) = _LENGTH.unpack_from(data)
        if len(data) < 4 + size:
            break
        found.append(data[4 : 4 + size])
        data = data[4 + size :]
    return found, data


class Vmm:
    """Carries frames between a TAP in a guest's namespace and a VMM's socket, in threads."""

    def __init__(self, namespace: Namespace, attachment: Attachment, line: Line) -> None:
        self.line = line
        self._stopping = False
        #: Bytes of the largest frame that came, its header included.
        self.largest = 0
        with namespace.enter():
            self._tap = Tap.open(
                "eth0", mac=attachment.mac, mtu=attachment.mtu, vnet_hdr=line.transport.vnet_hdr
            )
            self._tap.bring_up()
            for address in (attachment.ipv4, attachment.ipv6):
                if address is not None:
                    self._tap.set_ip(address)
        namespace.ip(
            f"route add default via {attachment.gateway_ipv4} dev eth0",
            f"route add default via {attachment.gateway_ipv6} dev eth0",
        )
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._outwards, self._inwards)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the VM."""
        self._stopping = True
        for thread in self._threads:
            thread.join()
        self._tap.close()
        self.line.close()

    def _outwards(self) -> None:
        fd = self._tap.queues[0]
        while not self._stopping:
            if not select.select([fd], [], [], 0.1)[0]:
                continue
            frames: list[bytes] = []
            with contextlib.suppress(BlockingIOError):
                while len(frames) < 64:
                    frames.append(os.read(fd, _FRAME_MAX))
            with contextlib.suppress(OSError):
                self.line.send(*frames)

    def _inwards(self) -> None:
        fd = self._tap.queues[0]
        while not self._stopping:
            if not select.select([self.line.socket], [], [], 0.1)[0]:
                continue
            try:
                frames = self.line.receive()
            except OSError:
                return
            if not frames:
                return
            for frame in frames:
                self.largest = max(self.largest, len(frame))
                os.write(fd, frame)
