"""Names with addresses of their own: what a guest is told, where it gets to, and where not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

import dns.rcode
import pytest

from guestnet.address import SYNTHETIC_IPV4, SYNTHETIC_IPV6, is_synthetic
from lab.addresses import ALLOWED, FORBIDDEN, PRIVATE, RESOLVER
from lab.servers import BANNER, ECHO, HTTP, HTTPS
from lab.waiting import PATIENCE_S
from lab.world import World
from stage import Guest, GuestOf, Stage, assert_no_such_name, at_once, open_host, refused

pytestmark = pytest.mark.root

Address = IPv4Address | IPv6Address
NAME, OTHER = ALLOWED.name, FORBIDDEN.name
RTYPE = {4: "A", 6: "AAAA"}
FAMILIES = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])


@pytest.fixture(scope="module", params=["root", "rootless"])
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    rootless = request.param == "rootless"
    state = tmp_path_factory.mktemp("synthetic")
    with World() as world, open_host(world, state, rootless=rootless) as host:
        resolvers = [str(address) for address in RESOLVER.addresses]
        host.create_network({"name": "plain", "dns": resolvers, "synthetic": True})
        real = {"ipv4": "10.99.0.0/16", "ipv6": "fd42:6d73:30::/48"}
        host.create_network({"name": "real", "dns": resolvers, **real})
        world.site.sysctl("ipv4.ping_group_range", "0 2147483647")
        made = Stage(world, host, world.lie(), rootless=rootless)
        with made.guest(f"allow@{NAME}:443"):
            pass  # the gateway runs from the first guest on, and is no test's leftover
        yield made


def told(guest: Guest, name: str, version: int) -> Address:
    """The address that stands for a name."""
    (address,) = guest.addresses(name, RTYPE[version])
    return ip_address(address)


@FAMILIES
def test_a_name_has_an_address_of_its_own_and_nobody_is_asked(
    guest_of: GuestOf, version: int
) -> None:
    guest = guest_of("allow@*.example.test")
    first, second = told(guest, NAME, version), told(guest, "other.example.test", version)
    assert first in (SYNTHETIC_IPV4, SYNTHETIC_IPV6)[version == 6]
    assert is_synthetic(second)
    assert second != first
    assert told(guest, NAME, version) == first
    assert told(guest, "x" * 50 + ".example.test", version) not in (first, second)
    assert guest.arrivals(kind="dns") == []
    assert guest.decided(kind="dns", name=NAME).answers == (first,)


def test_questions_carry_nothing_out(guest_of: GuestOf) -> None:
    guest = guest_of("allow@*.example.test")
    for rtype in ("TXT", "MX", "HTTPS", "SRV", "CNAME", "NULL"):
        answer = guest.ask("c2VjcmV0.example.test", rtype)
        assert (answer.rcode(), answer.answer) == (dns.rcode.NOERROR, []), rtype
    assert guest.arrivals(kind="dns") == []
    assert_no_such_name(guest.ask("nobody.test"))


@FAMILIES
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_name_is_reached_by_its_address(guest_of: GuestOf, scheme: str, version: int) -> None:
    guest = guest_of(f"allow@{NAME}:tcp:80+443")
    with at_once():
        found = guest.curl(f"-{version}", f"{scheme}://{NAME}/")
    assert (found["server"], found["scheme"]) == ("allowed", scheme)
    flow = guest.decided(kind="flow")
    assert (flow.verdict, flow.name) == ("allow", NAME)
    assert flow.address in ALLOWED.addresses
    assert flow.bytes_down > 0


@FAMILIES
def test_any_port_goes_by_the_name(guest_of: GuestOf, version: int) -> None:
    """Also where the server speaks first, and where two names share the real address."""
    guest = guest_of(f"allow@{NAME}:tcp:{BANNER}")
    address = told(guest, NAME, version)
    with at_once(), guest.connect(address, BANNER) as stream:
        assert stream.recv(99) == b"220 allowed\r\n"
    with refused():
        guest.say(address, HTTP, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")


def echoed(guest: Guest, address: Address, port: int = ECHO) -> list[bytes]:
    """What comes back of two datagrams, from where they were sent to and nowhere else."""
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with guest.namespace.enter():
        udp = socket.socket(family, socket.SOCK_DGRAM)
    with udp:
        udp.settimeout(PATIENCE_S)
        udp.connect((str(address), port))  # the kernel takes answers of this address and port only
        answers = []
        for data in (b"hello", b"again"):
            udp.send(data)
            answers.append(udp.recv(2048))
        return answers


@FAMILIES
def test_datagrams_go_by_the_name(guest_of: GuestOf, version: int) -> None:
    guest = guest_of(f"allow@{NAME}:udp:{ECHO},allow@shared.example.test:tcp:443")
    assert echoed(guest, told(guest, NAME, version)) == [b"hello", b"again"]
    # At the same real address, and not by this rule:
    with pytest.raises(ConnectionRefusedError):
        echoed(guest, told(guest, "shared.example.test", version))
    with pytest.raises(ConnectionRefusedError):
        echoed(guest, (SYNTHETIC_IPV4, SYNTHETIC_IPV6)[version == 6][777])
    with pytest.raises(ConnectionRefusedError):
        echoed(guest, told(guest, NAME, version), port=9)
    refused_by = {d.rule for d in guest.told(3, kind="flow", verdict="deny")}
    assert refused_by == {"default_egress=deny", "synthetic address"}
    assert {a.port for a in guest.arrivals(kind="udp")} == {ECHO}


@FAMILIES
def test_one_endpoint_and_two_names_at_one_server(guest_of: GuestOf, version: int) -> None:
    """Each answer comes in the name of whom it was sent to (QUIC clients have one socket)."""
    guest = guest_of("allow@*.example.test")
    first, second = told(guest, NAME, version), told(guest, "shared.example.test", version)
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with guest.namespace.enter():
        udp = socket.socket(family, socket.SOCK_DGRAM)
    with udp:
        udp.settimeout(PATIENCE_S)
        for address in (first, second, first):
            udp.sendto(str(address).encode(), (str(address), ECHO))
            data, source = udp.recvfrom(100)
            assert (data.decode(), source[0]) == (str(address), str(address))


@FAMILIES
def test_datagrams_resolve_nothing_beside_the_gateway(guest_of: GuestOf, version: int) -> None:
    """Not even at a name whose every service is allowed."""
    guest = guest_of(f"allow@{NAME}")
    address = told(guest, NAME, version)
    for port in (853, 784, 5353):
        with pytest.raises(ConnectionRefusedError):
            echoed(guest, address, port)
    assert {d.rule for d in guest.told(3, kind="flow")} == {"name services"}
    assert guest.arrivals(kind="udp") == []


@FAMILIES
def test_datagrams_end_with_their_policy(guest_of: GuestOf, stage: Stage, version: int) -> None:
    guest = guest_of(f"allow@{NAME}:udp:{ECHO}")
    address = told(guest, NAME, version)
    assert echoed(guest, address) == [b"hello", b"again"]
    stage.host.set_policy(guest.id, f"allow@{NAME}:tcp:80")
    ended = guest.decided(kind="flow", verdict="deny")
    assert (ended.name, ended.protocol) == (NAME, "udp")
    assert ended.address in ALLOWED.addresses
    with pytest.raises(ConnectionRefusedError):
        echoed(guest, address)


@FAMILIES
def test_a_name_is_pinged(guest_of: GuestOf, version: int) -> None:
    guest = guest_of(f"allow@{NAME}:icmpv4,allow@{NAME}:icmpv6")
    address = told(guest, NAME, version)
    argv = ["ping", "-n", "-c", "2", "-i", "0.2", "-W", str(PATIENCE_S), str(address)]
    assert "2 received" in guest.namespace.run(argv).stdout
    assert guest.namespace.run([*argv[:-1], str(address + 1)], check=False).returncode == 1


@FAMILIES
def test_another_name_at_the_address_of_one(guest_of: GuestOf, version: int) -> None:
    """Both are allowed, and at one real address: each has to be meant where it is."""
    guest = guest_of("allow@*.example.test:tcp:80+443,allow@cdn.pkg.test:tcp:80+443")
    address = told(guest, NAME, version)
    for name in (OTHER, "cdn.pkg.test"):
        with refused():
            guest.http(address, name)
        with refused():
            guest.https(address, name)
    assert guest.decided(kind="flow", port=HTTPS).rule == "another name"
    assert guest.arrivals(kind="tcp") == []
    assert guest.https(address, None)["server"] == "allowed"


@FAMILIES
def test_an_address_that_was_not_told(guest_of: GuestOf, version: int) -> None:
    guest = guest_of(f"allow@{NAME}")
    stranger = (SYNTHETIC_IPV4, SYNTHETIC_IPV6)[version == 6][777]
    for port in (HTTP, HTTPS, BANNER):
        with refused():
            guest.say(stranger, port, b"GET / HTTP/1.1\r\nHost: allowed.example.test\r\n\r\n")
    assert {d.rule for d in guest.told(3, kind="flow")} == {"synthetic address"}
    assert guest.arrivals() == []


@FAMILIES
def test_what_one_guest_was_told_is_nothing_to_another(guest_of: GuestOf, version: int) -> None:
    one, other = guest_of(f"allow@{NAME}:{BANNER}"), guest_of(f"allow@{NAME}:{BANNER}")
    address = told(one, NAME, version)
    with refused():
        other.connect(address, BANNER).recv(9)
    assert told(other, NAME, version) == address


@FAMILIES
def test_a_name_that_leads_inside(guest_of: GuestOf, version: int) -> None:
    """It is classified when it is resolved, which is at the connection."""
    name = PRIVATE.name
    guest = guest_of(f"allow@{name}:tcp:80")
    address = told(guest, name, version)
    with refused():
        guest.http(address, name)
    assert guest.decided(kind="flow").verdict == "deny"
    assert guest.arrivals(kind="tcp") == []
    where = ",".join(f"allow@{f'[{a}]' if a.version == 6 else a}" for a in PRIVATE.addresses)
    opened = guest_of(f"{where},allow@{name}:tcp:80")
    assert opened.http(told(opened, name, version), name)["server"] == "private"


@FAMILIES
def test_a_name_that_nobody_has(guest_of: GuestOf, version: int) -> None:
    guest = guest_of("allow@*.example.test")
    address = told(guest, "nobody.example.test", version)
    with refused():
        guest.connect(address, BANNER).recv(9)
    assert "no address of nobody.example.test" in guest.decided(kind="flow").reason


def test_a_guest_of_one_family_reaches_the_other(guest_of: GuestOf, stage: Stage) -> None:
    """Whatever family the guest takes, the real address is of the one that answers first."""
    guest = guest_of(f"allow@{NAME}:tcp:{BANNER}")
    address = told(guest, NAME, 4)
    with guest.connect(address, BANNER) as stream:
        assert stream.recv(99) == b"220 allowed\r\n"
    assert guest.decided(kind="flow").address == ALLOWED.ipv6


def test_the_policy_goes_on_deciding(guest_of: GuestOf, stage: Stage) -> None:
    guest = guest_of(f"allow@{NAME}:tcp:{BANNER}")
    address = told(guest, NAME, 4)
    with guest.connect(address, BANNER) as stream:
        assert stream.recv(99)
        stage.host.set_policy(guest.id, f"allow@{NAME}:tcp:80")
        with refused():
            stream.recv(99)
    with refused():
        guest.connect(address, BANNER).recv(9)
    assert guest.http(address, NAME)["server"] == "allowed"


def test_elsewhere_these_addresses_stand_for_nothing(stage: Stage) -> None:
    with stage.guest(f"allow@{NAME}", network="real") as guest:
        assert guest.addresses(NAME) == [str(ALLOWED.ipv4)]
        with refused():
            guest.connect(SYNTHETIC_IPV4[777], BANNER).recv(9)
