"""A guest's programs, as far as names concern them: they ask, they say whom they mean, they listen.

Every socket is opened in the guest's namespace by the calling thread and works on from anywhere.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise
from typing import Any

import dns.message
import dns.query
import dns.rdatatype

from .netns import Namespace

Address = IPv4Address | IPv6Address

#: Long enough for whatever comes at all, on a machine that does much else.
PATIENCE_S = 20.0
#: Nobody's in particular: whatever resolver a guest asks, it is answered by the gateway.
ANY_RESOLVER = "1.1.1.1"


#: Families by their version.
AF = {4: socket.AF_INET, 6: socket.AF_INET6}


class Caller:
    """What runs in a guest."""

    def __init__(self, namespace: Namespace, authority: str | None = None) -> None:
        self.namespace = namespace
        #: A CA's certificate; without it TLS checks no certificates.
        self.authority = authority

    # -- asking ------------------------------------------------------------------------------

    def ask(
        self,
        name: str,
        rtype: str = "A",
        *,
        server: str = ANY_RESOLVER,
        tcp: bool = False,
        timeout_s: float = PATIENCE_S,
    ) -> dns.message.Message:
        """Put a question to a resolver; returns its answer, whatever it says."""
        query = dns.message.make_query(name, rtype, use_edns=0, payload=1232)
        ask = dns.query.tcp if tcp else dns.query.udp
        with self.namespace.enter():
            return ask(query, server, timeout=timeout_s)

    def addresses(self, name: str, rtype: str = "A", **how: Any) -> list[str]:
        """The addresses in the answer."""
        response = self.ask(name, rtype, **how)
        wanted = dns.rdatatype.from_text(rtype)
        return [str(r) for rrset in response.answer if rrset.rdtype == wanted for r in rrset]

    # -- connections ---------------------------------------------------------------------------

    def connect(self, address: Address, port: int, timeout_s: float = PATIENCE_S) -> socket.socket:
        """A TCP connection."""
        with self.namespace.enter():
            stream = socket.create_connection((str(address), port), timeout=timeout_s)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return stream

    def udp(self, version: int, port: int = 0) -> socket.socket:
        """A socket for datagrams, in one family, at any port or this one."""
        with self.namespace.enter():
            made = socket.socket(AF[version], socket.SOCK_DGRAM)
        made.bind(("", port))
        made.settimeout(PATIENCE_S)
        return made

    def listen(self, port: int) -> socket.socket:
        """Take connections, in both families."""
        with self.namespace.enter():
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)

    def ping(self, address: Address, *options: str) -> None:
        """Send one echo request and wait a second for the answer."""
        self.namespace.run(["ping", "-c", "1", "-W", "1", *options, str(address)], check=False)

    def say(self, address: Address, port: int, *pieces: bytes, pause_s: float = 0.0) -> bytes:
        """Connect, say something piece by piece, and return the first bytes that come back."""
        with self.connect(address, port) as stream:
            send(stream, pieces, pause_s)
            return stream.recv(65536)

    def http(self, address: Address, host: str, port: int = 80, path: str = "/") -> Any:
        """GET over plain HTTP with a Host of choice; returns the lab server's JSON."""
        with self.connect(address, port) as stream:
            stream.sendall(request(host, path))
            return body(stream)

    def https(
        self,
        address: Address,
        server_name: str | None,
        port: int = 443,
        *,
        pieces: Sequence[int] = (),
        pause_s: float = 0.0,
        padding_bytes: int = 0,
        host: str = "lab",
    ) -> Any:
        """GET over TLS with a server name of choice; returns the lab server's JSON.

        `pieces` cuts the ClientHello at these offsets, `padding_bytes` makes it that much longer.
        """
        context = ssl.create_default_context(cafile=self.authority)
        context.check_hostname = False
        if self.authority is None:
            context.verify_mode = ssl.CERT_NONE
        if padding_bytes:
            context.set_alpn_protocols(_padding(padding_bytes))
        with self.connect(address, port) as stream:
            tls = _Tls(stream, context, server_name)
            tls.shake_hands(pieces, pause_s)
            return json.loads(tls.exchange(request(host)).partition(b"\r\n\r\n")[2])


def request(host: str, path: str = "/") -> bytes:
    """A GET that ends its connection."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()


def body(stream: socket.socket) -> Any:
    """The JSON of a response."""
    response = http.client.HTTPResponse(stream)
    response.begin()
    return json.loads(response.read())


def send(stream: socket.socket, pieces: Iterable[bytes], pause_s: float = 0.0) -> None:
    """Send pieces as segments of their own."""
    for piece in pieces:
        stream.sendall(piece)
        if pause_s:
            time.sleep(pause_s)


def cut(data: bytes, offsets: Iterable[int]) -> list[bytes]:
    """Data in pieces that begin at these offsets."""
    places = [0, *(offset for offset in offsets if 0 < offset < len(data)), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


class _Tls:
    """TLS by hand, so that the first flight goes out in pieces of choice."""

    def __init__(self, stream: socket.socket, context: ssl.SSLContext, name: str | None) -> None:
        self._stream = stream
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)

    def shake_hands(self, offsets: Sequence[int], pause_s: float) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                send(self._stream, cut(self._outgoing.read(), offsets), pause_s if offsets else 0)
                offsets = ()
                self._receive()
            else:
                return

    def exchange(self, text: bytes) -> bytes:
        """Send, and return all that comes until the server ends."""
        self._tls.write(text)
        self._stream.sendall(self._outgoing.read())
        heard = b""
        while True:
            try:
                piece = self._tls.read(65536)
            except ssl.SSLWantReadError:
                self._receive()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return heard
            else:
                if not piece:
                    return heard
                heard += piece

    def _receive(self) -> None:
        data = self._stream.recv(65536)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()


def _padding(size: int) -> list[str]:
    """Protocols that nobody speaks, for ALPN: together `size` bytes."""
    return [
        f"{number:08}".ljust(min(255, size - at - 1), "x")
        for number, at in enumerate(range(0, size, 256))
        if size - at > 9
    ]
