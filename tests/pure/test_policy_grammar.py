"""The policy language: what it reads, and what it says about what it cannot read."""

from __future__ import annotations

import time
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestnet.errors import ConfigError, PolicyError
from guestnet.policy import (
    MAX_RULES,
    MAX_TEXT,
    SEALED,
    Action,
    AnyTarget,
    Direction,
    DomainTarget,
    Group,
    GroupTarget,
    NetworkTarget,
    Policy,
    PortRange,
    Protocol,
    Rule,
    parse_policy,
)


def words(text: str) -> list[str]:
    return text.split()


# --- what it reads --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("none", "none"),
        ("all", "default_egress=allow"),
        ("public", "allow@dns,allow@public"),
        ("private", "allow@dns,allow@private"),
        ("host", "allow@dns,allow@host"),
        ("public,private,host", "allow@dns,allow@public,allow@private,allow@host"),
        ("public,public", "allow@dns,allow@public"),
        ("allow@dns,allow@dns", "allow@dns,allow@dns"),
        ("deny@10.0.0.0/8,public", "deny@10.0.0.0/8,allow@dns,allow@public"),
        ("default_egress=deny", "none"),
        ("allow@any,default_egress=allow", "default_egress=allow,allow@any"),
        ("default_ingress = allow", "default_ingress=allow"),
        ("allow:egress@public:any:any", "allow@public"),
        ("deny:any@meta", "deny:any@metadata"),
        ("allow@meta=169.254.169.254", "allow@metadata=169.254.169.254"),
        ("allow@host=10.0.0.1/32:tcp:8080", "allow@host=10.0.0.1:tcp:8080"),
        ("allow@guests=[fd00::/64]:udp", "allow@guests=[fd00::/64]:udp"),
        ("allow@[2001:DB8::1]:udp+tcp:443+80", "allow@[2001:db8::1]:tcp+udp:80+443"),
        ("allow@[fd00::/8]", "allow@[fd00::/8]"),
        ("deny@[::ffff:a00:0/104]", "deny@[::ffff:10.0.0.0/104]"),
        ("allow@0.0.0.0/0", "allow@0.0.0.0/0"),
        ("allow@public:any:443", "allow@public:tcp+udp:443"),
        ("allow@public:tcp:80-90+85-95+96+443", "allow@public:tcp:80-96+443"),
        ("allow@any:tcp+tcp", "allow@any:tcp"),
        ("allow@1.2.3.4:443", "allow@1.2.3.4:tcp+udp:443"),
        ("allow@host:443+8443", "allow@host:tcp+udp:443+8443"),
        ("allow@[::1]:1-1024", "allow@[::1]:tcp+udp:1-1024"),
        ("allow@host=10.0.0.1:80", "allow@host=10.0.0.1:tcp+udp:80"),
        ("allow@api.openai.com", "allow@api.openai.com"),
        ("allow@API.OpenAI.com.:443", "allow@api.openai.com:tcp+udp:443"),
        ("allow@*.x.test:443,deny@ads.x.test", "allow@*.x.test:tcp+udp:443,deny@ads.x.test"),
        ("allow:egress@suffix=x.test:tcp", "allow@*.x.test:tcp"),
        ("deny@domain=x.test:icmpv4", "deny@x.test:icmpv4"),
        ("allow@domain=localbox:80", "allow@domain=localbox:tcp+udp:80"),
        ("allow@domain=public", "allow@domain=public"),
        ("allow@suffix=com,deny@*.any", "allow@*.com,deny@*.any"),
        ("allow@domain=1.2-3", "allow@domain=1.2-3"),
        ("allow@face.b:443", "allow@face.b:tcp+udp:443"),
        ("allow@b\u00fccher.de", "allow@xn--bcher-kva.de"),
        ("allow@_sip._tcp.x.test", "allow@_sip._tcp.x.test"),
        ("  allow@dns , allow@public\t", "allow@dns,allow@public"),
        ("allow@dns,\n  allow@public # the web\r\n# end\n", "allow@dns,allow@public"),
        ("allow@dns\nallow@public\n\n", "allow@dns,allow@public"),
    ],
)
def test_reads(text: str, canonical: str) -> None:
    policy = parse_policy(text)
    assert str(policy) == canonical
    assert parse_policy(canonical) == policy


def test_nothing_said_is_sealed() -> None:
    assert parse_policy(None) is SEALED
    assert parse_policy("none") == parse_policy({}) == parse_policy([]) == SEALED == Policy.SEALED
    assert str(SEALED) == "none"


def test_a_policy_is_itself() -> None:
    policy = parse_policy("public")
    assert parse_policy(policy) is policy


