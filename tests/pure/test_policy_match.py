"""Decisions: transcripts of single flows, and laws that hold for every policy and every flow."""

from __future__ import annotations

import itertools
import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestnet.errors import ConfigError
from guestnet.policy import (
    FLOOR,
    Action,
    AnyTarget,
    Direction,
    DnsTarget,
    DomainTarget,
    FlowName,
    Group,
    GroupTarget,
    NetworkTarget,
    Places,
    Policy,
    PortRange,
    Protocol,
    Rule,
    Verdict,
    classify,
    decide,
    has_names,
    may_reach,
    needs_name,
    parse_policy,
    unroutable,
    warnings,
)

PLACES = Places(
    host=frozenset(map(ip_address, ("10.200.0.1", "198.51.100.7", "2a00::7", "fe80::1"))),
    guests=(IPv4Network("10.200.0.0/16"), IPv6Network("fd42:6d73:62::/48")),
    dns=(ip_address("10.200.0.1"), ip_address("9.9.9.9"), ip_address("168.63.129.16")),
)


def ask(text: str, question: str) -> Verdict:
    """Put a question such as `egress tcp 10.0.0.1 443` to the policy `text`."""
    direction, protocol, peer, *port = question.split()
    return decide(
        parse_policy(text),
        Direction(direction),
        Protocol(protocol),
        ip_address(peer),
        int(port[0]) if port else None,
        PLACES,
    )


def words(text: str) -> list[str]:
    return text.split()


# --- transcripts ----------------------------------------------------------------------------------

