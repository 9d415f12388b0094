"""Frames through a TAP: the test plays the guest, the kernel's own stack is the other side."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import threading
import time

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, ICMPv6ND_NA, ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from guestnet.errors import ConfigError, HostError
from guestnet.frames.virtio import Gso, HeaderFlag, VirtioHeaderError, VirtioNetHeader
from guestnet.kernel.tap import Offload, Tap
from tapguest import (
    GUEST4,
    GUEST6,
    GUEST_ARP,
    GUEST_MAC,
    HOST4,
    HOST6,
    HOST_MAC,
    TIMEOUT_S,
    answer,
    frames,
    udp_to_guest,
    up,
)

pytest_plugins = ("tapns", "tapguest")
pytestmark = [pytest.mark.root, pytest.mark.usefixtures("tap_netns")]

# -- the kernel answers ------------------------------------------------------------------------


def test_the_kernel_answers_arp(tap: Tap) -> None:
    request = bytes(GUEST_ARP)
    assert tap.send(request) == len(request)
    reply = answer(tap, ARP)
    assert (reply[ARP].op, reply[ARP].hwsrc, reply[ARP].psrc) == (2, HOST_MAC, HOST4)
    assert reply.dst == GUEST_MAC


def test_the_kernel_answers_neighbour_discovery(tap6: Tap) -> None:
    to_all = Ether(src=GUEST_MAC, dst="33:33:ff:00:00:01")
    tap6.send(bytes(to_all / IPv6(src=GUEST6, dst="ff02::1:ff00:1") / ICMPv6ND_NS(tgt=HOST6)))
    assert answer(tap6, ICMPv6ND_NA)[ICMPv6ND_NA].tgt == HOST6


def test_the_kernel_answers_echo_over_ipv4(tap: Tap) -> None:
    head = Ether(src=GUEST_MAC, dst=HOST_MAC) / IP(src=GUEST4, dst=HOST4)
    tap.send(bytes(head / ICMP(id=7, seq=1) / b"guestnet"))
    reply = answer(tap, ICMP)
    assert (reply[ICMP].type, reply[ICMP].id, bytes(reply[Raw])) == (0, 7, b"guestnet")


def test_the_kernel_answers_echo_over_ipv6(tap6: Tap) -> None:
    head = Ether(src=GUEST_MAC, dst=HOST_MAC) / IPv6(src=GUEST6, dst=HOST6)
    tap6.send(bytes(head / ICMPv6EchoRequest(id=7, seq=1, data=b"guestnet")))
    assert answer(tap6, ICMPv6EchoReply)[ICMPv6EchoReply].data == b"guestnet"


def test_two_taps_exchange_frames_over_a_bridge() -> None:
    subprocess.run(["ip", "link", "add", "br0", "up", "type", "bridge"], check=True)
    with Tap.open("gn1") as one, Tap.open("gn2") as two:
        for port in (one, two):
            subprocess.run(["ip", "link", "set", port.name, "master", "br0"], check=True)
            port.bring_up()
        deadline = time.monotonic() + TIMEOUT_S
        seen: list[bytes] = []
        while bytes(GUEST_ARP) not in seen:  # a port forwards only once its carrier was noticed
            assert time.monotonic() < deadline
            one.send(bytes(GUEST_ARP))
            seen += two.recv_many() if two.has_data(0.05) else []


# -- the contract of send and recv -------------------------------------------------------------


def test_nothing_to_read_is_empty(tap: Tap) -> None:
    assert tap.recv() == b""
    assert tap.recv_many() == []
    assert not tap.has_data()
    started = time.monotonic()
    assert not tap.has_data(0.05)
    assert 0.04 < time.monotonic() - started < 1


def test_a_blocking_tap_waits_for_a_frame() -> None:
    with Tap.open("gn0") as tap:
        up(tap)
        timer = threading.Timer(0.05, udp_to_guest, (100,))
        timer.start()
        assert Ether(tap.recv())[UDP].dport == 9
        timer.join()


def test_many_are_sent_and_received_in_order(tap: Tap) -> None:
    requests = [
        bytes(
            Ether(src=GUEST_MAC, dst=HOST_MAC) / IP(src=GUEST4, dst=HOST4) / ICMP(id=1, seq=number)
        )
        for number in range(50)
    ]
    assert tap.send_many(requests) == 50
    assert tap.has_data(TIMEOUT_S)
    replies = [Ether(frame)[ICMP].seq for frame in tap.recv_many(20)]
    assert replies == list(range(20))
    replies += [Ether(frame)[ICMP].seq for frame in tap.recv_many()]
    assert replies == list(range(50))


def test_a_blocking_batch_takes_what_is_there() -> None:
    with Tap.open("gn0") as tap:
        up(tap)
        for _ in range(3):
            udp_to_guest(10)
        assert len(tap.recv_many()) == 3


def test_a_frame_may_be_any_buffer(tap: Tap) -> None:
    request = bytes(GUEST_ARP)
    for frame in (bytearray(request), memoryview(request)):
        assert tap.send(frame) == len(request)
        assert answer(tap, ARP)


def test_short_and_long_frames_are_refused(tap: Tap) -> None:
    tap.set_mtu(1300)
    assert tap.send(bytes(14)) == 14
    assert tap.send(bytes(1314)) == 1314
    assert tap.send(bytes(Ether() / Dot1Q(vlan=5) / Raw(bytes(1300)))) == 1318
    for size in (0, 13, 1315, 70_000):
        with pytest.raises(ConfigError, match=f"'{size} bytes'"):
            tap.send(bytes(size))


def test_an_mtu_raised_by_others_is_noticed(tap: Tap) -> None:
    subprocess.run(["ip", "link", "set", "gn0", "mtu", "4000"], check=True)
    assert tap.send(bytes(4014)) == 4014


def test_a_frame_beyond_max_bytes_is_dropped_not_cut(tap: Tap) -> None:
    udp_to_guest(1000)
    udp_to_guest(10)
    with pytest.raises(HostError, match="more than 1041 bytes was dropped") as caught:
        tap.recv(1041)
    assert caught.value.errno == errno.EMSGSIZE
    assert len(tap.recv(52)) == 14 + 20 + 8 + 10
    with pytest.raises(ConfigError, match="max_bytes"):
        tap.recv(13)


def test_an_interface_that_is_down_says_so() -> None:
    with Tap.open("gn0", blocking=False) as tap:
        with pytest.raises(HostError, match=r"bring_up\(\) first") as caught:
            tap.send(bytes(60))
        assert caught.value.errno == errno.EIO
        assert tap.recv() == b""


def test_a_deleted_interface_says_so(tap: Tap) -> None:
    subprocess.run(["ip", "link", "delete", "gn0"], check=True)
    assert tap.has_data()
    for use in (tap.recv, lambda: tap.send(bytes(60)), lambda: tap.mtu, tap.bring_up):
        with pytest.raises(HostError) as caught:
            use()
        assert caught.value.errno == errno.EBADFD
        assert "deleted" in str(caught.value)


# -- the virtio header -------------------------------------------------------------------------


def handshake(tap: Tap) -> tuple[socket.socket, Packet]:
    """A TCP connection from the kernel to the guest; returns it and the guest's next segment."""
    client = socket.socket()
    client.setblocking(False)
    client.connect_ex((GUEST4, 80))
    syn = answer(tap, TCP)
    head = Ether(src=GUEST_MAC, dst=HOST_MAC) / IP(src=GUEST4, dst=HOST4)
    reply = head / TCP(
        sport=80,
        dport=syn[TCP].sport,
        seq=1000,
        ack=syn[TCP].seq + 1,
        flags="SA",
        window=65535,
        options=[("MSS", 1460)],
    )
    tap.send(bytes(reply))
    ack = answer(tap, TCP)
    assert ack[TCP].flags == "A"
    segment = head / TCP(
        sport=80, dport=syn[TCP].sport, seq=1001, ack=ack[TCP].seq, flags="PA", window=65535
    )
    return client, segment


