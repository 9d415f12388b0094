"""Requests that follow on an HTTP connection: one host was allowed, not its whole server."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

import pytest

from guestnet.host import Host
from lab.addresses import ALLOWED, RESOLVER
from lab.waiting import PATIENCE_S, eventually
from lab.world import World
from stage import Guest, Stage, refused

pytestmark = pytest.mark.root

Address = IPv4Address | IPv6Address

NAME, OTHER = ALLOWED.name, "shared.example.test"
PORT = 8081
ADDRESS = ALLOWED.addresses[0]
POLICY = f"allow@{NAME}:tcp:{PORT}"
BOTH = pytest.mark.parametrize("address", ALLOWED.addresses, ids=["IPv4", "IPv6"])
GET = b"GET / HTTP/1.1\r\nHost: %b\r\n%b\r\n"
WEBSOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    state = tmp_path_factory.mktemp("requests")
    with World() as world, Host.open(state, site=world.site.path) as host:
        host.create_network({"name": "plain", "dns": [str(a) for a in RESOLVER.addresses]})
        made = Stage(world, host, world.lie())
        with made.guest(POLICY):
            pass  # the gateway runs from the first guest on, and is no test's leftover
        yield made


class Peer:
    """A server of the test's own: what came, and an answer where the test wants one."""

    def __init__(self, listener: socket.socket) -> None:
        self._stream = listener.accept()[0]
        self._stream.settimeout(PATIENCE_S)
        self.received = b""

    def read(self, size: int) -> bytes:
        """What has come, once it is so much."""
        while len(self.received) < size:
            data = self._stream.recv(65536)
            assert data, "it ended"
            self.received += data
        return self.received

    def rest(self) -> bytes:
        """All that came until the end, of whatever kind."""
        with contextlib.suppress(ConnectionResetError):
            while data := self._stream.recv(65536):
                self.received += data
        return self.received

    def send(self, data: bytes) -> None:
        self._stream.sendall(data)

    def close(self) -> None:
        self._stream.close()


@contextlib.contextmanager
def connected(
    stage: Stage, guest: Guest, address: Address, said: bytes
) -> Iterator[tuple[socket.socket, Peer]]:
    """A connection that has begun with something, and what it arrived at."""
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with stage.world.internet.enter():
        listener = socket.create_server((str(address), PORT), family=family)
    listener.settimeout(PATIENCE_S)
    with listener, guest.connect(address, PORT) as client:
        client.sendall(said)
        peer = Peer(listener)
        try:
            yield client, peer
        finally:
            peer.close()


def get(host: str, fields: bytes = b"") -> bytes:
    return GET % (host.encode(), fields)


@BOTH
def test_requests_for_the_same_host_pass(stage: Stage, address: Address) -> None:
    body = b"5\r\nhello\r\n0\r\n\r\n"
    said = [
        get(NAME) + get(NAME),
        get(NAME.upper(), b"Transfer-Encoding: chunked\r\n") + body,
        get(NAME)[:20],
        get(NAME)[20:],
    ]
    with stage.guest(POLICY) as guest, connected(stage, guest, address, said[0]) as (client, peer):
        whole = said[0]
        assert peer.read(len(whole)) == whole
        for piece in said[1:]:
            client.sendall(piece)
            whole += piece
        assert peer.read(len(whole)) == whole
        peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        assert client.recv(99) == b"HTTP/1.1 200 OK\r\n\r\n"
        client.shutdown(socket.SHUT_WR)
        assert peer.rest() == whole


@BOTH
@pytest.mark.parametrize("pipelined", [True, False], ids=["with the first", "later"])
def test_another_host_on_the_connection(stage: Stage, address: Address, pipelined: bool) -> None:
    first, second = get(NAME), get(OTHER)
    begun = first + second if pipelined else first
    with stage.guest(POLICY) as guest:
        with connected(stage, guest, address, begun) as (client, peer):
            if not pipelined:
                peer.read(len(first))
                client.sendall(second)
            with refused():
                client.recv(99)
            assert peer.rest() == (b"" if pipelined else first)
        denied = guest.decided(kind="flow", verdict="deny")
        assert (denied.name, denied.rule) == (OTHER, "default_egress=deny")
        assert NAME in denied.reason
        assert guest.decided(kind="flow", verdict="allow").name == NAME


