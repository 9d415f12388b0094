"""Show 5: ten thousand attaches and detaches leave nothing behind."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest

from audit import complaints, devices, set_sizes
from guestnet.host import Host
from guestnet.host.policies import UNUSED_POLICIES_KEPT
from guestnet.model import Attachment
from lab.netns import Namespace
from lab.world import World

pytestmark = pytest.mark.root

ATTACHES = 10_000
LIVE = 500
POLICIES = ("public", "none", "private", "deny@8.8.8.8,public")


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def emptied(host: Host, site: Namespace) -> dict[str, int]:
    """Sets of ours with elements, when nobody is attached."""
    host.reconcile()
    assert host.attachments() == []
    return {
        name: size
        for name, size in set_sizes(site).items()
        if size and any(word in name for word in ("identity", "announce", "live", "members"))
    }


def test_ten_thousand_attaches_and_detaches_leak_nothing(world: World, tmp_path: Path) -> None:
    """Guests with new ids all the time, in a pool of 1,024: every slot is used ten times over."""
    state, site = tmp_path / "state", world.site
    with Host.open(state, site=str(site.path)) as host:
        host.create_network({"name": "default", "ipv4": "10.81.0.0/20", "ipv6": None, "rest_s": 0})
        host.attach("first")
        host.detach("first")
        host.reconcile()
        standing, descriptors = devices(site), open_descriptors()
        threads = threading.active_count()
        for start in range(0, ATTACHES, LIVE):
            given: set[str] = set()
            for number in range(start, start + LIVE):
                made = host.attach(f"vm-{number}", policy=POLICIES[number % len(POLICIES)])
                assert made.ipv4 is not None
                given.add(str(made.ipv4))
            assert len(given) == LIVE
            assert host.network("default").attached == LIVE
            for number in range(start, start + LIVE):
                assert host.detach(f"vm-{number}")
        assert emptied(host, site) == {}
        assert complaints(host, site) == []
        assert (devices(site), open_descriptors()) == (standing, descriptors)
        assert threading.active_count() == threads
        network = host.network("default")
        assert (network.attached, network.capacity) == (0, 1024)
        assert len(host._state.store.leases()) <= 1024
        assert len(host._ledger.installed.chains) <= UNUSED_POLICIES_KEPT
    # What was written is what the next start reads, and no more.
    with Host.open(state, site=str(site.path)) as host:
        assert complaints(host, site) == []
        host.remove_network("default")
    assert devices(site) == set()


def test_eight_threads_at_once(world: World, tmp_path: Path) -> None:
    state, site = tmp_path / "state", world.site
    failures: list[BaseException] = []
    held: dict[str, str] = {}
    guard = threading.Lock()

    def hold(made: Attachment, network: str) -> None:
        """Nobody else holds what this guest was given, from attach to detach."""
        for interface in (made.ipv4, made.ipv6):
            key = f"{network} {interface}"
            assert held.setdefault(key, made.guest) == made.guest, f"{key} is held twice"

    def let_go(made: Attachment, network: str) -> None:
        for interface in (made.ipv4, made.ipv6):
            held.pop(f"{network} {interface}")

    def work(worker: int, host: Host) -> None:
        dice = random.Random(worker)
        mine: dict[str, tuple[Attachment, str]] = {}
        try:
            for _ in range(150):
                guest = f"vm-{worker}-{dice.randrange(12)}"
                if guest in mine:
                    made, network = mine.pop(guest)
                    with guard:
                        let_go(made, network)
                    assert host.detach(guest, made.generation)
                    assert not host.detach(guest)
                else:
                    network = dice.choice(["default", "lan"])
                    made = host.attach(guest, network=network, policy=dice.choice(POLICIES))
                    assert host.attach(guest, network=network) == made
                    with guard:
                        hold(made, network)
                    mine[guest] = made, network
                if dice.random() < 0.1:
                    assert host.explain(guest, "tcp", "1.1.1.1", 80) if guest in mine else True
                    host.attachments()
                    host.reconcile()
        except BaseException as error:
            failures.append(error)

    with Host.open(state, site=str(site.path)) as host:
        host.create_network({"name": "default", "rest_s": 0})
        host.create_network({"name": "lan", "topology": "bridge", "rest_s": 0})
        descriptors = open_descriptors()
        threads = [threading.Thread(target=work, args=(n, host)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        assert failures == []
        assert complaints(host, site) == []
        for each in host.attachments():
            host.detach(each.guest)
        assert emptied(host, site) == {}
        assert complaints(host, site) == []
        assert open_descriptors() == descriptors
        assert devices(site) == {"fcbr0"}


def test_a_guest_that_comes_and_goes_keeps_its_address(world: World, tmp_path: Path) -> None:
    with Host.open(tmp_path, site=str(world.site.path)) as host:
        host.create_network({"name": "default", "ipv4": "10.81.0.0/29", "ipv6": None})
        first, generations = host.attach("a"), []
        for _ in range(20):
            host.detach("a")
            again = host.attach("a")
            generations.append(again.generation)
            assert (again.ipv4, again.mac, again.tap) == (first.ipv4, first.mac, first.tap)
        assert generations == sorted(set(generations))
        assert generations[0] > first.generation