TRANSCRIPTS = """
none            | egress tcp 1.1.1.1 443            | deny  | default_egress=deny
none            | ingress tcp 1.1.1.1 22            | deny  | default_ingress=deny
none            | egress udp 10.200.0.1 53          | deny  | floor: host
public          | egress tcp 1.1.1.1 443            | allow | allow@public
public          | egress tcp 2606:4700::1111 443    | allow | allow@public
public          | egress any 1.1.1.1                | allow | allow@public
public          | ingress tcp 1.1.1.1 443           | deny  | default_ingress=deny
public          | egress tcp 10.0.0.1 443           | deny  | default_egress=deny
public          | egress udp 10.200.0.1 53          | allow | allow@dns
public          | egress tcp 10.200.0.1 53          | allow | allow@dns
public          | egress udp 10.200.0.1 54          | deny  | floor: host
public          | egress icmpv4 10.200.0.1          | deny  | floor: host
public          | egress tcp 198.51.100.7 22        | deny  | floor: host
public          | egress tcp 2a00::7 22             | deny  | floor: host
public          | egress tcp 2002:c633:6407::1 22   | deny  | floor: host
public          | egress tcp 168.63.129.16 80       | deny  | floor: metadata
public          | egress udp 168.63.129.16 53       | allow | allow@dns
public          | egress tcp 240.0.0.1 80           | deny  | default_egress=deny
public          | egress tcp 198.18.0.1 80          | deny  | default_egress=deny
public          | egress tcp 64:ff9b::10.0.0.1 80   | deny  | default_egress=deny
public          | egress tcp 64:ff9b::a9fe:a9fe 80  | deny  | floor: metadata
public          | egress tcp 2002:a9fe:a9fe::1 80   | deny  | floor: metadata
public          | egress tcp 64:ff9b::1.1.1.1 80    | allow | allow@public
private         | egress tcp 10.0.0.1 80            | allow | allow@private
private         | egress tcp 10.200.0.9 80          | deny  | floor: guests
private         | egress tcp 100.100.100.200 80     | deny  | floor: metadata
private         | egress tcp fd00:ec2::254 80       | deny  | floor: metadata
host            | egress tcp 198.51.100.7 22        | allow | allow@host
host            | egress tcp fe80::1 22             | allow | allow@host
all             | egress tcp 240.0.0.1 80           | allow | default_egress=allow
all             | egress tcp 10.200.0.9 80          | deny  | floor: guests
all             | egress tcp 169.254.169.254 80     | deny  | floor: metadata
all             | egress udp 10.200.0.1 53          | deny  | floor: host
all             | egress tcp 127.0.0.1 80           | deny  | floor: unroutable
all             | egress tcp ::ffff:127.0.0.1 80    | deny  | floor: unroutable
all             | egress udp fe80::2 80             | deny  | floor: unroutable
all             | egress udp 169.254.3.3 80         | allow | default_egress=allow
all             | egress udp 255.255.255.255 67     | deny  | floor: unroutable
all             | ingress tcp 1.1.1.1 22            | deny  | default_ingress=deny
allow@any                | egress tcp 10.200.0.1 80        | deny  | floor: host
allow@10.0.0.0/8         | egress tcp 10.200.0.9 80        | deny  | floor: guests
allow@10.200.0.9         | egress tcp 10.200.0.9 80        | deny  | floor: guests
allow@guests             | egress tcp 10.200.0.9 80        | allow | allow@guests
allow@guests             | egress tcp 10.200.0.1 80        | deny  | floor: host
allow@guests=10.200.0.9  | egress tcp 10.200.0.8 80        | deny  | floor: guests
allow@guests=10.200.0.9  | egress tcp 64:ff9b::10.200.0.9 80 | allow | allow@guests=10.200.0.9
allow@meta=169.254.169.254 | egress tcp 169.254.169.254 80 | allow | allow@metadata=169.254.169.254
allow@meta=169.254.169.254 | egress tcp 169.254.170.2 80   | deny  | floor: metadata
allow@loopback           | egress tcp 127.0.0.1 80         | deny  | floor: unroutable
deny@any,allow@host      | egress tcp 10.200.0.1 80        | deny  | deny@any
deny@10.0.0.0/8,allow@host | egress tcp 10.200.0.1 80      | deny  | deny@10.0.0.0/8
deny@10.0.0.0/8,allow@private | egress tcp 64:ff9b::10.0.0.1 80 | deny | deny@10.0.0.0/8
deny@10.0.0.0/8,allow@private | egress tcp 192.168.0.1 80  | allow | allow@private
deny@dns,allow@host      | egress udp 10.200.0.1 53        | deny  | deny@dns
allow:any@dns            | ingress udp 9.9.9.9 53          | deny  | default_ingress=deny
allow@dns                | egress udp 9.9.9.9 53           | allow | allow@dns
allow@dns:tcp            | egress udp 9.9.9.9 53           | deny  | default_egress=deny
allow@any:tcp:80+443     | egress tcp 1.1.1.1 443          | allow | allow@any:tcp:80+443
allow@any:tcp:80+443     | egress udp 1.1.1.1 443          | deny  | default_egress=deny
allow@any:tcp:80+443     | egress tcp 1.1.1.1 0            | deny  | default_egress=deny
allow@any:any:443        | egress udp 1.1.1.1 443          | allow | allow@any:tcp+udp:443
allow@any:any:443        | egress icmpv4 1.1.1.1           | deny  | default_egress=deny
allow@any:tcp            | egress any 1.1.1.1              | deny  | default_egress=deny
allow@any                | egress any 1.1.1.1              | allow | allow@any
allow@any:icmpv4         | egress icmpv4 1.1.1.1           | allow | allow@any:icmpv4
allow@any:icmpv4         | egress icmpv4 2606:4700::1      | deny  | default_egress=deny
allow@any:icmpv6         | egress icmpv6 2606:4700::1      | allow | allow@any:icmpv6
allow:ingress@private:tcp:22 | ingress tcp 10.0.0.1 22     | allow | allow:ingress@private:tcp:22
allow:ingress@private:tcp:22 | egress tcp 10.0.0.1 22      | deny  | default_egress=deny
allow:any@private        | ingress tcp 10.0.0.1 22         | allow | allow:any@private
default_ingress=allow    | ingress tcp 10.200.0.1 22       | deny  | floor: host
allow:ingress@host       | ingress tcp 10.200.0.1 22       | allow | allow:ingress@host
"""


@pytest.mark.parametrize("line", TRANSCRIPTS.strip().splitlines())
def test_transcript(line: str) -> None:
    policy, question, action, text = (field.strip() for field in line.split("|"))
    verdict = ask(policy, question)
    assert (verdict.action, verdict.text) == (Action(action), text)
    assert verdict.allowed == (action == "allow")


def test_a_verdict_names_its_rule_and_group() -> None:
    verdict = ask("public,deny@10.0.0.0/8", "egress tcp 10.1.1.1 443")
    assert (verdict.rule, verdict.group) == (2, Group.PRIVATE)
    assert verdict.reason == (
        "tcp to 10.1.1.1 port 443 (private) is denied by `deny@10.0.0.0/8`; "
        "`allow@10.1.1.1:tcp:443` ahead of it would allow it"
    )


