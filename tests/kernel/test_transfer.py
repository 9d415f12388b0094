"""Big transfers each way at once over a path that loses packets, digest by digest.

`GUESTNET_TRANSFER_MB` says how many MB go each way; 10240 takes some minutes a test.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest

from beside import MANNERS, Beside, beside, of
from lab.addresses import ALLOWED, UPLINK
from lab.netns import Namespace, veth
from lab.waiting import PATIENCE_S
from lab.world import World

pytestmark = pytest.mark.root

MEGABYTES = int(os.environ.get("GUESTNET_TRANSFER_MB", "48"))
BOTH = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
PORT = 9000
#: An MTU that both families can do with.
NARROW = 1290
#: Bytes a second, at the worst.
SLOWEST = 1e6
#: What a worker may grow by, however much goes through it.
GROWTH_BYTES = 8 << 20
GROWTH_DESCRIPTORS = 10
_ROOT = Path(__file__).parents[2]

#: One packet of a hundred in each direction.
_LOSS = """
table inet loss {
  chain forward {
    type filter hook forward priority 0
    meta l4proto tcp numgen random mod 100 == 0 counter drop
  }
}
"""


@pytest.fixture(scope="module", params=[name for name in MANNERS if MANNERS[name].is_relayed])
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Beside]:
    with beside(MANNERS[request.param], tmp_path_factory.mktemp("transfer")) as made:
        yield replace(made, far=moved_away(made.world))


def moved_away(world: World) -> Namespace:
    """Put the server where packets can be lost on their way."""
    internet, far = world.internet, world.add_guest("far")
    internet.sysctl("ipv4.ip_forward", 1)
    internet.sysctl("ipv6.conf.all.forwarding", 1)
    veth(internet, "far0", far, "eth0")
    internet.ip("address add 45.66.79.1/24 dev far0", "address add 2a0a:1236::1/64 dev far0 nodad")
    far.ip(
        "address add 45.66.79.2/24 dev eth0",
        "address add 2a0a:1236::2/64 dev eth0 nodad",
        "route add default via 45.66.79.1",
        "route add default via 2a0a:1236::1",
    )
    for address, way in zip(ALLOWED.addresses, ("45.66.79.2", "2a0a:1236::2"), strict=True):
        size = f"{address}/{address.max_prefixlen}"
        internet.ip(f"address del {size} dev lo", f"route add {size} via {way}")
        far.ip(f"address add {size} dev lo")
    return far


@contextmanager
def losing(stage: Beside) -> Iterator[None]:
    """Lose packets, which are of one segment each, as on a real line."""
    site, far, internet = stage.world.site, stage.far, stage.world.internet
    site.ip(f"link set {UPLINK} gso_max_segs 1")
    far.ip("link set eth0 gso_max_segs 1")
    internet.run(["nft", "-f", "-"], stdin=_LOSS)
    try:
        yield
        said = internet.run(["nft", "list", "table", "inet", "loss"]).stdout
        lost = sum(int(each) for each in re.findall(r"counter packets (\d+)", said))
        print(f"lost {lost} packets")
        assert lost > MEGABYTES
    finally:
        internet.run(["nft", "delete", "table", "inet", "loss"])
        site.ip(f"link set {UPLINK} gso_max_segs 65535")
        far.ip("link set eth0 gso_max_segs 65535")


class Watch:
    """The most that the gateway's processes had meanwhile, beyond what they had before."""

    def __init__(self, pids: tuple[int, ...]) -> None:
        assert pids
        self._pids = pids
        self._before = [self._of(pid) for pid in pids]
        self.bytes = self.descriptors = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @staticmethod
    def _of(pid: int) -> tuple[int, int]:
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return resident * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{pid}/fd"))

    def _run(self) -> None:
        while not self._over.wait(0.05):
            for pid, before in zip(self._pids, self._before, strict=True):
                now = self._of(pid)
                self.bytes = max(self.bytes, now[0] - before[0])
                self.descriptors = max(self.descriptors, now[1] - before[1])


def transfer(stage: Beside, version: int, size: int) -> None:
    """Both ends run as programs; what each received is what the other sent."""
    address = of(ALLOWED, version)
    program = [sys.executable, "-m", "lab.transfer"]
    arguments = [str(address), str(PORT), str(size)]
    stage.prepare(version)
    server = stage.far.popen([*program, "serve", *arguments], stdout=subprocess.PIPE, cwd=_ROOT)
    assert server.stdout is not None
    with server.stdout:
        assert server.stdout.readline() == b"ready\n"
        client = stage.guest.namespace.run(
            [*program, "connect", *arguments], timeout_s=PATIENCE_S + size / SLOWEST, cwd=_ROOT
        )
        ours, theirs = json.loads(client.stdout), json.loads(server.stdout.readline())
    assert (ours["received"], theirs["received"]) == (theirs["sent"], ours["sent"])
    assert ours["received_bytes"] == theirs["received_bytes"] == size
    print(f"{size / 1e6:.0f} MB each way in {ours['seconds']:.1f} s")


@BOTH
@pytest.mark.parametrize("loses", [False, True], ids=["all pass", "1 % lost"])
def test_every_byte_arrives(stage: Beside, version: int, loses: bool) -> None:
    transfer(stage, version, 1 << 20)
    with losing(stage) if loses else nullcontext(), Watch(stage.gateway()) as watch:
        transfer(stage, version, MEGABYTES << 20)
    print(f"the gateway grew by {watch.bytes >> 10} KiB and {watch.descriptors} descriptors")
    assert watch.bytes < GROWTH_BYTES
    assert watch.descriptors < GROWTH_DESCRIPTORS


@BOTH
def test_the_path_becomes_narrower_on_the_way(stage: Beside, version: int) -> None:
    data = os.urandom(1 << 20)
    try:
        with stage.meeting(stage.guest, version, PORT) as (near, far):
            far.settimeout(PATIENCE_S)
            for mtu in (1500, NARROW):
                stage.world.internet.ip(f"link set far0 mtu {mtu}")
                stage.far.ip(f"link set eth0 mtu {mtu}")
                for one, other in ((near, far), (far, near)):
                    speaker = threading.Thread(target=one.sendall, args=(data,))
                    speaker.start()
                    assert received(other, len(data)) == data
                    speaker.join()
        address = str(of(ALLOWED, version))
        assert f"mtu {NARROW}" in stage.world.site.run(["ip", "route", "get", address]).stdout
    finally:
        stage.world.internet.ip("link set far0 mtu 1500")
        stage.far.ip("link set eth0 mtu 1500")


def received(stream: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size and (data := stream.recv(1 << 16)):
        found += data
    return bytes(found)
