"""What a network's guests are answered by its own choices: its records, its guests' names, answers
that outlived their resolver, and what may be told of encrypted resolvers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import dns.edns
import dns.message
import dns.rcode
import pytest

from guestnet.host import Host
from lab.addresses import ALLOWED, FORBIDDEN, LIAR, PRIVATE, RESOLVER
from lab.moody import Resolver
from lab.waiting import eventually
from lab.world import World
from stage import Guest, GuestOf, Stage, assert_no_such_name, explained, in_family, refused

pytestmark = pytest.mark.root

Address = IPv4Address | IPv6Address

RTYPE = {4: "A", 6: "AAAA"}
BOTH = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
NAME = ALLOWED.name
STALE_S = 3600
INWARD = "allow:ingress@guests:tcp:22"
#: A resolver that the stale network's questions are put to, and nobody else's.
FICKLE = FORBIDDEN.addresses[1]

NETWORKS: dict[str, dict[str, object]] = {
    "plain": {
        "records": {
            "db.test": [str(address) for address in PRIVATE.addresses],
            "web.test": [str(address) for address in ALLOWED.addresses],
            "alias.test": "web.test",
            "out.test": NAME,
            # It would lead to ALLOWED's: what the network says comes first.
            "forbidden.example.test": [str(address) for address in ALLOWED.addresses],
        },
    },
    "open": {"strip_ech": False, "deny_encrypted_dns": False, "dns": [str(LIAR.ipv4)]},
    "synth": {"synthetic": True, "records": {"db.test": [str(PRIVATE.ipv4)], "out.test": NAME}},
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    state = tmp_path_factory.mktemp("service")
    with World() as world, Host.open(state, site=world.site.path) as host:
        liar = world.lie()
        for number, (name, options) in enumerate(NETWORKS.items()):
            pools = {"ipv4": f"172.{20 + number}.0.0/16", "ipv6": f"fd42:6d73:{number}::/48"}
            resolvers = [str(address) for address in RESOLVER.addresses]
            host.create_network({"name": name, "dns": resolvers, **pools, **options})
        made = Stage(world, host, liar)
        with made.guest(f"allow@{NAME}:443"):
            pass  # the gateway runs from the first guest on, and is no test's leftover
        yield made


# -- records -----------------------------------------------------------------------------------


@BOTH
def test_a_record_leads_where_its_owner_says(guest_of: GuestOf, version: int) -> None:
    """To a private address, which a rule by address opens; it is no rebinding."""
    guest = guest_of(f"allow@db.test,allow@{PRIVATE.ipv4},allow@[{PRIVATE.ipv6}]")
    there = str(PRIVATE.addresses[version == 6])
    assert guest.addresses("DB.test", RTYPE[version]) == [there]
    assert guest.curl(f"-{version}", "http://db.test/")["server"] == "private"
    assert guest.decided(kind="dns", verdict="allow").rule == "allow@db.test"
    closed = guest_of("allow@db.test:80")
    assert closed.addresses("db.test", RTYPE[version]) == [there]
    with refused():
        closed.http(ip_address(there), "db.test")


@BOTH
def test_a_record_with_a_public_address_is_reached_by_its_name(
    guest_of: GuestOf, version: int
) -> None:
    guest = guest_of("allow@web.test:80,allow@alias.test:80,allow@out.test:80")
    for name in ("web.test", "alias.test", "out.test"):
        found = guest.curl(f"-{version}", f"http://{name}/")
        assert (found["server"], found["host"]) == ("allowed", name)
    # Without having asked: the gateway knows the records, too.
    other = guest_of("allow@web.test:80,allow@alias.test:80,allow@out.test:80")
    for name in ("web.test", "alias.test", "out.test"):
        assert other.http(ALLOWED.addresses[version == 6], name)["server"] == "allowed"


def test_an_alias_is_told_with_what_it_stands_for(guest_of: GuestOf) -> None:
    guest = guest_of("allow@*.test")
    for name, target in (("alias.test", "web.test"), ("out.test", NAME)):
        for _again in range(2):
            texts = [rrset.to_text() for rrset in guest.ask(name).answer]
            assert len(texts) == 2
            assert texts[0] == f"{name}. 30 IN CNAME {target}."
            assert texts[1].startswith(f"{target}. ")
            assert texts[1].endswith(f" IN A {ALLOWED.ipv4}")
        (only,) = guest.ask(name, "CNAME").answer
        assert only.to_text() == f"{name}. 30 IN CNAME {target}."
    assert {a.detail for a in guest.arrivals(kind="dns")} <= {NAME}


def test_a_record_is_asked_of_nobody_and_denied_like_any_name(guest_of: GuestOf) -> None:
    guest = guest_of("allow@db.test,allow@forbidden.example.test")
    assert guest.addresses(FORBIDDEN.name) == [str(ALLOWED.ipv4)]
    for rtype in ("TXT", "HTTPS", "MX"):
        response = guest.ask("db.test", rtype)
        assert (response.rcode(), response.answer) == (dns.rcode.NOERROR, [])
    assert_no_such_name(guest.ask("web.test"))
    assert guest.arrivals(kind="dns") == []


def test_records_are_the_network_s_own(guest_of: GuestOf) -> None:
    guest = guest_of("allow@*.test", network="open")
    assert guest.ask("db.test").rcode() == dns.rcode.SERVFAIL  # the liar knows nothing


@BOTH
def test_records_of_a_synthetic_network(guest_of: GuestOf, version: int) -> None:
    guest = guest_of(f"allow@db.test,allow@{PRIVATE.ipv4},allow@out.test:80", network="synth")
    assert guest.addresses("db.test") == [str(PRIVATE.ipv4)]
    assert guest.http(ip_address(guest.addresses("db.test")[0]), "db.test")["server"] == "private"
    (stands,) = guest.addresses("out.test", RTYPE[version])
    assert stands not in map(str, ALLOWED.addresses)
    assert guest.http(ip_address(stands), "out.test")["server"] == "allowed"


def test_explaining_a_record_and_a_guest_s_name(stage: Stage, guest_of: GuestOf) -> None:
    guest, peer = guest_of(f"allow@db.test,allow@{PRIVATE.ipv4}:tcp:80"), guest_of(INWARD)
    explained = partial(stage.host.explain, guest.id, "tcp")
    assert explained("db.test", 80).text == f"allow@{PRIVATE.ipv4}:tcp:80"
    assert not explained("db.test", 81).allowed
    assert explained("web.test", 80).text == "default_egress=deny"
    assert explained(host_name(peer), 22).text == "floor: guests"
    assert explained("host.guestnet.internal", 22).text == "floor: host"
    assert explained("nobody.plain.guestnet.internal", 22).text == "guests' names"
    stage.host.set_policy(guest.id, "allow@db.test,allow@guests:tcp:22")
    assert explained(host_name(peer), 22).text == "allow@guests:tcp:22"
    assert not explained(host_name(peer), 23).allowed


# -- guests' names -----------------------------------------------------------------------------


def host_name(guest: Guest, network: str = "plain") -> str:
    return f"{guest.id}.{network}.guestnet.internal"


def pointed(guest: Guest, address: Address) -> list[str]:
    response = guest.ask(address.reverse_pointer, "PTR")
    return [str(each) for rrset in response.answer for each in rrset]


@BOTH
@pytest.mark.parametrize("policy", ["none", "public", f"allow@{NAME}"], ids=str)
def test_a_guest_finds_another_that_it_may_reach(
    guest_of: GuestOf, policy: str, version: int
) -> None:
    """Whatever the other's policy is; its address leads back to its name."""
    asks, peer = guest_of(f"allow@{NAME},allow@guests:tcp:22"), guest_of(policy)
    own = (peer.attachment.ipv4, peer.attachment.ipv6)[version == 6]
    assert own is not None
    name = host_name(peer).upper()
    # What was told in passing may come a moment later.
    assert eventually(lambda: asks.addresses(name, RTYPE[version])) == [str(own.ip)]
    assert eventually(lambda: pointed(asks, own.ip)) == [f"{host_name(peer)}."]
    allowed = asks.told(2, kind="dns", verdict="allow")[-2:]
    assert {d.rule for d in allowed} == {"allow@guests:tcp:22"}
    assert asks.arrivals(kind="dns") == []


