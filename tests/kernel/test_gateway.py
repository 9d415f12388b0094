"""The gateway's processes: policies that change under open flows, their death, end and rights.

Each test has a world and a host of its own, with two workers unless it says otherwise.
Times are printed; what is asserted of them is loose.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TypeVar

import pytest

from guestnet.errors import ConflictError, NotFoundError, PolicyError
from guestnet.gateway import supervisor
from guestnet.gateway.messages import AddPins
from guestnet.gateway.process import ORDER_TIMEOUT_S
from guestnet.gateway.service_class import set_class
from guestnet.gateway.supervisor import Gateway
from guestnet.host import Host
from guestnet.model import Attachment, Decision, Finding
from hostile import Answer, Door, assert_none_open, assert_open, knock, received
from lab import processes
from lab.addresses import ALLOWED, FORBIDDEN, RESOLVER, SITE_IPV4, SITE_IPV6
from lab.caller import Caller, request
from lab.servers import BANNER, ECHO
from lab.waiting import eventually
from lab.world import World
from stage import of, refused

pytestmark = pytest.mark.root

Address = IPv4Address | IPv6Address
T = TypeVar("T")

PATIENCE_S = 30.0
#: After this no byte may come any more; what is measured is some milliseconds.
CUT_S = 1.0
NAME = ALLOWED.name
WEB = f"allow@{NAME}:tcp:80+443"
PAST = f"allow@{FORBIDDEN.ipv4},allow@[{FORBIDDEN.ipv6}]"
#: By name through the gateway, and past it what an earlier rule allows by address.
BOTH_WAYS = f"{PAST},{WEB}"
ENDLESS = "/bytes/1073741824"
BOTH = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
#: A port of our own on the lab's internet.
PORT = 9000
TLS_RESOLVER = 853
MEGABYTES = 20


class Scene:
    """A host with one guest."""

    def __init__(self, world: World, host: Host, workers: int) -> None:
        self.world, self.host, self.workers = world, host, workers
        self.guest = Caller(world.guest)
        self.others: dict[str, Caller] = {}

    def attach(self, policy: str, guest: str = "vm") -> Attachment:
        namespace = self.world.guest if guest == "vm" else self.world.add_guest(guest)
        self.others[guest] = Caller(namespace)
        return self.host.attach(guest, netns=namespace.path, policy=policy)

    @property
    def gateway(self) -> Gateway:
        gateway = self.host._relays.gateway
        assert gateway is not None
        return gateway

    @property
    def pids(self) -> tuple[int, ...]:
        """The gateway's processes, as soon as all are ready."""
        gateway = self.gateway
        eventually(lambda: all(worker.awaited for worker in gateway.workers))
        return gateway.pids

    @property
    def crashes(self) -> int:
        return self.gateway.crashes

    def kill_all(self) -> tuple[int, ...]:
        """Kill all workers, and wait until they are gone."""
        pids = self.pids
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: not any(processes.start_time(pid) for pid in pids))
        return pids

    def fetches(self, version: int = 4) -> bool:
        """Whether the named server can be fetched from now."""
        try:
            return bool(self.guest.http(of(ALLOWED, version), NAME)["server"] == "allowed")
        except OSError:
            return False


WORKERS = pytest.mark.parametrize("scene", [1, 2], ids=["1 worker", "2 workers"], indirect=True)


@pytest.fixture
def scene(world: World, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    workers = getattr(request, "param", 2)
    # Closed before the test is asked what it left behind.
    with Host.open(tmp_path / "state", site=world.site.path, gateway_workers=workers) as host:
        host.create_network({"name": "default", "dns": [str(a) for a in RESOLVER.addresses]})
        yield Scene(world, host, workers)


class Download:
    """An endless download, read by a thread that notes when the last byte came and how it ended."""

    def __init__(self, guest: Caller, address: Address, name: str) -> None:
        self._stream = guest.connect(address, 80)
        self.port = self._stream.getsockname()[1]
        self._stream.sendall(request(name, ENDLESS))
        self.bytes = 0
        self.last_at = time.monotonic()
        self.error: OSError | None = None
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        eventually(lambda: self.bytes > 1_000_000)

    def _read(self) -> None:
        try:
            # Not as fast as it comes: two cores have more to do.
            while data := self._stream.recv(1 << 16):
                self.bytes += len(data)
                self.last_at = time.monotonic()
                time.sleep(0.0005)
        except OSError as error:
            self.error = error
        self.ended.set()

    def assert_runs(self) -> None:
        before = self.bytes
        eventually(lambda: self.bytes > before + 1_000_000)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_S)
        self._stream.close()


