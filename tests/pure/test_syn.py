"""A guest's SYN: read within its bounds, sent on bare, and refused so that the guest knows it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestnet.flow.syn import Syn, read_syn
from guestnet.kernel.netlink import attribute
from guestnet.kernel.packetlog import LOGGED, PAYLOAD, packets

Address = IPv4Address | IPv6Address

VERSIONS = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
GUEST: dict[int, Address] = {4: IPv4Address("172.16.0.2"), 6: IPv6Address("fd42:6d73:62::2")}
PEER: dict[int, Address] = {
    4: IPv4Address("93.184.216.34"),
    6: IPv6Address("2606:2800:220:1::34"),
}
GUEST_PORT, PORT, NUMBER = 40000, 443, 0x89ABCDEF
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
#: What Linux sends: MSS 1460, SACK, timestamps, window scale 7.
OPTIONS = bytes.fromhex("020405b4 0402 080a 00112233 00000000 01 030307")
TCP, ICMP, ICMP6, HOP_BY_HOP, FRAGMENT = 6, 1, 58, 0, 44
#: RFC 2113 and 791.
ROUTER_ALERT, LOOSE_ROUTE = bytes.fromhex("94040000"), bytes.fromhex("830704 97650145 00")


def summed(data: bytes) -> int:
    """RFC 1071, word by word: 0xFFFF where a checksum within is right."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo(source: bytes, destination: bytes, protocol: int, size: int) -> bytes:
    return source + destination + struct.pack("!II", size, protocol)


def segment(
    options: bytes = OPTIONS, data: bytes = b"", flags: int = SYN, check: int = 0xBEEF
) -> bytes:
    """A TCP header with whatever checksum, and data."""
    words = (20 + len(options)) // 4
    head = struct.pack(
        "!HHIIBBHHH", GUEST_PORT, PORT, NUMBER, 0, words << 4, flags, 64240, check, 0
    )
    return head + options + data


def packet(
    version: int, payload: bytes, *, protocol: int = TCP, options: bytes = b"", tos: int = 0
) -> bytes:
    """An IP packet from the guest; IPv6 has a flow label besides."""
    source, destination = GUEST[version].packed, PEER[version].packed
    if version == 6:
        first = 6 << 28 | tos << 20 | 0x12345
        return (
            struct.pack("!IHBB", first, len(payload), protocol, 63) + source + destination + payload
        )
    size = 20 + len(options) + len(payload)
    words = 0x40 | (20 + len(options)) // 4
    head = struct.pack("!BBHHHBB", words, tos, size, 0x1234, 0x4000, 63, protocol)
    check = 0xFFFF ^ summed(head + source + destination + options)
    return head + struct.pack("!H", check) + source + destination + options + payload


@dataclass(frozen=True)
class Opened:
    """A packet as who gets it reads it: all sums and sizes are right."""

    source: Address
    destination: Address
    protocol: int
    head: bytes
    payload: bytes


def opened(data: bytes) -> Opened:
    at = (data[0] & 15) * 4 if data[0] >> 4 == 4 else 40
    source: Address
    destination: Address
    if data[0] >> 4 == 4:
        assert summed(data[:at]) == 0xFFFF
        assert int.from_bytes(data[2:4], "big") == len(data)
        source, destination, protocol = IPv4Address(data[12:16]), IPv4Address(data[16:20]), data[9]
    else:
        assert int.from_bytes(data[4:6], "big") == len(data) - 40
        source, destination, protocol = IPv6Address(data[8:24]), IPv6Address(data[24:40]), data[6]
    before = b""
    if protocol != ICMP:
        before = pseudo(source.packed, destination.packed, protocol, len(data) - at)
    assert summed(before + data[at:]) == 0xFFFF
    return Opened(source, destination, protocol, data[:at], data[at:])


def read(data: bytes) -> Syn:
    found = read_syn(data)
    assert found is not None
    return found


