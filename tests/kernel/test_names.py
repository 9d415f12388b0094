"""Policy by name on a real kernel: what a guest asks and says, and what arrives at the servers.

One stage for the whole module; each test attaches guests of its own to it. What must work gets
`PATIENCE_S`; what must not is refused aloud (a reset, NXDOMAIN), so no silence is waited for but
where the protocol has no other word.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, TypeVar

import dns.edns
import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from hostile import Answer, Door, assert_open, knock
from lab.addresses import (
    ALLOWED,
    FORBIDDEN,
    LIAR,
    PRIVATE,
    REBINDING,
    RESOLVER,
    ROUTER_IPV4,
    ROUTER_IPV6,
    UPLINK,
)
from lab.caller import body, cut, request, send
from lab.liar import SILENT
from lab.servers import BANNER, ECHO, HTTP, HTTPS
from lab.waiting import PATIENCE_S
from lab.world import World
from stage import (
    Guest,
    GuestOf,
    Stage,
    assert_no_such_name,
    at_once,
    explained,
    in_family,
    open_host,
    refused,
)

pytestmark = pytest.mark.root

Address = IPv4Address | IPv6Address
T = TypeVar("T")

SPEAK_S = 3.0
WEB = "allow@allowed.example.test:tcp:80+443"
BOTH = pytest.mark.parametrize("address", ALLOWED.addresses, ids=["IPv4", "IPv6"])
FAMILIES = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
NAME, OTHER = ALLOWED.name, FORBIDDEN.name
RTYPE = {4: "A", 6: "AAAA"}
#: Networks of the stage, by the resolvers that their guests' questions are put to.
NETWORKS = {
    "plain": RESOLVER.addresses,
    "low": RESOLVER.addresses[:1],
    "high": RESOLVER.addresses[1:],
    "lied": (*LIAR.addresses[:1], *RESOLVER.addresses[:1]),
    "lied6": (*LIAR.addresses[1:], *RESOLVER.addresses[1:]),
}


@pytest.fixture(scope="module", params=["root", "rootless"])
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """As root and without: what is said here holds for both."""
    rootless = request.param == "rootless"
    state = tmp_path_factory.mktemp("names")
    with World() as world, open_host(world, state, rootless=rootless) as host:
        liar = world.lie()
        # What a gateway without root needs for pings; here it is `nobody`.
        world.site.sysctl("ipv4.ping_group_range", "0 2147483647")
        for number, (name, resolvers) in enumerate(NETWORKS.items()):
            pools = {"ipv4": f"172.{20 + number}.0.0/16", "ipv6": f"fd42:6d73:{number}::/48"}
            host.create_network({"name": name, "dns": [str(r) for r in resolvers], **pools})
        made = Stage(world, host, liar, rootless=rootless)
        with made.guest(WEB):
            pass  # the gateway runs from the first guest on, and is no test's leftover
        yield made


@contextlib.contextmanager
def no_way_out(stage: Stage, version: int) -> Iterator[None]:
    """The site is one of a machine whose internet has but the other family."""
    router = (ROUTER_IPV4 if version == 4 else ROUTER_IPV6).ip
    stage.world.site.ip(f"route del default via {router} dev {UPLINK}")
    try:
        yield
    finally:
        stage.world.site.ip(f"route add default via {router} dev {UPLINK}")


# -- what is allowed works, at once ------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("name", ["allowed.example.test", "pkg.test", "cdn.pkg.test"])
def test_a_name_that_is_allowed_is_fetched_at_once(
    guest_of: GuestOf, name: str, scheme: str, version: int
) -> None:
    guest = guest_of(f"{WEB},allow@*.pkg.test:tcp:80+443")
    with at_once():
        found = guest.curl(f"-{version}", f"{scheme}://{name}/")
    assert (found["server"], found["scheme"], found["host"]) == ("allowed", scheme, name)
    assert found["address"] == str(
        in_family(ALLOWED, ip_address("::" if version == 6 else "0.0.0.0"))
    )
    flow = guest.decided(kind="flow")
    assert (flow.verdict, flow.name, str(flow.address)) == ("allow", name, found["address"])
    assert flow.rule_index == (0 if name == NAME else 1)
    assert flow.bytes_up > 0
    assert flow.bytes_down > 0


def test_a_suffix_holds_the_name_itself_and_nothing_beside_it(guest_of: GuestOf) -> None:
    guest = guest_of("allow@*.example.test:443")
    assert guest.addresses(NAME) == [str(ALLOWED.ipv4)]
    assert guest.ask("example.test").rcode() == dns.rcode.NXDOMAIN  # nobody has it
    for name in ("pkg.test", "notexample.test", "example.test.evil.test", "test"):
        assert_no_such_name(guest.ask(name))


@FAMILIES
def test_a_family_that_the_host_has_no_route_for_is_not_offered(
    stage: Stage, guest_of: GuestOf, version: int
) -> None:
    """Relayed, a client would be connected to the gateway, and try no other family."""
    guest = guest_of(WEB, network={4: "high", 6: "low"}[version])
    rtype, other = RTYPE[version], RTYPE[10 - version]
    relayed = stage.rootless
    with no_way_out(stage, version):
        assert bool(guest.addresses(NAME, rtype)) is not relayed
        assert guest.addresses(NAME, other)
    if relayed:
        told = guest.told(2, kind="dns", name=NAME)
        assert sorted(bool(each.answers) for each in told) == [False, True]
        assert "no route" in next(each.reason for each in told if not each.answers)
    assert guest.addresses(NAME, rtype)  # the host has its network again


@FAMILIES
def test_a_guest_s_address_is_offered_whatever_the_host_has_routes_for(
    stage: Stage, guest_of: GuestOf, version: int
) -> None:
    """Guests reach each other within the site, and not by the host's routes."""
    peer = {4: "172.30.0.2", 6: "fd42:6d73:30::2"}[version]
    pools = {"ipv4": "172.30.0.0/16", "ipv6": "fd42:6d73:30::/48"}
    stage.host.create_network({"name": "recorded", "records": {"peer.test": [peer]}, **pools})
    try:
        with no_way_out(stage, version), stage.guest("allow@peer.test", "recorded") as guest:
            assert guest.addresses("peer.test", RTYPE[version]) == [peer]
    finally:
        stage.host.remove_network("recorded")


