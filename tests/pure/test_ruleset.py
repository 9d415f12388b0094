"""Policies as nftables text, held by golden files.

`tests/pure/golden/NAME.policy` is a policy, `NAME.nft` what it compiles to; `base.nft` is the
constant part. After a change that is meant, write them anew and read the difference:

    GUESTNET_REGENERATE=1 .venv/bin/python -m pytest tests/pure/test_ruleset.py
    git diff tests/pure/golden
"""

from __future__ import annotations

import os
import re
import sys
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path

import pytest

from guestnet.policy import MAX_RULES, Policy, parse_policy
from guestnet.ruleset.base import FINGERPRINT, base_text
from guestnet.ruleset.chains import policy_id, policy_of, removal_text
from guestnet.ruleset.compile import compile_policy
from guestnet.ruleset.doors import Doors
from guestnet.ruleset.names import DEVICE_PREFIX, GROUP_BRIDGE, GROUP_PORT, GROUP_ROUTED
from guestnet.ruleset.places import NetworkPlaces, places_text, without
from guestnet.ruleset.relayed import Manner

GOLDEN = Path(__file__).parent / "golden"
REGENERATE = "GUESTNET_REGENERATE" in os.environ
POLICIES = sorted(GOLDEN.glob("*.policy"))


def check(golden: Path, text: str) -> None:
    """Compare with the file, or write it where asked to."""
    if REGENERATE:
        golden.write_text(text)
    assert text == golden.read_text()


# --- golden files ---------------------------------------------------------------------------------


def test_there_are_golden_policies() -> None:
    assert len(POLICIES) >= 8


@pytest.mark.parametrize("file", POLICIES, ids=lambda file: file.stem)
def test_a_policy_compiles_to_its_golden_file(file: Path) -> None:
    chains = compile_policy(parse_policy(file.read_text()))
    check(file.with_suffix(".nft"), chains.install_text())


def test_the_constant_part() -> None:
    check(GOLDEN / "base.nft", base_text())


def test_the_places() -> None:
    routed = NetworkPlaces(
        without(
            (IPv4Network("172.16.0.0/12"), IPv6Network("fd42:6d73:62::/48")),
            (IPv4Network("172.17.0.0/16"), IPv6Network("fd42:6d73:62:8000::/49")),
        ),
        ("eth0", "wlan0"),
        (ip_address("9.9.9.9"), ip_address("2620:fe::fe")),
    )
    bridge = NetworkPlaces(
        (IPv4Network("192.168.7.0/24"),), ("eth0",), (), bridge="fcbr0", isolated=False
    )
    host = [ip_address("198.51.100.7"), ip_address("2a00::7")]
    check(GOLDEN / "places.nft", places_text([routed, bridge], host))


def test_the_places_of_a_site_that_relays_all() -> None:
    network = NetworkPlaces((IPv4Network("172.16.0.0/12"),), ("eth0",), (ip_address("9.9.9.9"),))
    host = [ip_address("198.51.100.7"), ip_address("2a00::7")]
    doors = Doors((40001, 40005), 40002, 40003, relay_udp=40004)
    check(GOLDEN / "places-relayed.nft", places_text([network], host, doors, Manner.RELAYED))


def test_a_site_that_relays_all_has_no_way_out() -> None:
    network = NetworkPlaces(
        (IPv4Network("172.16.0.0/12"), IPv6Network("fd42:6d73:62::/48")), ("eth0",), ()
    )
    text = places_text([network], [], Doors((1,), 2, 3, relay_udp=4), Manner.RELAYED)
    assert "eth0" not in text
    assert "eth0" in places_text([network], [], Doors((1,), 2, 3), Manner.FORWARDED)


def test_the_removal_of_a_policy() -> None:
    gone = compile_policy(parse_policy("public,allow@host=10.0.0.1:tcp:80"))
    kept = compile_policy(parse_policy("private"))
    names = [name for name, _rules in gone.chains]
    check(GOLDEN / "removal.nft", removal_text(names, [kept]))