@contextlib.contextmanager
def downloading(guest: Caller, address: Address, name: str) -> Iterator[Download]:
    made = Download(guest, address, name)
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def listening(world: World, version: int, port: int = PORT) -> Iterator[socket.socket]:
    """A server of the test's own at ALLOWED's address."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with world.internet.enter():
        listener = socket.create_server((str(of(ALLOWED, version)), port), family=family)
    listener.settimeout(PATIENCE_S)
    with listener:
        yield listener


def in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


# -- another policy ----------------------------------------------------------------------------


@WORKERS
@BOTH
def test_a_relayed_download_that_is_denied_stops(scene: Scene, version: int) -> None:
    scene.attach(BOTH_WAYS)
    with (
        downloading(scene.guest, of(ALLOWED, version), NAME) as relayed,
        downloading(scene.guest, of(FORBIDDEN, version), "lab") as forwarded,
    ):
        began = time.monotonic()
        scene.host.set_policy("vm", f"{PAST},allow@pkg.test")
        returned = time.monotonic()
        assert relayed.ended.wait(PATIENCE_S)
        print(
            f"set_policy took {(returned - began) * 1000:.1f} ms, "
            f"last byte {(relayed.last_at - returned) * 1000:.1f} ms after it"
        )
        assert isinstance(relayed.error, ConnectionResetError)
        assert relayed.last_at < returned + CUT_S
        forwarded.assert_runs()
    with refused():
        scene.guest.http(of(ALLOWED, version), NAME)


@BOTH
def test_a_forwarded_download_that_is_denied_stops(scene: Scene, version: int) -> None:
    scene.attach(BOTH_WAYS)
    with (
        downloading(scene.guest, of(ALLOWED, version), NAME) as relayed,
        downloading(scene.guest, of(FORBIDDEN, version), "lab") as forwarded,
    ):
        began = time.monotonic()
        scene.host.set_policy("vm", WEB)
        returned = time.monotonic()
        time.sleep(CUT_S)
        before = forwarded.bytes
        time.sleep(CUT_S)
        assert forwarded.bytes == before
        print(
            f"set_policy took {(returned - began) * 1000:.1f} ms, "
            f"last byte {(forwarded.last_at - returned) * 1000:.1f} ms after it"
        )
        assert forwarded.last_at < returned + CUT_S
        relayed.assert_runs()


def test_a_policy_without_names_ends_what_it_denies_and_nothing_else(scene: Scene) -> None:
    scene.attach(BOTH_WAYS)
    with downloading(scene.guest, of(ALLOWED, 4), NAME) as relayed:
        scene.host.set_policy("vm", "public")
        relayed.assert_runs()
        scene.host.set_policy("vm", "none")
        assert relayed.ended.wait(PATIENCE_S)
        assert isinstance(relayed.error, ConnectionResetError)


@BOTH
def test_a_policy_with_names_ends_connections_to_other_resolvers(
    world: World, tmp_path: Path, version: int
) -> None:
    """They are nobody's to allow from then on, old ones neither."""
    guest, address = Caller(world.guest), of(ALLOWED, version)
    with Host.open(tmp_path / "state", site=world.site.path, relays_all=True) as host:
        host.attach("vm", netns=world.guest.path, policy="public")
        with listening(world, version, TLS_RESOLVER) as listener:
            stream = guest.connect(address, TLS_RESOLVER)
            peer, _source = listener.accept()
            with stream, peer:
                host.set_policy("vm", f"{WEB},allow@public")
                with pytest.raises(ConnectionResetError):
                    stream.recv(1)


def test_from_addresses_to_names_and_back(scene: Scene) -> None:
    """The gateway begins in the middle of a guest's life."""
    scene.attach("public")
    assert scene.host._relays.gateway is None
    address = of(ALLOWED, 4)
    assert scene.guest.http(address, "anything.test")["server"] == "allowed"
    scene.host.set_policy("vm", WEB)
    assert scene.guest.http(address, NAME)["server"] == "allowed"
    with refused():
        scene.guest.http(address, "anything.test")
    scene.host.set_policy("vm", "public")
    assert scene.guest.http(address, "anything.test")["server"] == "allowed"


@BOTH
def test_datagrams_by_name_go_on_under_a_policy_that_allows_them(
    scene: Scene, version: int
) -> None:
    scene.attach(f"allow@{NAME}:udp:{ECHO}")
    address = of(ALLOWED, version)
    scene.guest.ask(NAME, "AAAA" if version == 6 else "A")
    door = Door("udp", address, ECHO)
    assert_open(scene.guest.namespace, [door])
    scene.host.set_policy("vm", f"allow@pkg.test,allow@{NAME}:udp:{ECHO}")
    assert_open(scene.guest.namespace, [door])
    scene.host.set_policy("vm", "allow@pkg.test")
    assert knock(scene.guest.namespace, [door])[door].answer is Answer.SILENT


