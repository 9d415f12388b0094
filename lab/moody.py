"""A resolver whose manners a test changes as it goes: in threads of the test's own process.

It answers A and AAAA from its `zone`, on UDP or over TLS (RFC 7858), at an address that the
namespace has already. Its manners hold from the next question on.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Self

import dns.edns
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from .netns import Namespace

Address = IPv4Address | IPv6Address

CLEAR, TLS = 53, 853


@dataclass
class Manners:
    """How it behaves."""

    #: It hears, and says nothing.
    silent: bool = False
    #: It fails (SERVFAIL) whatever it is asked.
    failing: bool = False
    #: It ends the connection after so many bytes of each answer.
    cuts_at: int | None = None
    #: It ends the connection behind each answer.
    closes: bool = False
    #: It waits for so many questions of a connection, and answers the last one first.
    gathers: int = 1
    ttl_s: int = 30


@dataclass
class Asked:
    """One question that it heard."""

    name: str
    #: Which connection it came by, from 1; 0 is none.
    connection: int
    #: Bytes of the message, and those of its padding (RFC 7830), if it had any.
    size: int
    padding: int | None


@dataclass
class Resolver:
    """Opened in a namespace until the end of its `with` block."""

    namespace: Namespace
    address: Address
    zone: Mapping[str, tuple[Address, ...]]
    #: Certificate and key: it speaks TLS.
    certificate: Path | None = None
    manners: Manners = field(default_factory=Manners)
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    _open: list[socket.socket] = field(default_factory=list)

    def __enter__(self) -> Self:
        family = socket.AF_INET if self.address.version == 4 else socket.AF_INET6
        with self.namespace.enter():
            if self.certificate is None:
                door = socket.socket(family, socket.SOCK_DGRAM)
                door.bind((str(self.address), CLEAR))
            else:
                door = socket.create_server((str(self.address), TLS), family=family)
        self._open.append(door)
        work = self._serve_datagrams if self.certificate is None else self._serve_streams
        threading.Thread(target=work, args=(door,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()

    def names(self) -> list[str]:
        """What it was asked for."""
        return [each.name for each in self.asked]

    def hang_up(self, *, doors: bool = True) -> None:
        """End all connections; with `doors` take no more either."""
        for each in self._open[0 if doors else 1 :]:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # close alone leaves a thread waiting
            each.close()

    def _serve_datagrams(self, door: socket.socket) -> None:
        while True:
            try:
                data, source = door.recvfrom(4096)
                answer = self._answer(data, 0) if data else b""
                if answer:
                    door.sendto(answer, source)
            except OSError:
                return  # hung up
            if not data:
                return

    def _serve_streams(self, door: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        assert self.certificate is not None
        context.load_cert_chain(self.certificate)
        while True:
            try:
                stream, _source = door.accept()
            except OSError:
                return
            self.connections += 1
            arguments = (context, stream, self.connections)
            threading.Thread(target=self._serve_stream, args=arguments, daemon=True).start()

    def _serve_stream(self, context: ssl.SSLContext, raw: socket.socket, number: int) -> None:
        with suppress(OSError, EOFError), context.wrap_socket(raw, server_side=True) as stream:
            self._open.append(stream)
            waiting: list[bytes] = []
            with stream.makefile("rb") as file:
                while head := file.read(2):
                    waiting.append(self._answer(file.read(int.from_bytes(head, "big")), number))
                    if len(waiting) < self.manners.gathers:
                        continue
                    for answer in filter(None, reversed(waiting)):
                        whole = len(answer).to_bytes(2, "big") + answer
                        stream.sendall(whole[: self.manners.cuts_at])
                        if self.manners.closes or self.manners.cuts_at is not None:
                            return
                    waiting.clear()

    def _answer(self, wire: bytes, connection: int) -> bytes:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        padding = [o for o in query.options if o.otype == dns.edns.OptionType.PADDING]
        size = len(padding[0].to_wire() or b"") if padding else None
        self.asked.append(Asked(name, connection, len(wire), size))
        if self.manners.silent:
            return b""
        response = dns.message.make_response(query, recursion_available=True)
        found = self.zone.get(name)
        if self.manners.failing:
            response.set_rcode(dns.rcode.SERVFAIL)
        elif found is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        for address in found or () if not self.manners.failing else ():
            rtype = "A" if address.version == 4 else "AAAA"
            if dns.rdatatype.from_text(rtype) == question.rdtype:
                response.answer.append(
                    dns.rrset.from_text(
                        question.name, self.manners.ttl_s, "IN", rtype, str(address)
                    )
                )
        return response.to_wire()