# --- identity -------------------------------------------------------------------------------------


def test_a_policys_id_is_its_meaning_in_words() -> None:
    assert policy_id(parse_policy("public")) == policy_id(parse_policy("allow@dns,allow@public"))
    assert policy_id(parse_policy("allow@any:tcp:80+443")) == policy_id(
        parse_policy("allow@any:tcp:443+80")
    )
    assert policy_id(parse_policy("public")) != policy_id(parse_policy("allow@public,allow@dns"))


def test_policy_ids_outlive_releases() -> None:
    # The store's guests are found again by these: a change orphans what stands in every kernel.
    assert policy_id(parse_policy("none")) == "policy-140bedbf9c3f6d56"
    assert policy_id(parse_policy("public")) == "policy-0bf1ed90e609b461"


def test_the_policy_of_a_chain_is_read_from_its_name() -> None:
    chains = compile_policy(parse_policy("allow@host:tcp:22,allow@metadata,allow@guests"))
    for name, _rules in chains.chains:
        assert policy_of(name) == chains.id
        assert len(name) < 128  # NFT_CHAIN_MAXNAMELEN (linux/netfilter/nf_tables.h)


def test_the_fingerprint_is_a_chain_of_the_base() -> None:
    assert re.fullmatch("base-[0-9a-f]{12}", FINGERPRINT)
    assert base_text().endswith(f"add chain inet guestnet {FINGERPRINT}\n")


def test_the_base_replaces_only_tables_of_ours() -> None:
    for line in base_text().splitlines():
        if line.startswith(("delete", "flush")):
            assert re.fullmatch("delete table (inet|arp|bridge) guestnet", line)


def test_the_checks_tell_policed_devices_by_the_group() -> None:
    text = base_text()
    assert GROUP_ROUTED & 0xFFFFFFF0 == GROUP_BRIDGE & 0xFFFFFFF0 == GROUP_ROUTED
    assert GROUP_PORT & 0xFFFFFFF0 != GROUP_ROUTED
    assert f"meta iifgroup and 0xfffffff0 == {GROUP_ROUTED:#x} jump from_guest" in text
    assert DEVICE_PREFIX not in re.findall(r'"(\w+)"', text)  # no rule goes by a name


# --- shape ----------------------------------------------------------------------------------------


def rules_of(text: str) -> dict[str, list[str]]:
    """Rules by chain; those of IPv4 and IPv6 together, under the chain that parts the two."""
    chains = compile_policy(parse_policy(text))
    found = {name.removeprefix(chains.id + "-"): list(rules) for name, rules in chains.chains}
    for parting in ("egress", "ingress"):
        low, high = found.pop(f"{parting}-4"), found.pop(f"{parting}-6")
        assert found[parting] == [
            f"meta nfproto ipv4 goto {chains.id}-{parting}-4",
            f"goto {chains.id}-{parting}-6",
        ]
        found[parting] = list(dict.fromkeys([*low, *high]))
    return found


def test_no_packet_tries_a_rule_that_only_the_other_family_meets() -> None:
    for name, rules in compile_policy(parse_policy("deny@10.0.0.0/8,public,host")).chains:
        if name.endswith("gress-4"):
            assert not any(rule.startswith("ip6 ") for rule in rules)
        if name.endswith("gress-6"):
            assert not any(rule.startswith("ip ") for rule in rules)


def test_a_sealed_guest_has_two_chains_that_refuse() -> None:
    rules = rules_of("none")
    assert set(rules) == {"egress", "ingress"}
    for direction, lines in rules.items():
        assert all(line.endswith(f"goto refuse_{direction}") for line in lines)


def test_a_floor_group_has_a_chain_only_where_a_rule_opens_it() -> None:
    assert set(rules_of("allow@host=10.0.0.1:tcp:80")) == {"egress-host", "egress", "ingress"}
    assert set(rules_of("deny@host")) == {"egress", "ingress"}
    assert set(rules_of("allow:ingress@guests")) == {"egress", "ingress-guests", "ingress"}
    assert "egress-metadata" in rules_of("public")  # a resolver may be at a metadata service


