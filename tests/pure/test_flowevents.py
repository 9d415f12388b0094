"""What is read of a packet that a guest wrote and a rule refused: four fields, or nothing."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestnet.kernel.flowevents import RefusedPacket, read_flow, read_ipv4, read_ipv6, read_refusal
from guestnet.kernel.netlink import attribute

GUEST4, PEER4 = IPv4Address("172.16.0.2"), IPv4Address("93.184.216.34")
GUEST6, PEER6 = IPv6Address("fd42:6d73:62::2"), IPv6Address("2606:2800:220:1::34")
PORTS = struct.pack("!HH", 40000, 443)
TCP, UDP, ICMP, FRAGMENT = 6, 17, 1, 44


def ipv4(protocol: int = TCP, rest: bytes = PORTS, *, words: int = 5, fragment: int = 0) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, 0, 0, fragment, 64, protocol, 0)
    return head + GUEST4.packed + PEER4.packed + bytes(4 * (words - 5)) + rest


def ipv6(protocol: int = TCP, rest: bytes = PORTS) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(rest), protocol, 64)
    return head + GUEST6.packed + PEER6.packed + rest


def logged(packet: bytes, ethertype: int) -> bytes:
    return (
        bytes(4)
        + attribute(1, struct.pack("!HBx", ethertype, 2))
        + attribute(10, b"egress\0")
        + attribute(9, packet)
    )


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("words", [5, 6, 15])
def test_the_port_follows_the_header_however_long(protocol: int, words: int) -> None:
    assert read_ipv4(ipv4(protocol, words=words)) == (GUEST4, PEER4, protocol, 443)


def test_the_same_of_ipv6() -> None:
    assert read_ipv6(ipv6(UDP)) == (GUEST6, PEER6, UDP, 443)


@pytest.mark.parametrize(
    "packet",
    [ipv4(ICMP), ipv4(rest=b""), ipv4(rest=PORTS[:3]), ipv4(fragment=1), ipv4(fragment=0x3FFF)],
    ids=["no ports", "cut off", "cut in two", "fragment", "fragment with more"],
)
def test_where_there_is_no_port_it_is_0(packet: bytes) -> None:
    found = read_ipv4(packet)
    assert found is not None
    assert found[3] == 0


def test_the_first_fragment_has_its_port() -> None:
    assert read_ipv4(ipv4(fragment=0x2000)) == (GUEST4, PEER4, TCP, 443)


def test_extension_headers_are_not_looked_behind() -> None:
    assert read_ipv6(ipv6(FRAGMENT, bytes([TCP, 0, 0, 0]) + PORTS)) == (GUEST6, PEER6, FRAGMENT, 0)


def test_a_header_that_says_it_is_shorter_than_a_header() -> None:
    assert read_ipv4(b"\x44" + ipv4()[1:]) == (GUEST4, PEER4, TCP, 0)


@given(packet=st.binary(max_size=80))
def test_of_anything_else_nothing(packet: bytes) -> None:
    for read, version, size in ((read_ipv4, 4, 20), (read_ipv6, 6, 40)):
        is_one = len(packet) >= size and packet[0] >> 4 == version
        assert (read(packet) is not None) == is_one


def test_a_logged_packet() -> None:
    expected = RefusedPacket("egress", 0, 0x86DD, GUEST6, PEER6, TCP, 443)
    assert read_refusal(4 << 8, logged(ipv6(), 0x86DD)) == expected
    assert read_refusal(4 << 8, logged(b"\xff" * 60, 0x0806)) == RefusedPacket("egress", 0, 0x0806)


@given(packet=st.binary(max_size=80), ethertype=st.sampled_from([0x0800, 0x86DD, 0x0806]))
def test_whatever_is_logged_can_be_read(packet: bytes, ethertype: int) -> None:
    found = read_refusal(4 << 8, logged(packet, ethertype))
    assert found is not None
    assert 0 <= found.port <= 0xFFFF


def test_other_messages_are_none() -> None:
    assert read_refusal(4 << 8 | 1, logged(ipv4(), 0x0800)) is None
    assert read_flow(1 << 8 | 1, bytes(4)) is None
    assert read_flow(1 << 8, bytes(4)) is None