def test_the_floor_says_which_group_to_name() -> None:
    verdict = ask("all", "egress tcp 169.254.169.254 80")
    assert (verdict.rule, verdict.group) == (None, Group.METADATA)
    assert verdict.reason == (
        "tcp to 169.254.169.254 port 80 (metadata) is denied because only a rule that names "
        "metadata opens it; `allow@metadata=169.254.169.254:tcp:80` would allow it"
    )


def test_an_unroutable_peer_is_beyond_rules() -> None:
    verdict = ask("allow@any,allow@loopback", "egress tcp 127.0.0.1 80")
    assert (verdict.rule, verdict.group) == (None, Group.LOOPBACK)
    assert "no rule allows it" in verdict.reason


def test_ingress_speaks_of_the_guests_port() -> None:
    verdict = ask("none", "ingress tcp 2606:4700::1 22")
    assert verdict.reason == (
        "tcp from 2606:4700::1 (public) to the guest's port 22 is denied by "
        "`default_ingress=deny`: no rule matches it; `allow:ingress@[2606:4700::1]:tcp:22` "
        "would allow it"
    )


def test_a_zone_does_not_hide_an_address() -> None:
    policy = parse_policy("all")
    peer = ip_address("fe80::1%eth0")
    verdict = decide(policy, Direction.EGRESS, Protocol.TCP, peer, 22, PLACES)
    assert verdict.text == "floor: host"


@pytest.mark.parametrize(
    ("direction", "protocol", "port"),
    [
        (Direction.ANY, Protocol.TCP, 80),
        (Direction.EGRESS, Protocol.TCP, None),
        (Direction.EGRESS, Protocol.UDP, None),
        (Direction.EGRESS, Protocol.TCP, 65536),
        (Direction.EGRESS, Protocol.ICMPV4, -1),
    ],
)
def test_questions_that_no_packet_asks(
    direction: Direction, protocol: Protocol, port: int | None
) -> None:
    with pytest.raises(ConfigError):
        decide(parse_policy("all"), direction, protocol, ip_address("1.1.1.1"), port, PLACES)


# --- laws -----------------------------------------------------------------------------------------

#: A small world, so that random rules and random flows meet.
_PEERS = words("""
    1.1.1.1 1.1.1.2 9.9.9.9 10.0.0.1 10.1.2.3 10.200.0.1 10.200.0.2 127.0.0.1 169.254.169.254
    169.254.0.9 168.63.129.16 198.51.100.7 224.0.0.1 240.0.0.1 0.0.0.0 2606:4700::1 2a00::7
    fd42:6d73:62::2 fd00::1 fe80::1 fe80::2 ff02::1 ::1 :: fd00:ec2::254 64:ff9b::10.0.0.1
    64:ff9b::169.254.169.254 64:ff9b::1.1.1.1 2002:0a01:0203::9 ::ffff:10.200.0.2
    2001:0:1:2:3:4:f5ff:fffe 2001:0:1:2:3:4:fefe:fefe
""")
_NETWORKS = words("""
    0.0.0.0/0 1.1.1.0/24 1.1.1.1/32 10.0.0.0/8 10.1.0.0/16 10.200.0.0/16 10.200.0.2/32
    127.0.0.0/8 169.254.0.0/16 169.254.169.254/32 168.63.129.16/32 ::/0 2000::/3 2606:4700::/32
    fd00::/8 fd42:6d73:62::2/128 64:ff9b::/96 2001::/32 2a00::7/128 fe80::/10
""")
networks = st.sampled_from(_NETWORKS).map(
    lambda text: IPv6Network(text) if ":" in text else IPv4Network(text)
)
#: Those of rules and of flows, so that every relation occurs: same, below, above, beside.
_NAMES = words("x.test a.x.test b.a.x.test notx.test test localbox")
names = st.sampled_from(_NAMES)
flow_names = st.none() | st.builds(FlowName, names, st.booleans())
groups = st.sampled_from([group for group in Group if group is not Group.NONE])
targets = st.one_of(
    st.just(AnyTarget()),
    st.just(DnsTarget()),
    groups.map(GroupTarget),
    st.builds(GroupTarget, st.sampled_from(sorted(FLOOR)), networks),
    networks.map(NetworkTarget),
    st.builds(DomainTarget, names, st.booleans()),
)
ports = st.lists(
    st.sampled_from([PortRange(53, 53), PortRange(80, 80), PortRange(50, 90), PortRange(1, 65535)]),
    max_size=2,
).map(tuple)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    open_ports = draw(ports)
    usable = [Protocol.TCP, Protocol.UDP] if open_ports else list(Protocol)
    protocols = tuple(draw(st.lists(st.sampled_from(usable), max_size=2)))
    action, target = draw(st.sampled_from(Action)), draw(targets)
    by_name = isinstance(target, DomainTarget)
    direction = Direction.EGRESS if by_name else draw(st.sampled_from(Direction))
    return Rule(action, direction, target, protocols, open_ports)