def test_every_rule_is_counted_under_its_position() -> None:
    lines = rules_of("deny@8.8.8.0/24,allow@public:tcp:443")["egress"]
    assert {line.rpartition("comment ")[2] for line in lines if "counter" in line} == {
        '"rule 0"',
        '"rule 1"',
    }


def test_an_ipv4_network_is_matched_in_all_its_disguises() -> None:
    first = [line for line in rules_of("deny@10.1.0.0/16")["egress"] if "rule 0" in line]
    verdict = 'counter goto refuse_egress comment "rule 0"'
    ranges = (
        "::a01:0-::a01:ffff",
        f"{IPv6Address('::ffff:10.1.0.0')}-{IPv6Address('::ffff:10.1.255.255')}",
        "64:ff9b::a01:0-64:ff9b::a01:ffff",
        "2002:a01::-2002:a01:ffff:ffff:ffff:ffff:ffff:ffff",
    )
    assert first == [
        f"ip daddr 10.1.0.0/16 {verdict}",
        f"ip6 daddr {{ {', '.join(ranges)} }} {verdict}",
        f"ip6 daddr 2001::/32 ip6 daddr & ::ffff:ffff ::f5fe:0-::f5fe:ffff {verdict}",
    ]


# --- cost -----------------------------------------------------------------------------------------


def large_policy(count: int) -> Policy:
    """Rules of every kind that real lists have: networks, single addresses, ports."""
    texts = [
        f"deny@10.{i >> 8 & 255}.{i & 255}.0/24:tcp:{1 + i % 60000}" if i % 3 else
        f"allow@[2a00:{i:x}::/32]:udp:{1 + i % 60000}"
        for i in range(count)
    ]  # fmt: skip
    return parse_policy(",".join(texts))


def calls_of_compiling(count: int) -> int:
    """Function calls that compiling takes: its cost, whatever else the machine is doing."""
    policy, calls = large_policy(count), 0

    def tick(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(tick)
    try:
        compile_policy(policy)
    finally:
        sys.setprofile(None)
    return calls


def test_the_largest_policy_compiles_to_a_few_lines_a_rule() -> None:
    text = compile_policy(large_policy(MAX_RULES)).install_text()
    assert MAX_RULES <= text.count('"rule ') <= 3 * MAX_RULES


def test_compiling_costs_by_the_rule() -> None:
    assert calls_of_compiling(4000) < 1.1 * 4 * calls_of_compiling(1000)


# --- places ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pools", "holes", "left"),
    [
        ("10.0.0.0/8", "", "10.0.0.0/8"),
        ("10.0.0.0/8", "10.0.0.0/8", ""),
        ("10.0.0.0/8", "0.0.0.0/0", ""),
        ("10.0.0.0/8", "192.168.0.0/16", "10.0.0.0/8"),
        ("10.0.0.0/30", "10.0.0.1/32", "10.0.0.0/32 10.0.0.2/31"),
        ("10.0.0.0/30 fd00::/127", "fd00::1/128", "10.0.0.0/30 fd00::/128"),
        ("10.0.0.0/30", "10.0.0.0/32 10.0.0.3/32", "10.0.0.1/32 10.0.0.2/32"),
    ],
)
def test_pools_without_what_the_host_uses(pools: str, holes: str, left: str) -> None:
    found = without(map(ip_network, pools.split()), map(ip_network, holes.split()))
    assert sorted(map(str, found)) == left.split()


def test_a_pool_that_is_all_holes_leaves_its_sets_empty_and_valid() -> None:
    text = places_text([NetworkPlaces((), ("eth0",), ())], [])
    assert "add element" not in text
    rest = [line for line in text.splitlines() if not line.startswith("flush ")]
    assert rest == ["add rule inet guestnet knock meta l4proto tcp goto refuse_egress"]