@pytest.mark.parametrize(
    "policy",
    [f"allow@{NAME}", f"allow@{NAME},allow@public,allow@private",
     f"deny@guests,allow@guests,allow@{NAME}",
     f"deny@guests:tcp:1-65535,deny@guests:udp+icmpv4+icmpv6,allow@guests:tcp,allow@{NAME}"],
)  # fmt: skip
def test_a_guest_that_may_not_be_reached_has_no_name(
    stage: Stage, guest_of: GuestOf, policy: str
) -> None:
    asks, peer = guest_of(policy), guest_of("none")
    silent = [asks.ask("nobody.plain.guestnet.internal"), asks.ask("x.y.guestnet.internal")]
    refusals = [asks.ask(host_name(peer), rtype) for rtype in ("A", "AAAA", "TXT")]
    for own in (peer.attachment.ipv4, peer.attachment.ipv6):
        assert own is not None
        refusals.append(asks.ask(own.ip.reverse_pointer, "PTR"))
    for response in (*refusals, *silent):
        assert_no_such_name(response)
    # Whether it is there is nobody's to know who may not reach it; the owner is told.
    assert len({explained(response) for response in (*refusals, *silent)}) == 1
    reasons = {d.name: d.reason for d in asks.told(7, kind="dns", verdict="deny")}
    assert "has the name" in reasons["nobody.plain.guestnet.internal"]
    assert "has the name" not in reasons[host_name(peer)]
    assert asks.arrivals(kind="dns") == []