def test_tcp_comes_uncut_with_its_header(offloading: Tap) -> None:
    client, _ = handshake(offloading)
    with client:
        client.send(bytes(10_000))
        header, frame = next(pair for pair in frames(offloading) if len(pair[1]) > 1514)
    assert (len(frame) - 54) % 1460 == 0
    assert (header.gso_type, header.gso_size, header.hdr_len) == (Gso.TCPV4, 1460, 54)
    assert (header.needs_checksum, header.csum_start, header.csum_offset) == (True, 34, 16)
    header.check(len(frame))


def test_tcp_sent_uncut_reaches_the_socket(offloading: Tap) -> None:
    client, segment = handshake(offloading)
    payload = os.urandom(20_000)
    frame = bytearray(bytes(segment / Raw(payload)))
    frame[50:52] = b"\0\0"  # with NEEDS_CSUM the kernel takes its own sum, and trusts it
    header = VirtioNetHeader(HeaderFlag.NEEDS_CSUM, Gso.TCPV4, 54, 1446, 34, 16)
    assert offloading.send(frame, header=header) == len(frame)
    with client:
        client.setblocking(True)
        client.settimeout(TIMEOUT_S)
        assert client.recv(len(payload), socket.MSG_WAITALL) == payload


def test_without_offloads_frames_are_finished() -> None:
    with Tap.open("gn0", blocking=False, vnet_hdr=True, offload=Offload.NONE) as tap:
        client, _ = handshake(up(tap))
        with client:
            client.send(bytes(5_000))
            header, frame = next(pair for pair in frames(tap) if Raw in pair[1])
        assert len(frame) == 1514
        assert not header.is_gso
        assert not header.needs_checksum
        given = frame[TCP].chksum
        del frame[TCP].chksum
        assert Ether(bytes(frame))[TCP].chksum == given