@BOTH
def test_resolved_elsewhere_a_name_still_decides(guest_of: GuestOf, address: Address) -> None:
    """The guest knows the address from before; the name it says is resolved here."""
    guest = guest_of(WEB)
    with at_once():
        assert guest.http(address, NAME)["server"] == "allowed"
    with at_once():
        assert guest.https(address, NAME)["server"] == "allowed"
    assert {d.name for d in guest.told(2, kind="flow", verdict="allow")} == {NAME}
    assert guest.decisions(kind="dns") == []


@BOTH
def test_a_server_that_speaks_first_is_not_waited_for(guest_of: GuestOf, address: Address) -> None:
    guest = guest_of(f"allow@{NAME}:tcp:{BANNER}")
    with refused():
        guest.say(address, BANNER)
    assert guest.addresses(NAME, RTYPE[address.version]) == [str(address)]
    with at_once(), guest.connect(address, BANNER) as stream:
        assert stream.recv(99) == b"220 allowed\r\n"
        stream.sendall(b"and back")
        assert stream.recv(99) == b"and back"
    assert guest.decided(kind="flow", verdict="allow").name == NAME
    assert len(guest.arrivals(port=BANNER)) == 1


@BOTH
def test_a_client_that_speaks_like_ssh_goes_by_its_pins(
    stage: Stage, guest_of: GuestOf, address: Address
) -> None:
    """On the port of HTTPS, for firewalls that know no other; the client says no name."""
    guest = guest_of(f"allow@{NAME}:tcp:443")
    with refused():
        guest.say(address, HTTPS, b"SSH-2.0-lab\r\n")
    assert guest.arrivals(port=HTTPS) == []
    guest.ask(NAME, RTYPE[address.version])
    # The lab's HTTPS server makes nothing of it: that it arrives is all that is wanted.
    with at_once(), guest.connect(address, HTTPS) as stream, contextlib.suppress(OSError):
        stream.sendall(b"SSH-2.0-lab\r\n")
        stream.recv(99)
    assert guest.decided(kind="flow", verdict="allow").name == NAME
    assert len(guest.arrivals(port=HTTPS)) == 1


