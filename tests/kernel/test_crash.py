"""Show 4: killed at any moment, the next start makes store and kernel agree, and a live guest never
noticed.

A process that opened the host and attaches and detaches without pause is killed with SIGKILL at
random moments, then opened again here and audited. Each child is a fork of this warm process, so a
hundred deaths take seconds.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from audit import complaints, devices, ruleset
from guestnet.host import Host
from guestnet.kernel.netlink import NetlinkSocket
from guestnet.kernel.nft import Nft
from guestnet.store import SqliteStore
from lab.addresses import ALLOWED
from lab.netns import Namespace
from lab.world import World

pytestmark = pytest.mark.root

DEATHS = 100
#: Between the child's first call and its death.
SHORTEST_S, LONGEST_S = 0.001, 0.060
LIVE_POLICY = "public"
UPGRADES = 10

#: Asks a UDP echo server over both families every 4 ms and tells, once its stdin ends, how many
#: questions went unanswered.
ECHO = """
import json, select, socket, sys, time
sockets = []
for address in sys.argv[1:]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    each = socket.socket(family, socket.SOCK_DGRAM)
    each.connect((address, 7))
    each.setblocking(False)
    sockets.append(each)
sent, answered, errors, number = {}, set(), [], 0

def receive(wait_s):
    for each in select.select(sockets, [], [], wait_s)[0]:
        try:
            answered.add(int(each.recv(64)))
        except OSError as error:
            errors.append(str(error))

print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    for each in sockets:
        number += 1
        try:
            each.send(b"%d" % number)
        except OSError as error:
            errors.append(str(error))
        sent[number] = time.monotonic()
    until = time.monotonic() + 0.004
    while (left := until - time.monotonic()) > 0:
        receive(left)
deadline = time.monotonic() + 2
while len(answered) < len(sent) and time.monotonic() < deadline:
    receive(0.05)
lost = sorted(set(sent) - answered)
gaps = [round(sent[n], 4) for n in lost]
print(json.dumps({"sent": len(sent), "lost": len(lost), "at": gaps[:20], "errors": errors[:5]}))
"""


@contextmanager
def talking(world: World) -> Iterator[Callable[[], dict[str, Any]]]:
    """The live guest asks all the time; what is yielded ends that and tells how it went."""
    argv = [sys.executable, "-c", ECHO, *(str(address) for address in ALLOWED.addresses)]
    process = world.guest.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"

    def end() -> dict[str, Any]:
        out, _errors = process.communicate(timeout=10)
        told: dict[str, Any] = json.loads(out)
        return told

    yield end


def churn(host: Host, dice: random.Random, guests: int = 12) -> None:
    """Attach and detach without end, on two networks and under a few policies."""
    policies = ["public", "none", "private", "deny@8.8.8.8,public", "allow@guests,public"]
    while True:
        guest = f"vm-{dice.randrange(guests)}"
        if dice.random() < 0.5:
            host.detach(guest)
        elif guest not in {each.guest for each in host.attachments()}:
            host.attach(
                guest,
                network=dice.choice(["default", "lan"]),
                policy=dice.choice(policies),
            )


def networks_come_and_go(host: Host, dice: random.Random) -> None:
    """Create and remove networks without end, with a guest now and then."""
    while True:
        name = dice.choice(["one", "two"])
        if name in {network.spec.name for network in host.networks()}:
            for each in host.attachments(name):
                host.detach(each.guest)
            host.remove_network(name)
            continue
        pool = {"one": "10.81.0.0/24", "two": "10.82.0.0/24"}[name]
        topology = {"one": "routed", "two": "bridge"}[name]
        bridge = {"bridge": "gnbr-two"} if name == "two" else {}
        host.create_network(
            {"name": name, "topology": topology, "ipv4": pool, "ipv6": None, **bridge}
        )
        if dice.random() < 0.7:
            host.attach(f"of-{name}", network=name)


def die(state: Path, site: Namespace, work: Callable[[Host], None], dice: random.Random) -> None:
    """Do `work` in a fork, and kill it at a random moment after it began."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            host = Host.open(state, site=str(site.path))
            os.write(tell, b"!")
            work(host)
        except BaseException:
            os.write(tell, traceback.format_exc().encode())
        finally:
            os._exit(1)
    os.close(tell)
    try:
        first = os.read(told, 1)
        time.sleep(dice.uniform(SHORTEST_S, LONGEST_S))
        os.kill(child, signal.SIGKILL)
        _pid, status = os.waitpid(child, 0)
        said = first + os.read(told, 65536)
        assert said == b"!", said.decode()
        assert os.WIFSIGNALED(status)
    finally:
        os.close(told)


