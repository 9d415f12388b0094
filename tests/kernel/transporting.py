"""What tests of transports share: a host with guests on VMMs' sockets, and frames by hand.

PYTEST_DONT_REWRITE: test modules import helpers from here before pytest loads its fixtures.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import ARP, Ether

from guestnet.frames.transport import Transport
from guestnet.host import Host
from guestnet.model import Attachment, TransportInfo
from lab.addresses import ALLOWED
from lab.waiting import eventually
from lab.world import World
from vmmpeer import Line, Vmm

KINDS = ("stream", "stream-client", "dgram", "stream+vnet", "dgram+vnet")
#: The site itself may send to the guest.
OPEN = "allow@public,allow:ingress@host"
TRAFFIC = "tcp or udp or icmp or (icmp6 and (ip6[40] == 128 or ip6[40] < 128))"


class Scene:
    """A host in a world, and a directory for sockets."""

    def __init__(self, world: World, host: Host, directory: Path) -> None:
        self.world = world
        self.host = host
        self.directory = directory

    def attach(self, guest: str = "vm", kind: str = "stream", **options: Any) -> Attachment:
        options.setdefault("policy", "allow@public")
        text = f"{kind}:{self.directory}/{guest}.sock"
        return self.host.attach(guest, transport=text, **options)

    def info(self, guest: str = "vm") -> TransportInfo:
        found = self.host.transport(guest)
        assert found is not None
        return found

    def await_serving(self, guest: str = "vm") -> None:
        eventually(lambda: self.info(guest).serving, f"{guest} is not served")

    def await_connections(self, count: int) -> None:
        eventually(lambda: self.info().connections == count, f"there are no {count} connections")

    def line(self, attachment: Attachment, **options: Any) -> Line:
        """A VMM's end of an attachment's transport."""
        assert attachment.transport is not None
        return Line(Transport.parse(attachment.transport), **options)


def arp(attachment: Attachment) -> bytes:
    assert attachment.ipv4 is not None
    ask = ARP(hwsrc=attachment.mac, psrc=str(attachment.ipv4.ip), pdst=str(attachment.gateway_ipv4))
    return bytes(Ether(src=attachment.mac, dst="ff:ff:ff:ff:ff:ff") / ask)


def pings(attachment: Attachment, line: Line, *, header: bytes = b"") -> bool:
    """Whether the internet answers behind a VMM's end; asked again, as any host would.

    A TAP that was opened a moment ago drops what is sent to it until its queue is set up.
    """
    assert attachment.ipv4 is not None
    token = os.urandom(8)
    asked = arp(attachment)
    for _ in range(10):
        line.send(header + asked)
        while select.select([line.socket], [], [], 0.5)[0]:
            if not (frames := line.receive()):
                return False
            for frame in frames:
                packet = Ether(frame[len(header) :])
                if ARP in packet and packet[ARP].op == 2:
                    echo = IP(src=str(attachment.ipv4.ip), dst=str(ALLOWED.ipv4)) / ICMP() / token
                    asked = bytes(Ether(src=attachment.mac, dst=packet.src) / echo)
                    line.send(header + asked)
                elif ICMP in packet and bytes(packet[ICMP].payload) == token:
                    return True
    return False


@pytest.fixture
def scene(world: World, host: Host, tmp_path: Path) -> Scene:
    return Scene(world, host, tmp_path)


@pytest.fixture(params=KINDS)
def running(scene: Scene, request: pytest.FixtureRequest) -> Iterator[tuple[Scene, Vmm]]:
    """A guest with a TCP/IP of its own, behind each kind of transport."""
    attachment = scene.attach(kind=request.param)
    with scene.line(attachment) as line, Vmm(scene.world.guest, attachment, line) as vmm:
        yield scene, vmm


def to_the_guest(scene: Scene, attachment: Attachment, count: int) -> None:
    """Datagrams from the site itself, as fast as they go."""
    assert attachment.ipv4 is not None
    with scene.world.site.enter():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        for _ in range(count):
            sender.sendto(bytes(1400), (str(attachment.ipv4.ip), 9))


def answers_arp(fds: tuple[int, ...], attachment: Attachment, header: bytes = b"") -> bool:
    """Whether the kernel answers behind an open TAP; asked again, as any host would.

    A TAP that was opened a moment ago drops what is sent to it until its queue is set up.
    """
    for _ in range(10):
        os.write(fds[0], header + arp(attachment))
        while ready := select.select(fds, [], [], 0.5)[0]:
            for fd in ready:
                packet = Ether(os.read(fd, 70_000)[len(header) :])
                if ARP in packet and packet[ARP].op == 2:
                    return True
    return False
