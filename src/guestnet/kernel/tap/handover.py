"""An open TAP from process to process: its queues' descriptors with one line of JSON.

The line and the descriptors (SCM_RIGHTS, unix(7)) are one message on a stream socket, which then
ends. Nothing is ever read from who receives them.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from ...errors import BusyError, GuestnetError, HostError
from ...model.terms import TAP_FD_QUEUES_MAX
from .. import descriptors

#: Bytes of the line: an error that names paths and processes.
LINE_MAX_BYTES = 8192
#: How long the other end may take to open the TAP.
PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class TapFacts:
    """What a VMM has to know of the TAP that it was handed."""

    tap: str
    #: The guest's MAC.
    mac: str
    mtu: int
    queues: int
    #: A 12-byte virtio-net header precedes each frame.
    vnet_hdr: bool
    #: What frames may leave unfinished: of csum, tso4, tso6, uso4, uso6.
    offload: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HandedTap:
    """An open TAP that another process handed over. Its descriptors do not block."""

    facts: TapFacts
    #: One for each queue; not inherited by programs unless that is asked for.
    fds: tuple[int, ...]

    def close(self) -> None:
        """Close the descriptors."""
        for each in self.fds:
            os.close(each)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def hand(connection: socket.socket, facts: TapFacts, fds: tuple[int, ...]) -> None:
    """Send an open TAP; the caller closes its own descriptors. Raises `OSError`."""
    text = json.dumps(asdict(facts)).encode() + b"\n"
    descriptors.send(connection, text, fds)


def refuse(connection: socket.socket, error: GuestnetError) -> None:
    """Send why there is no TAP. Raises `OSError`."""
    text = json.dumps({"error": str(error), "code": error.code}).encode()[: LINE_MAX_BYTES - 1]
    connection.send(text + b"\n", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def take(connection: socket.socket, source: str) -> HandedTap:
    """Receive an open TAP; `source` names the other end in errors.

    Raises `BusyError` when a process holds the TAP already, `HostError` for all else.
    """
    connection.settimeout(PATIENCE_S)
    try:
        text, fds = descriptors.receive(connection, LINE_MAX_BYTES, TAP_FD_QUEUES_MAX)
    except OSError as error:
        raise HostError.from_os("recvmsg", source, error) from None
    try:
        return HandedTap(_facts(text, len(fds), source), tuple(fds))
    except BaseException:
        for each in fds:
            os.close(each)
        raise


def receive_tap(path: str | Path) -> HandedTap:
    """Connect to an attachment's tap-fd socket and receive its open TAP.

    Raises `BusyError` when a process holds the TAP already, `HostError` for all else.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.settimeout(PATIENCE_S)
            connection.connect(str(path))
        except OSError as error:
            raise HostError.from_os("connect", str(path), error) from None
        return take(connection, str(path))


def _facts(text: bytes, fds: int, source: str) -> TapFacts:
    try:
        said: dict[str, Any] = json.loads(text)
        if "error" in said:
            if said.get("code") == BusyError.code:
                raise BusyError(source, "another process", str(said["error"]))
            raise HostError("receive", source, 0, str(said["error"]))
        facts = TapFacts(**{**said, "offload": tuple(said["offload"])})
    except (ValueError, TypeError, KeyError):
        raise HostError("receive", source, 0, "this is no handed TAP") from None
    if facts.queues != fds:
        raise HostError("receive", source, 0, f"{fds} descriptors for {facts.queues} queues")
    return facts