policies = st.builds(
    Policy,
    st.lists(rules(), max_size=6).map(tuple),
    st.sampled_from(Action),
    st.sampled_from(Action),
)
flows = st.tuples(
    st.sampled_from([Direction.EGRESS, Direction.INGRESS]),
    st.sampled_from(Protocol),
    st.sampled_from(_PEERS).map(ip_address),
    st.sampled_from([53, 80, 443, 0]),
)
Flow = tuple[Direction, Protocol, IPv4Address | IPv6Address, int]


def oracle(policy: Policy, flow: Flow, name: FlowName | None) -> tuple[bool, int | None]:
    """The semantics of docs/policy.md once more, as plainly as they can be said."""
    direction, protocol, peer, port = flow
    group = classify(peer, PLACES)
    forms = [peer]
    if isinstance(peer, IPv6Address):
        text = peer.exploded.replace(":", "")
        if text.startswith(("0" * 20 + "ffff", "0064ff9b" + "0" * 16)):
            forms.append(IPv4Address(int(text[-8:], 16)))
        forms += [form for form in (peer.sixtofour, (peer.teredo or (None, None))[1]) if form]
        if protocol is Protocol.ICMPV4:
            protocol = Protocol.ANY
    elif protocol is Protocol.ICMPV6:
        protocol = Protocol.ANY
    if unroutable(peer, group):
        return False, None
    for index, rule in enumerate(policy.rules):
        if rule.direction not in (Direction.ANY, direction):
            continue
        if rule.protocols and protocol not in rule.protocols:
            continue
        if rule.ports and not any(r.lo <= port <= r.hi for r in rule.ports):
            continue
        target, names = rule.target, False
        if isinstance(target, DnsTarget):
            hit = direction is Direction.EGRESS and protocol in (Protocol.TCP, Protocol.UDP)
            hit, names = hit and port == 53 and peer in PLACES.dns, True
        elif isinstance(target, GroupTarget):
            hit, names = target.group is group, True
            if target.within is not None:
                hit = hit and any(form in target.within for form in forms)
        elif isinstance(target, NetworkTarget):
            hit = any(form in target.network for form in forms)
        elif isinstance(target, DomainTarget):
            hit = name is not None and direction is Direction.EGRESS
            if name is not None:
                below = f".{name.name}".endswith(f".{target.name}")
                hit = hit and (below if target.subdomains else name.name == target.name)
                if rule.action is Action.ALLOW:
                    hit = hit and name.verified and group is Group.PUBLIC
        else:
            hit = True
        if hit and (rule.action is Action.DENY or group not in FLOOR or names):
            return rule.action is Action.ALLOW, index
    if group in FLOOR:
        return False, None
    egress = direction is Direction.EGRESS
    default = policy.default_egress if egress else policy.default_ingress
    return default is Action.ALLOW, None


@settings(max_examples=600, deadline=None)
@given(policies, flows, flow_names)
def test_decide_agrees_with_the_oracle(policy: Policy, flow: Flow, name: FlowName | None) -> None:
    verdict = decide(policy, *flow, PLACES, name)
    assert (verdict.allowed, verdict.rule) == oracle(policy, flow, name)


@settings(max_examples=300, deadline=None)
@given(policies, flows)
def test_without_a_name_no_rule_by_name_is_there(policy: Policy, flow: Flow) -> None:
    kept = tuple(rule for rule in policy.rules if not isinstance(rule.target, DomainTarget))
    bare = Policy(kept, policy.default_egress, policy.default_ingress)
    assert not has_names(bare)
    ours, theirs = decide(policy, *flow, PLACES), decide(bare, *flow, PLACES)
    assert (ours.action, ours.text, ours.group) == (theirs.action, theirs.text, theirs.group)


