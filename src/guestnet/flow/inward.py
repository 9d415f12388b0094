"""Packets to a guest in the name of somebody else: answers, and errors about what it sent.

Those with ICMP are whole, from the IP header on (RFC 791, 8200, 792, 4443), as a raw socket sends
it; the kernel fills in IPv4's checksum and identification (raw(7)). Datagrams begin with UDP's
header (RFC 768).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address

from .packets import HEAD_BYTES, ICMP, ICMP6, UDP, header, icmp

Address = IPv4Address | IPv6Address

#: Echo requests and replies: by IP version.
ECHO_REQUEST, ECHO_REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
#: (type, code) of "port unreachable", and of "fragmentation needed" or "packet too big".
PORT_UNREACHABLE = {4: (3, 3), 6: (1, 4)}
TOO_BIG = {4: (3, 4), 6: (2, 0)}
#: Of a datagram, what an error about it quotes; any host recognises its flow by that.
QUOTED_BYTES = 512
_FRAGMENT, _MORE = 44, 0x2000
_UDP = struct.Struct("!HHHH")


class Inward:
    """What a guest's flow looks like from the other end: `here` answers `guest`.

    Ports are those of UDP; for pings the guest's is the identifier, and the other is ignored.
    """

    __slots__ = (
        "_version", "guest", "guest_port", "here", "here_port",
    )  # fmt: skip

    def __init__(self, here: Address, here_port: int, guest: Address, guest_port: int) -> None:
        self.here, self.here_port = here, here_port
        self.guest, self.guest_port = guest, guest_port
        self._version = here.version

    def datagrams(self, payloads: Iterable[bytes | memoryview]) -> list[bytes]:
        """Answers to the guest's datagrams, from the UDP header on.

        Without a checksum. IPv6 wants one, which the kernel fills in; over IPv4 none is as good on
        a link within one machine.
        """
        made, size, head = [], -1, b""
        for payload in payloads:
            if len(payload) != size:
                size = len(payload)
                head = _UDP.pack(self.here_port, self.guest_port, 8 + size, 0)
            made.append(head + payload)
        return made

    def echo_reply(self, rest: bytes) -> bytes:
        """An answer to a ping; `rest` is what follows the identifier: sequence and payload."""
        kind = ECHO_REPLY[self._version]
        message = struct.pack("!BBHH", kind, 0, 0, self.guest_port) + rest
        return icmp(message, self.here, self.guest)

    def error(self, kind: int, code: int, info: int, quoted: bytes, *, echo: bool = False) -> bytes:
        """An ICMP error about what the guest sent; `info` is an MTU, or 0."""
        if echo:
            head = struct.pack("!BBHH", ECHO_REQUEST[self._version], 0, 0, self.guest_port)
            protocol = ICMP if self._version == 4 else ICMP6
        else:
            size = min(8 + len(quoted), 65535)
            head = _UDP.pack(self.guest_port, self.here_port, size, 0)
            protocol = UDP
        sent = head + quoted[:QUOTED_BYTES]
        about = header(protocol, len(sent), self.guest, self.here) + sent
        word = struct.pack("!I", info & (0xFFFF if self._version == 4 else 0xFFFFFFFF))
        message = struct.pack("!BBH", kind, code, 0) + word + about
        return icmp(message, self.here, self.guest)


def fragments(packet: bytes, size: int, number: int) -> Iterator[bytes]:
    """A packet in pieces of at most `size` bytes each, which bear the identification `number`."""
    version = packet[0] >> 4
    head, body = packet[: HEAD_BYTES[version]], packet[HEAD_BYTES[version] :]
    room = (size - len(head) - (8 if version == 6 else 0)) & ~7
    for start in range(0, len(body), room):
        part = body[start : start + room]
        more = start + room < len(body)
        if version == 4:
            place = start // 8 | (_MORE if more else 0)
            yield (
                head[:2]
                + struct.pack("!HHH", 20 + len(part), number & 0xFFFF, place)
                + head[8:]
                + part
            )
        else:
            place = start | more
            yield (
                head[:4]
                + struct.pack("!HB", 8 + len(part), _FRAGMENT)
                + head[7:]
                + struct.pack("!BBHI", head[6], 0, place, number & 0xFFFFFFFF)
                + part
            )


def read_echo_request(data: bytes, version: int) -> tuple[int, bytes] | None:
    """(identifier, sequence and payload) of an echo request; None for anything else."""
    if len(data) < 8 or data[0] != ECHO_REQUEST[version] or data[1] != 0:
        return None
    return int.from_bytes(data[4:6], "big"), data[6:]


def read_echo_reply(data: bytes, version: int) -> bytes | None:
    """Sequence and payload of an echo reply, as a ping socket gives it; None for anything else."""
    if len(data) < 8 or data[0] != ECHO_REPLY[version]:
        return None
    return data[6:]
