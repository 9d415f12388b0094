"""Questions over TLS: to whom they go, and to whom they never do.

By one worker, so that connections can be counted: each has its own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from guestnet.gateway.upstreams import TLS_ANSWER_S
from guestnet.host import Host
from lab.addresses import ALLOWED, FORBIDDEN, RESOLVER, Server
from lab.moody import Resolver
from lab.waiting import eventually
from lab.world import World
from stage import Guest, Stage, explanation

pytestmark = pytest.mark.root

Address = IPv4Address | IPv6Address
Enter = Callable[..., Resolver]

BOTH = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
#: Names of the resolvers over TLS alone: whoever knows them has been asked.
ZONE = {f"{label}.secure.test": ALLOWED.addresses for label in ("a", "b", "c", "d", "e")}


@pytest.fixture
def host(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """One that trusts the lab's authority, as the daemon's environment says."""
    monkeypatch.setenv("SSL_CERT_FILE", str(world.certificates.authority))
    with Host.open(tmp_path / "state", site=world.site.path, gateway_workers=1) as opened:
        yield opened


@pytest.fixture
def resolver(world: World) -> Iterator[Enter]:
    """Start a resolver over TLS at a server's address, with that server's certificate."""
    with contextlib.ExitStack() as stack:

        def start(server: Server = RESOLVER, version: int = 4) -> Resolver:
            address = server.addresses[version == 6]
            certificate = world.certificates.leaf(server.label)
            return stack.enter_context(Resolver(world.internet, address, ZONE, certificate))

        yield start


@pytest.fixture
def guest_of(world: World, host: Host) -> Iterator[Callable[..., Guest]]:
    """A guest whose questions are put to these resolvers."""
    with contextlib.ExitStack() as stack:

        def attach(*resolvers: str) -> Guest:
            host.create_network({"name": "secure", "dns": resolvers})
            stage = Stage(world, host)
            return stack.enter_context(stage.guest("allow@*.secure.test", "secure"))

        yield attach


def over_tls(address: Address | None, name: str = "", port: str = "") -> str:
    assert address is not None
    host = f"[{address}]" if address.version == 6 else str(address)
    return f"tls://{host}{port}" + (f"#{name}" if name else "")


def refused(response: dns.message.Message, reason: str) -> bool:
    assert response.rcode() == dns.rcode.SERVFAIL, response.to_text()
    assert reason in explanation(response)
    return True


@BOTH
@pytest.mark.parametrize("name", [RESOLVER.name, ""], ids=["by name", "by address"])
def test_questions_go_over_one_connection(
    world: World, resolver: Enter, guest_of: Callable[..., Guest], name: str, version: int
) -> None:
    server = resolver(version=version)
    guest = guest_of(over_tls(server.address, name))
    with world.capture("port 53") as capture:
        for each in ZONE:
            assert guest.addresses(each) == [str(ALLOWED.ipv4)]
            assert guest.addresses(each, "AAAA") == [str(ALLOWED.ipv6)]
        assert guest.ask("nobody.secure.test").rcode() == dns.rcode.NXDOMAIN
        assert capture.packets() == []
    assert {asked.connection for asked in server.asked} == {1}
    assert len(server.asked) == 2 * len(ZONE) + 1
    assert {asked.size % 128 for asked in server.asked} == {0}
    assert None not in {asked.padding for asked in server.asked}


def test_questions_do_not_wait_for_each_other(
    resolver: Enter, guest_of: Callable[..., Guest]
) -> None:
    """Answered only when all have been heard, and the last one first."""
    server = resolver()
    server.manners.gathers = len(ZONE)
    guest = guest_of(over_tls(server.address, RESOLVER.name))
    with ThreadPoolExecutor(len(ZONE)) as pool:
        found = list(pool.map(guest.addresses, ZONE))
    assert found == [[str(ALLOWED.ipv4)]] * len(ZONE)


@BOTH
def test_a_certificate_of_another_name_is_not_believed(
    world: World, resolver: Enter, guest_of: Callable[..., Guest], version: int
) -> None:
    wrong = resolver(FORBIDDEN, version)
    guest = guest_of(over_tls(wrong.address, RESOLVER.name))
    with world.capture("port 53") as capture:
        assert refused(guest.ask("a.secure.test"), "is not trusted: Hostname mismatch")
        assert capture.packets() == []
    assert wrong.asked == []


def test_an_authority_that_the_machine_does_not_know(
    world: World, resolver: Enter, guest_of: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(world.certificates.leaf(FORBIDDEN.label)))
    server = resolver()
    guest = guest_of(over_tls(server.address, RESOLVER.name))
    assert refused(guest.ask("a.secure.test"), "is not trusted: ")
    assert server.asked == []


def test_trust_follows_the_machine_s(
    host: Host, world: World, resolver: Enter, guest_of: Callable[..., Guest], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    store = tmp_path / "store.pem"
    store.write_bytes(world.certificates.leaf(FORBIDDEN.label).read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(store))
    server = resolver()
    guest = guest_of(over_tls(server.address, RESOLVER.name))
    assert refused(guest.ask("a.secure.test"), "is not trusted: ")
    store.write_bytes(world.certificates.authority.read_bytes())
    host.follow()
    assert guest.addresses("a.secure.test") == [str(ALLOWED.ipv4)]


@pytest.mark.parametrize("fault", ["closed", "name", "silent", "cut", "clear", "failing"])
def test_the_next_one_is_asked(
    world: World, resolver: Enter, guest_of: Callable[..., Guest], fault: str
) -> None:
    """And that one only: nothing of it in clear."""
    good = resolver(version=6)
    name = RESOLVER.name
    if fault == "closed":
        first = over_tls(FORBIDDEN.ipv4, name)
    elif fault == "clear":
        first = over_tls(ALLOWED.ipv4, name, port=":2222")  # it speaks first, and no TLS
    elif fault == "name":
        first = over_tls(resolver(FORBIDDEN).address, name)
    else:
        bad = resolver()
        bad.manners.silent = fault == "silent"
        bad.manners.failing = fault == "failing"
        bad.manners.cuts_at = 20 if fault == "cut" else None
        first = over_tls(bad.address, name)
    guest = guest_of(first, over_tls(good.address, name))
    with world.capture("port 53") as capture:
        for each in ZONE:
            assert guest.addresses(each) == [str(ALLOWED.ipv4)]
        assert capture.packets() == []
    assert set(good.names()) == set(ZONE)


def test_in_clear_only_where_that_is_listed(
    world: World, resolver: Enter, guest_of: Callable[..., Guest]
) -> None:
    guest = guest_of(over_tls(FORBIDDEN.ipv4, RESOLVER.name))
    with world.capture("udp or (tcp and not port 853)") as capture:
        assert refused(guest.ask("a.secure.test"), "Connection refused")
        assert [p for p in capture.packets() if p.haslayer("UDP") or p.haslayer("TCP")] == []


@pytest.mark.parametrize("how", ["server", "each"])
def test_a_connection_that_ended_is_opened_anew(
    resolver: Enter, guest_of: Callable[..., Guest], how: str
) -> None:
    server = resolver()
    server.manners.closes = how == "each"
    guest = guest_of(over_tls(server.address, RESOLVER.name))
    for number, each in enumerate(ZONE, start=1):
        assert guest.addresses(each) == [str(ALLOWED.ipv4)]
        assert server.connections == number
        server.hang_up(doors=False)
    if how == "each":
        return
    with ThreadPoolExecutor(len(ZONE)) as pool:
        found = list(pool.map(lambda name: guest.addresses(name, "AAAA"), ZONE))
    assert found == [[str(ALLOWED.ipv6)]] * len(ZONE)


def test_an_answer_that_is_cut_off_is_asked_for_again(
    resolver: Enter, guest_of: Callable[..., Guest]
) -> None:
    server = resolver()
    guest = guest_of(over_tls(server.address, RESOLVER.name))
    assert guest.addresses("a.secure.test") == [str(ALLOWED.ipv4)]
    server.manners.cuts_at = 20
    assert refused(guest.ask("b.secure.test"), "closed the connection")
    server.manners.cuts_at = None
    # It is left alone for a moment.
    assert eventually(lambda: guest.addresses("c.secure.test")) == [str(ALLOWED.ipv4)]


def test_a_connection_on_which_nobody_answers_is_given_up(
    resolver: Enter, guest_of: Callable[..., Guest]
) -> None:
    server = resolver()
    guest = guest_of(over_tls(server.address, RESOLVER.name))
    assert guest.addresses("a.secure.test") == [str(ALLOWED.ipv4)]
    server.manners.silent = True
    waiting = threading.Timer(TLS_ANSWER_S / 2, lambda: setattr(server.manners, "silent", False))
    waiting.start()
    assert guest.addresses("b.secure.test") == [str(ALLOWED.ipv4)]
    waiting.join()
    assert server.connections == 2


def test_a_gateway_that_was_restarted_trusts_whom_it_did(
    host: Host, resolver: Enter, guest_of: Callable[..., Guest]
) -> None:
    server = resolver()
    guest = guest_of(over_tls(server.address, RESOLVER.name))
    gateway = host._relays.gateway
    assert gateway is not None
    gateway.workers[0].kill("dies for a test")
    assert guest.addresses("a.secure.test") == [str(ALLOWED.ipv4)]


def test_resolvers_over_tls_are_not_told_to_guests(host: Host, world: World) -> None:
    secure = over_tls(RESOLVER.ipv4, RESOLVER.name)
    host.create_network({"name": "secure", "dns": [secure, str(RESOLVER.ipv6)]})
    assert host.attach("vm-1", network="secure", policy="public").dns == (RESOLVER.ipv6,)
    assert host.network("secure").spec.dns == (secure, RESOLVER.ipv6)
    host.detach("vm-1")
