"""A connection through guestnet comes to the same as one without it, step by step.

Each script is played once over a cable and once by a guest, and both ends observe the same: bytes,
ends, errors, urgent marks, in the same order. Who is not there is in `test_nobody_there.py`.
"""

from __future__ import annotations

import contextlib
import functools
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from beside import MANNERS, NAME, Beside, beside
from ends import End
from lab.caller import Caller

pytestmark = pytest.mark.root

Script = Callable[[End, End], None]

#: A port where nothing is waited for, and one whose clients say a name first.
PLAIN, SPEAKING = 9000, 8443
#: Fits the buffers on the way, even if nobody reads.
SOME = bytes(range(256)) * 160
BOTH = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])


@pytest.fixture(scope="module", params=MANNERS)
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Beside]:
    with beside(MANNERS[request.param], tmp_path_factory.mktemp("same")) as made:
        yield made


def play(
    script: Script, stage: Beside, caller: Caller, version: int, first: bytes = b""
) -> list[str]:
    """What both ends observed; `first` is said by the client before the script begins."""
    told: list[str] = []
    port = SPEAKING if first else PLAIN
    with stage.meeting(caller, version, port, (first, 0)) as (near, far):
        client, server = End(near, "client", told), End(far, "server", told)
        assert far.recv(len(first), socket.MSG_WAITALL) == first
        script(client, server)
    assert told
    return told


@functools.cache
def client_hello() -> bytes:
    """What a TLS client says first."""
    heard, said = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(heard, said, server_hostname=NAME).do_handshake()
    return said.read()


# -- the scripts: what `a` does to `b`, and the other way round --------------------------------


def half_close(a: End, b: End) -> None:
    a.sends(b"request")
    a.shuts()
    b.reads()
    b.sends(b"answer")
    a.reads(6)
    b.sends(b" and more")
    b.closes()
    a.reads()


def write_after_the_end(a: End, b: End) -> None:
    a.sends(b"bye")
    a.closes()
    b.reads()
    b.sends(b"x")
    b.fails()
    b.sends(b"y")
    b.reads()


def both_shut_at_once(a: End, b: End) -> None:
    a.sends(SOME)
    b.sends(SOME)
    a.shuts()
    b.shuts()
    a.reads()
    b.reads()
    a.sends(b"x")
    b.sends(b"x")


def shut_both_ways_and_written_to(a: End, b: End) -> None:
    a.sends(b"x")
    a.shuts(socket.SHUT_RDWR)
    b.reads()
    b.sends(b"y")
    b.fails()
    b.reads()
    b.sends(b"z")


def shut_for_reading(a: End, b: End) -> None:
    a.shuts(socket.SHUT_RD)
    b.sends(b"unheard")
    b.is_acknowledged()
    a.has_all(7)
    a.sends(b"said")
    b.reads(4)
    a.reads_once()
    a.closes()
    b.reads()


def lingering_close(a: End, b: End) -> None:
    a.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 10))
    a.sends(SOME)
    a.closes()
    b.reads()


def reset(a: End, b: End) -> None:
    a.resets()
    b.fails()
    b.reads()
    b.sends(b"x")


def reset_met_by_writing(a: End, b: End) -> None:
    a.resets()
    b.fails()
    b.sends(b"x")
    b.reads()


def words_and_reset(a: End, b: End) -> None:
    a.sends(b"last words")
    b.has_all(10)
    a.resets()
    b.fails()
    b.reads()


def words_and_reset_at_once(a: End, b: End) -> None:
    a.sends(b"last words")
    a.resets()
    b.fails()
    b.reads()


def close_with_unread_bytes(a: End, b: End) -> None:
    b.sends(b"unread")
    a.has_all(6)
    a.sends(b"words")
    a.closes()
    b.fails()
    b.reads()
    b.sends(b"x")


def reset_with_unread_bytes(a: End, b: End) -> None:
    b.sends(b"unread")
    a.has_all(6)
    a.resets()
    b.fails()
    b.reads()


def reset_after_half_close(a: End, b: End) -> None:
    a.sends(b"request")
    a.shuts()
    b.reads()
    a.resets()
    b.fails()
    b.reads()
    b.sends(b"answer")


def reset_after_the_others_half_close(a: End, b: End) -> None:
    a.sends(b"request")
    a.shuts()
    b.reads()
    b.sends(b"part")
    a.reads(4)
    b.resets()
    a.fails()
    a.reads()
    a.sends(b"x")


def urgent_taken_apart(a: End, b: End) -> None:
    for _ in range(2):
        a.sends(b"before")
        a.sends_urgently(b"!")
        b.awaits(select.POLLPRI)
        a.sends(b"after")
        b.has_all(6)
        b.marks()
        b.reads_once()
        b.marks()
        b.reads_urgently()
        b.reads_urgently()
        b.reads(5)
        b.marks()
    b.sends(b"answer")
    a.reads(6)
    a.closes()
    b.reads()