@BOTH
def test_tls_without_a_name_goes_by_its_pins(guest_of: GuestOf, address: Address) -> None:
    guest = guest_of(WEB)
    with refused():
        guest.https(address, None)
    guest.ask(NAME, RTYPE[address.version])
    assert guest.https(address, None)["server"] == "allowed"


# -- what is not allowed is refused aloud ------------------------------------------------------


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
@pytest.mark.parametrize("name", [OTHER, "nobody.test", "xn--bcher-kva.de", "a.b.c.d.e.test"])
def test_a_name_that_is_not_allowed_does_not_exist(guest_of: GuestOf, name: str, tcp: bool) -> None:
    guest = guest_of(WEB)
    for rtype in ("A", "AAAA", "HTTPS", "MX", "TXT"):
        response = guest.ask(name, rtype, tcp=tcp)
        assert_no_such_name(response)
        assert name in explained(response)
    assert {(d.verdict, d.rule) for d in guest.told(5, kind="dns")} == {
        ("deny", "default_egress=deny")
    }
    assert guest.arrivals(kind="dns") == []


@BOTH
def test_another_name_at_an_allowed_address(guest_of: GuestOf, address: Address) -> None:
    """As of a CDN: the address is resolved and allowed, the name that is said is not."""
    guest = guest_of(WEB)
    guest.ask(NAME, RTYPE[address.version])
    with refused():
        guest.http(address, OTHER)
    with refused():
        guest.https(address, OTHER)
    assert {(d.rule, d.name) for d in guest.told(2, kind="flow")} == {
        ("default_egress=deny", OTHER)
    }
    assert guest.said_outside == []


@BOTH
def test_an_allowed_name_at_another_address(guest_of: GuestOf, address: Address) -> None:
    guest = guest_of(WEB)
    elsewhere = in_family(FORBIDDEN, address)
    with refused():
        guest.http(elsewhere, NAME)
    with refused():
        guest.https(elsewhere, NAME)
    refusals = [guest.decided(kind="flow", port=port) for port in (HTTP, HTTPS)]
    for refusal in refusals:
        assert (refusal.verdict, refusal.name, refusal.address) == ("deny", NAME, elsewhere)
        assert f"{elsewhere} is no address of {NAME}" in refusal.reason
    assert guest.arrivals(kind="tcp") == []


@BOTH
def test_an_address_in_the_place_of_a_name(guest_of: GuestOf, address: Address) -> None:
    guest = guest_of(WEB)
    guest.ask(NAME, RTYPE[address.version])
    host = f"[{address}]" if address.version == 6 else str(address)
    with refused():
        guest.http(address, host)
    assert guest.decided(kind="flow").verdict == "deny"
    for port in (81, 8443, 65535):
        with refused():
            guest.say(address, port, b"here")
    assert guest.said_outside == []


@BOTH
def test_two_names_at_one_address(guest_of: GuestOf, address: Address) -> None:
    guest = guest_of(f"{WEB},allow@{NAME}:tcp:{BANNER}")
    guest.ask(NAME, RTYPE[address.version])
    assert_no_such_name(guest.ask("shared.example.test", RTYPE[address.version]))
    assert guest.https(address, NAME)["server"] == "allowed"
    with refused():
        guest.https(address, "shared.example.test")
    assert guest.say(address, BANNER) == b"220 allowed\r\n"


@BOTH
def test_two_names_at_one_address_that_the_policy_treats_differently(
    guest_of: GuestOf, address: Address
) -> None:
    guest = guest_of(f"allow@{NAME},allow@shared.example.test:tcp:80+443")
    for name in (NAME, "shared.example.test"):
        guest.ask(name, RTYPE[address.version])
    for name in (NAME, "shared.example.test"):
        assert guest.https(address, name)["server"] == "allowed"
    with refused():  # allowed as the one, not as the other, and it says neither
        guest.say(address, BANNER)
    assert guest.decided(kind="flow", port=BANNER).rule == "ambiguous name"
    assert guest.arrivals(port=BANNER) == []


