"""A guest played by the test, on a TAP whose other side is the kernel's own stack.

PYTEST_DONT_REWRITE: test modules import helpers from here before pytest loads its fixtures.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator

import pytest
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from guestnet.frames.virtio import VirtioNetHeader
from guestnet.kernel.tap import Tap

HOST_MAC, GUEST_MAC = "02:6d:73:00:00:01", "02:6d:73:00:00:02"
HOST4, GUEST4 = "10.0.0.1", "10.0.0.2"
HOST6, GUEST6 = "fd00:1::1", "fd00:1::2"
TIMEOUT_S = 5.0

GUEST_ARP = Ether(src=GUEST_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(
    op="who-has", hwsrc=GUEST_MAC, psrc=GUEST4, pdst=HOST4
)


def up(tap: Tap, host: str = f"{HOST4}/24", guest: str = GUEST4) -> Tap:
    """Address the host's end, and tell it the guest's MAC so that it need not ask.

    One family only: IPv6 reports its multicast groups between the frames of a test.
    """
    if ":" not in host:
        with open(f"/proc/sys/net/ipv6/conf/{tap.name}/disable_ipv6", "w") as file:
            file.write("1")
    tap.set_mac(HOST_MAC)
    tap.bring_up()
    tap.set_ip(host)
    add = ["ip", "neigh", "add", guest, "lladdr", GUEST_MAC, "dev", tap.name]
    subprocess.run(add, check=True)
    return tap


@pytest.fixture
def tap(tap_netns: None) -> Iterator[Tap]:
    """A non-blocking TAP, up and addressed."""
    with Tap.open("gn0", blocking=False) as tap:
        yield up(tap)


@pytest.fixture
def tap6(tap_netns: None) -> Iterator[Tap]:
    """The same with an IPv6 address."""
    with Tap.open("gn0", blocking=False) as tap:
        yield up(tap, f"{HOST6}/64", GUEST6)


@pytest.fixture
def offloading(tap_netns: None) -> Iterator[Tap]:
    """An IPv4 one with virtio header and offloads."""
    with Tap.open("gn0", blocking=False, vnet_hdr=True) as tap:
        yield up(tap)


def frames(tap: Tap) -> Iterator[tuple[VirtioNetHeader, Packet]]:
    """What the kernel sends, until nothing more comes in time."""
    while tap.has_data(TIMEOUT_S):
        if tap.has_vnet_hdr:
            answer = tap.recv_with_header()
            assert answer is not None
            yield answer[0], Ether(answer[1])
        else:
            yield VirtioNetHeader(), Ether(tap.recv())


def answer(tap: Tap, layer: type[Packet]) -> Packet:
    """The first frame with that layer."""
    return next(frame for _header, frame in frames(tap) if layer in frame)


def udp_to_guest(size: int) -> None:
    """Let the kernel send a datagram to the guest."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(bytes(size), (GUEST4, 9))
