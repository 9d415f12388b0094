"""Where a worker finds what its siblings tell; the daemon opens it and keeps it (`siblings`)."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

#: Bytes asked of the kernel for an inbox: some thousand packets.
INBOX_BYTES = 1024 * 1024
#: linux asm-generic/socket.h
_SO_SNDBUFFORCE = 32


@dataclass(frozen=True, slots=True)
class Inbox:
    """Both ends of one worker's inbox: it reads, and all its siblings write."""

    reader: socket.socket
    writer: socket.socket

    @classmethod
    def open(cls) -> Self:
        """Open one; the daemon does, and closes it."""
        reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for each in (reader, writer):
            each.setblocking(False)
        with suppress(PermissionError):  # without the right to it there is room for less
            writer.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, INBOX_BYTES)
        return cls(reader, writer)

    def close(self) -> None:
        """Close both ends."""
        self.reader.close()
        self.writer.close()
