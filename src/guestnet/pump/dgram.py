"""A VMM's datagram socket: each datagram a frame, answers to whoever sent the last one.

vfkit and libkrun name their own socket anew each time they start, QEMU is told its name: all are
learnt from what they send. Some send `VFKT` first, so as to be known before they have a frame.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time

from ..frames.framing import FrameError
from .wire import Wire

GREETING = b"VFKT"
#: Datagrams carried one way before the other way has its turn.
BATCH = 64
#: How long one send may wait for a VMM whose queue is full: its readiness cannot be polled for on
#: a socket that is not connected, and a connected one would hear no other VMM.
PATIENCE_S = 0.005
#: A VMM that took nothing in all that time is asked again so much later.
STALLED_S = 0.02

_TIMEVAL = struct.Struct("@ll")


class DgramLink:
    """The bound socket, and the peer that spoke last."""

    def __init__(self, wire: Wire, bound: socket.socket) -> None:
        self._wire = wire
        self.socket = bound
        patience = _TIMEVAL.pack(0, int(PATIENCE_S * 1e6))
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        size = wire.rules.max_bytes + 1  # one byte more tells a frame that is too long
        self._in = memoryview(bytearray(size))
        self._out = memoryview(bytearray(size))
        self._in_bytes = 0
        self._out_bytes = 0
        self._retry_at = 0.0
        #: Address of the VMM's socket: a path, or bytes of an abstract name.
        self.peer: str | bytes = ""
        #: Why there is no peer any more.
        self.reason = ""

    @property
    def wants_to_write(self) -> bool:
        """A frame from the VMM waits until the TAP takes it."""
        return self._in_bytes > 0

    @property
    def stalled_until(self) -> float:
        """When the VMM is tried again that takes no frame now; 0 if it takes them."""
        return self._retry_at

    @property
    def peer_name(self) -> str:
        """The peer in words, whatever bytes it chose for its name."""
        text = os.fsencode(self.peer).decode("utf-8", "replace").replace("\0", "@")
        return "".join(each if each.isprintable() else "?" for each in text)

    def from_vmm(self) -> None:
        """Carry some of what the VMM sent to the TAP."""
        counts, rules, write = self._wire.counts, self._wire.rules, self._wire.write
        for _ in range(BATCH):
            if not self._in_bytes:
                try:
                    size, sender = self.socket.recvfrom_into(self._in, 0, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return
                if sender != self.peer:
                    self._learn(sender)
                if size == len(GREETING) and self._in[:size] == GREETING:
                    continue
                try:
                    rules.check_size(size)
                except FrameError:
                    counts.malformed += 1
                    continue
                self._in_bytes = size
            if not write(self._in[: self._in_bytes]):
                return
            self._in_bytes = 0

    def _learn(self, sender: str | bytes | None) -> None:
        """Answer this one from now on; one without a name cannot be answered."""
        if sender:
            if not self.peer:
                self._wire.drop_waiting(self._out, BATCH * BATCH)
            self.peer, self.reason = sender, ""
            self._wire.counts.connections += 1
            self._out_bytes, self._retry_at = 0, 0.0

    def to_vmm(self) -> None:
        """Carry some of what waits at the TAP to the VMM."""
        if self._retry_at > time.monotonic():
            return
        for _ in range(BATCH):
            if not self._out_bytes:
                self._out_bytes = self._wire.read(self._out)
                if not self._out_bytes:
                    return
            if not self._send(self._out[: self._out_bytes]):
                return
            self._out_bytes = 0

    def _send(self, frame: memoryview) -> bool:
        """Send a frame, waiting a little; False if it is to be tried again, or there is nobody."""
        flags = (socket.MSG_DONTWAIT, 0)
        # One that took nothing the last time is not waited for again.
        for flag in flags[:1] if self._retry_at else flags:
            try:
                self.socket.sendto(frame, flag, self.peer)
            except BlockingIOError:
                continue
            except OSError as error:
                self._lose(error)
                return False
            self._retry_at = 0.0
            return True
        self._retry_at = time.monotonic() + STALLED_S
        return False

    def _lose(self, error: OSError) -> None:
        """Forget the peer: it is gone, or cannot be answered."""
        words = error.strerror or str(error)
        if error.errno in (errno.EACCES, errno.EPERM):
            words += ": is it the socket of another user than the attachment's owner?"
        self.reason = f"sending to {self.peer_name}: {words}"
        self.peer = ""
        self._out_bytes, self._retry_at = 0, 0.0