def report(dice_seed: int, found: list[str]) -> str:
    return "\n  ".join([f"seed {dice_seed}:", *found])


def test_killed_while_attaching_and_detaching(world: World, tmp_path: Path) -> None:
    state, site = tmp_path / "state", world.site
    with Host.open(state, site=str(site.path)) as host:
        host.create_network({"name": "default", "rest_s": 0})
        host.create_network({"name": "lan", "topology": "bridge", "rest_s": 0})
        live = host.attach("live", netns=str(world.guest.path), policy=LIVE_POLICY)
    seed = int.from_bytes(os.urandom(4), "big")
    dice = random.Random(seed)
    with talking(world) as end:
        for _death in range(DEATHS):
            die(state, site, lambda host: churn(host, dice), dice)
            dice.seed(dice.getrandbits(32))
            with Host.open(state, site=str(site.path)) as host:
                found = complaints(host, site)
                assert found == [], report(seed, found)
                assert host.attachment("live") == live
        told = end()
    assert told["sent"] > 100 * DEATHS * SHORTEST_S
    assert (told["lost"], told["errors"]) == (0, []), told
    with Host.open(state, site=str(site.path)) as host:
        for each in host.attachments():
            host.detach(each.guest)
        for network in host.networks():
            host.remove_network(network.spec.name)
    assert devices(site) == set()


def test_killed_while_networks_come_and_go(world: World, tmp_path: Path) -> None:
    """The first network installs the base, the last one removes it: both are died in."""
    state, site = tmp_path / "state", world.site
    seed = int.from_bytes(os.urandom(4), "big")
    dice = random.Random(seed)
    for _death in range(40):
        die(state, site, lambda host: networks_come_and_go(host, dice), dice)
        dice.seed(dice.getrandbits(32))
        with Host.open(state, site=str(site.path)) as host:
            found = complaints(host, site)
            assert found == [], report(seed, found)
    with Host.open(state, site=str(site.path)) as host:
        for each in host.attachments():
            host.detach(each.guest)
        for network in host.networks():
            host.remove_network(network.spec.name)
        assert host.attachments() == []
    assert devices(site) == set()
    assert [entry for entry in ruleset(site) if "table" in entry] == []
    assert site.sysctl("ipv4.ip_forward") == "0"
    assert site.sysctl("ipv6.conf.all.forwarding") == "0"


