"""Report mode lets pass and tells; a suggestion allows what was seen, and nothing beside it."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestnet.errors import ConfigError
from guestnet.policy import (
    REPORTED,
    Direction,
    DomainTarget,
    FlowName,
    Mode,
    Places,
    Protocol,
    SeenFlow,
    decide,
    decide_question,
    needs_name,
    parse_policy,
    suggest,
)

Address = IPv4Address | IPv6Address

PLACES = Places(host=frozenset({ip_address("45.66.77.2")}), guests=(), dns=())
PUBLIC: tuple[Address, ...] = tuple(
    ip_address(text) for text in ("93.184.216.34", "151.101.1.69", "2606:2800:220:1::34")
)
PRIVATE: tuple[Address, ...] = tuple(ip_address(text) for text in ("10.20.30.40", "fd77::40"))
NAMES = ("a.example.test", "b.example.test", "deep.a.example.test", "pkg.test", "example.test")


def test_the_mode_is_written_and_read_back() -> None:
    policy = parse_policy("mode=report,deny@pkg.test")
    assert policy.mode is Mode.REPORT
    assert str(policy) == "mode=report,deny@pkg.test"
    assert parse_policy(str(policy)) == policy
    assert parse_policy({"mode": "report", "rules": ["deny@pkg.test"]}) == policy
    assert parse_policy("mode=enforce,public") == parse_policy("public")


@pytest.mark.parametrize("text", ["mode=watch", "mode=report,mode=report", "none,mode=report"])
def test_what_is_no_mode_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_policy(text)


def test_report_lets_pass_what_it_would_deny_and_says_so() -> None:
    policy = parse_policy("mode=report,deny@pkg.test")
    for address in (*PUBLIC, *PRIVATE):
        verdict = decide(policy, Direction.EGRESS, Protocol.TCP, address, 443, PLACES)
        assert (verdict.allowed, verdict.text) == (True, REPORTED)
        assert "default_egress=deny" in verdict.reason
        assert needs_name(policy, Protocol.TCP, address, 443, PLACES)
    question = decide_question(policy, "pkg.test")
    assert (question.allowed, question.text, question.rule) == (True, REPORTED, 0)


@pytest.mark.parametrize("address", ["45.66.77.2", "169.254.169.254", "127.0.0.1", "224.0.0.1"])
def test_the_floor_holds_in_report_mode(address: str) -> None:
    policy, peer = parse_policy("mode=report"), ip_address(address)
    assert not decide(policy, Direction.EGRESS, Protocol.TCP, peer, 80, PLACES).allowed
    assert not needs_name(policy, Protocol.TCP, peer, 80, PLACES)


def test_nobody_gets_in_by_report_mode() -> None:
    policy = parse_policy("mode=report")
    assert not decide(policy, Direction.INGRESS, Protocol.TCP, PUBLIC[0], 22, PLACES).allowed


services = st.one_of(
    st.tuples(st.sampled_from((Protocol.TCP, Protocol.UDP)), st.integers(1, 65535)),
    st.tuples(st.sampled_from((Protocol.ICMPV4, Protocol.ICMPV6)), st.none()),
)


@st.composite
def seen_flows(draw: st.DrawFn) -> SeenFlow:
    address = draw(st.sampled_from((*PUBLIC, *PRIVATE)))
    protocol, port = draw(services)
    if port is None:
        protocol = Protocol.ICMPV4 if address.version == 4 else Protocol.ICMPV6
    name = draw(st.sampled_from(("", *NAMES))) if address in PUBLIC else ""
    return SeenFlow(protocol, port, address, name)


@given(
    st.lists(seen_flows(), max_size=12),
    st.lists(st.sampled_from(NAMES), max_size=4),
    st.booleans(),
)
def test_a_suggestion_denies_nothing_of_what_was_seen(
    flows: list[SeenFlow], questions: list[str], suffixes: bool
) -> None:
    policy = suggest(flows, questions, suffixes=suffixes)
    assert parse_policy(str(policy)) == policy
    for flow in flows:
        name = FlowName(flow.name, verified=True) if flow.name else None
        verdict = decide(
            policy, Direction.EGRESS, flow.protocol, flow.address, flow.port, PLACES, name
        )
        assert verdict.allowed, (flow, str(policy))
    for asked in (*questions, *(flow.name for flow in flows if flow.name)):
        assert decide_question(policy, asked).allowed


@given(st.lists(seen_flows(), max_size=12), seen_flows())
def test_a_suggestion_without_suffixes_allows_nothing_else(
    flows: list[SeenFlow], other: SeenFlow
) -> None:
    def service(flow: SeenFlow) -> tuple[object, ...]:
        return flow.name or flow.address, flow.protocol, flow.port

    if service(other) in map(service, flows):
        return
    policy = suggest(flows, [])
    name = FlowName(other.name, verified=True) if other.name else None
    verdict = decide(
        policy, Direction.EGRESS, other.protocol, other.address, other.port, PLACES, name
    )
    by_address = {service(flow)[1:] for flow in flows if flow.address == other.address}
    assert not verdict.allowed or service(other)[1:] in by_address


def test_names_become_one_rule_each_with_all_their_ports() -> None:
    flows = [
        SeenFlow(Protocol.TCP, 443, PUBLIC[0], "a.example.test"),
        SeenFlow(Protocol.TCP, 80, PUBLIC[1], "a.example.test"),
        SeenFlow(Protocol.TCP, 443, PUBLIC[2], "b.example.test"),
        SeenFlow(Protocol.TCP, 22, PRIVATE[0]),
    ]
    assert str(suggest(flows, ["pkg.test"])) == (
        "allow@a.example.test:tcp:80+443,allow@b.example.test:tcp:443,"
        "allow@pkg.test:udp:53,allow@10.20.30.40:tcp:22"
    )


def test_suffixes_join_names_that_share_services_and_never_whole_top_levels() -> None:
    flows = [SeenFlow(Protocol.TCP, 443, PUBLIC[0], name) for name in NAMES]
    policy = suggest(flows, [], suffixes=True)
    targets = {rule.target for rule in policy.rules}
    assert DomainTarget("example.test", subdomains=True) in targets
    assert DomainTarget("pkg.test") in targets
    assert DomainTarget("test", subdomains=True) not in targets