@BOTH
@pytest.mark.parametrize("port", [HTTP, HTTPS])
def test_who_does_not_say_its_name_is_refused(
    guest_of: GuestOf, address: Address, port: int
) -> None:
    guest = guest_of(WEB)
    guest.ask(NAME, RTYPE[address.version])
    began = time.monotonic()
    with refused():
        guest.say(address, port)
    assert SPEAK_S - 0.1 < time.monotonic() - began < PATIENCE_S
    assert guest.decided(kind="flow").rule == "silent"
    assert guest.said_outside == []


MISSPOKEN = {
    "Host twice": "GET / HTTP/1.1\r\nHost: {name}\r\nHost: {other}\r\n\r\n",
    "the same Host twice": "GET / HTTP/1.1\r\nHost: {name}\r\nHost: {name}\r\n\r\n",
    "an empty line first": "\r\nGET / HTTP/1.1\r\nHost: {name}\r\n\r\n",
    "another host in the target": "GET http://{other}/ HTTP/1.1\r\nHost: {name}\r\n\r\n",
    "no Host": "GET / HTTP/1.1\r\n\r\n",
    "an empty Host": "GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "line feeds alone": "GET / HTTP/1.1\nHost: {name}\n\n",
    "a folded line": "GET / HTTP/1.1\r\nX: y\r\n Host: {other}\r\nHost: {name}\r\n\r\n",
    "a blank before the colon": "GET / HTTP/1.1\r\nHost : {other}\r\nHost: {name}\r\n\r\n",
    "userinfo": "GET / HTTP/1.1\r\nHost: {name}@{other}\r\n\r\n",
    "CONNECT": "CONNECT {name}:443 HTTP/1.1\r\nHost: {name}:443\r\n\r\n",
    "HTTP/2 at once": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "another protocol": "EHLO {name}\r\n",
    "nonsense": "\x00\x01\x02\x03",
    "too many headers": "GET / HTTP/1.1\r\nHost: {name}\r\nX: " + "y" * 17000 + "\r\n\r\n",
}


@BOTH
@pytest.mark.parametrize("wrong", MISSPOKEN)
def test_http_that_could_be_read_in_two_ways(
    guest_of: GuestOf, address: Address, wrong: str
) -> None:
    guest = guest_of(WEB)
    guest.ask(NAME, RTYPE[address.version])
    with refused():
        guest.say(address, HTTP, MISSPOKEN[wrong].format(name=NAME, other=OTHER).encode())
    refusal = guest.decided(kind="flow")
    assert (refusal.verdict, refusal.rule) == ("deny", "unreadable")
    assert guest.said_outside == []


@BOTH
def test_http_in_other_words(guest_of: GuestOf, address: Address) -> None:
    guest = guest_of(WEB)
    spoken = [
        f"GET http://{NAME}/ HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n",
        f"GET / HTTP/1.1\r\nhost:{NAME.upper()}.\r\nConnection: close\r\n\r\n",
        f"GET / HTTP/1.0\r\nHost: {NAME}:80\r\n\r\n",
    ]
    for text in spoken:
        with guest.connect(address, HTTP) as stream:
            stream.sendall(text.encode())
            assert stream.recv(9999).startswith(b"HTTP/1.1 ")  # which knows no absolute paths
    assert len(guest.arrivals(kind="http")) == len(spoken)


# -- what is said in pieces --------------------------------------------------------------------


@BOTH
def test_a_hello_byte_by_byte(guest_of: GuestOf, address: Address) -> None:
    guest = guest_of(WEB)
    found = guest.https(address, NAME, pieces=range(1, 400), pause_s=0.0005)
    assert found["server"] == "allowed"


@BOTH
@pytest.mark.parametrize("pieces", [[], [1400], [5], [9, 700, 1460, 1461]])
def test_a_hello_of_post_quantum_size(
    guest_of: GuestOf, address: Address, pieces: list[int]
) -> None:
    guest = guest_of(WEB)
    with at_once():
        found = guest.https(address, NAME, padding_bytes=1800, pieces=pieces, pause_s=0.02)
    assert found["server"] == "allowed"
    with refused():
        guest.https(address, OTHER, padding_bytes=1800, pieces=pieces, pause_s=0.02)


