"""Two ends of a connection that follow one script, and what each of them observed.

A script is the same whatever lies between the ends: a cable, or guestnet. It waits for what must
come and never for a time, so that what was observed can be compared word for word.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import select
import socket
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator

from lab.waiting import PATIENCE_S

#: linux/sockios.h
SIOCATMARK = 0x8905
RESET = struct.pack("ii", 1, 0)
#: A sender that could not write for so long is blocked.
BLOCKED_S = 0.3


class End:
    """One end; what it does is done at once, what it waits for is written down."""

    def __init__(self, stream: socket.socket, who: str, script: list[str]) -> None:
        self.stream, self._who, self._script = stream, who, script
        stream.settimeout(PATIENCE_S)

    def note(self, what: str) -> None:
        """Write down what this end observed."""
        self._script.append(f"{self._who} {what}")

    # -- saying ----------------------------------------------------------------------------------

    def sends(self, data: bytes, flags: int = 0) -> None:
        try:
            self.stream.sendall(data, flags)
        except OSError as error:
            self.note(f"cannot send: {named(error)}")

    def sends_urgently(self, data: bytes) -> None:
        self.sends(data, socket.MSG_OOB)

    def shuts(self, how: int = socket.SHUT_WR) -> None:
        with self._noting("shut"):
            self.stream.shutdown(how)

    def closes(self) -> None:
        with self._noting("close"):
            self.stream.close()
        self.note("closed")

    def resets(self) -> None:
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.closes()

    def fills(self) -> bytes:
        """Send until nothing is taken any more; returns the digest of what was."""
        digest, number = hashlib.sha256(), 0
        self.stream.settimeout(BLOCKED_S)
        with contextlib.suppress(TimeoutError):
            while True:
                sent = self.stream.send(block := number.to_bytes(8, "big") * 4096)
                digest.update(block[:sent])
                number += 1
        self.stream.settimeout(PATIENCE_S)
        self.note("is blocked")
        return digest.digest()

    # -- hearing ---------------------------------------------------------------------------------

    def reads(self, count: int = sys.maxsize) -> None:
        """Read so many bytes, by default all until the end or an error."""
        found, how = b"", "read"
        try:
            while len(found) < count:
                data = self.stream.recv(min(count - len(found), 65536))
                if not data:
                    how = "read to the end"
                    break
                found += data
        except OSError as error:
            how = f"read until {named(error)}"
        self.note(f"{how} {shown(found)}")

    def reads_once(self) -> None:
        """One call, which stops before an urgent byte."""
        try:
            self.note(f"read once {shown(self.stream.recv(65536))}")
        except OSError as error:
            self.note(f"cannot read: {named(error)}")

    def reads_urgently(self) -> None:
        """Take the urgent byte out of the stream."""
        self.stream.setblocking(False)  # with a timeout Python would wait for ordinary bytes
        try:
            self.note(f"read urgently {shown(self.stream.recv(1, socket.MSG_OOB))}")
        except OSError as error:
            self.note(f"cannot read urgently: {named(error)}")
        self.stream.settimeout(PATIENCE_S)

    def reads_until_it_fails(self) -> None:
        """Read whatever there is, how much is no matter."""
        try:
            while self.stream.recv(1 << 18):
                pass
            self.note("read to the end")
        except OSError as error:
            self.note(f"read until {named(error)}")

    def digests(self) -> bytes:
        """Read to the end; returns the digest."""
        digest = hashlib.sha256()
        while data := self.stream.recv(1 << 18):
            digest.update(data)
        return digest.digest()

    def marks(self) -> None:
        """Whether the next byte is the urgent one."""
        answer = fcntl.ioctl(self.stream, SIOCATMARK, struct.pack("i", 0))
        self.note(f"at the mark: {struct.unpack('i', answer)[0]}")

    def awaits(self, events: int) -> None:
        """Wait for events of poll(2) that change nothing."""
        poll = select.poll()
        poll.register(self.stream, events)
        found = poll.poll(PATIENCE_S * 1000)
        self.note(f"polled {found[0][1] if found else 'nothing'}")

    def fails(self) -> None:
        """Wait until the connection has failed."""
        self.awaits(0)

    def has_all(self, count: int) -> None:
        """Wait until so many bytes are here, unread."""
        self.until(lambda: queued(self.stream, termios.FIONREAD) >= count)

    def is_acknowledged(self) -> None:
        """Wait until all that was sent has been received."""
        self.until(lambda: queued(self.stream, termios.TIOCOUTQ) == 0)

    def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            if time.monotonic() > deadline:
                self.note("waited in vain")
                return
            time.sleep(0.002)

    @contextlib.contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.note(f"cannot {what}: {named(error)}")


def queued(stream: socket.socket, which: int) -> int:
    """Bytes that wait in a socket."""
    return int(struct.unpack("i", fcntl.ioctl(stream, which, struct.pack("i", 0)))[0])


def named(error: OSError) -> str:
    if isinstance(error, TimeoutError) and error.errno is None:
        return "nothing came"
    return errno.errorcode.get(error.errno or 0, str(error))


def shown(data: bytes) -> str:
    return (
        repr(data) if len(data) < 100 else f"{len(data)} bytes {hashlib.sha256(data).hexdigest()}"
    )