@WORKERS
def test_policies_that_change_while_the_guest_asks(scene: Scene) -> None:
    """Pins that were reported under the former policy concern nobody but their guest."""
    policies = [f"allow@{NAME}:udp:{ECHO}", f"deny@pkg.test:tcp:1,allow@{NAME}:udp:{ECHO},{WEB}"]
    policies += [WEB, f"allow@{FORBIDDEN.ipv4},allow@*.example.test"]
    scene.attach(policies[0])
    pids, stop = scene.pids, threading.Event()

    def ask() -> None:
        while not stop.is_set():
            with contextlib.suppress(Exception):
                scene.guest.ask(NAME, timeout_s=1)

    askers = [in_thread(ask) for _ in range(2)]
    for turn in range(32):
        scene.host.set_policy("vm", policies[turn % len(policies)])
    stop.set()
    for asker in askers:
        asker.join(PATIENCE_S)
    assert scene.crashes == 0
    assert scene.pids == pids


def test_pins_that_the_kernel_refuses_do_not_keep_others_from_standing(scene: Scene) -> None:
    """They come together, and one of them is of a policy that the kernel has not."""
    scene.attach(f"allow@{NAME}:udp:{ECHO}")
    relays = scene.host._relays
    assert relays.gateway is not None
    known = relays.gateway._guests["vm"]
    absent = replace(known, policy=f"allow@{NAME}:udp:1")
    pins = ((0, of(ALLOWED, 4)),)
    report = AddPins(sequence=1, guest="vm", told=known.sequence, pins=pins, ttl_s=60)
    scene.host._pins.add([(report, absent), (report, known)])
    assert_open(scene.guest.namespace, [Door("udp", of(ALLOWED, 4), ECHO)])


@pytest.mark.parametrize(
    "pin", [(0, IPv4Address("10.0.0.1")), (1, IPv4Address("9.9.9.9")), (7, IPv4Address("9.9.9.9"))]
)
def test_the_gateways_word_opens_public_addresses_under_rules_by_name_only(
    scene: Scene, pin: tuple[int, IPv4Address]
) -> None:
    scene.attach(f"allow@{NAME}:udp:{ECHO},allow@9.9.9.9")
    relays = scene.host._relays
    assert relays.gateway is not None
    known = relays.gateway._guests["vm"]
    report = AddPins(sequence=1, guest="vm", told=known.sequence, pins=(pin,), ttl_s=60)
    with pytest.raises(ValueError, match="pin"):
        scene.host._pins.add([(report, known)])


# -- death -------------------------------------------------------------------------------------


@WORKERS
@BOTH
def test_a_gateway_that_dies_is_replaced(scene: Scene, version: int) -> None:
    scene.attach(BOTH_WAYS)
    with (
        downloading(scene.guest, of(ALLOWED, version), NAME) as relayed,
        downloading(scene.guest, of(FORBIDDEN, version), "lab") as forwarded,
    ):
        former = scene.kill_all()
        killed = time.monotonic()
        assert relayed.ended.wait(PATIENCE_S)
        eventually(lambda: scene.fetches(version))
        print(f"fetched again {time.monotonic() - killed:.2f} s after it was killed")
        forwarded.assert_runs()
        assert scene.crashes == scene.workers
        assert not set(scene.pids) & set(former)
    assert scene.guest.addresses(NAME) == [str(ALLOWED.ipv4)]


@pytest.mark.parametrize("scene", [1], indirect=True)
def test_a_gateway_that_dies_again_and_again_is_a_finding(scene: Scene) -> None:
    def finding() -> Finding:
        return next(each for each in scene.host.doctor() if each.check == "gateway")

    assert not [each for each in scene.host.doctor() if each.check == "gateway"]
    scene.attach(WEB)
    (pid,) = scene.pids
    assert (finding().status, finding().detail) == ("ok", f"runs as pid {pid}")
    for death in range(1, 4):
        assert finding().status == "ok"
        scene.kill_all()
        eventually(lambda: scene.crashes == death)  # noqa: B023
    assert finding().status == "error"
    assert "ended 3 times" in finding().detail


def test_what_a_gateway_says_of_strangers_is_not_kept(scene: Scene) -> None:
    """A gateway that was taken over could name any guest there is text for."""
    attached = scene.attach(WEB)
    decisions = scene.host._decisions
    for guest in ("vm", *(f"stranger-{number}" for number in range(1000))):
        told = Decision(
            time=time.time(), guest=guest, network=attached.network, kind="dns", protocol="udp",
            name="x.test", port=53, verdict="allow", rule="x",
        )  # fmt: skip
        decisions.take(told)
    assert {each.guest for each in decisions.recent()} == {"vm"}
    assert (set(decisions._shares), set(decisions.seen._guests)) == ({"vm"}, {"vm"})
    scene.host.detach("vm")
    eventually(lambda: not decisions._shares and not decisions.seen._guests)


