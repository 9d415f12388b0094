"""Remarks: what lint says, what it keeps quiet about, and that it stays fast."""

from __future__ import annotations

import time
from ipaddress import IPv4Network, ip_address

import pytest

from guestnet.policy import MAX_RULES, Places, parse_policy, warnings

PLACES = Places(frozenset({ip_address("192.168.0.2")}), (IPv4Network("10.200.0.0/16"),))


def remarks(text: str, places: Places | None = None) -> list[tuple[int, str]]:
    return [(remark.rule, remark.message) for remark in warnings(parse_policy(text), places)]


@pytest.mark.parametrize(
    ("text", "rule", "message"),
    [
        ("allow@any,allow@public", 1, "`allow@any` decides"),
        ("allow@any,deny@public", 1, "`allow@any` decides"),
        ("deny@any,allow@host", 1, "`deny@any` decides"),
        ("deny@any,allow@dns", 1, "`deny@any` decides"),
        ("allow@public,allow@public", 1, "repeats"),
        ("allow@public,deny@public:tcp:80", 1, "`allow@public` decides"),
        ("allow@public,allow@8.8.8.8", 1, "`allow@public` decides"),
        ("deny@private,allow@10.0.0.0/8", 1, "`deny@private` decides"),
        ("allow@10.0.0.0/8,allow@10.1.0.0/16:tcp", 1, "`allow@10.0.0.0/8` decides"),
        ("deny@[fd00::/8],deny@[fd00::1]", 1, "`deny@[fd00::/8]` decides"),
        ("deny@10.0.0.0/8,allow@host=10.0.0.1", 1, "`deny@10.0.0.0/8` decides"),
        ("allow@host,deny@host=10.0.0.1:tcp:80", 1, "`allow@host` decides"),
        ("allow@guests=10.0.0.0/8,allow@guests=10.0.0.1", 1, "`allow@guests=10.0.0.0/8`"),
        ("allow:any@any,deny:ingress@public", 1, "`allow:any@any` decides"),
        ("allow@any:tcp:1-100,allow@public:tcp:80", 1, "`allow@any:tcp:1-100` decides"),
        ("allow@dns,allow@dns:udp:53", 1, "`allow@dns` decides"),
        ("allow@169.254.169.254", 0, "write metadata=169.254.169.254"),
        ("allow@[fd00:ec2::254]", 0, "write metadata=[fd00:ec2::254]"),
        ("allow@loopback", 0, "never leave the guest's own link"),
        ("allow@127.0.0.1", 0, "never leave the guest's own link"),
        ("allow@[fe80::/10]", 0, "never leave the guest's own link"),
        ("allow@[::ffff:127.0.0.1]", 0, "never leave the guest's own link"),
        ("allow:ingress@dns", 0, "dns is egress"),
        ("allow@dns:icmpv4", 0, "tcp and udp"),
        ("allow@dns:tcp:853", 0, "port 53 only"),
        ("allow@meta=10.0.0.1", 0, "no known metadata service"),
        ("deny@[fd00::/8]:icmpv4", 0, "icmpv6"),
        ("allow@x.test,allow@x.test", 1, "repeats"),
        ("allow@x.test,allow@x.test:443", 1, "`allow@x.test` decides"),
        ("allow@*.x.test,allow@a.x.test", 1, "`allow@*.x.test` decides"),
        ("deny@*.x.test,allow@*.a.x.test:443", 1, "`deny@*.x.test` decides"),
        ("deny@x.test,deny@x.test:443", 1, "`deny@x.test` decides"),
        ("deny@any,allow@x.test", 1, "`deny@any` decides"),
        ("deny@public,allow@x.test", 1, "`deny@public` decides"),
        ("public,allow@x.test:443", 2, "`allow@public` decides"),
        ("allow@public:443,allow@*.x.test:tcp:443", 1, "`allow@public:tcp+udp:443` decides"),
        ("allow@any,allow@x.test", 1, "`allow@any` decides"),
        ("public,deny@ads.x.test", 2, "comes too late: the earlier `allow@public`"),
        ("allow@any,deny@ads.x.test:443", 1, "comes too late: the earlier `allow@any`"),
        ("allow@*.x.test,deny@a.x.test", 1, "comes too late: the earlier `allow@*.x.test`"),
        ("allow:ingress@dns,allow@dns", 0, "dns is egress"),  # … and covers nothing
    ],
)
def test_remarks(text: str, rule: int, message: str) -> None:
    ((found, said),) = remarks(text)
    assert found == rule
    assert message in said


@pytest.mark.parametrize(
    "text",
    [
        "public,private,host",
        "none",
        "all",
        "deny@10.0.0.0/8,allow@private",
        "deny@10.1.0.0/16,deny@10.0.0.0/8",
        "allow@any,allow@host",  # the floor is not in `any`
        "allow@any,allow@dns",  # a resolver may be the host
        "allow@any,deny@10.0.0.0/8,allow@host",  # the deny rule keeps the host's 10.x closed
        "allow@public,deny@8.8.8.8,allow@host",  # 8.8.8.8 may be the host's
        "allow@10.0.0.0/8,deny@10.0.0.1",
        "allow@any:tcp,allow@any:udp",
        "allow@any:tcp:80,allow@any:tcp",
        "allow@any:tcp+udp,allow@any",
        "allow@any,allow:any@any",
        "deny@loopback",
        "allow@link-local",
        "allow@169.254.0.0/16",
        "allow@10.0.0.0/8,allow@11.0.0.0/8",
        "allow@host=10.0.0.1,allow@guests=10.0.0.1",
        "allow@x.test,allow@*.x.test",
        "allow@*.x.test,allow@notx.test",
        "allow@x.test,allow@public",
        "allow@dns,allow@domain=dns",
        "allow@domain=any,allow@any,deny:ingress@private",
        "deny@ads.x.test,allow@*.x.test,allow@any",
        "allow@public:443,allow@x.test",
        "allow@public:443,deny@x.test",
        "allow@private,deny@x.test,allow@1.1.1.1",
        "deny@x.test:443,allow@x.test",
    ],
)
def test_keeps_quiet(text: str) -> None:
    assert remarks(text) == []


def test_the_machines_places_say_more() -> None:
    assert remarks("allow@192.168.0.2") == []
    assert "write host=192.168.0.2" in remarks("allow@192.168.0.2", PLACES)[0][1]
    assert "write guests=10.200.0.9" in remarks("allow@10.200.0.9", PLACES)[0][1]
    assert "192.168.0.3 is private" in remarks("allow@host=192.168.0.3", PLACES)[0][1]


@pytest.mark.parametrize(
    "rule",
    [
        lambda i: f"allow@any:tcp:{i + 1}",
        lambda i: f"deny@[::/{i % 129}]:tcp:{i + 1}",
        lambda i: f"allow@10.{i % 256}.{i // 256}.0/24:udp:{i + 1}",
        lambda _: "allow@public",
        lambda i: f"{'deny' if i % 2 else 'allow'}@*.{'a.' * (i % 40)}x:tcp:{i + 1}",
    ],
)
def test_ten_thousand_rules_are_compared_in_a_moment(rule) -> None:  # type: ignore[no-untyped-def]
    policy = parse_policy(",".join(rule(i) for i in range(MAX_RULES)))
    begin = time.process_time()
    warnings(policy)
    assert time.process_time() - begin < 5  # under 1 s on an idle machine