# -- what is read ------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("options", [b"", OPTIONS, bytes([1]) * 40], ids=["none", "Linux", "all"])
def test_a_syn_is_read_and_its_options_go_on(version: int, options: bytes) -> None:
    syn = read(packet(version, segment(options)))
    assert (syn.guest, syn.guest_port) == (str(GUEST[version]), GUEST_PORT)
    assert (syn.address, syn.port, syn.number) == (PEER[version], PORT, NUMBER)
    sent = opened(syn.packet)
    assert (sent.source, sent.destination) == (GUEST[version], PEER[version])
    assert sent.payload[20:] == options
    (check,) = struct.unpack_from("!H", sent.payload, 16)
    assert sent.payload == segment(options, check=check)


@VERSIONS
def test_what_the_header_says_besides_goes_on(version: int) -> None:
    whole = packet(version, segment(), tos=0xB8)
    head = opened(read(whole).packet).head
    assert head == whole[: len(head)]  # its size and sum as well, as nothing was cut off


@VERSIONS
@pytest.mark.parametrize("ecn", range(4))
def test_the_class_is_without_the_connection_s_own_bits(version: int, ecn: int) -> None:
    assert read(packet(version, segment(), tos=0xB8 | ecn)).service_class == 0xB8


@VERSIONS
def test_a_sum_that_is_left_to_a_card_is_completed(version: int) -> None:
    """Linux leaves that of the pseudo header alone (CHECKSUM_PARTIAL)."""
    ends = GUEST[version].packed, PEER[version].packed
    partial = summed(pseudo(*ends, TCP, len(segment())))
    sent = read(packet(version, segment(check=partial))).packet
    whole = read(packet(version, segment())).packet
    assert sent == whole
    opened(sent)


@VERSIONS
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_data_is_cut_off(version: int, size: int) -> None:
    """As of TCP Fast Open (RFC 7413): the guest sends it again."""
    bare, more = packet(version, segment()), packet(version, segment(data=bytes(range(250)) * 4))
    assert read(more[: len(bare) + size]).packet == read(bare).packet


@pytest.mark.parametrize("options", [ROUTER_ALERT, LOOSE_ROUTE, bytes([1]) * 40])
def test_options_of_ipv4_are_cut_off(options: bytes) -> None:
    """By them a guest could have the host send it elsewhere than to the door."""
    assert read(packet(4, segment(), options=options)).packet == read(packet(4, segment())).packet


@VERSIONS
def test_bytes_behind_the_packet_are_no_part_of_it(version: int) -> None:
    whole = packet(version, segment())
    assert (
        read(whole + b"behind").packet
        == whole[: -len(segment())] + opened(read(whole).packet).payload
    )


@VERSIONS
def test_what_repeats_it_has_the_same_ends(version: int) -> None:
    first = packet(version, segment())
    at = len(first) - len(segment())
    again = first[: at + 4] + struct.pack("!I", 7) + first[at + 8 :]
    assert read(again).ends == read(first).ends
    assert read(again).number == 7
    for changed in (at, at + 2, at - 1):  # the guest's port, the other's, and its address
        other = first[:changed] + bytes([first[changed] ^ 1]) + first[changed + 1 :]
        assert read(other).ends != read(first).ends


@VERSIONS
@pytest.mark.parametrize("more", [0, ECE | CWR, PSH, URG, 0xEA])
def test_flags_that_do_not_concern_it(version: int, more: int) -> None:
    """With ECN's it asks for that (RFC 3168)."""
    assert opened(read(packet(version, segment(flags=SYN | more))).packet).payload[13] == SYN | more


# -- what is none ------------------------------------------------------------------------------


@VERSIONS
def test_no_other_flags_are_a_request(version: int) -> None:
    for flags in range(256):
        found = read_syn(packet(version, segment(flags=flags)))
        assert (found is not None) == (flags & (FIN | SYN | RST | ACK) == SYN)


