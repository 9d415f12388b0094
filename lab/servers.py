"""The servers of one namespace, in one process: `python -m lab.servers CONFIG`.

Every address serves HTTP (80), HTTPS (443), TCP and UDP echo (7, RFC 862) and a banner (2222: the
server speaks first, then echoes); the resolver also DNS (53). Each arrival becomes a line of JSON
in the log before anything is answered. "ready" on stdout says that all ports are open; the process
ends when its stdin does, so it cannot outlive the one who started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TextIO, cast

from . import dns, web

HTTP, HTTPS, ECHO, BANNER, DNS = 80, 443, 7, 2222, 53

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

#: A datagram, the address it came to and the one it came from; what to send back.
Reply = Callable[[bytes, Sequence[Any], Sequence[Any]], bytes | None]


@dataclass(frozen=True)
class Arrival:
    """Something that reached a server."""

    #: Which server, by its label.
    server: str
    #: "tcp" (a connection), "http" (a request in it), "udp" (a datagram) or "dns" (a question).
    kind: str
    #: The address and port it was sent to.
    address: str
    port: int
    #: Where it came from, as seen here: behind masquerade, the site's address.
    client: str
    client_port: int
    #: The request line, the name asked for, or the first bytes.
    detail: str = ""
    #: CLOCK_MONOTONIC seconds, the same in every process of the machine.
    at_s: float = 0.0


class Journal:
    """The log of arrivals, one line each, written through."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def note(
        self, server: str, kind: str, here: Sequence[Any], there: Sequence[Any], detail: str
    ) -> None:
        """Write down one arrival; `here` and `there` are socket addresses."""
        address, port, client, client_port = *here[:2], *there[:2]
        arrival = Arrival(
            server, kind, address, port, client, client_port, detail, time.monotonic()
        )
        self._file.write(json.dumps(asdict(arrival)) + "\n")
        self._file.flush()


class Place:
    """One labelled server: its addresses, and how each of its ports behaves."""

    def __init__(self, label: str, addresses: list[str], journal: Journal, zone: dns.Zone) -> None:
        self.label = label
        self.addresses = addresses
        self._journal = journal
        self._zone = zone

    async def open(self, context: ssl.SSLContext | None, resolver: bool) -> None:
        """Listen on every port of every address."""
        await self._listen(HTTP, self._web("http"))
        await self._listen(ECHO, self._echo)
        await self._listen(BANNER, self._banner)
        if context is not None:
            await self._listen(HTTPS, self._web("https"), context)
        loop = asyncio.get_running_loop()
        for address in self.addresses:
            await loop.create_datagram_endpoint(
                partial(_Datagrams, address, ECHO, self.echo_datagram),
                local_addr=(address, ECHO),
            )
            if resolver:
                await loop.create_datagram_endpoint(
                    partial(_Datagrams, address, DNS, self.resolve),
                    local_addr=(address, DNS),
                )
        if resolver:
            await self._listen(DNS, self._resolve_stream)

    async def _listen(
        self, port: int, handler: Handler, context: ssl.SSLContext | None = None
    ) -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # Before the TLS handshake: a connection that fails in it has arrived all the same.
            self.note("tcp", writer)
            # A peer that resets or vanishes is an ordinary end here.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                if context is not None:
                    await writer.start_tls(context)
                await handler(reader, writer)
            writer.close()

        await asyncio.start_server(
            accept, self.addresses, port, limit=web.HEAD_MAX_BYTES, backlog=4096
        )

    def note(self, kind: str, writer: asyncio.StreamWriter, detail: str = "") -> None:
        """Write down what came over a connection."""
        here, there = writer.get_extra_info("sockname"), writer.get_extra_info("peername")
        self._journal.note(self.label, kind, here, there, detail)

    def _web(self, scheme: str) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            here, there = writer.get_extra_info("sockname"), writer.get_extra_info("peername")
            facts = {
                "server": self.label,
                "scheme": scheme,
                "address": here[0],
                "client": there[0],
                "client_port": there[1],
            }
            await web.serve(reader, writer, facts, lambda line: self.note("http", writer, line))

        return handle

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(64 << 10):
            writer.write(data)
            await writer.drain()

    async def _banner(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"220 {self.label}\r\n".encode())
        await self._echo(reader, writer)

    async def _resolve_stream(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:  # RFC 1035 section 4.2.2: each message is preceded by its length
            size = int.from_bytes(await reader.readexactly(2), "big")
            answered = dns.answer(await reader.readexactly(size), self._zone)
            if answered is None:
                return
            self.note("dns", writer, answered[0])
            writer.write(len(answered[1]).to_bytes(2, "big") + answered[1])
            await writer.drain()

    def echo_datagram(self, data: bytes, here: Sequence[Any], there: Sequence[Any]) -> bytes | None:
        """The same datagram back."""
        self._journal.note(self.label, "udp", here, there, repr(data[:40]))
        return data

    def resolve(self, data: bytes, here: Sequence[Any], there: Sequence[Any]) -> bytes | None:
        """The answer to a DNS query."""
        answered = dns.answer(data, self._zone)
        self._journal.note(self.label, "dns", here, there, answered[0] if answered else "")
        return answered[1] if answered else None


class _Datagrams(asyncio.DatagramProtocol):
    """One UDP port of one address."""

    def __init__(self, address: str, port: int, reply: Reply) -> None:
        self._where = (address, port)
        self._reply = reply
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, for asyncio's own class is no DatagramTransport by inheritance.
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        reply = self._reply(data, self._where, addr)
        if reply is not None and self._transport is not None:
            self._transport.sendto(reply, addr)


async def main(config: dict[str, Any]) -> None:
    """Serve `config` (see `lab.internet`) until stdin ends."""
    zone = {
        name: tuple(ip_address(address) for address in addresses)
        for name, addresses in config["zone"].items()
    }
    with Path(config["log"]).open("a") as log:
        for entry in config["servers"]:
            context = None
            if entry["certificate"]:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(entry["certificate"])
            place = Place(entry["label"], entry["addresses"], Journal(log), zone)
            await place.open(context, entry["resolver"])
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
