"""Replies of our own, read back with dnspython; local names; resolvers that hide."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import dns.edns
import dns.flags
import dns.message
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestnet.dns import (
    Ede,
    LocalRecords,
    Question,
    Rcode,
    addresses,
    fit,
    is_encrypted_resolver,
    no_data,
    pointer,
    read_question,
    refusal,
    reversed_address,
    truncated,
)

V4, V6 = ip_address("10.0.0.1"), ip_address("fd00::1")


def asked(name: str = "WWW.example.com", qtype: str = "A", **options: object) -> Question:
    return read_question(dns.message.make_query(name, qtype, **options).to_wire())  # type: ignore[arg-type]


def explanations(message: dns.message.Message) -> list[tuple[int, str | None]]:
    return [(o.code, o.text) for o in message.options if isinstance(o, dns.edns.EDEOption)]


def test_a_refusal_names_its_reason_and_is_soon_forgotten() -> None:
    question = asked(use_edns=0, id=77)
    wire = refusal(question, Rcode.NXDOMAIN, Ede.BLOCKED, "no rule allows www.example.com")
    message = dns.message.from_wire(wire)
    assert (message.id, int(message.rcode())) == (77, Rcode.NXDOMAIN)
    assert message.question[0].name.to_text() == "WWW.example.com."
    assert explanations(message) == [(15, "no rule allows www.example.com")]
    [soa] = message.authority
    assert (soa.ttl, soa[0].minimum) == (5, 5)
    assert not message.flags & (dns.flags.AA | dns.flags.AD)


def test_without_edns_there_is_no_opt_to_explain_in() -> None:
    message = dns.message.from_wire(refusal(asked(), Rcode.NXDOMAIN, Ede.BLOCKED, "no"))
    assert message.edns == -1


def test_a_failure_to_answer_is_not_to_be_remembered() -> None:
    wire = refusal(asked(use_edns=0), Rcode.SERVFAIL, Ede.NETWORK_ERROR, "no upstream answers")
    message = dns.message.from_wire(wire)
    assert int(message.rcode()) == Rcode.SERVFAIL
    assert message.authority == []


@pytest.mark.parametrize("text", ["x" * 5000, "é" * 5000, "x" + "é" * 5000])
def test_the_longest_refusal_of_the_longest_name_fits_everyone(text: str) -> None:
    question = asked(".".join(["a" * 62] * 3 + ["a" * 61]), use_edns=0)
    wire = refusal(question, Rcode.NXDOMAIN, Ede.FILTERED, text)
    assert len(wire) <= 512
    [(_code, shown)] = explanations(dns.message.from_wire(wire))
    assert shown
    assert text.startswith(shown)


def test_addresses_are_those_of_the_asked_family() -> None:
    message = dns.message.from_wire(addresses(asked(), [V4, V6], 30))
    assert [rrset.to_text() for rrset in message.answer] == ["WWW.example.com. 30 IN A 10.0.0.1"]
    message = dns.message.from_wire(addresses(asked(qtype="AAAA"), [V4, V6], 30))
    assert message.answer[0][0].address == "fd00::1"


def test_flags_that_are_copied() -> None:
    for flags in (0, dns.flags.RD, dns.flags.CD, dns.flags.RD | dns.flags.CD):
        message = dns.message.from_wire(no_data(asked(flags=flags)))
        assert message.flags == flags | dns.flags.QR | dns.flags.RA


def test_what_does_not_fit_is_asked_for_again() -> None:
    question = asked()
    wire = addresses(question, [V4], 30)
    assert fit(wire, question, len(wire)) == wire
    assert fit(wire, question, len(wire) - 1) == truncated(question)
    assert dns.message.from_wire(truncated(question)).flags & dns.flags.TC


# --- names of our own -----------------------------------------------------------------------------


def test_the_hosts_alias() -> None:
    local = LocalRecords({"Host.Guestnet.internal.": [V4]})
    reply = local.answer(asked("host.guestnet.internal"))
    assert reply is not None
    assert dns.message.from_wire(reply).answer[0][0].address == "10.0.0.1"
    nothing = local.answer(asked("host.guestnet.internal", "AAAA"))
    assert nothing is not None
    assert dns.message.from_wire(nothing).answer == []
    assert local.answer(asked("x.host.guestnet.internal")) is None
    assert local.addresses_for(asked("host.guestnet.internal")) == (V4,)
    assert local.addresses_for(asked("host.guestnet.internal", "AAAA")) == ()


def test_an_alias_of_a_name_of_ours() -> None:
    local = LocalRecords({"www.test": ["web.test"], "web.test": ["db.test"], "db.test": [V4]})
    reply = local.answer(asked("WWW.test"))
    assert reply is not None
    assert [rrset.to_text() for rrset in dns.message.from_wire(reply).answer] == [
        "WWW.test. 30 IN CNAME web.test.",
        "web.test. 30 IN CNAME db.test.",
        "db.test. 30 IN A 10.0.0.1",
    ]
    assert local.addresses_for(asked("www.test")) == (V4,)
    alone = local.answer(asked("www.test", "CNAME"))
    assert alone is not None
    assert [str(rrset[0]) for rrset in dns.message.from_wire(alone).answer] == ["web.test."]


def test_an_alias_that_leads_out_is_asked_elsewhere() -> None:
    local = LocalRecords({"www.test": ["www.example.com"]})
    assert local.answer(asked("www.test")) is None
    assert local.answer(asked("www.test", "CNAME")) is not None
    found = local.find("www.test")
    assert found is not None
    assert found == (("www.test", "www.example.com"), None)


def test_aliases_in_a_circle() -> None:
    with pytest.raises(ValueError, match="circle"):
        LocalRecords({"a": ["b"], "b": ["c"], "c": ["b"]})


# --- names of addresses ---------------------------------------------------------------------------


@given(st.ip_addresses())
def test_the_name_of_an_address_stands_for_it(address: IPv4Address | IPv6Address) -> None:
    assert reversed_address(address.reverse_pointer) == address
    assert reversed_address(f"x.{address.reverse_pointer}") is None
    assert reversed_address(address.reverse_pointer.partition(".")[2]) is None


@pytest.mark.parametrize(
    "name",
    ["", "test", "in-addr.arpa", "1.2.3.256.in-addr.arpa", "01.2.3.4.in-addr.arpa",
     "1.2.3.-4.in-addr.arpa", "\\049.2.3.4.in-addr.arpa", "g." + "0." * 31 + "ip6.arpa"],
)  # fmt: skip
def test_a_name_of_no_address(name: str) -> None:
    assert reversed_address(name) is None


def test_a_pointer() -> None:
    reply = pointer(asked("1.0.0.10.in-addr.arpa", "PTR"), "vm-1.lan.guestnet.internal", 30)
    (rrset,) = dns.message.from_wire(reply).answer
    assert rrset.to_text() == "1.0.0.10.in-addr.arpa. 30 IN PTR vm-1.lan.guestnet.internal."


def test_more_addresses_than_fit_are_cut_not_truncated() -> None:
    many = [V4 + i for i in range(100)]
    reply = LocalRecords({"x": many}).answer(asked("x"))
    assert reply is not None
    assert len(dns.message.from_wire(reply).answer[0]) == 8


def test_a_local_name_that_is_none() -> None:
    with pytest.raises(ValueError, match="label"):
        LocalRecords({"a..b": [V4]})


@pytest.mark.parametrize(
    ("name", "hides"),
    [
        ("dns.google", True),
        ("chrome.cloudflare-dns.com", True),
        ("mozilla.cloudflare-dns.com", True),
        ("abc123.dns.nextdns.io", True),
        ("use-application-dns.net", True),
        ("_dns.resolver.arpa", True),
        ("google.com", False),
        ("xdns.google", False),
        ("dns.google.evil.com", False),
        (r"x\046dns.google", False),
        ("quad9.net", False),
        ("", False),
    ],
)
def test_resolvers_that_hide(name: str, hides: bool) -> None:
    assert is_encrypted_resolver(name) is hides
