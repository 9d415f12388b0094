"""What a guest does to a network: honest knocks at doors, and frames that no honest guest sends.

Everything runs in the guest's namespace, from the test's own thread: `knock` tries many doors at
once and tells how each answered, `Wire` puts frames on the guest's interface byte by byte.

PYTEST_DONT_REWRITE: test modules import helpers from here before pytest loads its fixtures.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Self

from lab.netns import Namespace

Address = IPv4Address | IPv6Address

#: Long enough for an answer within one machine, short enough to wait for silence often.
SILENCE_S = 0.3
#: A busy machine's answers come late; where one is sure to come, this is the time it may take.
PATIENCE_S = 3.0
_ECHO_REQUEST = {4: 8, 6: 128}
_ECHO_REPLY = {4: 0, 6: 129}


# -- knocking --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Door:
    """One service of one address: tcp and udp with a port, icmp (echo) without."""

    protocol: str
    address: Address
    port: int | None = None

    def __str__(self) -> str:
        return f"{self.protocol} {self.address}" + (f" {self.port}" if self.port else "")

    @property
    def policy_protocol(self) -> str:
        """As the policy language calls it."""
        if self.protocol != "icmp":
            return self.protocol
        return "icmpv4" if self.address.version == 4 else "icmpv6"


class Answer(Enum):
    """How a door answered."""

    OPEN = "open"
    """A connection, the datagram's echo, or an echo reply."""
    REFUSED = "refused"
    """A reset, or an ICMP error in its place."""
    SILENT = "silent"
    """Nothing at all."""


@dataclass(frozen=True)
class Heard:
    """An answer, and how long it took."""

    answer: Answer
    after_s: float


def doors(
    addresses: Iterable[Address], *, tcp: int | None = 80, udp: int | None = 7, icmp: bool = True
) -> list[Door]:
    """The doors of the lab's servers at `addresses`; `None` leaves a protocol out."""
    found = []
    for address in addresses:
        if tcp is not None:
            found.append(Door("tcp", address, tcp))
        if udp is not None:
            found.append(Door("udp", address, udp))
        if icmp:
            found.append(Door("icmp", address))
    return found


def knock(
    namespace: Namespace,
    wanted: Iterable[Door],
    silence_s: float = SILENCE_S,
    tcp_silence_s: float = PATIENCE_S,
) -> dict[Door, Heard]:
    """Try all doors at once from a namespace. Silence is what remains after `silence_s`.

    TCP, which is either accepted or refused, is waited for longer, unless that is said not to be
    so. Returns as soon as all doors have answered.
    """
    with contextlib.ExitStack() as stack, namespace.enter():
        knocks = [stack.enter_context(_Knock(door)) for door in wanted]
        limits = {k: tcp_silence_s if k.door.protocol == "tcp" else silence_s for k in knocks}
        started = time.monotonic()
        for each in knocks:
            each.send()
        while waiting := {k.fileno(): k for k in knocks if k.answer is None}:
            left = started + max(limits[k] for k in waiting.values()) - time.monotonic()
            if left <= 0:
                break
            poll = select.poll()
            for each in waiting.values():
                poll.register(each, each.events)
            for descriptor, _ in poll.poll(left * 1000):
                waiting[descriptor].hear(time.monotonic() - started)
        return {k.door: Heard(k.answer or Answer.SILENT, k.after_s or limits[k]) for k in knocks}


def assert_open(namespace: Namespace, wanted: Iterable[Door]) -> None:
    """Every door opens."""
    wanted = list(wanted)
    heard = knock(namespace, wanted, PATIENCE_S)
    assert answers(heard) == all_of(wanted, Answer.OPEN)


def assert_none_open(namespace: Namespace, wanted: Iterable[Door]) -> None:
    """No door opens, however it says so."""
    heard = knock(namespace, wanted, tcp_silence_s=SILENCE_S)
    assert Answer.OPEN not in answers(heard).values(), answers(heard)


def answers(heard: Mapping[Door, Heard]) -> dict[str, Answer]:
    """By the doors' names, without times: what an assertion compares."""
    return {str(door): each.answer for door, each in heard.items()}


def all_of(wanted: Iterable[Door], answer: Answer) -> dict[str, Answer]:
    """One answer for each door, to compare with `answers`."""
    return {str(door): answer for door in wanted}