@VERSIONS
def test_cut_short_it_is_none(version: int) -> None:
    whole = packet(version, segment(data=b"data"))
    bare = len(whole) - 4
    for size in range(len(whole) + 1):
        assert (read_syn(whole[:size]) is not None) == (size >= bare)


@VERSIONS
@pytest.mark.parametrize("words", range(16))
def test_a_header_says_how_long_it_is(version: int, words: int) -> None:
    said = bytearray(segment(bytes([1]) * 40))
    said[12] = words << 4
    found = read_syn(packet(version, bytes(said)))
    assert (found is not None) == (words >= 5)
    if found is not None:
        assert len(opened(found.packet).payload) == words * 4


@pytest.mark.parametrize("fragment", [1, 0x1FFF, 0x2000, 0x2001, 0x6000, 0x3FFF])
def test_a_fragment_of_ipv4_is_none(fragment: int) -> None:
    whole = packet(4, segment())
    assert read_syn(whole[:6] + struct.pack("!H", fragment) + whole[8:]) is None


@pytest.mark.parametrize("flags", [0, 0x4000, 0x8000])
def test_what_is_no_fragment_is_read(flags: int) -> None:
    whole = packet(4, segment())
    assert read_syn(whole[:6] + struct.pack("!H", flags) + whole[8:])


@pytest.mark.parametrize("kind", [HOP_BY_HOP, FRAGMENT, 43, 60, 51])
def test_extension_headers_of_ipv6_are_not_read(kind: int) -> None:
    extension = bytes([TCP, 0, 1, 4, 0, 0, 0, 0])
    assert read_syn(packet(6, extension + segment(), protocol=kind)) is None


@VERSIONS
@pytest.mark.parametrize("protocol", [0, 1, 17, 58, 255])
def test_another_protocol_is_none(version: int, protocol: int) -> None:
    assert read_syn(packet(version, segment(), protocol=protocol)) is None


@pytest.mark.parametrize("first", [0x00, 0x15, 0x35, 0x55, 0x75, 0xF5])
def test_another_version_of_ip_is_none(first: int) -> None:
    for version in (4, 6):
        assert read_syn(bytes([first]) + packet(version, segment())[1:]) is None


@pytest.mark.parametrize("words", range(5))
def test_a_header_of_ipv4_that_is_too_short(words: int) -> None:
    assert read_syn(bytes([0x40 | words]) + packet(4, segment())[1:]) is None


# -- whatever comes ----------------------------------------------------------------------------


def assert_sound(data: bytes) -> None:
    """None, or something that can be sent on and answered."""
    syn = read_syn(data)
    if syn is None:
        return
    assert len(syn.packet) <= len(data)
    sent = opened(syn.packet)
    assert (str(sent.source), sent.destination, sent.protocol) == (syn.guest, syn.address, TCP)
    assert struct.unpack_from("!HHI", sent.payload) == (syn.guest_port, syn.port, syn.number)
    assert sent.payload[13] & (FIN | SYN | RST | ACK) == SYN
    for answer in (syn.reset(), syn.error(3, 1)):
        assert (opened(answer).source, str(opened(answer).destination)) == (syn.address, syn.guest)


@given(st.binary(max_size=130))
def test_chance(data: bytes) -> None:
    assert_sound(data)


def test_whatever_is_changed_in_a_good_one() -> None:
    random = Random(20)
    good = [packet(version, segment(data=b"data")) for version in (4, 6)]
    good.append(packet(4, segment(), options=ROUTER_ALERT))
    for _ in range(20_000):
        data = bytearray(random.choice(good))
        for _ in range(random.randrange(4)):
            data[random.randrange(len(data))] = random.randrange(256)
        assert_sound(bytes(data[: random.choice([len(data), random.randrange(len(data) + 1)])]))