def test_a_guest_knows_itself_and_the_host(guest_of: GuestOf) -> None:
    guest = guest_of(f"allow@{NAME}")
    own, gateway = guest.attachment.ipv4, guest.attachment.gateway_ipv4
    assert own is not None
    assert gateway is not None
    assert guest.addresses(host_name(guest)) == [str(own.ip)]
    assert guest.addresses("host.guestnet.internal") == [str(gateway)]
    response = guest.ask(gateway.reverse_pointer, "PTR")
    assert [str(each) for rrset in response.answer for each in rrset] == ["host.guestnet.internal."]
    for name in ("guestnet.internal", "plain.guestnet.internal"):
        assert guest.ask(name).rcode() == dns.rcode.NOERROR


def test_guests_of_other_networks_are_not_found(guest_of: GuestOf) -> None:
    asks, other = guest_of(f"allow@{NAME},allow@guests"), guest_of("none", network="open")
    own = other.attachment.ipv4
    assert own is not None
    for name in (host_name(other, "open"), host_name(other, "plain")):
        assert_no_such_name(asks.ask(name))
    assert_no_such_name(asks.ask(own.ip.reverse_pointer, "PTR"))


def test_names_come_and_go_with_their_guests(stage: Stage, guest_of: GuestOf) -> None:
    asks = guest_of(f"allow@{NAME},allow@guests")
    with stage.guest("public") as peer:
        name = host_name(peer)
        eventually(lambda: asks.addresses(name))
    assert_no_such_name(eventually(lambda: r if not (r := asks.ask(name)).answer else None))


def test_of_two_ids_with_one_label_none_has_it(stage: Stage, guest_of: GuestOf) -> None:
    asks = guest_of(f"allow@{NAME},allow@guests")
    with contextlib.ExitStack() as stack:
        for id in ("Twin", "tWIN", "no label", "a.b", "last"):
            stage.host.attach(id, network="plain", policy="none")
            stack.callback(stage.host.detach, id)
        eventually(lambda: asks.addresses("last.plain.guestnet.internal"))
        assert_no_such_name(asks.ask("twin.plain.guestnet.internal"))
        for name in ("no\\032label", "a.b", "a\\.b"):
            assert_no_such_name(asks.ask(f"{name}.plain.guestnet.internal"))
        stage.host.detach("tWIN")
        found = stage.host.attachment("Twin").ipv4
        assert found is not None
        assert eventually(lambda: asks.addresses("twin.plain.guestnet.internal")) == [str(found.ip)]


def test_a_new_policy_changes_what_is_found(stage: Stage, guest_of: GuestOf) -> None:
    asks, peer = guest_of(f"allow@{NAME},allow@guests"), guest_of("none")
    assert eventually(lambda: asks.addresses(host_name(peer)))
    stage.host.set_policy(asks.id, f"allow@{NAME}")
    assert_no_such_name(asks.ask(host_name(peer)))


def test_a_gateway_that_was_restarted_knows_all_guests(world: World, host: Host) -> None:
    host.create_network({"name": "plain", **NETWORKS["plain"]})
    stage = Stage(world, host)
    with (
        stage.guest(f"allow@{NAME},allow@guests,allow@db.test") as asks,
        stage.guest("none") as peer,
    ):
        gateway = host._relays.gateway
        assert gateway is not None
        for worker in gateway.workers:
            worker.kill("dies for a test")
        assert eventually(lambda: asks.addresses(host_name(peer)))
        assert asks.addresses("db.test") == [str(PRIVATE.ipv4)]


# -- stale answers -----------------------------------------------------------------------------


def stale(response: dns.message.Message) -> bool:
    codes = [o.code for o in response.options if isinstance(o, dns.edns.EDEOption)]
    return dns.edns.EDECode.STALE_ANSWER in codes


@pytest.fixture
def stale_guest(world: World, tmp_path: Path) -> Iterator[Callable[[str], Guest]]:
    """Guests of a network that serves stale; by one worker, as each gives what it knows itself."""
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(
            Host.open(tmp_path / "state", site=world.site.path, gateway_workers=1)
        )
        host.create_network({"name": "stale", "serve_stale_s": STALE_S, "dns": [str(FICKLE)]})
        stage = Stage(world, host)
        yield lambda policy: stack.enter_context(stage.guest(policy, "stale"))