def urgent_in_its_place(a: End, b: End) -> None:
    b.stream.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    a.sends(b"before")
    a.sends_urgently(b"!")
    a.sends(b"after")
    b.awaits(select.POLLPRI)
    b.has_all(6)
    b.reads_once()
    b.marks()
    b.reads(6)
    b.marks()
    b.reads_urgently()


def urgent_first_and_last(a: End, b: End) -> None:
    a.sends_urgently(b"!")
    b.awaits(select.POLLPRI)
    b.marks()
    b.reads_urgently()
    a.sends(b"rest")
    b.reads(4)
    a.sends_urgently(b"end?")
    a.shuts()
    b.awaits(select.POLLPRI)
    b.awaits(select.POLLRDHUP)
    b.reads_once()
    b.marks()
    b.reads_urgently()
    b.reads()


def urgent_never_taken(a: End, b: End) -> None:
    a.sends(b"before")
    a.sends_urgently(b"!")
    b.awaits(select.POLLPRI)
    a.sends(b"after")
    a.shuts()
    b.awaits(select.POLLRDHUP)
    b.reads()


def urgent_both_ways_and_much_behind(a: End, b: End) -> None:
    for one, other in ((a, b), (b, a)):
        one.sends(b"before")
        one.sends_urgently(b"!")
        other.awaits(select.POLLPRI)
        other.reads_once()
        other.reads_urgently()
    a.sends(SOME)
    b.reads(len(SOME))
    b.sends(SOME)
    a.reads(len(SOME))


def window_closed_for_a_while(a: End, b: End) -> None:
    said, heard = a.fills(), []
    b.sends(b"the other way")
    a.reads(13)
    reader = threading.Thread(target=lambda: heard.append(b.digests()))
    reader.start()
    a.shuts()
    reader.join()
    b.note("heard what was said" if heard == [said] else "heard something else")


def window_closed_and_reset_by_its_reader(a: End, b: End) -> None:
    a.fills()
    b.resets()
    a.fails()
    a.sends(b"x")
    a.reads()


def window_closed_and_reset_by_its_writer(a: End, b: End) -> None:
    a.fills()
    a.resets()
    b.fails()
    b.reads_until_it_fails()


def small_writes_in_turns(a: End, b: End) -> None:
    for size in range(1, 100):
        a.sends(bytes([size]) * size)
        b.reads(size)
        b.sends(bytes([size]))
        a.reads(1)


def more_in_flight_than_64_kib(a: End, b: End) -> None:
    b.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    a.sends(SOME * 10)
    a.is_acknowledged()
    b.has_all(10 * len(SOME))
    a.closes()
    b.reads()


SCRIPTS = (
    half_close,
    write_after_the_end,
    both_shut_at_once,
    shut_both_ways_and_written_to,
    shut_for_reading,
    lingering_close,
    reset,
    reset_met_by_writing,
    words_and_reset,
    words_and_reset_at_once,
    close_with_unread_bytes,
    reset_with_unread_bytes,
    reset_after_half_close,
    reset_after_the_others_half_close,
    urgent_taken_apart,
    urgent_in_its_place,
    urgent_first_and_last,
    urgent_never_taken,
    urgent_both_ways_and_much_behind,
    window_closed_for_a_while,
    window_closed_and_reset_by_its_reader,
    window_closed_and_reset_by_its_writer,
    small_writes_in_turns,
    more_in_flight_than_64_kib,
)


def mirrored(script: Script) -> Script:
    """The same with the ends exchanged: what `a` does is done by the server."""
    return lambda client, server: script(server, client)


@BOTH
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_both_ends_observe_the_same(stage: Beside, script: Script, version: int) -> None:
    for played in (script, mirrored(script)):
        direct = play(played, stage, stage.direct, version)
        assert play(played, stage, stage.guest, version) == direct


@BOTH
@pytest.mark.parametrize("stage", ["by name"], indirect=True)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_also_behind_words_that_are_read(stage: Beside, script: Script, version: int) -> None:
    """The gateway has read a ClientHello when it begins, and passed it on."""
    direct = play(script, stage, stage.direct, version, client_hello())
    assert play(script, stage, stage.guest, version, client_hello()) == direct


@BOTH
@pytest.mark.parametrize("stage", ["by name"], indirect=True)
def test_an_urgent_byte_comes_while_the_first_words_are_read(stage: Beside, version: int) -> None:
    first = ((client_hello(), 0), (b"!", socket.MSG_OOB))
    observed = []
    for caller in (stage.direct, stage.guest):
        told: list[str] = []
        with stage.meeting(caller, version, SPEAKING, *first) as (_near, far):
            server = End(far, "server", told)
            server.awaits(select.POLLPRI)
            server.reads(len(client_hello()))
            server.reads_urgently()
        observed.append(told)
    assert observed[1] == observed[0]
