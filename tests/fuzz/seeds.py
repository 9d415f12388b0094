"""Valid inputs to begin with, made by who makes them in the field: dnspython, OpenSSL and scapy."""

from __future__ import annotations

import ssl

import dns.message
import dns.rrset
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

#: Questions that responses are read for; their ids are fixed, so that runs can be repeated.
ASKED = tuple(
    dns.message.make_query(name, rtype, id=0x1234, use_edns=edns, want_dnssec=dnssec).to_wire()
    for name, rtype, edns, dnssec in (
        ("a.example.test", "A", 0, False),
        ("a.example.test", "AAAA", 0, False),
        ("a.example.test", "HTTPS", 0, False),
        ("a.example.test", "A", 0, True),
        ("a.example.test", "MX", False, False),
        ("a.example.test", "CNAME", False, False),
        (".", "NS", False, False),
        ("a.example.test", "RRSIG", 0, True),
    )
)

_SIGNATURE = "A 13 3 300 20300101000000 20200101000000 1 example.test. AAAA"
_SOA = "example.test. 300 IN SOA ns.example.test. root.example.test. 1 2 3 4 5"
_HTTPS = "mandatory=alpn alpn=h2 ipv4hint=192.0.2.1 ech=AAX+DQABAA=="
#: Which question, then answer and authority records as text.
_ANSWERS: tuple[tuple[int, list[str], list[str]], ...] = (
    (0, ["a.example.test. 300 IN A 192.0.2.1", "a.example.test. 300 IN A 192.0.2.2"], []),
    (0, ["a.example.test. 0 IN CNAME b.test.", "b.test. 9 IN A 192.0.2.1"], []),
    (1, ["a.example.test. 0 IN CNAME b.test.", "b.test. 9 IN AAAA 2001:db8::1"], []),
    (1, [], [_SOA]),
    (
        2,
        [f"a.example.test. 9 IN HTTPS 1 . {_HTTPS}"],
        [],
    ),
    (2, ["a.example.test. 9 IN HTTPS 0 b.test.", "b.test. 9 IN A 192.0.2.1"], []),
    (3, ["a.example.test. 9 IN A 192.0.2.1", f"a.example.test. 9 IN RRSIG {_SIGNATURE}"], []),
    (3, [], [_SOA, "a.example.test. 9 IN NSEC b.example.test. MX RRSIG NSEC"]),
    (4, ["a.example.test. 9 IN MX 10 m.a.example.test."], []),
    (5, ["a.example.test. 9 IN CNAME b.test."], []),
    (6, [". 9 IN NS a.root.test.", ". 9 IN NS b.root.test."], []),
    (7, [f"a.example.test. 9 IN RRSIG {_SIGNATURE}"], []),
)


def questions() -> list[bytes]:
    """Queries with and without EDNS, options and DO, and one that is padded."""
    padded = dns.message.make_query("p.example.test", "A", use_edns=0, pad=128)
    status = dns.message.make_query("a.test", "A")
    status.set_opcode(dns.opcode.Opcode.STATUS)
    return [*ASKED, padded.to_wire(), status.to_wire()]


def responses() -> list[bytes]:
    """What `targets.check_response` takes: a number, then flags, counts and records."""
    made = []
    for number, answer, authority in _ANSWERS:
        asked = dns.message.from_wire(ASKED[number])
        response = dns.message.make_response(asked)
        for section, lines in ((response.answer, answer), (response.authority, authority)):
            for line in lines:
                owner, ttl, _in, rtype, data = line.split(" ", 4)
                section.append(dns.rrset.from_text(owner, int(ttl), "IN", rtype, data))
        wire = response.to_wire()
        end = 12 + len(asked.question[0].name.to_digestable()) + 4
        made.append(bytes([number]) + wire[2:4] + wire[6:12] + wire[end:])
        made.append(bytes([0x80 | number]) + wire)
    return [*made, _dearest_response()]


def _dearest_response() -> bytes:
    """The longest name, and 63 records that point to it in their owner and in their data."""
    longest = b"\1a" * 119 + b"\xc0\x0c"
    data = b"\0\1" + longest
    first = b"\xc0\x0c\0\x0f\0\1\0\0\0\1" + len(data).to_bytes(2) + data
    # Behind header, question (20 bytes) and the first record's own fields.
    pointer = (0xC000 | 12 + 20 + 14).to_bytes(2)
    record = pointer + b"\0\x0f\0\1\0\0\0\1\0\4\0\1" + pointer
    return bytes([4]) + b"\x81\x80" + b"\0\x40\0\0\0\0" + first + record * 63


def hellos() -> list[bytes]:
    """What OpenSSL says first: with and without a name, in one record and in several."""
    said = [
        _hello(name, alpn, version)
        for name in (None, "a.example.test", "xn--bcher-kva.example.test")
        for alpn in ([], ["h2", "http/1.1"])
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
    ]
    body = said[-1][5:]
    pieces = [body[start : start + 50] for start in range(0, len(body), 50)]
    split = b"".join(b"\x16\3\1" + len(piece).to_bytes(2) + piece for piece in pieces)
    return [*said, split, said[-1] + b"\x14\3\3\0\1\1", _longest_hello()]