def test_what_arrives_while_there_is_no_gateway_waits_for_the_next(scene: Scene) -> None:
    scene.attach(WEB)
    scene.kill_all()
    began = time.monotonic()
    assert scene.guest.http(of(ALLOWED, 4), NAME)["server"] == "allowed"
    print(f"waited {time.monotonic() - began:.2f} s")
    eventually(lambda: scene.crashes == scene.workers)


def test_questions_wait_as_well(scene: Scene) -> None:
    scene.attach(WEB)
    scene.kill_all()
    assert scene.guest.addresses(NAME) == [str(ALLOWED.ipv4)]
    scene.kill_all()
    assert scene.guest.addresses(NAME, tcp=True) == [str(ALLOWED.ipv4)]


@WORKERS
def test_a_worker_that_is_stopped_is_replaced(scene: Scene) -> None:
    """It is alive and does nothing: the next order finds out, and does not wait for it."""
    scene.attach(WEB)
    former = scene.pids[0]
    os.kill(former, signal.SIGSTOP)
    began = time.monotonic()
    scene.host.set_policy("vm", f"{WEB},allow@pkg.test")
    took = time.monotonic() - began
    print(f"set_policy took {took:.2f} s")
    assert took < ORDER_TIMEOUT_S
    eventually(scene.fetches)
    assert scene.crashes == 1
    assert former not in scene.pids


def test_a_worker_that_dies_takes_its_own_flows_with_it_alone(scene: Scene) -> None:
    scene.attach(f"{WEB},allow@{NAME}:tcp:{BANNER}")
    scene.guest.ask(NAME)
    before = descriptors()
    with contextlib.ExitStack() as stack:
        downloads = [
            stack.enter_context(downloading(scene.guest, of(ALLOWED, 4), NAME)) for _ in range(8)
        ]
        killed, other = scene.pids
        held = {d: d.port in relayed_ports(killed, scene.world) for d in downloads}
        os.kill(killed, signal.SIGKILL)
        began = time.monotonic()
        lost = [download for download, its in held.items() if its]
        kept = [download for download, its in held.items() if not its]
        for download in lost:
            assert download.ended.wait(PATIENCE_S)
        eventually(lambda: len(scene.gateway.pids) == 2 and killed not in scene.gateway.pids)
        assert killed not in scene.pids
        print(f"{len(lost)} of {len(downloads)} lost, ready again {time.monotonic() - began:.2f} s")
        for download in kept:
            download.assert_runs()
        # What the dead one knew, the other one has told the new one.
        for _ in range(24):
            assert scene.guest.say(of(ALLOWED, 4), BANNER)
        assert other in scene.pids
        assert scene.crashes == 1
    assert processes.children(os.getpid()) >= set(scene.pids)
    assert killed not in processes.children(os.getpid())
    eventually(lambda: descriptors() <= before)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def relayed_ports(pid: int, world: World) -> set[int]:
    """The guest's ports of the connections that a worker has accepted."""
    listed = world.site.run(["ss", "-Htnp"]).stdout.splitlines()
    peers = [line.split()[4] for line in listed if f"pid={pid}," in line]
    return {int(peer.rpartition(":")[2]) for peer in peers}


@BOTH
def test_what_one_worker_was_asked_the_other_knows(scene: Scene, version: int) -> None:
    """A server that speaks first is decided by pins alone, and each connection goes anywhere."""
    scene.attach(f"allow@{NAME}:tcp:{BANNER}")
    assert len(scene.pids) == 2
    for _ in range(30):
        scene.guest.ask(NAME, "AAAA" if version == 6 else "A")
        assert scene.guest.say(of(ALLOWED, version), BANNER)
    flows = eventually(lambda: found if len(found := flows_of(scene, "vm")) == 30 else None)
    assert {flow.verdict for flow in flows} == {"allow"}


def test_a_name_that_one_worker_learnt_makes_an_address_ambiguous_at_the_other(
    scene: Scene,
) -> None:
    """One pin more must not be missed where pins alone decide."""
    other = "shared.example.test"
    scene.attach(f"deny@{other}:tcp:{BANNER},allow@{NAME}:tcp:{BANNER},allow@{other}:tcp:80")
    assert len(scene.pids) == 2
    scene.guest.ask(NAME)
    assert scene.guest.say(of(ALLOWED, 4), BANNER)
    assert str(of(ALLOWED, 4)) in scene.guest.addresses(other)
    for _ in range(20):
        with refused():
            scene.guest.say(of(ALLOWED, 4), BANNER)
    rules = {flow.rule for flow in flows_of(scene, "vm") if flow.verdict == "deny"}
    assert rules == {"ambiguous name"}


def test_who_reads_decisions_of_a_stopped_gateway_keeps_nobody_waiting(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "SETTLE_S", 20.0)
    scene.attach(WEB)
    scene.guest.ask(NAME)
    for pid in scene.pids:
        os.kill(pid, signal.SIGSTOP)
    reader = threading.Thread(target=scene.host.decisions)
    try:
        reader.start()
        time.sleep(0.2)
        assert scene.host.attachment("vm")
        assert reader.is_alive()  # it waits still, and not with what others need
    finally:
        for pid in scene.pids:
            os.kill(pid, signal.SIGCONT)
        reader.join()
    assert [each.name for each in scene.host.decisions("vm")] == [NAME]


