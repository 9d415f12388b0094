"""Netlink messages and the socket that carries them (RFC 3549, linux/netlink.h).

Written out rather than taken from a library because an attach is a handful of these: packed by hand
they cost tens of microseconds, and a batch of them is one system call.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import HostError

NLM_F_REQUEST = 0x001
NLM_F_ACK = 0x004
NLM_F_DUMP_INTR = 0x010
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_DUMP = 0x300

NLMSG_NOOP = 1
NLMSG_ERROR = 2
NLMSG_DONE = 3

NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12
SOL_NETLINK = 270
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12
SO_RCVBUFFORCE = 33

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_INT = struct.Struct("=i")
_U32 = struct.Struct("=I")
NLMSGERR_ATTR_MSG = 1
NLM_F_ACK_TLVS = 0x200

#: A dump fills the buffer it is given; the kernel caps one datagram of it at 32 KiB.
_RECEIVE_BYTES = 64 * 1024
#: Room for the acknowledgements of the longest batch; without it ENOBUFS would lose an error.
_SOCKET_BUFFER_BYTES = 4 * 1024 * 1024
#: An answer may wait for the RTNL lock while thousands of devices are deleted.
_ANSWER_TIMEOUT_S = 60
#: A busy machine may change all the time; after so many tries a dump is taken as it is.
_DUMP_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Message:
    """One request: `call` and `target` are for the error, should the kernel refuse it."""

    kind: int
    flags: int
    body: bytes
    call: str
    target: str
    #: errno values that mean "already so"; they are not failures.
    tolerate: tuple[int, ...] = ()


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to 4 bytes."""
    length = 4 + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + b"\0" * (-length % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def u8(kind: int, value: int) -> bytes:
    """An 8-bit attribute."""
    return attribute(kind, struct.pack("=B", value))


def u32(kind: int, value: int) -> bytes:
    """A 32-bit attribute in the host's byte order."""
    return attribute(kind, struct.pack("=I", value))


def be32(kind: int, value: int) -> bytes:
    """A 32-bit attribute in network byte order."""
    return attribute(kind, struct.pack("!I", value))


def text(kind: int, value: str) -> bytes:
    """A zero-terminated string attribute."""
    return attribute(kind, value.encode() + b"\0")


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Attributes by type, the last of a repeated one; ValueError if one is cut short."""
    found: dict[int, bytes] = {}
    for kind, payload in attribute_list(data, offset):
        found[kind] = payload
    return found


def attribute_list(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Attributes in order, as (type without flags, payload)."""
    end = len(data)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            raise ValueError(f"netlink attribute of {length} bytes at {offset} of {end}")
        yield kind & NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def zero_terminated(payload: bytes) -> str:
    """The text of a string attribute."""
    return payload.split(b"\0", 1)[0].decode(errors="replace")


def read_u32(payload: bytes | None) -> int:
    """The value of a 32-bit attribute in the host's byte order; 0 where it is absent."""
    return int(_U32.unpack_from(payload)[0]) if payload else 0


class NetlinkSocket:
    """A netlink socket in the namespace of the thread that makes it. Not thread-safe."""

    def __init__(self, protocol: int) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        except OSError as error:
            raise HostError.from_os("socket(AF_NETLINK)", str(protocol), error) from None
        try:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
            if protocol == NETLINK_ROUTE:
                self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
            self._enlarge_buffers()
            self._socket.bind((0, 0))
        except OSError as error:
            self._socket.close()
            raise HostError.from_os("bind(AF_NETLINK)", str(protocol), error) from None
        self._sequence = 0

    def _enlarge_buffers(self) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _SOCKET_BUFFER_BYTES)
        except PermissionError:  # without CAP_NET_ADMIN in the first user namespace
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER_BYTES)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
        # The kernel answers at once or not at all; better an error than a hang.
        self._socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", _ANSWER_TIMEOUT_S, 0)
        )

    def close(self) -> None:
        """Give the descriptor back; a second call does nothing."""
        self._socket.close()

    def detach(self) -> socket.socket:
        """The socket itself, to be read without waiting; this object is closed."""
        self._socket.setblocking(False)
        return socket.socket(fileno=self._socket.detach())

    def __enter__(self) -> NetlinkSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(self, messages: Sequence[Message]) -> None:
        """Send all in one system call and wait until the kernel has done them.

        Raises the first refusal that its message does not tolerate. rtnetlink carries on after a
        refused message, so the caller undoes; a netfilter batch is undone by the kernel.
        """
        if not messages:
            return
        first = self._sequence + 1
        packed = []
        for position, message in enumerate(messages):
            last = position == len(messages) - 1
            packed.append(self._pack(message, NLM_F_ACK if last else 0))
        self._send(b"".join(packed), messages[0])
        self._await_last(messages, first, first, first + len(messages) - 1)

    def batch(self, begin: Message, messages: Sequence[Message], end: Message) -> None:
        """A netfilter transaction: all of `messages` or none of them."""
        if not messages:
            return
        packed = [self._pack(begin, 0)]
        first = self._sequence + 1
        packed += [self._pack(m, NLM_F_ACK if m is messages[-1] else 0) for m in messages]
        packed.append(self._pack(end, 0))
        self._send(b"".join(packed), messages[0])
        # The begin and end messages have errors of their own.
        self._await_last(messages, first, first - 1, first + len(messages))

    def ask(self, message: Message) -> tuple[int, bytes]:
        """One question with one answer; returns (message type, body)."""
        self._send(self._pack(message, 0), message)
        sequence = self._sequence
        while True:
            for kind, _flags, found, body in self._receive(message):
                if found != sequence:
                    continue
                if kind == NLMSG_ERROR:
                    _raise_unless_ok(message, body, 0)
                return kind, body

    def dump(self, message: Message) -> list[tuple[int, bytes]]:
        """All answers to a dump request, as (message type, body).

        What changed while it was read is read once more; after that it is taken as it is.
        """
        for _attempt in range(_DUMP_ATTEMPTS):
            answers, interrupted = self._dump_once(message)
            if not interrupted:
                break
        return answers

    def _dump_once(self, message: Message) -> tuple[list[tuple[int, bytes]], bool]:
        self._send(self._pack(message, NLM_F_DUMP), message)
        sequence = self._sequence
        answers: list[tuple[int, bytes]] = []
        interrupted = False
        while True:
            for kind, flags, found, body in self._receive(message):
                if found != sequence:
                    continue
                interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
                if kind == NLMSG_DONE:
                    if len(body) >= 4 and _INT.unpack_from(body)[0] < 0:
                        _raise_unless_ok(message, body, flags)
                    return answers, interrupted
                if kind == NLMSG_ERROR:
                    _raise_unless_ok(message, body, flags)
                    return answers, interrupted
                answers.append((kind, body))

    def _pack(self, message: Message, flags: int) -> bytes:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        body = message.body
        return (
            _HEADER.pack(
                16 + len(body),
                message.kind,
                message.flags | flags | NLM_F_REQUEST,
                self._sequence,
                0,
            )
            + body
            + b"\0" * (-len(body) % 4)
        )

    def _send(self, data: bytes, message: Message) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise HostError.from_os(message.call, message.target, error) from None

    def _await_last(
        self, messages: Sequence[Message], first: int, lowest: int, highest: int
    ) -> None:
        """Read until the last message is answered; the last always is, errors of others before.

        Answers outside `lowest`–`highest` are those of an earlier request that was given up.
        """
        last = first + len(messages) - 1
        failure: HostError | None = None
        while True:
            for kind, flags, sequence, body in self._receive(messages[-1]):
                if kind != NLMSG_ERROR or not lowest <= sequence <= highest:
                    continue
                position = min(max(sequence - first, 0), len(messages) - 1)
                try:
                    _raise_unless_ok(messages[position], body, flags)
                except HostError as error:
                    failure = failure or error
                    # A refused batch is answered message by message; the begin or end
                    # message's own error says there will be no more.
                    if not first <= sequence <= last:
                        raise failure from None
                if sequence == last:
                    if failure is not None:
                        raise failure
                    return

    def _receive(self, message: Message) -> Iterator[tuple[int, int, int, bytes]]:
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except OSError as error:
            raise HostError.from_os(message.call, message.target, error) from None
        offset = 0
        while offset + 16 <= len(data):
            length, kind, flags, sequence, _pid = _HEADER.unpack_from(data, offset)
            if length < 16:
                raise HostError(message.call, message.target, errno.EBADMSG)
            yield kind, flags, sequence, data[offset + 16 : offset + length]
            offset += (length + 3) & ~3


def _raise_unless_ok(message: Message, body: bytes, flags: int) -> None:
    """An NLMSG_ERROR (or a failed NLMSG_DONE) as `HostError`, with the kernel's own words."""
    code = -_INT.unpack_from(body)[0]
    if code == 0 or code in message.tolerate:
        return
    detail = ""
    if flags & NLM_F_ACK_TLVS and len(body) >= 20:
        # The refused request is echoed (whole, unless capped) before the extended attributes.
        echoed = _HEADER.unpack_from(body, 4)[0] if not flags & 0x100 else 16
        try:
            found = attributes(body, 4 + ((echoed + 3) & ~3))
        except ValueError:
            found = {}
        detail = zero_terminated(found.get(NLMSGERR_ATTR_MSG, b""))
    if code == errno.EPERM and not detail:
        detail = "needs root, or CAP_NET_ADMIN in this network namespace; --rootless needs neither"
    raise HostError(message.call, message.target, code, detail)
