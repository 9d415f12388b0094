"""A resolver that lies, by the name it is asked for: `python -m lab.liar CONFIG`.

    cname.lie.test       an alias of FORBIDDEN's name, with FORBIDDEN's address
    extra.lie.test       ALLOWED's address, and FORBIDDEN's under names that nobody asked for
    flip.lie.test        TTL 0: ALLOWED's address, then PRIVATE's, in turns
    forged.lie.test      three forged answers with FORBIDDEN's address, then the right one
    late.lie.test        the right answer over TCP only: over UDP it is cut off
    huge.lie.test        cut off over UDP, and over TCP 64 KiB of addresses
    garbage.lie.test     the right id and question, and then noise
    loop.lie.test        an alias of itself
    ech.lie.test         HTTPS and SVCB with ech, hints and alpn; A and AAAA as ALLOWED's
    plain.lie.test       ALLOWED's address
    SILENT (below)       never an answer

Everything else is SERVFAIL, so that who asks goes on to another resolver. Each question becomes a
line "name type transport" in the log before it is answered; the process ends when its stdin does.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Self

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from . import processes
from .addresses import ALLOWED, FORBIDDEN, LIAR, PRIVATE, Server
from .netns import Namespace

#: What the lab's other resolver knows, and one name that only this one is asked for.
SILENT = ("shared.example.test", "silent.lie.test")
#: "ech" is no real configuration: nobody here would know what to do with one.
SERVICE = '1 . alpn="h2,h3" ipv4hint={low} ech="AAj+DQAEAQIDBA==" ipv6hint={high}'
PORT = 53
_START_TIMEOUT_S = 20.0
_TTL_S = 30
_turns = count()

Message = dns.message.Message
Lie = Callable[[Message, bool], list[bytes]]


class Liar:
    """The process, in a namespace that has `LIAR`'s addresses already."""

    def __init__(self, namespace: Namespace) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="gnlab-")
        self._log = Path(self._directory.name, "questions")
        self._log.touch()
        self._process = namespace.popen(
            [sys.executable, "-m", "lab.liar", json.dumps({"log": str(self._log)})],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        stdout = self._process.stdout
        assert stdout is not None
        readable, _, _ = select.select([stdout], [], [], _START_TIMEOUT_S)
        if not readable or stdout.readline() != b"ready\n":
            self.stop()
            raise RuntimeError("the lying resolver did not start")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process; harmless when repeated."""
        processes.stop(self._process)
        self._directory.cleanup()

    def asked(self, name: str) -> list[str]:
        """The questions for a name so far: "TYPE transport"."""
        lines = (line.split(" ", 1) for line in self._log.read_text().splitlines())
        return [rest for asked, rest in lines if asked == name]


# -- what it says ------------------------------------------------------------------------------


def _answer(query: Message, *records: tuple[str, str, str], ttl_s: int = _TTL_S) -> Message:
    """A reply with these records: name ("" is the one asked for), type, data."""
    response = dns.message.make_response(query, recursion_available=True)
    for name, rtype, data in records:
        owner = name or query.question[0].name
        response.answer.append(dns.rrset.from_text(owner, ttl_s, "IN", rtype, data))
    return response


def _of(server: Server, query: Message) -> tuple[str, str] | None:
    """The type and data of a server's address, if that was asked for."""
    rtype = dns.rdatatype.to_text(query.question[0].rdtype)
    address = {"A": server.ipv4, "AAAA": server.ipv6}.get(rtype)
    return None if address is None else (rtype, str(address))


def _plain(query: Message, server: Server = ALLOWED, owner: str = "", ttl_s: int = _TTL_S) -> bytes:
    found = _of(server, query)
    records = [] if found is None else [(owner, *found)]
    return _answer(query, *records, ttl_s=ttl_s).to_wire()


def _cname(query: Message, _tcp: bool) -> list[bytes]:
    found = _of(FORBIDDEN, query)
    records = [] if found is None else [(FORBIDDEN.name + ".", *found)]
    return [_answer(query, ("", "CNAME", FORBIDDEN.name + "."), *records).to_wire()]


def _extra(query: Message, _tcp: bool) -> list[bytes]:
    response = dns.message.from_wire(_plain(query))
    found = _of(FORBIDDEN, query)
    if found is not None:
        for section in (response.answer, response.authority, response.additional):
            for owner in ("planted.lie.test.", ALLOWED.name + "."):
                section.append(dns.rrset.from_text(owner, _TTL_S, "IN", *found))
    return [response.to_wire()]


def _flip(query: Message, _tcp: bool) -> list[bytes]:
    return [_plain(query, (ALLOWED, PRIVATE)[next(_turns) % 2], ttl_s=0)]


def _forged(query: Message, _tcp: bool) -> list[bytes]:
    """Another id; another name; the name in other letters (0x20)."""
    wrong_id = bytearray(_plain(query, FORBIDDEN))
    wrong_id[0] ^= 0xFF
    other = dns.message.make_query("other.lie.test.", query.question[0].rdtype, id=query.id)
    swapped = bytearray(_plain(query, FORBIDDEN))
    swapped[13] ^= 0x20
    return [bytes(wrong_id), _plain(other, FORBIDDEN), bytes(swapped), _plain(query)]


def _cut_off(query: Message) -> list[bytes]:
    response = _answer(query)
    response.flags |= dns.flags.TC
    return [response.to_wire()]


def _late(query: Message, tcp: bool) -> list[bytes]:
    return [_plain(query)] if tcp else _cut_off(query)


def _huge(query: Message, tcp: bool) -> list[bytes]:
    if not tcp:
        return _cut_off(query)
    start = bytearray(_plain(query))
    records = (65535 - len(start)) // 16
    address = FORBIDDEN.ipv4
    assert address is not None
    start[6:8] = records.to_bytes(2, "big")
    one = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x1e\x00\x04" + address.packed
    end = 12 + len(query.question[0].name.to_wire() or b"") + 4
    return [bytes(start[:10]) + b"\0\0" + bytes(start[12:end]) + one * records]


def _garbage(query: Message, _tcp: bool) -> list[bytes]:
    return [_plain(query)[:-3] + os.urandom(40)]


def _loop(query: Message, _tcp: bool) -> list[bytes]:
    return [_answer(query, ("", "CNAME", query.question[0].name.to_text())).to_wire()]


def _ech(query: Message, _tcp: bool) -> list[bytes]:
    rtype = dns.rdatatype.to_text(query.question[0].rdtype)
    if rtype not in ("HTTPS", "SVCB"):
        return [_plain(query)]
    data = SERVICE.format(low=FORBIDDEN.ipv4, high=FORBIDDEN.ipv6)
    return [_answer(query, ("", rtype, data)).to_wire()]


LIES: dict[str, Lie] = {
    "cname.lie.test": _cname,
    "extra.lie.test": _extra,
    "flip.lie.test": _flip,
    "forged.lie.test": _forged,
    "late.lie.test": _late,
    "huge.lie.test": _huge,
    "garbage.lie.test": _garbage,
    "loop.lie.test": _loop,
    "ech.lie.test": _ech,
    "plain.lie.test": lambda query, _tcp: [_plain(query)],
}


# -- the process -------------------------------------------------------------------------------


class _Process:
    def __init__(self, log: Path) -> None:
        self._file = log.open("a")
        self._lock = threading.Lock()

    def replies(self, wire: bytes, tcp: bool) -> list[bytes]:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        rtype = dns.rdatatype.to_text(question.rdtype)
        with self._lock:
            self._file.write(f"{name} {rtype} {'tcp' if tcp else 'udp'}\n")
            self._file.flush()
        if name in SILENT:
            return []
        lie = LIES.get(name)
        if lie is not None:
            return lie(query, tcp)
        refused = _answer(query)
        refused.set_rcode(dns.rcode.SERVFAIL)
        return [refused.to_wire()]

    def serve_datagrams(self, listener: socket.socket) -> None:
        while True:
            data, source = listener.recvfrom(4096)
            for reply in self.replies(data, tcp=False):
                listener.sendto(reply, source)

    def serve_streams(self, listener: socket.socket) -> None:
        while True:
            stream, _source = listener.accept()
            with stream, suppress(OSError, EOFError):
                stream.settimeout(10)
                for query in _messages(stream):
                    for reply in self.replies(query, tcp=True):
                        stream.sendall(len(reply).to_bytes(2, "big") + reply)


def _messages(stream: socket.socket) -> Iterator[bytes]:
    """RFC 1035 section 4.2.2: each message is preceded by its length."""
    with stream.makefile("rb") as file:
        while head := file.read(2):
            yield file.read(int.from_bytes(head, "big"))


def main(config: dict[str, str]) -> None:
    """Answer on both addresses until stdin ends."""
    process = _Process(Path(config["log"]))
    for address in LIAR.addresses:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        datagrams = socket.socket(family, socket.SOCK_DGRAM)
        datagrams.bind((str(address), PORT))
        streams = socket.create_server((str(address), PORT), family=family)
        for work, listener in (
            (process.serve_datagrams, datagrams),
            (process.serve_streams, streams),
        ):
            threading.Thread(target=_for_ever, args=(work, listener), daemon=True).start()
    print("ready", flush=True)
    sys.stdin.buffer.read()


def _for_ever(work: Callable[[socket.socket], None], listener: socket.socket) -> None:
    """A client that is gone, or that asks nonsense, is the next one's no concern."""
    while True:
        try:
            work(listener)
        except Exception as error:
            print(f"liar: {error!r}", file=sys.stderr)
            time.sleep(0.01)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