def flows_of(scene: Scene, guest: str) -> list[Decision]:
    return [each for each in scene.host.decisions(guest) if each.kind == "flow"]


def test_a_guest_comes_while_the_gateway_is_being_replaced(scene: Scene) -> None:
    scene.attach(WEB)
    for pid in scene.pids:
        os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    scene.attach(WEB, "other")
    print(f"attach took {time.monotonic() - began:.2f} s")
    for guest in (scene.guest, scene.others["other"]):
        assert guest.addresses(NAME) == [str(ALLOWED.ipv4)]
        assert guest.http(of(ALLOWED, 4), NAME)["server"] == "allowed"


@BOTH
def test_datagrams_by_name_survive_the_gateway(scene: Scene, version: int) -> None:
    """Their pins are the kernel's."""
    scene.attach(f"allow@{NAME}:udp:{ECHO}")
    scene.guest.ask(NAME, "AAAA" if version == 6 else "A")
    scene.kill_all()
    assert_open(scene.guest.namespace, [Door("udp", of(ALLOWED, version), ECHO)])


# -- detached ----------------------------------------------------------------------------------


@BOTH
def test_a_guest_that_is_detached_is_cut_off_its_servers(scene: Scene, version: int) -> None:
    scene.attach(f"allow@{NAME}")
    scene.guest.ask(NAME, "AAAA" if version == 6 else "A")
    with listening(scene.world, version) as listener:
        client = scene.guest.connect(of(ALLOWED, version), PORT)
        server, _ = listener.accept()
        with client, server:
            server.settimeout(PATIENCE_S)
            client.sendall(b"here")
            assert server.recv(9) == b"here"
            began = time.monotonic()
            scene.host.detach("vm")
            with pytest.raises(ConnectionResetError):
                server.recv(9)
            print(f"reset {(time.monotonic() - began) * 1000:.1f} ms after detach was called")
    assert eventually(lambda: scene.host.decisions("vm"))[-1].bytes_up == 4


def test_the_next_guest_of_an_address_has_no_pins_of_the_former(scene: Scene) -> None:
    policy = f"allow@{NAME}:udp:{ECHO},allow@{NAME}:tcp:{BANNER}"
    scene.host.create_network({
        "name": "small", "dns": [str(RESOLVER.ipv4)], "ipv4": "10.99.0.0/29", "ipv6": None,
        "rest_s": 0,
    })  # fmt: skip
    address, door = of(ALLOWED, 4), Door("udp", of(ALLOWED, 4), ECHO)
    seen: dict[object, str] = {}
    for number in range(4):
        namespace = scene.world.add_guest(f"next-{number}")
        guest = Caller(namespace)
        attached = scene.host.attach(
            f"next-{number}", network="small", netns=namespace.path, policy=policy
        )
        heard = knock(namespace, [door])[door].answer
        assert heard is Answer.SILENT, f"{attached.ipv4} was {seen.get(attached.ipv4)}'s"
        with refused():
            guest.say(address, BANNER)
        guest.ask(NAME)
        assert_open(namespace, [door])
        seen[attached.ipv4] = attached.guest
        scene.host.detach(attached.guest)
        namespace.delete()
    assert len(seen) < 4


# -- rights and end ----------------------------------------------------------------------------


def test_it_has_no_rights(scene: Scene) -> None:
    scene.attach(WEB)
    pid, gateway = scene.pids[0], scene.gateway
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
    assert status["Uid"] == status["Gid"] == ["65534"] * 4
    assert status["Groups"] == []
    for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[kind][0], 16) == 0
    assert status["NoNewPrivs"] == ["1"]
    assert status["Seccomp"] == ["2"]
    assert status["Threads"] == ["1"]
    assert processes.children(pid) == set()
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    assert any(
        line.startswith("Max processes") and line.split()[2:4] == ["0", "0"] for line in limits
    )
    assert gateway.confinement == ("limits", "user", "no-new-privileges", "landlock", "seccomp")


def test_it_holds_nothing_but_its_sockets(scene: Scene) -> None:
    """Not the database, and no way back into another network namespace."""
    scene.attach(WEB)
    assert scene.fetches()
    held = []
    for pid in scene.pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                held.append(os.readlink(entry))
    own = ("socket:", "pipe:", "anon_inode:")
    others = {name for name in held if not name.startswith(own)}
    assert not {name for name in others if "guestnet" in name or "net:" in name}
    # Input and output nowhere, and the log where the daemon's goes.
    assert len(others) <= 2, others