@BOTH
def test_a_hello_that_is_too_long(guest_of: GuestOf, address: Address) -> None:
    guest = guest_of(WEB)
    with refused():
        guest.https(address, NAME, padding_bytes=17000)
    assert guest.decided(kind="flow").rule == "unreadable"
    assert guest.arrivals(kind="tcp") == []


@BOTH
def test_a_request_byte_by_byte(guest_of: GuestOf, address: Address) -> None:
    guest = guest_of(WEB)
    text = request(NAME)
    with guest.connect(address, HTTP) as stream:
        send(stream, cut(text, range(1, len(text))), 0.0005)
        assert body(stream)["host"] == NAME


@BOTH
def test_who_speaks_too_slowly_is_refused(guest_of: GuestOf, address: Address) -> None:
    """Each byte in time, and yet no end: the deadline is for the whole name."""
    guest = guest_of(WEB)
    began = time.monotonic()
    with refused(), guest.connect(address, HTTP) as stream:
        send(stream, itertools.repeat(b"G" * 1, 1), 0)
        stream.sendall(b"ET / HTTP/1.1\r\nX: ")
        while time.monotonic() - began < PATIENCE_S:
            stream.sendall(b"y")
            time.sleep(0.2)
    assert time.monotonic() - began > SPEAK_S - 0.1
    assert guest.arrivals(kind="tcp") == []


# -- what has no connection --------------------------------------------------------------------


@BOTH
def test_datagrams_follow_the_pins(guest_of: GuestOf, address: Address) -> None:
    guest = guest_of(f"allow@{NAME}:udp:{ECHO}")
    door, elsewhere = (
        Door("udp", where, ECHO) for where in (address, in_family(FORBIDDEN, address))
    )
    assert knock(guest.namespace, [door])[door].answer is Answer.SILENT
    assert guest.arrivals(kind="udp") == []
    guest.ask(NAME, RTYPE[address.version])
    assert_open(guest.namespace, [door])  # the first packet after the answer
    assert knock(guest.namespace, [elsewhere])[elsewhere].answer is Answer.SILENT
    assert {a.address for a in guest.arrivals(kind="udp")} == {str(address)}
    with refused():
        guest.say(address, ECHO, b"here")


@BOTH
def test_the_first_datagram_after_the_answer_passes(guest_of: GuestOf, address: Address) -> None:
    """The pins stand before the answer leaves, every time."""
    for _ in range(5):
        guest = guest_of(f"allow@{NAME}:udp:{ECHO}")
        guest.ask(NAME, RTYPE[address.version])
        with guest.namespace.enter():
            family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as first:
                first.settimeout(PATIENCE_S)
                first.sendto(b"at once", (str(address), ECHO))
                assert first.recv(99) == b"at once"


@BOTH
def test_echo_requests_follow_the_pins(guest_of: GuestOf, address: Address) -> None:
    guest = guest_of(f"allow@{NAME}:icmpv4+icmpv6")
    door = Door("icmp", address)
    assert knock(guest.namespace, [door])[door].answer is Answer.SILENT
    guest.ask(NAME, RTYPE[address.version])
    assert_open(guest.namespace, [door])
    other = Door("icmp", in_family(FORBIDDEN, address))
    assert knock(guest.namespace, [other])[other].answer is Answer.SILENT


def test_pins_are_each_guest_s_own(guest_of: GuestOf) -> None:
    asks, knows = (guest_of(f"allow@{NAME}:udp:{ECHO},allow@{NAME}:tcp:{BANNER}") for _ in "ab")
    for address in ALLOWED.addresses:
        asks.ask(NAME, RTYPE[address.version])
        door = Door("udp", address, ECHO)
        assert_open(asks.namespace, [door])
        assert knock(knows.namespace, [door])[door].answer is Answer.SILENT
        with refused():
            knows.say(address, BANNER)