def test_every_part_lands_in_its_place() -> None:
    (rule,) = parse_policy("deny:ingress@guests=10.0.0.0/24:tcp+udp:22+8000-8100").rules
    assert rule == Rule(
        Action.DENY,
        Direction.INGRESS,
        GroupTarget(Group.GUESTS, IPv4Network("10.0.0.0/24")),
        (Protocol.TCP, Protocol.UDP),
        (PortRange(22, 22), PortRange(8000, 8100)),
    )


# --- what it refuses, where, and what it says -----------------------------------------------------


@pytest.mark.parametrize(
    ("text", "position", "problem", "hint"),
    [
        ("", 0, "empty policy", "'none'"),
        (" \n# nothing\n", 0, "empty policy", "'none'"),
        ("pulbic", 0, "unknown profile 'pulbic'", "did you mean 'public'?"),
        ("Public", 0, "unknown profile", "lower case: 'public'"),
        ("public,,host", 7, "before this comma", "remove"),
        (",public", 0, "before this comma", "remove"),
        ("public,", 6, "after this comma", "remove"),
        ("public host", 0, "unknown profile 'public host'", ""),
        ("none,public", 5, "'none' is a whole policy", ""),
        ("public,all", 7, "'all' is a whole policy", ""),
        ("none,none", 5, "'none' is a whole policy", ""),
        ("all,default_egress=deny", 4, "'all' is a whole policy", ""),
        ("default_egress=allow,default_egress=deny", 21, "given twice", ""),
        ("default_egress=alow", 15, "unknown action 'alow'", "'allow'"),
        ("default_egres=allow", 0, "unknown setting", "'default_egress'"),
        ("allow", 0, "needs '@'", "allow@public"),
        ("deny:egress", 0, "needs '@'", "deny@public"),
        ("alow@public", 0, "unknown action 'alow'", "'allow'"),
        ("ALLOW@public", 0, "unknown action", "lower case: 'allow'"),
        ("drop@public", 0, "unknown action", "'deny'"),
        ("@public", 0, "an action is missing", "allow, deny"),
        ("allow:egres@host", 6, "unknown direction 'egres'", "'egress'"),
        ("allow:@host", 6, "a direction is missing", "egress"),
        ("allow:any:tcp@host", 10, "only a direction", ""),
        ("allow@", 6, "a target is missing", "allow@public"),
        ("allow@publc", 6, "unknown target 'publc'", "'public'"),
        ("allow@Public", 6, "unknown target", "lower case: 'public'"),
        ("allow@none", 6, "unknown target", "whole policy"),
        ("allow@host:443:tcp", 15, "protocols stand before them", "tcp:443"),
        ("allow@host:443:80", 15, "nothing follows the ports", ""),
        ("allow@host:443:", 15, "nothing follows the ports", ""),
        ("allow@host:443+any", 15, "not a port: 'any'", "alone"),
        ("allow@[::1]:90-80", 12, "reversed", "80-90"),
        ("allow@publik", 6, "unknown target 'publik'", "'public'"),
        ("allow@localbox", 6, "unknown target 'localbox'", "domain=name"),
        ("allow@localbox.:443", 6, "unknown target 'localbox.'", "domain=name"),
        ("allow@example..com", 6, "not a name: 'example..com'", "1 to 63"),
        ("allow@example.com/24", 6, "not a name", "letters, digits"),
        ("allow@https://example.com", 6, "a URL is no target", "api.example.com:443"),
        ("allow@[example.com]", 7, "not an IPv6 address", "IPv6 only"),
        ("allow@example.1", 6, "not a name", "ends in a number"),
        ("allow@x.0x1", 6, "not a name", "ends in a number"),
        ("allow@domain=1.2.3.4", 13, "not a name: '1.2.3.4'", "an address is no name"),
        ("allow@domain=", 13, "not a name: ''", "api.example.com"),
        ("allow@domain=*.x.com", 13, "'*.' stands alone", "suffix=x.com"),
        ("allow@suffix=*.x.com", 13, "'*.' stands alone", "suffix=x.com"),
        ("allow@*.*.com", 8, "'*.' stands alone", "suffix=com"),
        ("allow@*.", 8, "not a name: ''", "api.example.com"),
        ("allow@*", 6, "unknown target '*'", "'any'"),
        ("allow@sufix=x.com", 6, "unknown target 'sufix='", "'suffix'"),
        ("allow@a." + "b" * 64, 6, "not a name", "1 to 63"),
        ("allow@\u0301a.com", 6, "not a name", "IDNA"),
        ("allow:any@example.com", 6, "a rule by name is egress", ""),
        ("deny:ingress@*.com", 5, "a rule by name is egress", ""),
        ("allow@example.com:icmpv4:80", 25, "only tcp and udp", ""),
        ("allow@hots=10.0.0.1", 6, "unknown target 'hots='", "'host'"),
        ("allow@private=10.0.0.0/8", 6, "'private' cannot be narrowed", "alone"),
        ("allow@host=example.com", 11, "takes an address or network", "host=10.0.0.1"),
        ("allow@host=", 11, "takes an address or network", "host=10.0.0.1"),
        ("allow@10.0.0.1/8", 6, "bits set beyond its prefix", "10.0.0.0/8"),
        ("allow@[fd00::1/8]", 7, "bits set beyond its prefix", "[fd00::/8]"),
        ("allow@10.0.0.0/33", 15, "not a prefix length", "0 to 32"),
        ("allow@10.0.0.0/255.0.0.0", 15, "not a prefix length", "0 to 32"),
        ("allow@10.0.0.0/08", 15, "not a prefix length", "0 to 32"),
        ("allow@10.0.0.0/8/8", 15, "not a prefix length", "0 to 32"),
        ("allow@10.0.0", 6, "not an IPv4 address", ""),
        ("allow@010.0.0.1", 6, "not an IPv4 address", ""),
        ("allow@1.1.1.1-1.1.1.9", 6, "not an IPv4 address", ""),
        ("allow@[10.0.0.1]", 7, "not an IPv6 address", "IPv6 only"),
        ("allow@[fe80::1%eth0]", 14, "a zone", ""),
        ("allow@[fd00::", 6, "'[' without ']'", ""),
        ("allow@[fd00::]/8", 14, "unexpected '/8'", "[fd00::/8]"),
        ("allow@[::1]tcp", 11, "unexpected 'tcp'", ""),
        ("allow@fd00::1:tcp:80", 6, "stands in brackets", "[fd00::1]"),
        ("allow@fd00::/8", 6, "stands in brackets", "[fd00::/8]"),
        ("allow@host=fd00::1", 6, "stands in brackets", "[fd00::1]"),
        ("allow@public:htps", 13, "unknown protocol 'htps'", ""),
        ("allow@public:icmp", 13, "unknown protocol 'icmp'", "icmpv4+icmpv6"),
        ("allow@public:", 13, "a protocol is missing", "tcp"),
        ("allow@public:tcp+", 17, "a protocol is missing", "tcp"),
        ("allow@public:any+tcp", 13, "'any' includes", ""),
        ("allow@public:tcp:", 17, "a port is missing", "443"),
        ("allow@public:tcp:0", 17, "port 0 is out of range", "1 to 65535"),
        ("allow@public:tcp:65536", 17, "out of range", "1 to 65535"),
        ("allow@public:tcp:80+90-85", 20, "reversed", "85-90"),
        ("allow@public:tcp:80-90-99", 23, "LO-HI", "+"),
        ("allow@public:tcp:http", 17, "not a port: 'http'", ""),
        ("allow@public:tcp:80+any", 20, "not a port: 'any'", "alone"),
        ("allow@public:tcp:٤٤٣", 17, "not a port", ""),
        ("allow@public:icmpv4:80", 20, "only tcp and udp", ""),
        ("allow@public:tcp:80:x", 20, "nothing follows the ports", ""),
        ("allow@dns allow@public", 9, "a blank", "commas"),
        ("allow@ dns", 6, "a blank", "commas"),
    ],
)
def test_refuses(text: str, position: int, problem: str, hint: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(text)
    error = caught.value
    assert problem in error.problem
    assert hint in error.hint
    if "\n" not in text:
        assert (error.position, error.text) == (position, text)


def test_a_fault_in_a_file_shows_its_line() -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy("allow@dns\n# fine\n  allow@publc, deny@any\n")
    error = caught.value
    assert error.problem.startswith("line 3: unknown target")
    assert error.text == "  allow@publc, deny@any"
    assert error.text[error.position :].startswith("publc")


def test_a_fault_in_a_long_line_shows_its_surroundings() -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy("allow@dns," * 500 + "allow@publc" + ",allow@dns" * 500)
    error = caught.value
    assert error.problem.startswith("character 5007: ")
    assert len(error.text) < 200
    assert error.text[error.position :].startswith("publc")


def test_a_fault_cannot_move_the_cursor() -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy("allow@\x1b[2Jpublic")
    assert "\x1b" not in str(caught.value)


# --- tables and lists -----------------------------------------------------------------------------


def test_a_table_reads_as_its_text() -> None:
    table = {
        "profiles": ["public"],
        "default_ingress": "allow",
        "rules": [
            "deny@10.0.0.0/8",
            {"action": "allow", "target": "host=10.0.0.1", "protocols": ["tcp"], "ports": [8080]},
            {
                "action": "deny",
                "direction": "any",
                "target": "fd00::/8",
                "ports": ["1-9", "any"][:1],
            },
            {"action": "deny", "target": "[::1]", "protocols": ["any"], "ports": ["any"]},
            {"action": "allow", "target": "*.X.test", "protocols": ["tcp"]},
            {"action": "allow", "domain": "localbox", "ports": [443]},
            {"action": "deny", "suffix": "x.test"},
            "allow@y.test:443",
        ],
    }
    assert str(parse_policy(table)) == (
        "default_ingress=allow,allow@dns,allow@public,deny@10.0.0.0/8,allow@host=10.0.0.1:tcp:8080,"
        "deny:any@[fd00::/8]:tcp+udp:1-9,deny@[::1],allow@*.x.test:tcp,"
        "allow@domain=localbox:tcp+udp:443,deny@*.x.test,allow@y.test:tcp+udp:443"
    )


def test_a_list_reads_as_its_items() -> None:
    rule = Rule(Action.DENY, Direction.ANY, AnyTarget())
    mixed = ["public", "default_ingress=allow", {"action": "deny", "target": "1.1.1.1"}, rule]
    assert str(parse_policy(mixed)) == (
        "default_ingress=allow,allow@dns,allow@public,deny@1.1.1.1,deny:any@any"
    )


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (5, "policy=5"),
        (b"public", "policy=b'public'"),
        ({"ruls": []}, "policy.ruls=[]: no such key; did you mean 'rules'?"),
        ({"rules": "allow@any"}, "policy.rules='allow@any': is a list"),
        ({"rules": [7]}, "policy.rules[0]=7: is a rule's text"),
        ({"rules": ["public"]}, "policy.rules[0]: unknown"),
        ({"rules": ["allow@dns,allow@any"]}, "policy.rules[0]: one item per entry"),
        ({"rules": ["allow@dns", "allow@publc"]}, "policy.rules[1]: unknown target 'publc'"),
        ({"rules": [{"target": "any"}]}, "policy.rules[0].action: is required"),
        ({"rules": [{"action": "allow"}]}, "policy.rules[0].target: is required"),
        (
            {"rules": [{"action": "allow", "domain": "a.b", "suffix": "b"}]},
            "policy.rules[0].suffix='b': stands in the place of domain",
        ),
        (
            {"rules": [{"action": "allow", "target": "any", "domain": "a.b"}]},
            "policy.rules[0].domain='a.b': stands in the place of target",
        ),
        (
            {"rules": [{"action": "allow", "domain": "*.b"}]},
            "policy.rules[0].domain: '*.' stands alone",
        ),
        ({"rules": [{"action": "allow", "suffix": 1}]}, "policy.rules[0].suffix=1: is text"),
        (
            {"rules": [{"action": "allow", "domain": "a.b", "direction": "any"}]},
            "policy.rules[0].direction='any': a rule by name is egress",
        ),
        ({"rules": [{"action": 1, "target": "any"}]}, "policy.rules[0].action=1: is text"),
        (
            {"rules": [{"action": "allow", "target": "any", "port": 1}]},
            "policy.rules[0].port=1: no such key; did you mean 'ports'?",
        ),
        (
            {"rules": [{"action": "allow", "target": "any", "ports": [0]}]},
            "policy.rules[0].ports[0]='a number': is a port, 1 to 65535",
        ),
        (
            {"rules": [{"action": "allow", "target": "any", "ports": [True]}]},
            "policy.rules[0].ports[0]=True: is text",
        ),
        (
            {"rules": [{"action": "allow", "target": "any", "ports": [1, "any"]}]},
            "policy.rules[0].ports=[1, 'any']: 'any' stands alone",
        ),
        (
            {"rules": [{"action": "allow", "target": "any", "protocols": []}]},
            "policy.rules[0].protocols=[]: is empty",
        ),
        (
            {"rules": [{"action": "allow", "target": "any", "protocols": ["tcpp"]}]},
            "policy.rules[0].protocols[0]: unknown protocol 'tcpp' (did you mean 'tcp'?)",
        ),
        (
            {
                "rules": [
                    {"action": "allow", "target": "any", "protocols": ["icmpv4"], "ports": [1]}
                ]
            },
            "policy.rules[0].ports=[1]: only tcp and udp",
        ),
        ({"profiles": "public"}, "policy.profiles='public': is a list"),
        ({"profiles": ["pulbic"]}, "policy.profiles[0]: unknown profile"),
        ({"profiles": ["none"], "rules": ["allow@any"]}, "policy.rules[0]: 'none' is a whole"),
        (
            {"profiles": ["all"], "default_egress": "deny"},
            "policy.default_egress: 'all' is a whole",
        ),
        ({"default_egress": True}, "policy.default_egress=True: is text"),
        ({"default_egress": "alow"}, "policy.default_egress: unknown action"),
        ([["allow@any"]], "policy[0]=['allow@any']: is a rule's text"),
    ],
)
def test_a_fault_in_a_table_names_its_key(source: object, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_policy(source)  # type: ignore[arg-type]
    assert said in str(caught.value)


# --- limits ---------------------------------------------------------------------------------------


def test_ten_thousand_rules_are_read_in_a_moment() -> None:
    text = ",".join(f"allow@{IPv4Address(i * 397)}:tcp:{i + 1}-60000" for i in range(MAX_RULES))
    begin = time.process_time()
    policy = parse_policy(text)
    assert time.process_time() - begin < 5  # 0.3 s on an idle machine
    assert str(policy) == text


def test_one_rule_more_is_refused() -> None:
    with pytest.raises(PolicyError, match="more than 10000 rules"):
        parse_policy("deny@any," * MAX_RULES + "deny@any")
    with pytest.raises(ConfigError, match="at most 10000 rules"):
        Policy((Rule(Action.DENY, Direction.ANY, AnyTarget()),) * (MAX_RULES + 1))


def test_a_text_without_end_is_refused() -> None:
    with pytest.raises(PolicyError, match="at most"):
        parse_policy("#" * (MAX_TEXT + 1))


def test_a_rule_with_too_many_ports_is_refused() -> None:
    with pytest.raises(PolicyError, match="more than 256 port ranges"):
        parse_policy("allow@any:tcp:" + "+".join(str(port) for port in range(1, 1000, 2)))


# --- values ---------------------------------------------------------------------------------------


def test_values_are_checked_without_a_text() -> None:
    with pytest.raises(ConfigError):
        PortRange(0, 1)
    with pytest.raises(ConfigError):
        PortRange(2, 1)
    with pytest.raises(ConfigError):
        GroupTarget(Group.NONE)
    with pytest.raises(ConfigError):
        GroupTarget(Group.PUBLIC, IPv4Network("1.1.1.0/24"))
    with pytest.raises(ConfigError):
        NetworkTarget(IPv6Network("fe80::1%eth0"))
    with pytest.raises(ConfigError):
        DomainTarget("1.2.3.4")
    with pytest.raises(ConfigError, match="by name is egress"):
        Rule(Action.ALLOW, Direction.ANY, DomainTarget("x.test"))
    with pytest.raises(ConfigError):
        Rule(
            Action.ALLOW,
            Direction.EGRESS,
            AnyTarget(),
            (Protocol.TCP, Protocol.ICMPV4),
            (PortRange(1, 1),),
        )


# --- laws -----------------------------------------------------------------------------------------

_WORDS = words("""
    allow deny egress any : : @ @ = + - , , # tcp udp icmpv4 80 443 0 65536 public none all host
    meta dns [ ] ::1 fd00:: /8 /32 10.0.0.1 10.0.0.0/8 . * default_egress A
    x.test *. domain suffix domain= suffix= xn--
""")
_PIECES = st.sampled_from([*_WORDS, "\n", " ", "\u00e9", "\ud800"])


def refusal(source: object) -> ConfigError | None:
    """The error that reading `source` raises; anything but a `ConfigError` fails the test."""
    try:
        policy = parse_policy(source)  # type: ignore[arg-type]
    except ConfigError as error:
        return error
    assert parse_policy(str(policy)) == policy
    return None


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(_PIECES, max_size=14).map("".join)))
def test_only_a_policy_error_escapes_and_it_points_into_its_text(text: str) -> None:
    error = refusal(text)
    if error is not None:
        assert isinstance(error, PolicyError)
        assert 0 <= error.position <= len(error.text)
        assert error.problem


_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=4), _PIECES),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(
                [
                    "rules",
                    "profiles",
                    "default_egress",
                    "action",
                    "target",
                    "domain",
                    "suffix",
                    "ports",
                    "protocols",
                    "x",
                ]
            ),
            inner,
            max_size=5,
        ),
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(_VALUES)
def test_only_a_config_error_escapes_from_tables(source: object) -> None:
    error = refusal(source)
    assert error is None or str(error)
