"""The host loses its network and has another: guests of an ordinary user's find out, and go on.

Nothing is started again in between. A link that is set down loses its IPv6 addresses and all its
routes; one that is deleted is not the one of the same name that comes after it.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lab import processes
from lab.addresses import (
    ALLOWED,
    RESOLVER,
    ROUTER_IPV4,
    ROUTER_IPV6,
    SITE_IPV4,
    SITE_IPV6,
    UPLINK,
)
from lab.netns import ETC_NETNS, veth
from lab.waiting import eventually
from lab.world import World
from mine import Mine

pytestmark = pytest.mark.root

NAME = ALLOWED.name
#: What is allowed by address and what by name take different ways to the gateway's dialling.
POLICY = f"allow@*.example.test:80, allow@{ALLOWED.ipv4}, allow@[{ALLOWED.ipv6}], allow@dns"
#: One socket for all that it sends, as an NTP client, a VPN and QUIC have: the last line of what it
#: writes is whether the last datagram was answered.
TALK = """
import socket, sys, time
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
talk, last = socket.socket(family, socket.SOCK_DGRAM), None
talk.settimeout(0.5)
for number in range(10_000):
    try:
        talk.sendto(b"%d" % number, (sys.argv[1], 7))
        while talk.recv(99) != b"%d" % number: pass
        now = "answered"
    except OSError:
        now = "silent"
    if now != last: print(now, flush=True)
    last = now
    time.sleep(0.1)
"""


class Box:
    """A guest of the user's."""

    def __init__(self, mine: Mine) -> None:
        self.mine = mine
        mine.up()
        mine.say("attach", "box", "--netns", "new", "--policy", POLICY)

    def page(self, *arguments: str) -> bool:
        """Whether curl gets a page of the allowed server's."""
        curl = ("curl", "-gsS", "-m", "20", *arguments)
        done = self.mine.user.guestnet("exec", "box", "--", *curl)
        return done.returncode == 0 and json.loads(done.stdout)["server"] == "allowed"

    def pages(self) -> list[bool]:
        """The same for both families, by name and by address."""
        by_name = [self.page(f"-{version}", f"http://{NAME}/") for version in (4, 6)]
        by_address = [f"http://{ALLOWED.ipv4}/", f"http://[{ALLOWED.ipv6}]/"]
        return [*by_name, *map(self.page, by_address)]

    def dig(self, name: str) -> str:
        dig = ("dig", "+time=9", "+tries=1", "+noall", "+comments", "+answer", name)
        return self.mine.say("exec", "box", "--", *dig)

    @contextlib.contextmanager
    def talking(self, tmp_path: Path) -> Iterator[list[Path]]:
        """Two programs in it that send datagrams, each from one socket; yields what they write."""
        lines = [tmp_path / "4", tmp_path / "6"]
        command = [sys.executable, "-P", "-m", "guestnet.cli", "exec", "box", "--", sys.executable]
        started = []
        try:
            for address, file in zip(ALLOWED.addresses, lines, strict=True):
                with file.open("w") as out:
                    argv = [*command, "-c", TALK, str(address)]
                    started.append(self.mine.user.popen(argv, stdout=out))
            yield lines
        finally:
            for each in started:
                processes.stop(each)


@pytest.fixture
def box(mine: Mine) -> Box:
    return Box(mine)


def last(lines: list[Path]) -> set[str]:
    return {(file.read_text().split() or [""])[-1] for file in lines}


def connect(world: World, uplink: str = UPLINK, *, host: int = 2) -> None:
    """Give the site an uplink, and an address there that ends in `host`."""
    veth(world.internet, "site0", world.site, uplink)
    world.internet.ip(
        f"address add {ROUTER_IPV4} dev site0", f"address add {ROUTER_IPV6} dev site0 nodad"
    )
    ipv4, ipv6 = SITE_IPV4.network, SITE_IPV6.network
    world.site.ip(
        f"address add {ipv4[host]}/{ipv4.prefixlen} dev {uplink}",
        f"address add {ipv6[host]}/{ipv6.prefixlen} dev {uplink} nodad",
        f"route add default via {ROUTER_IPV4.ip} dev {uplink}",
        f"route add default via {ROUTER_IPV6.ip} dev {uplink}",
    )