@WORKERS
def test_it_ends_with_the_host(scene: Scene) -> None:
    scene.attach(WEB)
    pids = scene.pids
    with downloading(scene.guest, of(ALLOWED, 4), NAME) as relayed:
        scene.host.close()
        assert not any(processes.start_time(pid) for pid in pids)
        assert relayed.ended.wait(PATIENCE_S)
        assert isinstance(relayed.error, ConnectionResetError)
    with refused():
        scene.guest.http(of(ALLOWED, 4), NAME)
    assert not any(processes.start_time(pid) for pid in pids)


@BOTH
def test_a_host_that_is_opened_again_serves_named_guests_again(
    world: World, tmp_path: Path, version: int
) -> None:
    guest = Caller(world.guest)
    with Host.open(tmp_path / "state", site=world.site.path) as host:
        host.create_network({"name": "default", "dns": [str(RESOLVER.ipv6)]})
        host.attach("vm", netns=world.guest.path, policy=WEB)
        assert guest.http(of(ALLOWED, version), NAME)["server"] == "allowed"
    with refused():
        guest.http(of(ALLOWED, version), NAME)
    with Host.open(tmp_path / "state", site=world.site.path) as host:
        began = time.monotonic()
        assert guest.http(of(ALLOWED, version), NAME)["server"] == "allowed"
        assert guest.addresses(NAME) == [str(ALLOWED.ipv4)]
        print(f"served {time.monotonic() - began:.2f} s after it was opened")
        with refused():
            guest.http(of(ALLOWED, version), FORBIDDEN.name)
        assert host.reconcile().steps == ()


# -- the relay on its real sockets -------------------------------------------------------------


@BOTH
def test_twenty_megabytes_each_way_at_once(scene: Scene, version: int) -> None:
    """Both at full speed, each end closed for itself: what arrives is what was sent."""
    scene.attach(f"allow@{NAME}")
    scene.guest.ask(NAME, "AAAA" if version == 6 else "A")
    up, down = (os.urandom(1 << 20) * MEGABYTES for _ in "ud")
    digests: dict[str, str] = {}

    def read(what: str, stream: socket.socket) -> None:
        digest = hashlib.sha256()
        while data := stream.recv(1 << 18):
            digest.update(data)
        digests[what] = digest.hexdigest()

    def write(stream: socket.socket, data: bytes) -> None:
        stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)

    with listening(scene.world, version) as listener:
        client = scene.guest.connect(of(ALLOWED, version), PORT)
        server, _ = listener.accept()
        with client, server:
            server.settimeout(PATIENCE_S)
            began = time.monotonic()
            readers = [
                in_thread(lambda: read("up", server)),
                in_thread(lambda: read("down", client)),
            ]
            sender = in_thread(lambda: write(server, down))
            write(client, up)
            for thread in (*readers, sender):
                thread.join(PATIENCE_S)
            print(f"{2 * MEGABYTES} MB in {time.monotonic() - began:.2f} s")
    assert digests == {
        "up": hashlib.sha256(up).hexdigest(), "down": hashlib.sha256(down).hexdigest()
    }  # fmt: skip
    flow = eventually(lambda: [d for d in scene.host.decisions("vm") if d.kind == "flow"])[-1]
    assert (flow.bytes_up, flow.bytes_down, flow.reason) == (len(up), len(down), "finished")


@BOTH
@pytest.mark.parametrize("asked", [0, 0xB8])
def test_the_class_of_service_goes_on(scene: Scene, version: int, asked: int) -> None:
    scene.attach(f"allow@{NAME}")
    scene.guest.ask(NAME, "AAAA" if version == 6 else "A")
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with scene.guest.namespace.enter():
        client = socket.socket(family, socket.SOCK_STREAM)
    level, hear, heard = (41, 66, 6) if version == 6 else (0, 13, 9)  # linux/in.h, in6.h
    with listening(scene.world, version) as listener, client:
        listener.setsockopt(level, hear, 1)
        set_class(client, asked)
        client.settimeout(PATIENCE_S)
        client.connect((str(of(ALLOWED, version)), PORT))
        server, _ = listener.accept()
        with server:
            # struct cmsghdr, and an integer.
            said = server.getsockopt(level, heard, 32)
            assert struct.unpack_from("@i", said, 16)[0] & 0xFC == asked


@BOTH
def test_what_goes_to_a_guest_is_not_paced(scene: Scene, version: int) -> None:
    scene.attach(f"allow@{NAME}")
    scene.guest.ask(NAME, "AAAA" if version == 6 else "A")
    with downloading(scene.guest, of(ALLOWED, version), NAME) as download:
        listed = scene.world.site.run(["ss", "-HtniO", f"dport = {download.port}"]).stdout
        assert listed.split()[5] == "reno", listed