def test_both_hosts_are_allowed(stage: Stage) -> None:
    """The second was resolved too, so that its address is known to be this one."""
    first, second = get(NAME), get(OTHER)
    with stage.guest(f"{POLICY},allow@{OTHER}:tcp:{PORT}") as guest:
        with connected(stage, guest, ADDRESS, first) as (client, peer):
            client.sendall(second)
            assert peer.rest() == first
        guest.ask(OTHER)
        with connected(stage, guest, ADDRESS, first) as (client, peer):
            client.sendall(second)
            assert peer.read(len(first + second)) == first + second


@pytest.mark.parametrize(
    "follows",
    [
        b"\r\n" + get(NAME),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        get(NAME, b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"),
        get(NAME, b"Host: shared.example.test\r\n"),
        b"\x16\x03\x01",
    ],
)
def test_what_cannot_be_read(stage: Stage, follows: bytes) -> None:
    first = get(NAME)
    with (
        stage.guest(POLICY) as guest,
        connected(stage, guest, ADDRESS, first) as (client, peer),
    ):
        peer.read(len(first))
        client.sendall(follows)
        with refused():
            client.recv(99)
        assert peer.rest() == first
        assert guest.decided(kind="flow", verdict="deny").rule == "unreadable"


@BOTH
def test_a_websocket_that_the_server_agrees_to(stage: Stage, address: Address) -> None:
    asked = get(NAME, WEBSOCKET)
    frames = get(OTHER) + bytes(range(256)) * 100
    with stage.guest(POLICY) as guest, connected(stage, guest, address, asked) as (client, peer):
        peer.read(len(asked))
        for piece in (b"HTTP/1.1 ", b"101 Switching Protocols\r\n\r\n", b"\x81\x02hi"):
            peer.send(piece)
        answer = b""
        while not answer.endswith(b"hi"):
            answer += client.recv(99)
        assert answer == b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x02hi"
        client.sendall(frames)
        assert peer.read(len(asked + frames)) == asked + frames


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (get(NAME, WEBSOCKET), b"HTTP/1.1 200 OK\r\n\r\n"),
        (get(NAME, b"Upgrade: h2c\r\n"), b"HTTP/1.1 101 Switching\r\n\r\n"),
        (get(NAME) + get(NAME, WEBSOCKET), b"HTTP/1.1 101 Switching\r\n\r\n"),
    ],
    ids=["server says no", "another protocol", "not the first request"],
)
def test_what_is_no_websocket_stays_judged(stage: Stage, asked: bytes, answer: bytes) -> None:
    with (
        stage.guest(POLICY) as guest,
        connected(stage, guest, ADDRESS, asked) as (client, peer),
    ):
        peer.read(len(asked))
        peer.send(answer)
        assert client.recv(99) == answer
        client.sendall(get(OTHER))
        with refused():
            client.recv(99)
        assert peer.rest() == asked


@BOTH
def test_an_upload_arrives_as_it_was(stage: Stage, address: Address) -> None:
    data = bytes(range(256)) * 20_000
    head = get(NAME, b"Content-Length: %d\r\n" % len(data))
    with stage.guest(POLICY) as guest, connected(stage, guest, address, head) as (client, peer):
        sending = threading.Thread(target=client.sendall, args=(data + get(NAME),), daemon=True)
        sending.start()
        received = peer.read(len(head) + len(data) + len(get(NAME)))
        sending.join(PATIENCE_S)
        wanted = hashlib.sha256(head + data + get(NAME)).hexdigest()
        assert hashlib.sha256(received).hexdigest() == wanted
        client.close()
        peer.close()
        eventually(lambda: guest.decisions(kind="flow"))
        assert guest.decided(kind="flow").bytes_up == len(received)