def test_a_deny_by_name_holds_datagrams_as_well(guest_of: GuestOf) -> None:
    guest = guest_of(f"deny@{NAME}:udp:{ECHO},public")
    doors = [Door("udp", address, ECHO) for address in ALLOWED.addresses]
    others = [Door("udp", address, ECHO) for address in FORBIDDEN.addresses]
    assert_open(guest.namespace, [*doors, *others])  # no name, no rule by name
    for rtype in ("A", "AAAA"):
        guest.ask(NAME, rtype)
    heard = knock(guest.namespace, [*doors, *others])
    assert [heard[door].answer for door in doors] == [Answer.SILENT] * 2
    assert [heard[door].answer for door in others] == [Answer.OPEN] * 2


# -- resolvers ---------------------------------------------------------------------------------

ANYBODY = ["8.8.8.8", "9.9.9.9", "151.101.1.69", "192.0.2.1", "10.20.30.40", "169.254.169.254"]
ANYBODY += ["2001:4860:4860::8888", "2a04:4e42::645", "2001:db8::1", "fd77::40", "fd00:ec2::254"]


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_whoever_is_asked_the_gateway_answers(stage: Stage, guest_of: GuestOf, tcp: bool) -> None:
    guest = guest_of(WEB)
    own = guest.attachment
    gateways = [str(each) for each in (own.gateway_ipv4, own.gateway_ipv6)]
    with stage.world.capture("port 53") as capture:
        for resolver in (*ANYBODY, *gateways):
            assert guest.addresses(NAME, server=resolver, tcp=tcp) == [str(ALLOWED.ipv4)], resolver
            assert_no_such_name(guest.ask(OTHER, server=resolver, tcp=tcp))
        seen = capture.packets()
    asked = {str(a) for a in RESOLVER.addresses}
    assert all(endpoints(packet) & asked for packet in seen)
    assert {a.detail for a in guest.arrivals(kind="dns")} <= {NAME}
    assert {d.protocol for d in guest.told(1, kind="dns")} == {"tcp" if tcp else "udp"}


def endpoints(packet: Any) -> set[str]:
    layer = packet["IPv6"] if packet.haslayer("IPv6") else packet["IP"]
    return {layer.src, layer.dst}


@pytest.mark.parametrize("network", ["low", "high"])
def test_questions_go_to_the_network_s_resolvers_alone(
    stage: Stage, guest_of: GuestOf, network: str
) -> None:
    guest = guest_of("allow@*.example.test", network=network)
    with stage.world.capture("port 53") as capture:
        assert guest.addresses(f"nothing-{network}.example.test", server=str(FORBIDDEN.ipv4)) == []
        seen = capture.packets()
    (wanted,) = NETWORKS[network]
    assert seen
    assert all(str(wanted) in endpoints(packet) for packet in seen)


@pytest.mark.parametrize(
    "policy", [f"allow@{NAME}", f"deny@{OTHER},public", f"allow@{NAME},default_egress=allow"]
)
def test_no_name_service_beside_the_gateway(stage: Stage, guest_of: GuestOf, policy: str) -> None:
    guest = guest_of(policy)
    for rtype in ("A", "AAAA"):
        guest.ask(NAME, rtype)
    ports = (853, 5353, 5355)
    servers = (*ALLOWED.addresses, *RESOLVER.addresses)
    doors = [Door("udp", address, port) for address in servers for port in ports]
    expression = " or ".join(f"port {port}" for port in ports)
    with stage.world.capture(expression) as capture:
        for address in servers:
            for port in ports:
                with refused():
                    guest.https(address, NAME, port)
        heard = knock(guest.namespace, doors)
        assert {heard[door].answer for door in doors} == {Answer.SILENT}
        assert capture.frames() == []


@pytest.mark.parametrize("name", ["dns.google", "x.cloudflare-dns.com", "use-application-dns.net"])
@pytest.mark.parametrize("policy", [f"{WEB},allow@public", f"deny@{OTHER},public"])
def test_resolvers_over_https_do_not_exist(guest_of: GuestOf, policy: str, name: str) -> None:
    guest = guest_of(policy)
    response = guest.ask(name)
    assert_no_such_name(response)
    assert guest.decided(kind="dns").rule == "encrypted resolvers"


