"""Packets that are written to guests: read back by another hand, and their checksums summed up."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestnet.flow.inward import (
    PORT_UNREACHABLE,
    QUOTED_BYTES,
    TOO_BIG,
    Inward,
    fragments,
    read_echo_reply,
    read_echo_request,
)

Address = IPv4Address | IPv6Address

ports = st.integers(1, 65535)
payloads = st.binary(max_size=70)
VERSIONS = pytest.mark.parametrize("version", [4, 6])
ends = {
    4: st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)),
    6: st.tuples(st.ip_addresses(v=6), st.ip_addresses(v=6)),
}


def summed(data: bytes) -> int:
    """RFC 1071, word by word: 0xFFFF where a checksum within is right."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def opened(packet: bytes) -> tuple[Address, Address, int, bytes]:
    """(source, destination, protocol, payload) of a packet without options."""
    if packet[0] >> 4 == 4:
        assert packet[10:12] == bytes(2) or summed(packet[:20]) == 0xFFFF  # the kernel fills it in
        assert int.from_bytes(packet[2:4], "big") == len(packet)
        return IPv4Address(packet[12:16]), IPv4Address(packet[16:20]), packet[9], packet[20:]
    assert int.from_bytes(packet[4:6], "big") == len(packet) - 40
    return IPv6Address(packet[8:24]), IPv6Address(packet[24:40]), packet[6], packet[40:]


def pseudo(source: Address, destination: Address, protocol: int, size: int) -> bytes:
    return source.packed + destination.packed + struct.pack("!II", size, protocol)


@VERSIONS
@given(data=st.data(), here_port=ports, guest_port=ports, some=st.lists(payloads, max_size=5))
def test_datagrams(
    version: int, data: st.DataObject, here_port: int, guest_port: int, some: list[bytes]
) -> None:
    here, guest = data.draw(ends[version])
    made = Inward(here, here_port, guest, guest_port).datagrams(map(memoryview, some))
    heads = [struct.unpack("!HHHH", each[:8]) for each in made]
    assert heads == [(here_port, guest_port, 8 + len(each), 0) for each in some]
    assert [each[8:] for each in made] == some


@VERSIONS
@given(data=st.data(), number=ports, rest=payloads)
def test_an_echo_reply(version: int, data: st.DataObject, number: int, rest: bytes) -> None:
    here, guest = data.draw(ends[version])
    packet = Inward(here, 0, guest, number).echo_reply(rest)
    source, destination, protocol, body = opened(packet)
    assert (source, destination, protocol) == (here, guest, 1 if version == 4 else 58)
    assert summed((pseudo(here, guest, 58, len(body)) if version == 6 else b"") + body) == 0xFFFF
    assert body[:2] == bytes([0 if version == 4 else 129, 0])
    assert body[4:] == number.to_bytes(2, "big") + rest


@VERSIONS
@pytest.mark.parametrize("echo", [False, True], ids=["datagram", "ping"])
@pytest.mark.parametrize("what", [PORT_UNREACHABLE, TOO_BIG], ids=["port", "size"])
@given(data=st.data(), port=ports, number=ports, quoted=st.binary(max_size=QUOTED_BYTES + 9))
def test_an_error(
    version: int,
    echo: bool,
    what: dict[int, tuple[int, int]],
    data: st.DataObject,
    port: int,
    number: int,
    quoted: bytes,
) -> None:
    here, guest = data.draw(ends[version])
    packet = Inward(here, port, guest, number).error(*what[version], 1280, quoted, echo=echo)
    source, destination, _protocol, body = opened(packet)
    assert (source, destination) == (here, guest)
    assert summed((pseudo(here, guest, 58, len(body)) if version == 6 else b"") + body) == 0xFFFF
    assert tuple(body[:2]) == what[version]
    assert int.from_bytes(body[4:8], "big") == 1280
    sent_by, sent_to, protocol, about = opened(body[8:])
    assert (sent_by, sent_to) == (guest, here)
    if echo:
        assert protocol == (1 if version == 4 else 58)
        assert about[4:6] == number.to_bytes(2, "big")
        assert about[6:] == quoted[:QUOTED_BYTES]
    else:
        assert protocol == 17
        assert struct.unpack("!HH", about[:4]) == (number, port)
        assert about[8:] == quoted[:QUOTED_BYTES]


@VERSIONS
@given(size=st.integers(600, 3000), payload=st.binary(min_size=1, max_size=9000))
def test_pieces_make_the_whole(version: int, size: int, payload: bytes) -> None:
    here: Address = IPv4Address("192.0.2.1") if version == 4 else IPv6Address("2001:db8::1")
    guest: Address = IPv4Address("192.0.2.2") if version == 4 else IPv6Address("2001:db8::2")
    packet = Inward(here, 7, guest, 9).echo_reply(payload)
    head = 20 if version == 4 else 40
    whole = bytearray(len(packet) - head)
    lasts = []
    for piece in fragments(packet, size, 77):
        assert len(piece) <= size
        if version == 4:
            field, body = int.from_bytes(piece[6:8], "big"), piece[20:]
            assert int.from_bytes(piece[4:6], "big") == 77
            start, more = (field & 0x1FFF) * 8, bool(field & 0x2000)
        else:
            assert piece[6] == 44
            assert piece[40] == 58
            assert int.from_bytes(piece[44:48], "big") == 77
            field, body = int.from_bytes(piece[42:44], "big"), piece[48:]
            start, more = field & ~7, bool(field & 1)
        assert len(body) % 8 == 0 or not more
        whole[start : start + len(body)] = body
        lasts.append(not more)
    assert lasts == [False] * (len(lasts) - 1) + [True]
    assert bytes(whole) == packet[head:]


@VERSIONS
@given(data=st.binary(max_size=40))
def test_what_is_no_echo_is_not_read(version: int, data: bytes) -> None:
    request, reply = {4: (8, 0), 6: (128, 129)}[version]
    asked = read_echo_request(data, version)
    assert (asked is not None) == (len(data) >= 8 and data[0] == request and data[1] == 0)
    answered = read_echo_reply(data, version)
    assert (answered is not None) == (len(data) >= 8 and data[0] == reply)
    if asked is not None:
        assert asked == (int.from_bytes(data[4:6], "big"), data[6:])