@BOTH
@pytest.mark.parametrize("first", ["client", "server"])
def test_each_end_may_finish_before_the_other(scene: Scene, version: int, first: str) -> None:
    scene.attach(f"allow@{NAME}")
    scene.guest.ask(NAME, "AAAA" if version == 6 else "A")
    with listening(scene.world, version) as listener:
        client = scene.guest.connect(of(ALLOWED, version), PORT)
        server, _ = listener.accept()
        server.settimeout(PATIENCE_S)
        with client, server:
            one, two = (client, server) if first == "client" else (server, client)
            one.sendall(b"all that I had to say")
            one.shutdown(socket.SHUT_WR)
            assert two.recv(99) == b"all that I had to say"
            assert two.recv(99) == b""
            for _ in range(3):
                two.sendall(b"and more")
                assert one.recv(99) == b"and more"
            two.shutdown(socket.SHUT_WR)
            assert one.recv(99) == b""


@BOTH
def test_a_server_that_refuses_is_seen_to_refuse(scene: Scene, version: int) -> None:
    scene.attach(f"allow@{NAME}")
    scene.guest.ask(NAME, "AAAA" if version == 6 else "A")
    with refused():
        scene.guest.say(of(ALLOWED, version), PORT)
    flow = eventually(lambda: [d for d in scene.host.decisions("vm") if d.kind == "flow"])[-1]
    assert (flow.verdict, flow.reason, flow.port) == ("allow", "upstream: ECONNREFUSED", PORT)


def test_a_server_that_resets_is_seen_to_reset(scene: Scene) -> None:
    scene.attach(f"allow@{NAME}")
    scene.guest.ask(NAME)
    with listening(scene.world, 4) as listener:
        client = scene.guest.connect(of(ALLOWED, 4), PORT)
        server, _ = listener.accept()
        with client:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            server.close()
            with pytest.raises(ConnectionResetError):
                client.recv(9)


def test_many_at_a_time(scene: Scene) -> None:
    scene.attach(WEB)
    address = of(ALLOWED, 4)
    streams = [scene.guest.connect(address, 80) for _ in range(200)]
    try:
        began = time.monotonic()
        for stream in streams:
            stream.sendall(request(NAME))
        for stream in streams:
            assert received(stream, PATIENCE_S) > 100
        print(f"200 answers in {time.monotonic() - began:.2f} s")
    finally:
        for stream in streams:
            stream.close()


# -- who may knock -----------------------------------------------------------------------------


@pytest.mark.parametrize("topology", ["routed", "bridge"])
@BOTH
def test_guests_of_either_topology(scene: Scene, topology: str, version: int) -> None:
    if topology == "bridge":
        scene.host.create_network({
            "name": "bridge", "topology": "bridge", "ipv4": "10.98.0.0/24",
            "ipv6": "fd42:6d73:98::/64", "dns": [str(RESOLVER.ipv4)],
        })  # fmt: skip
    network = "bridge" if topology == "bridge" else "default"
    policy = f"{WEB},allow@{NAME}:udp:{ECHO}"
    scene.host.attach("vm", network=network, netns=scene.world.guest.path, policy=policy)
    address = of(ALLOWED, version)
    assert scene.guest.http(address, NAME)["server"] == "allowed"
    with refused():
        scene.guest.http(address, FORBIDDEN.name)
    scene.guest.ask(NAME, "AAAA" if version == 6 else "A")
    assert_open(scene.guest.namespace, [Door("udp", address, ECHO)])


@BOTH
def test_nobody_knocks_at_its_own_doors(scene: Scene, version: int) -> None:
    """They are for what the kernel redirects, not for who finds their ports."""
    named = scene.attach("allow@*.example.test")
    scene.attach("public", "other")
    ports = scene.gateway.doors
    own = {4: named.gateway_ipv4, 6: named.gateway_ipv6}[version]
    site = SITE_IPV4.ip if version == 4 else SITE_IPV6.ip
    assert own is not None
    for place in (own, site):
        doors = [
            *(Door("tcp", place, port) for port in ports.relay_tcp),
            Door("tcp", place, ports.resolver_tcp),
            Door("udp", place, ports.resolver_udp),
        ]
        assert_none_open(scene.guest.namespace, doors)
        assert_none_open(scene.others["other"].namespace, doors)
        if place == site:
            assert_none_open(scene.world.internet, doors)
    # A server elsewhere whose port happens to be ours is a server elsewhere.
    with refused():
        scene.guest.say(of(ALLOWED, version), ports.relay_tcp[0], b"hello")