def test_a_link_down_and_up_again(box: Box) -> None:
    world = box.mine.world
    assert box.pages() == [True] * 4
    world.site.ip(f"link set {UPLINK} down")
    # Said at once: what cannot be sent is not waited for.
    assert box.pages() == [False] * 4
    answer = box.dig("never.asked.example.test")
    assert "SERVFAIL" in answer
    assert "unreachable" in answer
    world.site.ip(
        f"link set {UPLINK} up",
        f"address add {SITE_IPV6} dev {UPLINK} nodad",
        f"route add default via {ROUTER_IPV4.ip} dev {UPLINK}",
        f"route add default via {ROUTER_IPV6.ip} dev {UPLINK}",
    )
    assert box.pages() == [True] * 4
    assert "NXDOMAIN" in box.dig("never.asked.example.test")


def test_another_network_with_other_addresses_and_another_resolver(box: Box) -> None:
    world = box.mine.world
    assert box.pages() == [True] * 4
    world.site.ip(f"link delete {UPLINK}")
    # The former resolver is out of reach from there, and the new one knows another address.
    world.internet.ip(*(f"address del {a}/{a.max_prefixlen} dev lo" for a in RESOLVER.addresses))
    other = replace(RESOLVER, ipv4=ROUTER_IPV4.ip + 8, ipv6=ROUTER_IPV6.ip + 8)
    world.internet.ip(*(f"address add {a}/{a.max_prefixlen} dev lo" for a in other.addresses))
    connect(world, "wl0", host=77)
    heard = world.serve(world.internet, other)
    conf = ETC_NETNS / world.site.name / "resolv.conf"
    conf.write_text("".join(f"nameserver {address}\n" for address in other.addresses))
    eventually(lambda: box.pages() == [True] * 4)
    assert heard.arrivals(kind="dns")
    assert {each.client for each in world.arrivals(ALLOWED, kind="http")[-4:]} == {
        str(SITE_IPV4.network[77]), str(SITE_IPV6.network[77]),
    }  # fmt: skip


def test_an_endpoint_of_datagrams_goes_on_by_the_new_uplink(box: Box, tmp_path: Path) -> None:
    """It is bound to the interface that it leaves by, and its guest never is silent."""
    world = box.mine.world

    def come_from(*addresses: str) -> bool:
        """Whether the last datagrams that arrived did."""
        return {each.client for each in world.arrivals(ALLOWED, kind="udp")[-4:]} == {*addresses}

    with box.talking(tmp_path) as lines:
        eventually(lambda: last(lines) == {"answered"})
        # One of the same name, so soon that nobody has looked in between.
        world.site.ip(f"link delete {UPLINK}")
        world.servers.forget()
        connect(world, host=3)
        eventually(lambda: come_from("45.66.77.3", "2a0a:1234::3") and last(lines) == {"answered"})
        # The former one is there still; only the routes are others.
        veth(world.internet, "site1", world.site, "wl0")
        world.internet.ip(
            "address add 45.66.78.1/24 dev site1", "address add 2a0a:1235::1/64 dev site1 nodad"
        )
        world.site.ip(
            "address add 45.66.78.2/24 dev wl0",
            "address add 2a0a:1235::2/64 dev wl0 nodad",
            "route replace default via 45.66.78.1 dev wl0",
            f"route del default via {ROUTER_IPV6.ip}",
            "route add default via 2a0a:1235::1 dev wl0",
        )
        eventually(lambda: come_from("45.66.78.2", "2a0a:1235::2") and last(lines) == {"answered"})