def _longest_hello() -> bytes:
    """As many extensions and records as are read."""
    extensions = b"".join(kind.to_bytes(2) + b"\0\0" for kind in range(17, 4000))
    body = b"\3\3" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0"
    body += len(extensions).to_bytes(2) + extensions
    message = b"\1" + len(body).to_bytes(3) + body
    size = len(message) // 63
    parts = [message[start : start + size] for start in range(0, len(message), size)]
    return b"".join(b"\x16\3\1" + len(part).to_bytes(2) + part for part in parts)


def _hello(name: str | None, alpn: list[str], highest: ssl.TLSVersion) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.maximum_version = highest
    if alpn:
        context.set_alpn_protocols(alpn)
    said = ssl.MemoryBIO()
    try:
        context.wrap_bio(ssl.MemoryBIO(), said, server_hostname=name).do_handshake()
    except ssl.SSLWantReadError:
        return said.read()
    raise AssertionError("a handshake with nobody")


def heads() -> list[bytes]:
    """Requests as curl, wget and proxies' clients write them, and some that are almost such."""
    lines = [
        "GET / HTTP/1.1|Host: a.example.test|User-Agent: curl/8|Accept: */*",
        "POST /x?y=z HTTP/1.1|Host: a.example.test:8080|Content-Length: 3|Expect: 100-continue",
        "GET http://a.example.test/x HTTP/1.1|Host: a.example.test",
        "OPTIONS * HTTP/1.1|host:a.example.test.",
        "GET / HTTP/1.1|Host: [2001:db8::1]:80",
        "GET / HTTP/1.1|Host: 192.0.2.1",
        "GET / HTTP/1.0",
        "GET / HTTP/1.1|Host: a.test|Host: b.test",
        "GET / HTTP/1.1|Host: a.test| folded",
        "GET / HTTP/1.1|Host : a.test",
        "CONNECT a.test:443 HTTP/1.1|Host: a.test",
        "PRI * HTTP/2.0||SM|",
        "GET / HTTP/1.1|Host: a.test|Transfer-Encoding: chunked|Upgrade: websocket",
        "GET / HTTP/1.1|" + "a:|" * 100 + "Host: a.test",
    ]
    lines.append("GET / HTTP/1.1|Host: a.test|" + "|".join(["a:"] * 4000))  # as long as is read
    made = [line.replace("|", "\r\n").encode() + b"\r\n\r\n" for line in lines]
    return [*made, made[0] + b"body", made[0].replace(b"\r\n", b"\n"), b"SSH-2.0-x\r\n"]


def requests() -> list[bytes]:
    """Several on one connection: bodies of a length, in chunks and without, and a WebSocket."""
    get, post = "GET /1 HTTP/1.1|Host: a.test||", "POST /2 HTTP/1.1|Host: a.test|"
    chunks = post + "Transfer-Encoding: chunked||5|hello|a;x=y|0123456789|0|"
    websocket = "GET /3 HTTP/1.1|Host: a.test|Connection: Upgrade|Upgrade: websocket||"
    lines = [
        get + get.replace("a.test", "b.test"),
        post + "Content-Length: 5||hello" + get,
        chunks + "|" + get,
        chunks + "Trailer: x||" + get,
        websocket + "\x81\x05hello",
        get.replace("1.1", "1.0") + get,
        get.replace("||", "|Connection: close||") + get,
        post + "Content-Length: 5|Transfer-Encoding: chunked||0||",
        post + "Content-Length: 5|Content-Length: 5||hello" + get,
        post + "Transfer-Encoding: chunked||" + "1|x|" * 600 + "0||",
    ]
    made = [line.replace("|", "\r\n").encode("latin-1") for line in lines]
    return [bytes([size]) + each for each in made for size in (0, 6, 255)]


def policies() -> list[bytes]:
    """One of each thing that the language has."""
    return [
        text.encode()
        for text in (
            "none",
            "public,private,host",
            "deny@*.example.test:tcp:443+8000-8100,public",
            "allow@a.example.test:443,allow@domain=localbox:udp:53,allow@suffix=b.test",
            "allow:any@10.0.0.0/8:icmpv4+icmpv6,deny:ingress@[fd00::/8]:udp",
            "allow@host=10.0.0.1:tcp:8080,allow@guests=[fd00::/64],allow@meta=169.254.169.254",
            "mode=report\ndefault_egress = allow,\n# a comment\ndefault_ingress=deny",
            "allow@bücher.example:443,allow@xn--bcher-kva.example:80",
            "allow@public:any:any,deny@multicast,deny@link-local,allow@dns",
        )
    ]


def syns() -> list[bytes]:
    """As Linux sends them, with Fast Open's cookie and data, with ECN, and bare."""
    linux = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 7)]
    heads = (
        IP(src="172.16.0.2", dst="93.184.216.34", flags="DF", tos=0xB8),
        IPv6(src="fd42:6d73:62::2", dst="2606:2800:220:1::34", fl=0x12345, tc=0xB9),
    )
    segments = (
        TCP(sport=40000, dport=443, seq=0x89ABCDEF, options=linux),
        TCP(sport=40000, dport=443, seq=0xFFFFFFFF, options=[(34, b"12345678")]) / b"GET /",
        TCP(sport=1, dport=65535, flags="SEC"),
        TCP(sport=1, dport=22, flags="SA"),
    )
    return [bytes(head / segment) for head in heads for segment in segments]