class _Knock:
    """One attempt at one door."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.answer: Answer | None = None
        self.after_s: float | None = None
        self._token = os.urandom(8)
        family = socket.AF_INET if door.address.version == 4 else socket.AF_INET6
        if door.protocol == "icmp":
            protocol = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
            self._socket = socket.socket(family, socket.SOCK_RAW, protocol)
        elif door.protocol == "udp":
            self._socket = socket.socket(family, socket.SOCK_DGRAM)
        else:
            self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def events(self) -> int:
        return select.POLLOUT if self.door.protocol == "tcp" else select.POLLIN

    def send(self) -> None:
        try:
            code = self._socket.connect_ex((str(self.door.address), self.door.port or 0))
            if code not in (0, errno.EINPROGRESS):
                return  # no way there: nothing is sent, so nothing will be heard
            if self.door.protocol == "udp":
                self._socket.send(self._token)
            elif self.door.protocol == "icmp":
                self._socket.send(echo_request(self.door.address.version, self._token))
        except OSError:
            return

    def hear(self, after_s: float) -> None:
        try:
            answer = self._hear()
        except BlockingIOError:
            return
        except OSError:
            answer = Answer.REFUSED
        if answer is not None:
            self.answer, self.after_s = answer, after_s

    def _hear(self) -> Answer | None:
        if self.door.protocol == "tcp":
            code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code == 0:
                return Answer.OPEN
            # The guest's own stack gave up looking for a neighbour: nobody said a word.
            return Answer.SILENT if code == errno.EHOSTUNREACH else Answer.REFUSED
        data = self._socket.recv(4096)
        if self.door.protocol == "udp":
            return Answer.OPEN if data == self._token else None
        version = self.door.address.version
        message = data[(data[0] & 15) * 4 :] if version == 4 else data
        is_reply = message[0] == _ECHO_REPLY[version] and message[8:] == self._token
        return Answer.OPEN if is_reply else None


def echo_request(version: int, payload: bytes) -> bytes:
    """An ICMP echo request (RFC 792, RFC 4443); the kernel sums up the IPv6 one."""
    # A number of its own, or it would belong to the flow of an earlier one.
    head = struct.pack("!BBHHH", _ECHO_REQUEST[version], 0, 0, secrets.randbelow(1 << 16), 1)
    if version == 6:
        return head + payload
    return head[:2] + struct.pack("!H", _checksum(head + payload)) + head[4:] + payload


def _checksum(data: bytes) -> int:
    """The ones' complement sum of RFC 1071; `data` has an even length."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


# -- frames ----------------------------------------------------------------------------------

#: Group addresses that a bridge never forwards (IEEE 802.1Q table 8-1): of them the bridge's own,
#: one that is nobody's, and the one of LLDP.
BRIDGE_GROUP, LINK_GROUP, LLDP_GROUP = "01:80:c2:00:00:00", "01:80:c2:00:00:03", "01:80:c2:00:00:0e"
BROADCAST = "ff:ff:ff:ff:ff:ff"


class Wire:
    """A raw socket on an interface of a namespace: whatever is sent leaves exactly so."""

    def __init__(self, namespace: Namespace, interface: str = "eth0") -> None:
        with namespace.enter():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC)
            try:
                self._socket.bind((interface, 0))
            except BaseException:
                self._socket.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, *frames: Any) -> None:
        """Send frames (scapy's packets or bytes), in order."""
        for frame in frames:
            self._socket.send(bytes(frame))


@contextlib.contextmanager
def flowing(namespace: Namespace, address: Address, path: str) -> Iterator[socket.socket]:
    """A download in progress: a connection from `namespace` whose request for `path` is sent."""
    with namespace.enter():
        stream = socket.create_connection((str(address), 80), timeout=5)
    with stream:
        stream.sendall(f"GET {path} HTTP/1.1\r\nHost: lab\r\n\r\n".encode())
        yield stream


def received(stream: socket.socket, during_s: float) -> int:
    """Bytes that come out of a stream in a while."""
    total, end = 0, time.monotonic() + during_s
    while (left := end - time.monotonic()) > 0:
        stream.settimeout(left)
        try:
            data = stream.recv(1 << 20)
        except TimeoutError:
            break
        if not data:
            break
        total += len(data)
    return total