def test_a_resolver_over_https_that_is_named_may_be_found(guest_of: GuestOf) -> None:
    guest = guest_of("allow@dns.google,public")
    guest.ask("dns.google")
    assert guest.decided(kind="dns").verdict == "allow"


def test_questions_of_many_kinds_at_a_time(guest_of: GuestOf) -> None:
    """One TCP connection, several questions before the first answer is read."""
    guest = guest_of(WEB)
    queries = [dns.message.make_query(name, "A") for name in (NAME, OTHER, NAME.upper())]
    with guest.connect(ip_address("8.8.8.8"), 53) as stream:
        wires = [query.to_wire() for query in queries]
        stream.sendall(b"".join(len(w).to_bytes(2, "big") + w for w in wires))
        answers = {}
        with stream.makefile("rb") as file:
            for _ in queries:
                message = dns.message.from_wire(file.read(int.from_bytes(file.read(2), "big")))
                answers[message.id] = message.rcode()
    assert [answers[query.id] for query in queries] == [
        dns.rcode.NOERROR, dns.rcode.NXDOMAIN, dns.rcode.NOERROR
    ]  # fmt: skip


# -- denied by name ----------------------------------------------------------------------------


@BOTH
def test_a_deny_by_name_ahead_of_everything(guest_of: GuestOf, address: Address) -> None:
    """Denied by what is said, wherever it leads; what says nothing of it passes."""
    guest = guest_of(f"deny@{OTHER},deny@*.pkg.test:tcp:443,public")
    for name, where in ((OTHER, in_family(FORBIDDEN, address)), (OTHER, address)):
        with refused():
            guest.https(where, name)
        with refused():
            guest.http(where, name)
    with refused():
        guest.https(address, "cdn.pkg.test")
    assert guest.said_outside == []
    assert {d.rule_index for d in guest.told(5, kind="flow", verdict="deny")} == {0, 1}
    assert_no_such_name(guest.ask(OTHER))
    assert guest.http(address, "cdn.pkg.test")["server"] == "allowed"
    assert guest.https(in_family(FORBIDDEN, address), NAME)["server"] == "forbidden"
    assert guest.http(address, f"[{address}]" if address.version == 6 else str(address))


# -- lies --------------------------------------------------------------------------------------


@pytest.fixture(params=["lied", "lied6"])
def fooled(request: pytest.FixtureRequest, guest_of: GuestOf) -> Guest:
    """A guest whose first resolver lies, and whose policy allows all of its names."""
    policy = f"allow@*.lie.test,allow@{NAME}:tcp:80+443,allow@shared.example.test:443"
    return guest_of(policy, network=request.param)


@pytest.mark.parametrize("name", REBINDING)
@pytest.mark.parametrize("rtype", ["A", "AAAA"])
def test_a_name_leads_to_public_addresses_only(guest_of: GuestOf, name: str, rtype: str) -> None:
    guest = guest_of("allow@*.example.test")
    response = guest.ask(name, rtype)
    if not any(RTYPE[a.version] == rtype for a in REBINDING[name]):
        assert response.answer == []
        return
    assert_no_such_name(response)
    refusal = guest.decided(kind="dns")
    assert (refusal.verdict, refusal.rule, refusal.name) == ("deny", "rebinding", name)
    for address in REBINDING[name]:
        # As itself it may be reached where it is public, but it is not led there.
        if RTYPE[address.version] != rtype or address.is_loopback or address in ALLOWED.addresses:
            continue
        with refused():
            guest.http(address, name)
    assert guest.arrivals(kind="http") == []


def test_a_rule_by_address_lets_a_name_lead_there(guest_of: GuestOf) -> None:
    name = "to-private.example.test"
    opens = guest_of(f"allow@{name},allow@{PRIVATE.ipv4},allow@[{PRIVATE.ipv6}]")
    closed = guest_of(f"allow@{name}")
    for address in PRIVATE.addresses:
        assert opens.addresses(name, RTYPE[address.version]) == [str(address)]
        assert opens.http(address, name)["server"] == "private"
        assert_no_such_name(closed.ask(name, RTYPE[address.version]))