@settings(max_examples=600, deadline=None)
@given(policies, flows)
def test_a_verdict_depends_on_the_name_only_where_it_is_needed(policy: Policy, flow: Flow) -> None:
    direction, protocol, peer, port = flow
    if direction is Direction.EGRESS and needs_name(policy, protocol, peer, port, PLACES):
        assert has_names(policy)
        return
    bare = decide(policy, *flow, PLACES)
    for text, verified in itertools.product(_NAMES, (True, False)):
        named = decide(policy, *flow, PLACES, FlowName(text, verified))
        assert (named.action, named.rule) == (bare.action, bare.rule)


@settings(max_examples=300, deadline=None)
@given(policies, flows, flow_names)
def test_a_name_opens_public_addresses_that_are_its_own(
    policy: Policy, flow: Flow, name: FlowName | None
) -> None:
    verdict = decide(policy, *flow, PLACES, name)
    if not verdict.allowed or verdict.rule is None:
        return
    if isinstance(policy.rules[verdict.rule].target, DomainTarget):
        assert flow[0] is Direction.EGRESS
        assert verdict.group is Group.PUBLIC
        assert name is not None
        assert name.verified


@settings(max_examples=300, deadline=None)
@given(policies, flows)
def test_the_floor_opens_only_by_name(policy: Policy, flow: Flow) -> None:
    verdict = decide(policy, *flow, PLACES)
    if verdict.allowed and verdict.group in FLOOR:
        assert verdict.rule is not None
        target = policy.rules[verdict.rule].target
        is_dns = isinstance(target, DnsTarget) and flow[2] in PLACES.dns and flow[3] == 53
        assert is_dns or (isinstance(target, GroupTarget) and target.group is verdict.group)


@settings(max_examples=300, deadline=None)
@given(policies, flows, flow_names)
def test_what_a_denial_suggests_works(policy: Policy, flow: Flow, name: FlowName | None) -> None:
    verdict = decide(policy, *flow, PLACES, name)
    if verdict.allowed or verdict.text == "floor: unroutable":
        return
    suggestion = re.findall("`([^`]+)`", verdict.reason)[-1]
    (rule,) = parse_policy(suggestion).rules
    better = Policy((rule, *policy.rules), policy.default_egress, policy.default_ingress)
    assert decide(better, *flow, PLACES, name).allowed


@settings(max_examples=300, deadline=None)
@given(policies)
def test_the_canonical_text_reads_back(policy: Policy) -> None:
    assert parse_policy(str(policy)) == policy
    assert str(parse_policy(str(policy))) == str(policy)


_EVERY_FLOW: tuple[Flow, ...] = tuple(
    itertools.product(
        (Direction.EGRESS, Direction.INGRESS),
        (Protocol.TCP, Protocol.UDP, Protocol.ICMPV6, Protocol.ANY),
        map(ip_address, _PEERS),
        (53, 80),
    )
)


_EVERY_NAME = (
    None,
    *(FlowName("b.a.x.test", verified) for verified in (True, False)),
    *(FlowName(text, True) for text in words("x.test a.x.test test localbox")),
)


@settings(max_examples=60, deadline=None)
@given(policies)
def test_a_rule_that_lint_remarks_on_never_decides(policy: Policy) -> None:
    remarks = (*warnings(policy), *warnings(policy, PLACES))
    late = {r.rule for r in remarks if r.message.startswith("comes too late")}
    never = {remark.rule for remark in remarks} - late
    for flow, name in itertools.product(_EVERY_FLOW, _EVERY_NAME) if remarks else ():
        verdict = decide(policy, *flow, PLACES, name)
        assert verdict.rule not in never
        if verdict.rule in late:
            assert name is not None
            assert not (name.verified and verdict.group is Group.PUBLIC)


#: Of each stretch of ports that the rules of `policies` can tell apart, one.
_TOLD_APART = (1, 50, 53, 54, 80, 81, 91)


@settings(max_examples=600, deadline=None)
@given(policies, st.sampled_from(_PEERS).map(ip_address))
def test_a_peer_may_be_reached_if_any_flow_to_it_is_allowed(
    policy: Policy, peer: IPv4Address | IPv6Address
) -> None:
    places = Places(host=PLACES.host, guests=PLACES.guests)  # no resolver is a peer here
    any_flow = any(
        decide(policy, Direction.EGRESS, protocol, peer, port, places).allowed
        for protocol in Protocol
        for port in _TOLD_APART
    )
    verdict = may_reach(policy, peer, places)
    assert verdict.allowed == any_flow
    assert verdict.group is classify(peer, places)
    if verdict.rule is not None:
        assert policy.rules[verdict.rule].action is verdict.action
        assert verdict.text == str(policy.rules[verdict.rule])
