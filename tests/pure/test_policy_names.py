"""Rules by name: what a name is, what rules by name match, and what may be asked of the DNS."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestnet.errors import ConfigError
from guestnet.policy import (
    MAX_NAME,
    Action,
    Direction,
    DomainTarget,
    FlowName,
    Places,
    Policy,
    Protocol,
    Rule,
    Verdict,
    canonical_name,
    decide,
    decide_question,
    has_names,
    is_below,
    needs_name,
    parse_policy,
)

PLACES = Places(
    host=frozenset(map(ip_address, ("10.200.0.1", "198.51.100.7"))),
    guests=(IPv4Network("10.200.0.0/16"),),
    dns=(ip_address("10.200.0.1"),),
)


# --- what a name is -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("api.openai.com", "api.openai.com"),
        ("API.OpenAI.COM.", "api.openai.com"),
        ("localhost", "localhost"),
        ("_dmarc.x.test", "_dmarc.x.test"),
        ("-a-.x--y.test", "-a-.x--y.test"),
        ("1.0.0.127.in-addr.arpa", "1.0.0.127.in-addr.arpa"),
        ("1e100.net", "1e100.net"),
        ("1.2-3", "1.2-3"),
        ("b\u00fccher.DE", "xn--bcher-kva.de"),
        ("B\u00dcCHER.de", "xn--bcher-kva.de"),
        ("XN--bcher-KVA.de", "xn--bcher-kva.de"),
        ("fa\u00df.de", "xn--fa-hia.de"),  # IDNA2003 would say fass.de, another owner's
        ("_tcp.b\u00fccher.de", "_tcp.xn--bcher-kva.de"),
        ("\u4f8b\u3048\u3002\u30c6\u30b9\u30c8\u3002", "xn--r8jz45g.xn--zckzah"),
        ("\uff41\uff50\uff49.test", "api.test"),
        ("a" * 63 + ".test", "a" * 63 + ".test"),
        ("a." * 126 + "b", "a." * 126 + "b"),
    ],
)
def test_one_spelling(text: str, name: str) -> None:
    assert canonical_name(text) == name
    assert FlowName(text, verified=True) == FlowName(name, verified=True)
    assert DomainTarget(text) == DomainTarget(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "a name as in"),
        (".", "a name as in"),
        ("a..", "1 to 63"),
        (".a", "1 to 63"),
        ("a..b", "1 to 63"),
        ("a" * 64, "1 to 63"),
        ("a." * 128, "at most 253"),
        ("\u00e9" * 1025, "at most 253"),
        ("a b.test", "letters, digits"),
        ("*.x.test", "letters, digits"),
        ("x.test\n", "letters, digits"),
        ("x.test\0", "letters, digits"),
        ("x.test:443", "letters, digits"),
        ("::1", "letters, digits"),
        ("[::1]", "letters, digits"),
        ("1.2.3.4", "an address is no name"),
        ("1.2.3.4.", "an address is no name"),
        ("\uff11.2.3.4", "an address is no name"),
        ("2130706433", "an address is no name"),
        ("127.0.0.0x1", "an address is no name"),
        ("x.0x", "an address is no name"),
        ("x.123", "an address is no name"),
        ("\ud800.test", "IDNA"),
        ("\u0301a.test", "IDNA"),
        ("a\u2603\u05d0.test", "IDNA"),
        ("\u00e9" * 63, "IDNA"),
    ],
)
def test_no_name(text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        canonical_name(text)
    assert caught.value.key == "name"


_LABELS = st.text("aZ09-_xn\u00e9\u00df\u05d0\u0661\u200d\u3002\ud800*: ", max_size=6)


@settings(max_examples=1000, deadline=None)
@given(st.text(max_size=300) | st.lists(_LABELS, max_size=6).map(".".join))
def test_a_name_has_one_spelling_or_none(text: str) -> None:
    try:
        name = canonical_name(text)
    except ConfigError:
        return
    assert canonical_name(name) == canonical_name(name.upper() + ".") == name
    assert name.isascii()
    assert name == name.lower()
    assert 1 <= len(name) <= MAX_NAME
    for subdomains in (False, True):
        rule = Rule(Action.ALLOW, Direction.EGRESS, DomainTarget(name, subdomains))
        assert parse_policy(str(rule)).rules == (rule,)


@pytest.mark.parametrize(
    ("name", "suffix", "below"),
    [
        ("x.test", "x.test", True),
        ("a.x.test", "x.test", True),
        ("b.a.x.test", "x.test", True),
        ("notx.test", "x.test", False),
        ("test", "x.test", False),
        ("x.test.evil", "x.test", False),
        ("x.test", "test", True),
    ],
)
def test_below_is_label_by_label(name: str, suffix: str, below: bool) -> None:
    assert is_below(name, suffix) is below
    assert DomainTarget(suffix, subdomains=True).holds(name) is below
    assert DomainTarget(suffix).holds(name) is (name == suffix)


# --- flows ----------------------------------------------------------------------------------------


def ask(text: str, question: str) -> Verdict:
    """Put a question such as `tcp 1.1.1.1 443 x.test` to `text`; `~x.test` is not verified."""
    protocol, peer, port, *names = question.split()
    name = None
    if names:
        name = FlowName(names[0].removeprefix("~"), not names[0].startswith("~"))
    return decide(
        parse_policy(text),
        Direction.EGRESS,
        Protocol(protocol),
        ip_address(peer),
        None if port == "-" else int(port),
        PLACES,
        name,
    )


TRANSCRIPTS = """
allow@x.test            | tcp 1.1.1.1 443 x.test       | allow | allow@x.test
allow@x.test            | tcp 1.1.1.1 443 X.test.      | allow | allow@x.test
allow@x.test            | tcp 1.1.1.1 443 ~x.test      | deny  | default_egress=deny
allow@x.test            | tcp 1.1.1.1 443              | deny  | default_egress=deny
allow@x.test            | tcp 1.1.1.1 443 a.x.test     | deny  | default_egress=deny
allow@x.test            | tcp 2606:4700::1 443 x.test  | allow | allow@x.test
allow@x.test            | icmpv4 1.1.1.1 - x.test      | allow | allow@x.test
allow@x.test            | tcp 10.0.0.1 443 x.test      | deny  | default_egress=deny
allow@x.test            | tcp 10.200.0.1 443 x.test    | deny  | floor: host
allow@x.test            | tcp 10.200.0.9 443 x.test    | deny  | floor: guests
allow@x.test            | tcp 169.254.169.254 80 x.test | deny | floor: metadata
allow@x.test            | tcp 127.0.0.1 80 x.test      | deny  | floor: unroutable
allow@x.test            | tcp 64:ff9b::10.0.0.1 80 x.test | deny | default_egress=deny
allow@x.test            | tcp 240.0.0.1 80 x.test      | deny  | default_egress=deny
allow@x.test,allow@10.0.0.1 | tcp 10.0.0.1 443 x.test  | allow | allow@10.0.0.1
allow@*.x.test:443      | tcp 1.1.1.1 443 a.x.test     | allow | allow@*.x.test:tcp+udp:443
allow@*.x.test:443      | udp 1.1.1.1 443 x.test       | allow | allow@*.x.test:tcp+udp:443
allow@*.x.test:443      | tcp 1.1.1.1 80 x.test        | deny  | default_egress=deny
allow@*.x.test:443      | tcp 1.1.1.1 443 notx.test    | deny  | default_egress=deny
deny@x.test,public      | tcp 1.1.1.1 443 x.test       | deny  | deny@x.test
deny@x.test,public      | tcp 1.1.1.1 443 ~x.test      | deny  | deny@x.test
deny@x.test,public      | tcp 1.1.1.1 443              | allow | allow@public
deny@x.test,public      | tcp 1.1.1.1 443 y.test       | allow | allow@public
deny@x.test,private     | tcp 10.0.0.1 443 ~x.test     | deny  | deny@x.test
deny@x.test,host        | tcp 10.200.0.1 443 ~x.test   | deny  | deny@x.test
deny@x.test:80,public   | tcp 1.1.1.1 443 x.test       | allow | allow@public
public,deny@x.test      | tcp 1.1.1.1 443 x.test       | allow | allow@public
deny@a.x.test,allow@*.x.test | tcp 1.1.1.1 443 a.x.test | deny | deny@a.x.test
deny@a.x.test,allow@*.x.test | tcp 1.1.1.1 443 b.x.test | allow | allow@*.x.test
deny@1.0.0.0/8,allow@x.test | tcp 1.1.1.1 443 x.test   | deny  | deny@1.0.0.0/8
"""


@pytest.mark.parametrize("line", TRANSCRIPTS.strip().splitlines())
def test_transcript(line: str) -> None:
    policy, question, action, text = (field.strip() for field in line.split("|"))
    verdict = ask(policy, question)
    assert (verdict.action, verdict.text) == (Action(action), text)


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (
            "tcp 1.1.1.1 443 x.test",
            "tcp to 1.1.1.1 port 443 (public) as x.test is allowed by `allow@x.test`",
        ),
        (
            "tcp 1.1.1.1 443",
            "tcp to 1.1.1.1 port 443 (public) is denied by `default_egress=deny`: no rule matches "
            "it (not allowed by `allow@x.test`: the flow's name is not known); "
            "`allow@1.1.1.1:tcp:443` would allow it",
        ),
        (
            "tcp 1.1.1.1 443 ~x.test",
            "tcp to 1.1.1.1 port 443 (public) as x.test is denied by `default_egress=deny`: no "
            "rule matches it (not allowed by `allow@x.test`: 1.1.1.1 is no known address of "
            "x.test); `allow@1.1.1.1:tcp:443` would allow it",
        ),
        (
            "tcp 10.0.0.1 443 x.test",
            "tcp to 10.0.0.1 port 443 (private) as x.test is denied by `default_egress=deny`: no "
            "rule matches it (not allowed by `allow@x.test`: a name opens public addresses only); "
            "`allow@10.0.0.1:tcp:443` would allow it",
        ),
        (
            "tcp 10.200.0.1 443 x.test",
            "tcp to 10.200.0.1 port 443 (host) as x.test is denied because only a rule that names "
            "host opens it (not allowed by `allow@x.test`: a name opens public addresses only); "
            "`allow@host=10.200.0.1:tcp:443` would allow it",
        ),
        (
            "tcp 1.1.1.1 443 y.test",
            "tcp to 1.1.1.1 port 443 (public) as y.test is denied by `default_egress=deny`: no "
            "rule matches it; `allow@y.test:tcp:443` would allow it",
        ),
    ],
)
def test_the_reason_says_what_a_name_could_not_do(question: str, reason: str) -> None:
    assert ask("allow@x.test", question).reason == reason


def test_a_flow_that_comes_in_has_no_name() -> None:
    policy = parse_policy("deny@x.test,allow:any@public")
    peer, name = ip_address("1.1.1.1"), FlowName("x.test", verified=True)
    verdict = decide(policy, Direction.INGRESS, Protocol.TCP, peer, 22, PLACES, name)
    assert verdict.text == "allow:any@public"
    assert "x.test" not in verdict.reason


# --- where a name is needed -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "question", "needed"),
    [
        ("public", "tcp 1.1.1.1 443", False),
        ("allow@x.test", "tcp 1.1.1.1 443", True),
        ("allow@x.test", "tcp 10.0.0.1 443", False),
        ("allow@x.test", "tcp 10.200.0.1 443", False),
        ("allow@x.test", "tcp 127.0.0.1 443", False),
        ("allow@x.test:443", "tcp 1.1.1.1 80", False),
        ("allow@x.test:443", "udp 1.1.1.1 443", True),
        ("allow@x.test:443", "icmpv4 1.1.1.1 -", False),
        ("allow@x.test", "icmpv4 1.1.1.1 -", True),
        ("deny@x.test,private", "tcp 10.0.0.1 443", True),
        ("deny@x.test", "tcp 10.200.0.1 443", True),
        ("deny@x.test", "tcp 127.0.0.1 443", False),
        ("deny@1.1.1.1,allow@x.test", "tcp 1.1.1.1 443", False),
        ("public,deny@x.test", "tcp 1.1.1.1 443", False),
        ("public,deny@x.test", "tcp 10.0.0.1 443", True),
        ("allow:ingress@any,allow@x.test", "tcp 1.1.1.1 443", True),
        ("allow@dns,deny@*.test", "udp 10.200.0.1 53", False),
        ("deny@*.test,allow@dns", "udp 10.200.0.1 53", True),
    ],
)
def test_where_a_name_is_needed(policy: str, question: str, needed: bool) -> None:
    protocol, peer, port = question.split()
    number = None if port == "-" else int(port)
    found = needs_name(parse_policy(policy), Protocol(protocol), ip_address(peer), number, PLACES)
    assert found is needed


def test_needs_name_refuses_what_decide_refuses() -> None:
    with pytest.raises(ConfigError):
        needs_name(parse_policy("public"), Protocol.TCP, ip_address("1.1.1.1"), None, PLACES)


def test_has_names() -> None:
    assert has_names(parse_policy("public,deny@x.test"))
    assert not has_names(parse_policy("public"))


# --- questions to the DNS -------------------------------------------------------------------------

QUESTIONS = """
none                              | x.test     | deny  | default_egress=deny
all                               | x.test     | allow | default_egress=allow
public                            | x.test     | allow | allow@public
allow@any:tcp:443                 | x.test     | allow | allow@any:tcp:443
allow:ingress@public              | x.test     | deny  | default_egress=deny
allow@x.test:443                  | X.test.    | allow | allow@x.test:tcp+udp:443
allow@x.test:443                  | a.x.test   | deny  | default_egress=deny
allow@*.x.test                    | b.a.x.test | allow | allow@*.x.test
allow@*.x.test                    | notx.test  | deny  | default_egress=deny
deny@x.test,public                | x.test     | deny  | deny@x.test
deny@x.test,public                | a.x.test   | allow | allow@public
deny@x.test:80,public             | x.test     | allow | allow@public
deny@x.test:tcp,allow@any         | x.test     | allow | allow@any
deny@*.x.test,default_egress=allow | a.x.test  | deny  | deny@*.x.test
public,deny@x.test                | x.test     | allow | allow@public
allow@a.x.test,deny@*.x.test,public | a.x.test | allow | allow@a.x.test
deny@any,allow@x.test             | x.test     | allow | allow@x.test
deny@public,deny@10.0.0.0/8,default_egress=allow | x.test | allow | default_egress=allow
allow@dns,allow@10.0.0.0/8        | x.test     | deny  | default_egress=deny
"""


@pytest.mark.parametrize("line", QUESTIONS.strip().splitlines())
def test_question(line: str) -> None:
    policy, name, action, text = (field.strip() for field in line.split("|"))
    verdict = decide_question(parse_policy(policy), name)
    assert (verdict.action, verdict.text) == (Action(action), text)
    assert verdict.group is None
    assert (verdict.rule is None) == text.startswith("default")


def test_the_reason_of_a_question() -> None:
    def reason(text: str) -> str:
        return decide_question(parse_policy(text), "X.test").reason

    question = "the question for x.test is "
    assert reason("allow@x.test") == question + "allowed by `allow@x.test`"
    assert reason("public") == question + "allowed by `allow@public`, which asks for no name"
    assert reason("deny@*.test") == (
        question + "denied by `deny@*.test`; `allow@x.test` ahead of it would allow it"
    )
    assert reason("none") == (
        question + "denied by `default_egress=deny`: no rule allows it; "
        "`allow@x.test` would allow it"
    )


def test_a_question_for_no_name_is_refused() -> None:
    with pytest.raises(ConfigError):
        decide_question(parse_policy("public"), "1.2.3.4")


_ITEMS = """
    public private deny@any allow@any:tcp allow@x.test deny@x.test deny@x.test:443 deny@*.test
    allow@*.x.test:443 deny@a.x.test:tcp allow@domain=test deny@public allow@10.0.0.0/8
"""


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(_ITEMS.split()), max_size=5),
    st.sampled_from(["x.test", "a.x.test", "test", "y.example"]),
    st.sampled_from(Protocol),
)
def test_what_a_flow_may_go_to_may_be_asked_for(
    items: list[str], name: str, protocol: Protocol
) -> None:
    """At a public address: nothing that a name is allowed to reach fails for want of an answer."""
    policy = Policy(parse_policy(items).rules)
    peer = ip_address("1.1.1.1")
    verdict = decide(
        policy, Direction.EGRESS, protocol, peer, 443, PLACES, FlowName(name, verified=True)
    )
    if verdict.allowed:
        assert decide_question(policy, name).allowed