@BOTH
def test_an_alias_opens_nothing_under_the_other_name(fooled: Guest, address: Address) -> None:
    there = in_family(FORBIDDEN, address)
    assert fooled.addresses("cname.lie.test", RTYPE[address.version]) == [str(there)]
    with refused():
        fooled.https(there, OTHER)
    with refused():
        fooled.https(there, NAME)
    # Its owner says that it is there, so as itself it is.
    assert fooled.https(there, "cname.lie.test")["server"] == "forbidden"


@BOTH
def test_what_was_not_asked_for_is_not_heard(fooled: Guest, address: Address) -> None:
    there = in_family(FORBIDDEN, address)
    response = fooled.ask("extra.lie.test", RTYPE[address.version])
    assert str(there) not in response.to_text()
    for name in ("extra.lie.test", NAME):
        with refused():
            fooled.https(there, name)
    door = Door("udp", there, ECHO)
    assert knock(fooled.namespace, [door])[door].answer is Answer.SILENT
    assert fooled.arrivals(server=FORBIDDEN) == []


@BOTH
def test_an_address_that_flips_to_a_private_one(fooled: Guest, address: Address) -> None:
    there = in_family(PRIVATE, address)
    answers = [fooled.ask("flip.lie.test", RTYPE[address.version]) for _ in range(6)]
    assert {message.rcode() for message in answers} == {dns.rcode.NOERROR, dns.rcode.NXDOMAIN}
    found = {str(record) for message in answers for rrset in message.answer for record in rrset}
    assert found == {str(address)}
    with refused():
        fooled.http(there, "flip.lie.test")
    door = Door("udp", there, ECHO)
    assert knock(fooled.namespace, [door])[door].answer is Answer.SILENT
    assert fooled.http(address, "flip.lie.test")["server"] == "allowed"  # what it was told lasts
    assert fooled.arrivals(server=PRIVATE) == []


@BOTH
def test_forged_answers_are_read_past(fooled: Guest, address: Address) -> None:
    with at_once():
        found = fooled.addresses("forged.lie.test", RTYPE[address.version])
    assert found == [str(address)]
    with refused():
        fooled.http(in_family(FORBIDDEN, address), "forged.lie.test")


@FAMILIES
def test_a_resolver_that_fails_is_not_the_last(stage: Stage, fooled: Guest, version: int) -> None:
    with at_once():
        assert fooled.addresses(NAME, RTYPE[version]) == [str(ALLOWED.addresses[version == 6])]
    assert stage.liar.asked(NAME)


def test_a_resolver_that_is_silent_is_not_the_last(fooled: Guest) -> None:
    began = time.monotonic()
    assert fooled.addresses("shared.example.test") == [str(ALLOWED.ipv4)]
    print(f"took {time.monotonic() - began:.2f} s")
    assert fooled.ask("silent.lie.test").rcode() == dns.rcode.NXDOMAIN  # says the other one
    assert {"shared.example.test", "silent.lie.test"} == set(SILENT)


@FAMILIES
def test_what_is_too_large_is_asked_over_tcp(stage: Stage, fooled: Guest, version: int) -> None:
    for tcp in (False, True):
        found = fooled.addresses("late.lie.test", RTYPE[version], tcp=tcp)
        assert found == [str(ALLOWED.addresses[version == 6])]
    assert f"{RTYPE[version]} tcp" in stage.liar.asked("late.lie.test")


@pytest.mark.parametrize("name", ["huge.lie.test", "garbage.lie.test", "loop.lie.test"])
@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_what_cannot_be_used_is_as_good_as_no_answer(
    stage: Stage, fooled: Guest, name: str, tcp: bool
) -> None:
    response = fooled.ask(name, tcp=tcp)
    assert response.rcode() == dns.rcode.NXDOMAIN  # says the other one, which was asked next
    assert stage.liar.asked(name)
    assert fooled.ask("plain.lie.test").rcode() == dns.rcode.NOERROR


@pytest.mark.parametrize("rtype", ["HTTPS", "SVCB"])
def test_the_key_to_hide_the_name_is_taken_out(fooled: Guest, rtype: str) -> None:
    (rrset,) = fooled.ask("ech.lie.test", rtype).answer
    text = rrset[0].to_text()
    assert "alpn" in text
    assert "ech" not in text
    assert "hint" not in text
