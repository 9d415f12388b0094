"""The TAP's end inside a pump, and what is counted there."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from ..frames.framing import FrameError, FrameRules


class TapGoneError(Exception):
    """The TAP was deleted: another descriptor is needed, or none."""


@dataclass(slots=True)
class Counts:
    """Since the process began."""

    #: Connections, or peers that a datagram socket had.
    connections: int = 0
    #: Frames that were none, or that the link does not carry.
    malformed: int = 0
    #: Frames from the VMM that the TAP did not take: it was down, or refused their header.
    refused: int = 0

    @property
    def values(self) -> tuple[int, int, int]:
        """All of them, to compare."""
        return self.connections, self.malformed, self.refused


class Wire:
    """A non-blocking descriptor of a TAP's queue, with what frames on it may be."""

    def __init__(self, tap: int, rules: FrameRules, counts: Counts) -> None:
        self.fd = tap
        self.rules = rules
        self.counts = counts

    def read(self, room: memoryview) -> int:
        """Read one frame into `room`; 0 if none waits. Raises `TapGoneError`."""
        try:
            return os.readv(self.fd, [room])
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise TapGoneError from None
            return 0  # down: nothing comes until it is up

    def write(self, frame: memoryview) -> bool:
        """Hand a frame to the kernel, or drop and count it; False if it must be tried again."""
        if self.rules.vnet_hdr:
            try:
                self.rules.check_header(frame)
            except FrameError:
                self.counts.malformed += 1
                return True
        try:
            os.write(self.fd, frame)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise TapGoneError from None
            self.counts.refused += 1
        return True

    def drop_waiting(self, room: memoryview, most: int) -> None:
        """Drop up to `most` frames that wait: they were for a VMM that is gone."""
        for _ in range(most):
            if not self.read(room):
                return