def test_nonsense_does_not_end_it(scene: Scene) -> None:
    scene.attach(f"allow@{NAME},deny@*.bad.test,allow@public")
    pids, chance = scene.pids, random.Random(7)
    resolver, address = RESOLVER.addresses[0], of(ALLOWED, 4)
    with scene.guest.namespace.enter():
        questions = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with questions:
        questions.connect((str(resolver), 53))
        for number in range(500):
            labels = [chance.randbytes(chance.choice([1, 5, 63])) for _ in range(3)]
            name = b"".join(bytes([len(label)]) + label for label in labels) + b"\3bad\4test\0"
            question = struct.pack(">6H", number, 0x100, 1, 0, 0, 0) + name + b"\0\1\0\1"
            with contextlib.suppress(OSError):
                questions.send(question[: chance.choice([9, len(question), len(question)])])
    for number in range(60):
        port, start = ((80, b"GET / HTTP/1.1\r\nHost: "), (443, b"\x16\x03\x01"))[number % 2]
        with contextlib.suppress(OSError), scene.guest.connect(address, port) as stream:
            stream.sendall(start + chance.randbytes(chance.choice([1, 90, 300])))
    with scene.guest.connect(resolver, 53) as stream, contextlib.suppress(OSError):
        for _ in range(50):
            stream.sendall(chance.randbytes(40))
    assert scene.fetches()
    assert scene.guest.addresses(NAME) == [str(address)]
    assert (scene.pids, scene.crashes) == (pids, 0)


# -- what is written down ----------------------------------------------------------------------


def test_decisions_are_lines_of_json(scene: Scene, tmp_path: Path) -> None:
    scene.attach(WEB)
    scene.guest.ask(NAME)
    scene.guest.ask(FORBIDDEN.name)
    scene.guest.http(of(ALLOWED, 4), NAME)
    with refused():
        scene.guest.http(of(ALLOWED, 6), FORBIDDEN.name)
    eventually(lambda: len(scene.host.decisions("vm")) == 4)
    text = (tmp_path / "state" / "decisions.jsonl").read_text()
    assert text.endswith("\n")
    lines = [json.loads(line) for line in text.splitlines()]
    told = {(line["kind"], line["name"], line["verdict"]) for line in lines}
    assert told == {
        ("dns", NAME, "allow"), ("dns", FORBIDDEN.name, "deny"),
        ("flow", NAME, "allow"), ("flow", FORBIDDEN.name, "deny"),
    }  # fmt: skip
    assert all(line["guest"] == "vm" and line["rule"] and line["reason"] for line in lines)


# -- the policy of a network ---------------------------------------------------------------------


@BOTH
def test_guests_without_a_policy_of_their_own_follow_their_networks(
    scene: Scene, tmp_path: Path, version: int
) -> None:
    target, host = of(ALLOWED, version), scene.host

    def attach(guest: str, **how: str) -> Caller:
        namespace = scene.world.add_guest(guest)
        host.attach(guest, netns=namespace.path, **how)
        return Caller(namespace)

    assert host.set_network_policy("default", "public").spec.policy == "allow@dns,allow@public"
    following, own = attach("following"), attach("own", policy="public")
    set_since = attach("set-since")
    host.set_policy("set-since", "public")
    with (
        downloading(following, target, NAME) as cut,
        downloading(own, target, NAME) as first,
        downloading(set_since, target, NAME) as second,
    ):
        began = time.monotonic()
        host.set_network_policy("default", None)
        returned = time.monotonic()
        first.assert_runs()
        second.assert_runs()
        before = cut.bytes
        time.sleep(CUT_S)
        assert cut.bytes == before
        assert cut.last_at < returned + CUT_S
        print(f"took {(returned - began) * 1000:.1f} ms")
    with refused():
        following.connect(target, 80)
    following_now = host.attachment("following")
    assert (following_now.policy, following_now.inherits_policy) == ("none", True)
    assert [host.attachment(each).inherits_policy for each in ("own", "set-since")] == [False] * 2
    attach("later")
    assert host.attachment("later").policy == "none"


def test_a_network_policy_that_is_wrong_changes_nothing(scene: Scene) -> None:
    before = scene.host.network("default")
    with pytest.raises(PolicyError):
        scene.host.set_network_policy("default", "allow@nonsense:nonsense")
    with pytest.raises(NotFoundError):
        scene.host.set_network_policy("other", "public")
    assert scene.host.network("default") == before


def test_what_was_not_finished_is_when_the_host_is_opened(world: World, tmp_path: Path) -> None:
    """Killed after the network's policy was written down, and before its guests had it."""
    with Host.open(tmp_path / "state", site=world.site.path) as host:
        host.create_network({"name": "default"})
        host.attach("vm", netns=world.guest.path)
        spec = host.network("default").spec
        host._state.store.change_network(spec.model_copy(update={"policy": "public"}))
    with Host.open(tmp_path / "state", site=world.site.path) as host:
        assert host.attachment("vm").policy == "allow@dns,allow@public"
        Caller(world.guest).connect(of(ALLOWED, 4), 80).close()
        # What is asked for without a policy is no other network.
        assert host.create_network({"name": "default"}).spec.policy == "public"
        with pytest.raises(ConflictError, match="policy set --network"):
            host.create_network({"name": "default", "policy": "none"})
