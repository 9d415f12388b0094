"""The relay on real sockets of the loopback: nothing lost, nothing invented, nobody starved."""

from __future__ import annotations

import errno
import gc
import hashlib
import os
import random
import select
import signal
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise

import pytest

from guestnet.flow import way
from guestnet.flow.options import prepare
from guestnet.flow.pipes import LARGE_BYTES, PIPE_BYTES, PipePool
from guestnet.flow.reactor import Reactor
from guestnet.flow.relay import EVENTS, Ended, Flow, Reason, Relay
from guestnet.flow.way import COPY_BYTES, Way

RESET = struct.pack("ii", 1, 0)
PATIENCE_S = 20.0


class Stage:
    """A relay turned by the test's own thread, and peers on either side of it."""

    def __init__(self, pipes: PipePool, idle_s: float = 60.0) -> None:
        self.errors: list[Exception] = []
        self.ended: list[Ended] = []
        self.reactor = Reactor(self.errors.append)
        self.pipes = pipes
        self.relay = Relay(self.reactor, pipes=pipes, idle_s=idle_s, on_end=self.ended.append)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.peers: list[socket.socket] = []

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        self.listener.close()
        self.relay.close()
        self.pipes.close()
        self.reactor.close()
        assert self.pipes.taken == 0
        assert self.errors == []

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Connected sockets: a peer's, and the one it is relayed by."""
        near = socket.create_connection(self.listener.getsockname())
        far, _address = self.listener.accept()
        near.settimeout(PATIENCE_S)
        far.setblocking(False)
        prepare(far)
        self.peers.append(near)
        return near, far

    def flow(self, first: bytes = b"") -> tuple[socket.socket, socket.socket, Flow]:
        """Client, server, and the flow between them."""
        client, inner_client = self.pair()
        server, inner_server = self.pair()
        return client, server, self.relay.start(inner_client, inner_server, first)

    def until(self, done: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < deadline, "it did not happen"
            self.reactor.run_once(0.02)

    def linger(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > until)

    def settle(self) -> None:
        """Turn until nothing has happened for a while."""
        for _ in range(5):
            self.reactor.run_once(0.01)

    def while_running(self, *works: Callable[[], None]) -> None:
        """Turn while others work in threads; their errors are the test's."""
        failed: list[BaseException] = []

        def guarded(work: Callable[[], None]) -> None:
            try:
                work()
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        try:
            self.until(lambda: failed or not any(thread.is_alive() for thread in threads))
        finally:
            for peer in self.peers if failed else ():
                peer.close()
            for thread in threads:
                thread.join(PATIENCE_S)
        if failed:
            raise failed[0]


@pytest.fixture(params=["pipes", "large pipes", "two small pipes", "no pipes"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    made = {
        "pipes": PipePool(),
        "large pipes": PipePool(large=2),
        "two small pipes": PipePool(limit=2, pipe_bytes=4096),
        "no pipes": PipePool(limit=0),
    }[request.param]
    before = descriptors()
    opened = Stage(made)
    yield opened
    opened.close()
    assert descriptors() == before


@pytest.fixture
def piped() -> Iterator[Stage]:
    before = descriptors()
    opened = Stage(PipePool())
    yield opened
    opened.close()
    assert descriptors() == before


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    peer.close()


def everything(peer: socket.socket) -> bytes:
    """All that comes until the other side is done."""
    found = b""
    while data := peer.recv(65536):
        found += data
    return found


# -- integrity ---------------------------------------------------------------------------------


def speak(peer: socket.socket, data: bytes, chance: random.Random) -> None:
    start = 0
    while start < len(data):
        size = chance.choice((1, 7, 100, 1448, 9000, 65536, 300_000))
        peer.sendall(data[start : start + size])
        start += size
        if chance.random() < 0.01:
            time.sleep(0.002)
    peer.shutdown(socket.SHUT_WR)


def listen(peer: socket.socket, expected: bytes, chance: random.Random) -> None:
    digest, count = hashlib.sha256(), 0
    while data := peer.recv(chance.choice((10, 1000, 4096, 65536, 500_000))):
        digest.update(data)
        count += len(data)
        if chance.random() < 0.01:
            time.sleep(0.003)
    assert count == len(expected)
    assert digest.digest() == hashlib.sha256(expected).digest()


@pytest.mark.parametrize("seed", [1, 2])
def test_every_byte_arrives_both_ways_at_once(stage: Stage, seed: int) -> None:
    chance = random.Random(seed)
    up, down = chance.randbytes(10_000_000), chance.randbytes(12_000_000)
    client, server, _flow = stage.flow(first=up[:6_000_000])
    stage.while_running(
        lambda: speak(client, up[6_000_000:], random.Random(seed)),
        lambda: speak(server, down, random.Random(seed + 1)),
        lambda: listen(server, up, random.Random(seed + 2)),
        lambda: listen(client, down, random.Random(seed + 3)),
    )
    stage.until(lambda: stage.ended)
    [ended] = stage.ended
    assert (ended.bytes_up, ended.bytes_down) == (len(up), len(down))
    assert (ended.reason, ended.errno) == (Reason.FINISHED, 0)
    assert 0 < ended.duration_s < PATIENCE_S


def fill(stage: Stage, client: socket.socket, flow: Flow) -> int:
    """Write until nothing more is taken, the other end not reading; returns how many bytes."""
    client.setblocking(False)
    written = blocked = 0
    while blocked < 3:
        try:
            written += client.send(bytes(1 << 20))
            blocked = 0
        except BlockingIOError:
            blocked += 1
        stage.settle()
    client.settimeout(PATIENCE_S)
    assert flow.bytes_up
    return written


def test_a_reader_that_stalls_holds_the_writer(stage: Stage) -> None:
    client, server, flow = stage.flow()
    written = fill(stage, client, flow)
    assert flow.bytes_up < written
    assert stage.pipes.taken <= 1
    client.shutdown(socket.SHUT_WR)
    stage.while_running(lambda: listen(server, bytes(written), random.Random(1)))


def test_urgent_bytes_keep_their_place(stage: Stage) -> None:
    client, server, flow = stage.flow()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    for number in range(4):
        client.sendall(b"before")
        client.send(b"!", socket.MSG_OOB)
        client.sendall(b"after")
        if number % 2:
            stage.settle()
    stage.until(lambda: flow.bytes_up == 48)
    client.shutdown(socket.SHUT_WR)
    stage.settle()
    assert everything(server) == b"before!after" * 4


def test_an_urgent_byte_is_urgent_at_the_other_end(stage: Stage) -> None:
    client, server, flow = stage.flow()
    client.sendall(b"before")
    client.send(b"!", socket.MSG_OOB)
    client.sendall(b"after")
    stage.until(lambda: flow.bytes_up == 12)
    assert server.recv(100) == b"before"
    assert server.recv(100, socket.MSG_OOB) == b"!"
    assert server.recv(100) == b"after"


def test_the_end_behind_an_urgent_byte_is_not_the_end_before_it(piped: Stage) -> None:
    """splice says 0 for both; here it is asked before the loop could tell of the urgent byte."""
    client, source = piped.pair()
    server, sink = piped.pair()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    client.sendall(b"before")
    client.send(b"!", socket.MSG_OOB)
    client.sendall(b"after")
    client.shutdown(socket.SHUT_WR)
    up = Way(source, sink, b"")
    up.readable = up.writable = True
    assert not up.pump(piped.pipes, memoryview(bytearray(COPY_BYTES)))
    assert everything(server) == b"before!after"
    source.close()
    sink.close()


# -- half-close --------------------------------------------------------------------------------


def test_the_client_is_done_first(stage: Stage) -> None:
    client, server, flow = stage.flow(b"early ")
    client.sendall(b"request")
    client.shutdown(socket.SHUT_WR)
    stage.until(lambda: flow.bytes_up == 13)
    stage.settle()
    assert everything(server) == b"early request"
    server.sendall(b"answer")
    stage.until(lambda: flow.bytes_down == 6)
    assert not flow.closed
    server.close()
    stage.until(lambda: flow.closed)
    assert everything(client) == b"answer"
    assert stage.ended[0].reason is Reason.FINISHED


def test_the_server_is_done_first(stage: Stage) -> None:
    client, server, flow = stage.flow()
    server.sendall(b"banner")
    server.shutdown(socket.SHUT_WR)
    stage.until(lambda: flow.bytes_down == 6)
    stage.settle()
    assert everything(client) == b"banner"
    client.sendall(b"thanks")
    client.close()
    stage.until(lambda: flow.closed)
    assert everything(server) == b"thanks"
    assert stage.ended[0].reason is Reason.FINISHED


def test_both_are_done_before_the_relay_looks(stage: Stage) -> None:
    client, server, flow = stage.flow()
    client.sendall(b"a")
    server.sendall(b"b")
    client.shutdown(socket.SHUT_WR)
    server.shutdown(socket.SHUT_WR)
    stage.until(lambda: flow.closed)
    assert (everything(client), everything(server)) == (b"b", b"a")


# -- failure -----------------------------------------------------------------------------------


def test_a_reset_of_either_side_reaches_the_other(stage: Stage) -> None:
    for who, reason in ((0, Reason.CLIENT_FAILED), (1, Reason.SERVER_FAILED)):
        peers = stage.flow()[:2]
        peers[1 - who].sendall(b"unread")
        stage.settle()
        reset(peers[who])
        stage.until(lambda: stage.ended)
        with pytest.raises(ConnectionResetError):
            peers[1 - who].recv(1)
        ended = stage.ended.pop()
        assert (ended.reason, ended.errno) == (reason, errno.ECONNRESET)


def test_a_reset_after_a_half_close_is_still_a_reset(stage: Stage) -> None:
    client, server, flow = stage.flow()
    client.sendall(b"request")
    client.shutdown(socket.SHUT_WR)
    stage.until(lambda: flow.bytes_up)
    stage.settle()
    assert everything(server) == b"request"
    reset(client)
    stage.until(lambda: flow.closed)
    with pytest.raises(ConnectionError):
        server.send(b"answer")
    assert stage.ended[0].reason is Reason.CLIENT_FAILED


def test_what_came_before_a_reset_arrives_and_never_looks_whole(stage: Stage) -> None:
    client, server, flow = stage.flow(b"request")
    server.sendall(b"x" * 100_000)
    reset(server)
    stage.until(lambda: flow.closed)
    found = bytearray()

    def read_on() -> None:
        while True:
            data = client.recv(65536)
            assert data, "a cut stream must not end like a whole one"
            found.extend(data)

    with pytest.raises(ConnectionResetError):
        read_on()
    assert found == b"x" * 100_000


@pytest.mark.parametrize("who", [0, 1])
def test_it_arrives_even_if_the_reset_is_met_by_writing(stage: Stage, who: int) -> None:
    *peers, flow = stage.flow()
    stage.settle()
    peers[1 - who].sendall(b"this way first")
    peers[who].sendall(b"last words")
    reset(peers[who])
    stage.until(lambda: flow.closed)
    assert peers[1 - who].recv(100) == b"last words"
    with pytest.raises(ConnectionResetError):
        peers[1 - who].recv(1)


def test_a_reset_ends_a_flow_whose_reader_has_stalled(piped: Stage) -> None:
    client, server, flow = piped.flow()
    fill(piped, client, flow)
    reset(client)
    piped.until(lambda: flow.closed)
    with pytest.raises(ConnectionResetError):
        everything(server)


def test_a_server_that_refuses_is_a_reset(stage: Stage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = closed.getsockname()
    server = socket.socket()
    server.setblocking(False)
    assert server.connect_ex(address) == errno.EINPROGRESS
    client, inner = stage.pair()
    client.sendall(b"hello")
    client.shutdown(socket.SHUT_WR)
    stage.relay.start(inner, server, b"early")
    stage.until(lambda: stage.ended)
    assert stage.ended[0].reason is Reason.SERVER_FAILED
    assert stage.ended[0].errno == errno.ECONNREFUSED
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_a_server_that_is_still_being_dialled_gets_all(stage: Stage) -> None:
    server = socket.socket()
    server.setblocking(False)
    client, inner = stage.pair()
    server.connect_ex(stage.listener.getsockname())
    client.sendall(b"request")
    client.shutdown(socket.SHUT_WR)
    flow = stage.relay.start(inner, server, b"early ")
    far, _address = stage.listener.accept()
    stage.until(lambda: flow.bytes_up == 13)
    stage.settle()
    with far:
        assert everything(far) == b"early request"


def test_a_client_that_is_done_does_not_break_off_the_dialling(piped: Stage) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as busy:
        waiting = socket.create_connection(busy.getsockname())
        server = socket.socket()
        server.setblocking(False)
        server.connect_ex(busy.getsockname())
        client, inner = piped.pair()
        client.shutdown(socket.SHUT_WR)
        flow = piped.relay.start(inner, server)
        piped.linger(0.1)
        busy.accept()[0].close()
        waiting.close()
        busy.settimeout(0)
        arrived: list[socket.socket] = []

        def accept() -> bool:
            with suppress(BlockingIOError):
                arrived.append(busy.accept()[0])
            return bool(arrived)

        piped.until(accept)  # a second later: the first SYN found the queue full
        arrived[0].settimeout(PATIENCE_S)
        piped.settle()
        assert arrived[0].recv(1) == b""
        arrived[0].close()
        piped.until(lambda: flow.closed)
        assert piped.ended[0].reason is Reason.FINISHED


def test_a_policy_change_resets_both(stage: Stage) -> None:
    client, server, flow = stage.flow()
    client.sendall(b"x")
    stage.until(lambda: flow.bytes_up)
    assert server.recv(1) == b"x"
    flow.close(reset=True)
    flow.close(reset=True)
    for peer in (client, server):
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
    assert [ended.reason for ended in stage.ended] == [Reason.CLOSED]
    assert len(stage.relay) == 0


def test_an_orderly_close_is_an_end(piped: Stage) -> None:
    client, server, flow = piped.flow()
    flow.close(reset=False)
    assert client.recv(1) == server.recv(1) == b""


def test_only_silence_is_idle() -> None:
    stage = Stage(PipePool(), idle_s=0.2)
    client, server, flow = stage.flow()
    for _ in range(4):
        client.send(b"x")
        stage.linger(0.12)
    assert not flow.closed
    began = time.monotonic()
    stage.until(lambda: flow.closed)
    assert 0.05 < time.monotonic() - began < 2
    assert stage.ended[0].reason is Reason.IDLE
    for peer in (client, server):
        with pytest.raises(ConnectionResetError):
            everything(peer)
    stage.close()


def test_what_lives_longer_notices_a_dead_server() -> None:
    stage = Stage(PipePool(), idle_s=0.6)
    _client, inner_client = stage.pair()
    _server, inner_server = stage.pair()
    flow = stage.relay.start(inner_client, inner_server)
    assert not inner_server.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    stage.until(lambda: inner_server.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
    stage.until(lambda: flow.closed)
    assert stage.ended[0].reason is Reason.IDLE
    stage.close()


def test_sockets_that_are_watched_already_go_on_where_they_were(piped: Stage) -> None:
    """What was told before the relay had them is not told again, and nothing waits for it."""
    client, inner_client = piped.pair()
    server, inner_server = piped.pair()
    told: dict[int, int] = {}
    for each in (inner_client, inner_server):
        number = each.fileno()
        piped.reactor.add(number, partial(told.__setitem__, number), EVENTS)
    client.sendall(b"said before")
    server.sendall(b"answered before")
    piped.until(lambda: len(told) == 2 and all(events & select.EPOLLIN for events in told.values()))
    seen = (told[inner_client.fileno()], told[inner_server.fileno()])
    piped.relay.start(inner_client, inner_server, b"first ", seen=seen)
    piped.until(lambda: readable(client) and readable(server))
    assert (server.recv(99), client.recv(99)) == (b"first said before", b"answered before")
    client.close()
    server.close()
    piped.until(lambda: piped.ended)
    assert piped.ended[0].reason is Reason.FINISHED


def test_what_a_server_said_before_its_reset_arrives_though_the_client_is_new(
    piped: Stage,
) -> None:
    client, inner_client = piped.pair()
    server, inner_server = piped.pair()
    events: list[int] = []
    flows: list[Flow] = []
    piped.reactor.add(inner_server.fileno(), events.append, EVENTS)
    server.sendall(b"last words")
    reset(server)
    piped.until(lambda: events and events[-1] & select.EPOLLERR)
    # From a handler, as it is: before the loop can tell of the client.
    begin = partial(piped.relay.start, inner_client, inner_server, seen=(None, events[-1]))
    piped.reactor.call_later(0, lambda: flows.append(begin()))
    piped.until(lambda: piped.ended)
    assert client.recv(100) == b"last words"
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def readable(peer: socket.socket) -> bool:
    return bool(select.select([peer], [], [], 0)[0])


def test_a_socket_that_cannot_be_watched_ends_the_flow(piped: Stage) -> None:
    client, inner = piped.pair()
    with open("/dev/null", "rb") as file:
        broken = socket.socket(fileno=os.dup(inner.fileno()))
        os.dup2(file.fileno(), broken.fileno())
    flow = piped.relay.start(inner, broken)
    assert piped.ended == []
    piped.until(lambda: flow.closed)
    assert piped.ended[0].reason is Reason.FAULT
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_a_callback_that_raises_harms_no_other(piped: Stage) -> None:
    def fail(_ended: Ended) -> None:
        raise RuntimeError("on purpose")

    client, inner_client = piped.pair()
    _server, inner_server = piped.pair()
    flow = piped.relay.start(inner_client, inner_server, b"", fail)
    other_client, other_server, _other = piped.flow()
    client.sendall(b"x")
    other_client.sendall(b"y")
    reset(client)
    piped.until(lambda: flow.closed)
    piped.settle()
    assert other_server.recv(1) == b"y"
    assert [str(error) for error in piped.errors] == ["on purpose"]
    piped.errors.clear()


# -- many --------------------------------------------------------------------------------------


def test_two_hundred_at_once(stage: Stage) -> None:
    chance = random.Random(7)
    flows = [(*stage.flow(), chance.randbytes(chance.randrange(1, 60_000))) for _ in range(200)]

    def speak_all() -> None:
        for client, _server, _flow, data in flows:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)

    def answer_all() -> None:
        for _client, server, _flow, data in reversed(flows):
            assert everything(server) == data
            server.sendall(data[::-1])
            server.close()

    def hear_all() -> None:
        for client, _server, _flow, data in flows:
            assert everything(client) == data[::-1]

    stage.while_running(speak_all, answer_all, hear_all)
    stage.until(lambda: len(stage.ended) == 200)
    assert {ended.reason for ended in stage.ended} == {Reason.FINISHED}


def test_an_idle_flow_is_small_and_holds_no_pipe(piped: Stage) -> None:
    count = 1000
    pairs = [(piped.pair()[1], piped.pair()[1]) for _ in range(count)]
    sockets = descriptors()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for client, server in pairs:
        piped.relay.start(client, server)
    for peer in piped.peers:
        peer.send(b"x")
    piped.until(lambda: all(flow.bytes_down for flow in piped.relay._flows))
    piped.until(lambda: all(flow.bytes_up for flow in piped.relay._flows))
    grown = (tracemalloc.get_traced_memory()[0] - before) / count
    tracemalloc.stop()
    assert grown < 4096, f"{grown:.0f} bytes a flow"
    assert piped.pipes.taken == 0
    assert descriptors() - sockets <= 2 * len(piped.pipes._free)
    assert len(piped.pipes._free) <= 2


@contextmanager
def pouring(pairs: list[tuple[socket.socket, socket.socket]]) -> Iterator[None]:
    """A process that sends all it can and reads all it gets, for `PATIENCE_S` at most."""
    child = os.fork()
    if not child:
        try:
            block, scratch, until = (
                bytes(1 << 18),
                bytearray(1 << 18),
                time.monotonic() + PATIENCE_S,
            )
            clients, servers = zip(*pairs, strict=True)
            for peer in (*clients, *servers):
                peer.setblocking(False)
            while time.monotonic() < until:
                readable, writable, _ = select.select(servers, clients, [], 1)
                for peer in readable:
                    with suppress(BlockingIOError):
                        peer.recv_into(scratch)
                for peer in writable:
                    with suppress(BlockingIOError):
                        peer.send(block)
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_bulk_flow_starves_nobody(piped: Stage) -> None:
    """Fifty that exchange a byte at a time go on while others move all they can."""
    bulk = [piped.flow() for _ in range(4)]
    small = [piped.flow()[:2] for _ in range(50)]
    waits: list[float] = []

    def ping() -> None:
        for _ in range(20):
            for client, server in small:
                began = time.monotonic()
                client.send(b"?")
                assert server.recv(1) == b"?"
                server.send(b"!")
                assert client.recv(1) == b"!"
                waits.append(time.monotonic() - began)

    with pouring([(client, server) for client, server, _flow in bulk]):
        piped.until(lambda: all(flow.bytes_up > 1_000_000 for _client, _server, flow in bulk))
        before = [flow.bytes_up for _client, _server, flow in bulk]
        piped.while_running(ping)
        assert all(flow.bytes_up > had for (_, _, flow), had in zip(bulk, before, strict=True))
    waits.sort()
    assert len(waits) == 1000
    assert waits[990] < 1.0, f"99 of 100 took up to {waits[990]:.3f} s"


def test_a_turn_is_bounded(piped: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(way, "TURN_BYTES", 10_000)
    client, _server, flow = piped.flow()
    client.sendall(bytes(60_000))
    seen = []
    while flow.bytes_up < 60_000:
        piped.reactor.run_once(0.5)
        seen.append(flow.bytes_up)
    steps = [after - before for before, after in pairwise(seen)]
    assert max(steps) <= 2 * 10_000  # an event's turn, and the one that was queued


# -- pipes -------------------------------------------------------------------------------------


def test_only_empty_pipes_are_used_again() -> None:
    pool = PipePool(limit=2)
    first, second = pool.take(), pool.take()
    assert first is not None
    assert second is not None
    assert first.size == PIPE_BYTES
    assert pool.take() is None
    first.held = os.write(first.writer, b"secret")
    pool.give_back(first)
    pool.give_back(second)
    assert pool.take() is second
    third = pool.take()
    assert third is not None
    with pytest.raises(BlockingIOError):
        os.read(third.reader, 1)
    pool.give_back(second)
    pool.give_back(third)
    pool.close()
    assert pool.taken == 0


def test_a_few_pipes_are_large_and_taken_first() -> None:
    pool = PipePool(limit=3, large=1)
    large, small = pool.take(), pool.take()
    assert large is not None
    assert small is not None
    assert (large.size, small.size) == (LARGE_BYTES, PIPE_BYTES)
    for each in (large, small):
        pool.give_back(each)
    assert pool.take() is large
    large.held = os.write(large.writer, b"secret")
    pool.give_back(large)  # closed, and so one more may be made
    again = pool.take()
    assert again is not None
    assert again.size == LARGE_BYTES
    pool.give_back(again)
    pool.close()
    assert pool.taken == 0


# -- the loop ----------------------------------------------------------------------------------


@pytest.fixture
def loop() -> Iterator[Reactor]:
    def fail(error: Exception) -> None:
        raise error

    before = descriptors()
    with Reactor(fail) as made:
        yield made
    assert descriptors() == before


def test_a_stale_event_never_reaches_the_next_owner_of_a_number(loop: Reactor) -> None:
    near, far = socket.socketpair(), socket.socketpair()
    told: list[str] = []
    for each in (near, far):
        each[1].send(b"x")

    def replace(which: tuple[socket.socket, socket.socket]) -> None:
        """Whichever comes first closes the other, whose number a silent pipe then gets."""
        told.append("event")
        other = far if which is near else near
        number = other[0].fileno()
        loop.remove(number)
        reader, writer = os.pipe()
        os.dup2(reader, number)
        os.close(reader)
        loop.add(number, lambda _events: told.append("stale"), 1)
        others.append(writer)

    others: list[int] = []
    loop.add(near[0].fileno(), lambda _events: replace(near), 1)
    loop.add(far[0].fileno(), lambda _events: replace(far), 1)
    loop.run_once(1)
    loop.run_once(0.01)
    assert told == ["event"]
    os.write(others[0], b"x")
    loop.run_once(1)
    assert told == ["event", "stale"]
    os.close(others[0])
    for end in (*near, *far):
        end.close()


def test_timers_come_in_order_and_cancelled_ones_never(loop: Reactor) -> None:
    told: list[int] = []
    loop.call_later(0.02, lambda: told.append(2))
    loop.call_later(0.01, lambda: told.append(1))
    never = loop.call_later(0.015, lambda: told.append(0))
    never.cancel()
    never.cancel()
    loop.call_later(0.03, loop.stop)
    loop.run()
    assert told == [1, 2]


def test_cancelled_timers_do_not_pile_up(loop: Reactor) -> None:
    kept = [loop.call_later(60, loop.stop) for _ in range(10)]
    for _ in range(10_000):
        loop.call_later(3600, loop.stop).cancel()
    assert len(loop._timers) < 1000
    for timer in kept:
        timer.cancel()


def test_an_error_goes_to_its_callback_and_the_rest_goes_on() -> None:
    errors: list[Exception] = []
    told: list[str] = []

    def fail() -> None:
        raise ValueError("on purpose")

    with Reactor(errors.append) as loop:
        loop.call_soon(fail)
        loop.call_soon(lambda: told.append("soon"))
        loop.call_later(0, fail)
        loop.call_later(0, lambda: told.append("later"))
        loop.run_once(0)
    assert len(errors) == 2
    assert sorted(told) == ["later", "soon"]


def test_many_calls_give_way_to_events(loop: Reactor) -> None:
    near, far = socket.socketpair()
    told: list[str] = []
    loop.add(near.fileno(), lambda _events: told.append("event"), 1)
    for _ in range(100):
        loop.call_soon(lambda: told.append("call"))
    loop.run_once(0)
    far.send(b"x")
    loop.run_once(0)
    assert "event" in told[:50]
    while len(told) < 101:
        loop.run_once(0)
    loop.remove(near.fileno())
    near.close()
    far.close()


def test_a_call_that_queues_itself_stops_nothing(loop: Reactor) -> None:
    near, far = socket.socketpair()
    told: list[str] = []

    def again() -> None:
        loop.call_soon(again)

    again()
    loop.add(near.fileno(), lambda _events: told.append("event"), 1)
    far.send(b"x")
    loop.run_once(None)
    loop.run_once(None)
    assert told == ["event"]
    loop.remove(near.fileno())
    near.close()
    far.close()


def test_a_number_is_watched_once(loop: Reactor) -> None:
    near, far = socket.socketpair()
    loop.add(near.fileno(), lambda _events: None, 1)
    with pytest.raises(ValueError, match="watched already"):
        loop.add(near.fileno(), lambda _events: None, 1)
    loop.remove(near.fileno())
    with pytest.raises(KeyError):
        loop.remove(near.fileno())
    near.close()
    far.close()


def test_stop_wakes_it_from_another_thread(loop: Reactor) -> None:
    thread = threading.Timer(0.05, loop.stop)
    thread.start()
    began = time.monotonic()
    loop.run()
    assert time.monotonic() - began < 5
    thread.join()
    loop.stop()
    loop.run()  # a stop that came early holds