def test_answers_outlive_a_resolver_that_fails(
    world: World, stale_guest: Callable[[str], Guest]
) -> None:
    guest = stale_guest("allow@fickle.test:80")
    zone = {"fickle.test": ALLOWED.addresses}
    with Resolver(world.internet, FICKLE, zone) as resolver:
        resolver.manners.ttl_s = 1
        assert guest.addresses("fickle.test") == [str(ALLOWED.ipv4)]
        resolver.manners.failing = True
        late = eventually(lambda: r if stale(r := guest.ask("fickle.test")) else None)
        assert (late.answer[0].ttl, str(late.answer[0][0])) == (30, str(ALLOWED.ipv4))
        assert "former answer" in guest.told(2, kind="dns")[-1].reason
        asked = len(resolver.asked)
        assert stale(guest.ask("fickle.test"))
        assert len(resolver.asked) == asked  # it has just failed: not asked again so soon
        assert guest.http(in_family(ALLOWED, IPv4Address(0)), "fickle.test")["server"] == "allowed"
        # What was never answered fails as ever.
        assert guest.ask("fickle.test", "AAAA").rcode() == dns.rcode.SERVFAIL


def test_answers_outlive_a_resolver_that_is_silent(
    world: World, stale_guest: Callable[[str], Guest]
) -> None:
    guest = stale_guest("allow@mute.test")
    with Resolver(world.internet, FICKLE, {"mute.test": ALLOWED.addresses}) as resolver:
        resolver.manners.ttl_s = 1
        assert guest.addresses("mute.test") == [str(ALLOWED.ipv4)]
        resolver.manners.silent = True
        assert eventually(lambda: stale(guest.ask("mute.test")))


# -- what hides names ----------------------------------------------------------------------------


@pytest.mark.parametrize("rtype", ["HTTPS", "SVCB"])
def test_the_key_to_hide_names_may_be_left(guest_of: GuestOf, rtype: str) -> None:
    guest = guest_of("allow@*.lie.test", network="open")
    (rrset,) = guest.ask("ech.lie.test", rtype).answer
    text = rrset[0].to_text()
    assert "ech=" in text
    assert "hint" not in text


@pytest.mark.parametrize("name", ["dns.google", "use-application-dns.net"])
def test_encrypted_resolvers_may_be_found(guest_of: GuestOf, name: str) -> None:
    closed, opened = (guest_of(f"deny@{NAME},public", network=n) for n in ("plain", "open"))
    assert_no_such_name(closed.ask(name))
    assert opened.ask(name).rcode() == dns.rcode.SERVFAIL  # the liar was asked, and knows it not
    assert opened.decided(kind="dns").verdict == "allow"


# -- the host's own resolvers ----------------------------------------------------------------------


def test_the_host_s_resolvers_are_followed(
    world: World, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By guests with and without rules by name, those told before the change included."""
    own = tmp_path / "resolv.conf"
    monkeypatch.setattr("guestnet.kernel.resolv.RESOLV_CONF", own)
    first, second = RESOLVER.addresses[0], FORBIDDEN.addresses[0]
    own.write_text(f"nameserver {first}\n")
    host.create_network({"name": "plain"})
    assert host.network("plain").spec.dns == (first,)
    stage = Stage(world, host)
    with (
        Resolver(world.internet, second, {"moved.test": ALLOWED.addresses}),
        stage.guest("allow@*.test") as named,
        stage.guest("allow@dns,allow@db.invalid") as both,
        stage.guest("allow@dns") as early,
    ):
        assert early.attachment.dns == (first,)
        assert named.ask("moved.test").rcode() == dns.rcode.NXDOMAIN
        assert early.ask("moved.test", server=str(first)).rcode() == dns.rcode.NXDOMAIN
        assert host.explain(early.id, "udp", second, 53).action == "deny"
        own.write_text(f"nameserver {second}\n")
        host.follow()
        assert host.network("plain").spec.dns == (second,)
        assert eventually(lambda: named.addresses("moved.test")) == [str(ALLOWED.ipv4)]
        assert named.decided(kind="dns").verdict == "allow"
        assert both.attachment.dns == (both.attachment.gateway_ipv4, both.attachment.gateway_ipv6)
        with stage.guest("allow@dns") as late:
            assert late.attachment.dns == (second,)
            for each in (early, late):
                assert each.ask("moved.test", server=str(first)).rcode() == dns.rcode.NXDOMAIN
                found = each.addresses("moved.test", server=str(second))
                assert found == [str(ALLOWED.ipv4)]
                for resolver in (first, second):
                    assert host.explain(each.id, "udp", resolver, 53).action == "allow"