def test_offloads_do_not_outlive_their_holder() -> None:
    Tap.open("gn0", vnet_hdr=True, persistent=True).close()
    with Tap.open("gn0", blocking=False) as tap:
        client, _ = handshake(up(tap))
        with client:
            client.send(bytes(10_000))
            first = next(frame for _header, frame in frames(tap) if Raw in frame)
        assert len(first) == 1514


def test_a_plain_frame_needs_no_header(offloading: Tap) -> None:
    request = bytes(GUEST_ARP)
    assert offloading.send(request) == len(request)
    assert answer(offloading, ARP)
    assert offloading.recv_with_header() is None


def test_headers_are_checked_before_the_kernel_sees_them(offloading: Tap) -> None:
    beyond = VirtioNetHeader(HeaderFlag.NEEDS_CSUM, csum_start=60, csum_offset=0)
    with pytest.raises(VirtioHeaderError, match="the frame at 60"):
        offloading.send(bytes(60), header=beyond)
    with pytest.raises(ConfigError, match="frames of up to 65593"):
        offloading.send(bytes(65_594), header=VirtioNetHeader(gso_type=1, gso_size=1400))


def test_the_two_kinds_of_tap_are_not_mixed_up(tap: Tap) -> None:
    with pytest.raises(ConfigError, match="use recv"):
        tap.recv_with_header()
    with pytest.raises(ConfigError, match="no headers"):
        tap.send(bytes(60), header=VirtioNetHeader(flags=HeaderFlag.DATA_VALID))
    with Tap.open("gn1", vnet_hdr=True) as other:
        for use in (other.recv, other.recv_many):
            with pytest.raises(ConfigError, match="use recv_with_header"):
                use()


# -- several queues ----------------------------------------------------------------------------


def test_every_queue_sends_and_the_kernel_spreads_flows() -> None:
    with Tap.open("gn0", queues=4, blocking=False) as tap:
        up(tap)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind((HOST4, 7000))
            server.settimeout(TIMEOUT_S)
            for queue in range(4):
                head = Ether(src=GUEST_MAC, dst=HOST_MAC) / IP(src=GUEST4, dst=HOST4)
                datagram = head / UDP(sport=5000 + queue, dport=7000) / bytes([queue])
                tap.send(bytes(datagram), queue=queue)
                assert server.recv(10) == bytes([queue])
        for _ in range(64):
            udp_to_guest(10)
        counts = [len(tap.recv_many(queue=queue)) for queue in range(4)]
        assert sum(counts) == 64
        assert sum(count > 0 for count in counts) > 1


def test_a_disabled_queue_gets_nothing() -> None:
    with Tap.open("gn0", queues=2, blocking=False) as tap:
        up(tap)
        tap.enable_queue(1, False)
        for _ in range(16):
            udp_to_guest(10)
        assert len(tap.recv_many(queue=0)) == 16
        tap.enable_queue(1)
        for _ in range(64):
            udp_to_guest(10)
        assert tap.has_data(queue=1)


def test_queue_numbers_are_checked(tap: Tap) -> None:
    for queue in (-1, 1):
        with pytest.raises(ConfigError, match="queue="):
            tap.recv(queue=queue)
    with pytest.raises(ConfigError, match="always in use"):
        tap.enable_queue(0, False)