class DeathAt:
    """Kills this process before the effect of a number: a netlink message, an nft transaction, an
    ioctl, a write to the store."""

    def __init__(self, number: int) -> None:
        self._left = number

    def arm(self) -> None:
        """Put the trap into every place that touches the machine."""
        for place, name in (
            (NetlinkSocket, "request"),
            (NetlinkSocket, "batch"),
            (Nft, "run"),
            (SqliteStore, "write"),
            (SqliteStore, "add_network"),
            (SqliteStore, "remove_network"),
            (SqliteStore, "take_note"),
            (fcntl, "ioctl"),
        ):
            setattr(place, name, self._trapped(getattr(place, name)))

    def _trapped(self, effect: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self._left -= 1
            if self._left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return effect(*arguments, **keywords)

        return call


def live(host: Host, namespace: Namespace) -> None:
    """Everything that is done to the machine, once: from the first network to the last."""
    host.create_network({"name": "one", "ipv4": "10.81.0.0/24"})
    host.create_network(
        {"name": "two", "topology": "bridge", "ipv4": "10.82.0.0/24", "bridge": "gnbr-two"}
    )
    for guest, network, netns in (
        ("tap", "one", None),
        ("tap on a bridge", "two", None),
        ("namespace", "one", str(namespace.path)),
    ):
        host.attach(guest, network=network, netns=netns, policy="public")
        host.detach(guest)
    for name in ("one", "two"):
        host.remove_network(name)
    host.close()


def test_dying_before_any_effect_of_a_whole_life(world: World, tmp_path: Path) -> None:
    site = world.site
    for number in itertools.count():
        state = tmp_path / str(number)
        child = os.fork()
        if child == 0:
            try:
                host = Host.open(state, site=str(site.path))
                DeathAt(number).arm()
                live(host, world.guest)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _pid, status = os.waitpid(child, 0)
        assert status in (0, signal.SIGKILL), f"effect {number}: status {status:#x}"
        with Host.open(state, site=str(site.path)) as host:
            found = complaints(host, site)
            assert found == [], report(number, found)
            for each in host.attachments():
                host.detach(each.guest)
            for network in host.networks():
                host.remove_network(network.spec.name)
        assert devices(site) == set(), f"effect {number}"
        if status == 0:
            break
    assert number > 30


def make_the_base_look_old(site: Namespace) -> None:
    """As if another release had written the tables: the chain that names this one is gone."""
    (name,) = [
        entry["chain"]["name"]
        for entry in ruleset(site)
        if entry.get("chain", {}).get("name", "").startswith("base-")
    ]
    site.run(["nft", "delete", "chain", "inet", "guestnet", name])


def test_a_live_guest_does_not_notice_that_the_base_is_replaced(
    world: World, tmp_path: Path
) -> None:
    state, site = tmp_path / "state", world.site
    with Host.open(state, site=str(site.path)) as host:
        host.create_network({"name": "default"})
        host.attach("live", netns=str(world.guest.path), policy=LIVE_POLICY)
        for number in range(20):
            host.attach(f"vm-{number}")
    with talking(world) as end:
        for _upgrade in range(UPGRADES):
            make_the_base_look_old(site)
            time.sleep(0.05)
            with Host.open(state, site=str(site.path)) as host:
                assert complaints(host, site) == []
        told = end()
    # A packet that is being looked up in a set while the new table takes over may miss it: the
    # kernel reads the generation once per chain and again per set. One each time, no more.
    assert told["lost"] <= UPGRADES, told
    assert told["errors"] == []


def test_killed_while_the_base_is_replaced(world: World, tmp_path: Path) -> None:
    state, site = tmp_path / "state", world.site
    with Host.open(state, site=str(site.path)) as host:
        host.create_network({"name": "default"})
        host.attach("live", netns=str(world.guest.path), policy=LIVE_POLICY)
        for number in range(20):
            host.attach(f"vm-{number}")
    dice = random.Random(4)
    cut = []
    for death in range(30):
        make_the_base_look_old(site)
        child = os.fork()
        if child == 0:
            try:
                Host.open(state, site=str(site.path))
                time.sleep(1)
            finally:
                os._exit(1)
        time.sleep(dice.uniform(0.002, 0.040))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        # Nobody repairs yet: whatever stands now must serve the guest, the old base or the new.
        answer = world.guest.run(
            ["curl", "-s", "--max-time", "1", f"http://{ALLOWED.ipv4}/"], check=False
        )
        if answer.returncode:
            cut.append(death)
        with Host.open(state, site=str(site.path)) as host:
            assert complaints(host, site) == []
    assert cut == []


def test_what_was_refused_to_a_guest_is_not_the_next_ones(world: World, tmp_path: Path) -> None:
    """Died between the cut and the clearing away: the address goes on without its history."""
    state, site, netns = tmp_path / "state", world.site, str(world.guest.path)
    child = os.fork()
    if child == 0:
        try:
            host = Host.open(state, site=str(site.path))
            host.create_network({"name": "default", "ipv4": "10.81.0.0/30", "rest_s": 0})
            host.attach("noisy", netns=netns)
            # Refused, and counted for the address.
            world.guest.run(["ping", "-c2", "-i0.1", "-W1", str(ALLOWED.ipv4)], check=False)
            if host.usage("noisy").refused == 2:
                host.detach("noisy")
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    _pid, status = os.waitpid(child, 0)
    assert status == signal.SIGKILL
    with Host.open(state, site=str(site.path)) as host:
        host.attach("quiet", netns=netns)
        assert host.usage("quiet").refused == 0


def test_addresses_outlive_a_crash(world: World, tmp_path: Path) -> None:
    """Seeds A: at a restart survivors' addresses must not be handed out again."""
    state, site = tmp_path / "state", world.site

    def attach_twenty(host: Host) -> None:
        for number in range(20):
            host.attach(f"vm-{number}", policy="public")
        os.write(ready, b"!")
        time.sleep(60)

    told, ready = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            attach_twenty(Host.open(state, site=str(site.path)))
        finally:
            os._exit(1)
    assert os.read(told, 1) == b"!"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(told)
    os.close(ready)
    with Host.open(state, site=str(site.path)) as host:
        before = {each.guest: each for each in host.attachments()}
        assert len(before) == 20
        new = host.attach("new")
        assert new.ipv4 not in {each.ipv4 for each in before.values()}
        assert new.generation > max(each.generation for each in before.values())
        assert not host.detach("vm-3", generation=before["vm-3"].generation - 1)
        assert host.attachment("vm-3") == before["vm-3"]