# -- what is answered --------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("number", [0, NUMBER, 0xFFFFFFFE, 0xFFFFFFFF])
def test_a_reset_acknowledges_the_request(version: int, number: int) -> None:
    """RFC 9293 section 3.10.7.1."""
    whole = packet(version, segment(data=b"not counted: it was not taken"))
    at = len(whole) - len(segment(data=b"not counted: it was not taken"))
    syn = read(whole[: at + 4] + struct.pack("!I", number) + whole[at + 8 :])
    sent = opened(syn.reset())
    assert (sent.source, sent.destination, sent.protocol) == (PEER[version], GUEST[version], TCP)
    ports = PORT, GUEST_PORT
    fields = struct.unpack("!HHIIBBHHH", sent.payload)
    assert fields[:7] == (*ports, 0, (number + 1) % 2**32, 5 << 4, RST | ACK, 0)
    assert fields[8] == 0


@VERSIONS
@pytest.mark.parametrize(("kind", "code"), [(3, 1), (3, 13), (1, 0), (1, 3)])
def test_an_error_holds_the_request(version: int, kind: int, code: int) -> None:
    syn = read(packet(version, segment()))
    sent = opened(syn.error(kind, code))
    protocol = ICMP if version == 4 else ICMP6
    assert (sent.source, sent.destination, sent.protocol) == (
        PEER[version],
        GUEST[version],
        protocol,
    )
    assert sent.payload[:2] == bytes([kind, code])
    assert sent.payload[4:8] == bytes(4)
    assert sent.payload[8:] == syn.packet


# -- how they are logged -----------------------------------------------------------------------


def message(*attributes: bytes, kind: int = LOGGED, length: int | None = None) -> bytes:
    """One message of nfnetlink_log's."""
    body = bytes(4) + b"".join(attributes)
    whole = struct.pack("=IHHII", 16 + len(body) if length is None else length, kind, 0, 0, 0)
    return whole + body


SAID = attribute(1, bytes(4)) + attribute(PAYLOAD, b"packet") + attribute(10, b"knock\0")


def test_each_message_s_packet_comes_out() -> None:
    assert list(packets(message(SAID))) == [b"packet"]
    assert list(packets(message(SAID) * 3)) == [b"packet"] * 3
    other = message(attribute(PAYLOAD, b"no packet"), kind=3)
    assert list(packets(other + message(SAID))) == [b"packet"]


def test_a_packet_of_no_bytes_is_no_syn() -> None:
    assert [read_syn(each) for each in packets(message(attribute(PAYLOAD, b"")))] == [None]


@pytest.mark.parametrize("length", [0, 1, 16, 19])
def test_a_message_shorter_than_its_header_ends_it(length: int) -> None:
    assert list(packets(message(SAID, length=length) + message(SAID))) == []


@pytest.mark.parametrize("length", [1 << 10, 1 << 31, (1 << 32) - 1])
def test_a_message_longer_than_what_came_is_read_to_its_end(length: int) -> None:
    assert list(packets(message(SAID, length=length))) == [b"packet"]


@pytest.mark.parametrize("size", [0, 1, 3])
def test_an_attribute_shorter_than_its_header_is_stepped_over(size: int) -> None:
    short = struct.pack("=HH", size, 7)
    assert list(packets(message(short, SAID))) == [b"packet"]
    assert list(packets(message(struct.pack("=HH", size, PAYLOAD), SAID))) == [b"", b"packet"]


def test_an_attribute_longer_than_its_message_takes_nothing_of_the_next() -> None:
    long = message(struct.pack("=HH", 4096, PAYLOAD) + b"packet12")
    first, second = packets(long + message(SAID))
    assert first == b"packet12"
    assert second == b"packet"


def test_cut_short_at_any_place() -> None:
    whole = message(SAID) * 2
    for size in range(len(whole)):
        assert all(b"packet".startswith(each) for each in packets(whole[:size]))


@given(st.binary(max_size=200))
def test_chance_ends(data: bytes) -> None:
    assert sum(map(len, packets(data))) <= len(data)
    for each in packets(struct.pack("=IH", len(data) + 6, LOGGED) + data):
        assert_sound(each)
