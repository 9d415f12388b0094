"""The nouns: what is accepted, what is refused in which words, and that nothing changes in JSON."""

from __future__ import annotations

import json
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from guestnet.errors import ConfigError
from guestnet.model import (
    AttachRequest,
    NetworkSpec,
    Topology,
    check_guest_id,
    check_interface_name,
    check_mac,
)
from guestnet.naming import guest_label, read_upstream


def refusal(**keys: Any) -> tuple[str, str]:
    """The key that a network is refused for, and the words."""
    with pytest.raises(ConfigError) as refused:
        NetworkSpec(**keys)
    return refused.value.key, refused.value.expected


# --- networks -------------------------------------------------------------------------------------


def test_defaults() -> None:
    spec = NetworkSpec()
    assert (spec.name, spec.topology) == ("default", Topology.ROUTED)
    assert (str(spec.ipv4), str(spec.ipv6)) == ("172.16.0.0/12", "fd42:6d73:62::/48")
    assert (spec.mtu, spec.egress, spec.isolate, spec.bridge) == (None, ("auto",), True, None)


def test_defaults_of_a_bridge_network() -> None:
    spec = NetworkSpec.read({"topology": "bridge"})
    assert (str(spec.ipv4), spec.bridge) == ("172.30.0.0/24", "fcbr0")
    assert str(spec.gateway_ipv4) == "172.30.0.1"
    assert str(spec.gateway_ipv6) == "fd42:6d73:63::1"


def test_none_leaves_a_family_out_but_not_both() -> None:
    assert NetworkSpec(ipv6=None).ipv6 is None
    assert refusal(ipv4=None, ipv6=None) == ("ipv4", "a network needs ipv4, ipv6 or both")


@pytest.mark.parametrize(
    ("keys", "key", "expected"),
    [
        ({"ipv4": "172.16.0.0/31"}, "ipv4", "a pool is /1 to /30"),
        ({"ipv4": "172.16.0.0/32"}, "ipv4", "a pool is /1 to /30"),
        ({"ipv4": "0.0.0.0/0"}, "ipv4", "a pool is /1 to /30"),
        ({"topology": "bridge", "ipv4": "0.0.0.0/7"}, "ipv4", "a pool is /8 to /30"),
        ({"ipv4": "172.16.0.1/12"}, "ipv4", "has host bits set; the network is 172.16.0.0/12"),
        ({"ipv4": "172.16.0.0"}, "ipv4", "a network is written with its prefix length"),
        ({"ipv4": "172.16.0.0/33"}, "ipv4", "IPv4"),
        ({"ipv4": "bananas"}, "ipv4", "IPv4"),
        ({"ipv4": "fd00::/48"}, "ipv4", "IPv4"),
        ({"ipv4": ""}, "ipv4", "IPv4"),
        ({"ipv6": "fd00::/65"}, "ipv6", "a routed pool is /16 to /64"),
        ({"ipv6": "10.0.0.0/8"}, "ipv6", "IPv6"),
        ({"ipv6": "fd00::1/64"}, "ipv6", "has host bits set; the network is fd00::/64"),
        ({"topology": "bridge", "ipv6": "fd00::/121"}, "ipv6", "a bridge pool is /64 to /120"),
        ({"topology": "bridge", "ipv6": "fd00::/63"}, "ipv6", "a bridge pool is /64 to /120"),
        ({"mtu": 67}, "mtu", "68"),
        ({"mtu": 65536}, "mtu", "65535"),
        ({"mtu": 1279}, "mtu", "IPv6 needs 1280 bytes"),
        ({"mtu": "many"}, "mtu", "integer"),
        ({"topology": "mesh"}, "topology", "'routed' or 'bridge'"),
        ({"bridge": "br0"}, "bridge", "only a network of topology bridge has one"),
        ({"topology": "bridge", "bridge": "x" * 16}, "bridge", "at most 15 bytes, this has 16"),
        ({"topology": "bridge", "bridge": "a/b"}, "bridge", "letters, digits"),
        ({"topology": "bridge", "bridge": ".."}, "bridge", "letters, digits"),
        ({"gateway": "172.16.0.9"}, "gateway", "only a bridge network"),
        ({"topology": "bridge", "gateway": "10.0.0.1"}, "gateway", "lies outside 172.30.0.0/24"),
        ({"topology": "bridge", "gateway": "172.30.0.0"}, "gateway", "network or broadcast"),
        ({"topology": "bridge", "gateway": "172.30.0.255"}, "gateway", "network or broadcast"),
        ({"egress": []}, "egress", "name an interface"),
        ({"egress": ["auto", "eth0"]}, "egress", "'auto' stands alone"),
        ({"egress": "eth0; reboot"}, "egress", "letters, digits"),
        ({"egress": "x" * 16}, "egress", "at most 15 bytes"),
        ({"name": ""}, "name", "1 to 32 lower-case letters"),
        ({"name": "../x"}, "name", "1 to 32 lower-case letters"),
        ({"name": "x" * 33}, "name", "1 to 32 lower-case letters"),
        ({"name": "lan\n"}, "name", "1 to 32 lower-case letters"),
        ({"dns": ["resolver.example"]}, "dns.0", "IPv4"),
        ({"dns": ["9.9.9.9#dns.quad9.net"]}, "dns.0", "tls://ADDRESS[:PORT][#NAME]"),
        ({"dns": ["9.9.9.9", "tls://dns.quad9.net"]}, "dns.1", "tls://ADDRESS[:PORT][#NAME]"),
        ({"dns": ["tls://9.9.9.9:0"]}, "dns.0", "1 to 65535"),
        ({"dns": ["tls://9.9.9.9:65536"]}, "dns.0", "1 to 65535"),
        ({"dns": ["tls://9.9.9.9:x"]}, "dns.0", "1 to 65535"),
        ({"dns": ["tls://[9.9.9.9]:853"]}, "dns.0", "[ADDRESS]:PORT"),
        ({"dns": ["tls://[fd00::1]853"]}, "dns.0", "[ADDRESS]:PORT"),
        ({"dns": ["tls://fe80::1%eth0"]}, "dns.0", "no scope"),
        ({"dns": ["tls://9.9.9.9#"]}, "dns.0", "behind '#' stands the certificate's name"),
        ({"dns": ["tls://9.9.9.9#9.9.9.9"]}, "dns.0", "an address is no name"),
        ({"dns": [9]}, "dns.0", "a resolver is text"),
        ({"records": ["10.0.0.5"]}, "records", "a table of names"),
        ({"records": {"10.0.0.5": "db.test"}}, "records", "an address is no name"),
        ({"records": {"*.test": "10.0.0.5"}}, "records", "letters, digits"),
        ({"records": {"a.guestnet.internal": "10.0.0.5"}}, "records", "guestnet's own"),
        ({"records": {"a.test": []}}, "records.a.test", "a list of addresses"),
        ({"records": {"a.test": {}}}, "records.a.test", "a list of addresses"),
        ({"records": {"a.test": [5]}}, "records.a.test", "the text of an address"),
        ({"records": {"a.test": "10.0.0.256"}}, "records.a.test", "neither an address nor a name"),
        ({"records": {"a.test": "0.0.0.0"}}, "records.a.test", "of no host"),
        ({"records": {"a.test": ["b.test", "10.0.0.1"]}}, "records.a.test", "stands alone"),
        ({"records": {"a.test": "10.0.0.1", "A.TEST.": "10.0.0.2"}}, "records.a.test", "twice"),
        ({"records": {"a.test": "b.test", "b.test": "a.test"}}, "records.a.test", "in a circle"),
        ({"records": {"a.test": "a.test"}}, "records.a.test", "in a circle"),
        ({"records": {"a.test": [f"10.0.0.{n}" for n in range(9)]}}, "records.a.test", "at most 8"),
        ({"records": {f"a{n}": "10.0.0.1" for n in range(1025)}}, "records", "at most 1024 names"),
        ({"serve_stale_s": -1}, "serve_stale_s", "greater than or equal to 0"),
        ({"serve_stale_s": 86401}, "serve_stale_s", "86400"),
        ({"strip_ech": "sometimes"}, "strip_ech", "boolean"),
        ({"deny_encrypted_dns": None}, "deny_encrypted_dns", "boolean"),
        ({"rest_s": -1}, "rest_s", "greater than or equal to 0"),
        ({"rest_s": float("nan")}, "rest_s", "86400"),
        ({"colour": "blue"}, "colour", "no such key"),
    ],
    ids=str,
)
def test_a_network_that_cannot_be_is_refused_by_key(
    keys: dict[str, Any], key: str, expected: str
) -> None:
    found, words = refusal(**keys)
    assert found == key
    assert expected in words


@pytest.mark.parametrize("mtu", [1280, 1500, 9000, 65535])
def test_mtus_that_can_be(mtu: int) -> None:
    assert NetworkSpec(mtu=mtu).mtu == mtu


def test_without_ipv6_68_bytes_are_enough() -> None:
    assert NetworkSpec(mtu=68, ipv6=None).mtu == 68


def test_a_nested_error_names_its_path() -> None:
    with pytest.raises(ConfigError) as refused:
        NetworkSpec.read({"mtu": 1}, key="network.lan")
    assert refused.value.key == "network.lan.mtu"


def test_values_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(NetworkSpec(), "mtu", 1500)  # noqa: B010


specs: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    topology=st.sampled_from(["routed", "bridge"]),
    name=st.from_regex(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", fullmatch=True),
    ipv4=st.sampled_from([None, "10.0.0.0/8", "192.168.4.0/22", "10.0.0.0/30"]),
    ipv6=st.sampled_from(["fd00::/64", "2a00::/64"]),
    mtu=st.none() | st.integers(1280, 65535),
    egress=st.sampled_from(["auto", "eth0", ("eth0", "wlan0")]),
    dns=st.none() | st.lists(st.ip_addresses(), max_size=3),
    policy=st.sampled_from([None, "public", "none"]),
    isolate=st.booleans(),
    rest_s=st.floats(0, 86400),
)


@given(specs)
def test_a_network_is_the_same_after_json(keys: dict[str, Any]) -> None:
    spec = NetworkSpec(**keys)
    assert NetworkSpec.model_validate_json(spec.model_dump_json()) == spec
    assert NetworkSpec.read(json.loads(spec.model_dump_json())) == spec
    assert NetworkSpec(**spec.model_dump()) == spec


# --- from the environment -------------------------------------------------------------------------


def test_nothing_set_changes_nothing() -> None:
    assert NetworkSpec.from_env({}) == NetworkSpec()
    assert NetworkSpec.from_env({"PATH": "/bin", "GUESTNET_STATE_DIR": "/x"}) == NetworkSpec()


def test_every_variable() -> None:
    spec = NetworkSpec.from_env(
        {
            "GUESTNET_BRIDGE": "br7",
            "GUESTNET_SUBNET": "10.7.0.0/16",
            "GUESTNET_SUBNET6": "none",
            "GUESTNET_EGRESS": "eth0, wlan0",
            "GUESTNET_MTU": "1400",
        },
        name="lan",
    )
    assert (spec.name, spec.topology, spec.bridge) == ("lan", Topology.BRIDGE, "br7")
    assert (str(spec.ipv4), spec.ipv6) == ("10.7.0.0/16", None)
    assert (spec.egress, spec.mtu) == (("eth0", "wlan0"), 1400)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("GUESTNET_BRIDGE", "no/slash", "letters, digits"),
        ("GUESTNET_BRIDGE", "sixteen-bytes-xy", "at most 15 bytes"),
        ("GUESTNET_SUBNET", "10.0.0.0/31", "a pool is /"),
        ("GUESTNET_SUBNET", "10.0.0.1/24", "has host bits set; the network is 10.0.0.0/24"),
        ("GUESTNET_SUBNET", "ten", "IPv4"),
        ("GUESTNET_SUBNET", "fd00::/64", "IPv4"),
        ("GUESTNET_SUBNET6", "10.0.0.0/8", "IPv6"),
        ("GUESTNET_SUBNET6", "fd00::/127", "pool is /"),
        ("GUESTNET_EGRESS", "eth0,,wlan0", "interface name"),
        ("GUESTNET_EGRESS", "auto,eth0", "'auto' stands alone"),
        ("GUESTNET_EGRESS", "$(reboot)", "letters, digits"),
        ("GUESTNET_MTU", "1e3", "integer"),
        ("GUESTNET_MTU", "67", "68"),
        ("GUESTNET_MTU", "100000", "65535"),
        ("GUESTNET_MTU", "1000", "IPv6 needs 1280"),
        *(
            (variable, empty, "is set but empty; unset it")
            for variable in ("GUESTNET_BRIDGE", "GUESTNET_SUBNET", "GUESTNET_SUBNET6",
                             "GUESTNET_EGRESS", "GUESTNET_MTU")
            for empty in ("", "  ")
        ),
    ],
)  # fmt: skip
def test_a_variable_that_cannot_be_used_is_named_with_its_value(
    variable: str, value: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        NetworkSpec.from_env({variable: value})
    assert refused.value.key == variable
    assert refused.value.value == value
    assert expected in refused.value.expected


def test_no_family_left_names_a_variable() -> None:
    with pytest.raises(ConfigError) as refused:
        NetworkSpec.from_env({"GUESTNET_SUBNET": "none", "GUESTNET_SUBNET6": "none"})
    assert refused.value.key == "GUESTNET_SUBNET"


def test_what_the_environment_did_not_set_keeps_its_own_name() -> None:
    with pytest.raises(ConfigError) as refused:
        NetworkSpec.from_env({"GUESTNET_MTU": "1500"}, ipv4="10.0.0.0/31")
    assert refused.value.key == "ipv4"


# --- guest ids ------------------------------------------------------------------------------------


def size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


ids = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1,
              max_size=255)  # fmt: skip


@given(ids.filter(lambda text: size(text) <= 255))
def test_any_text_up_to_255_bytes_is_an_id(text: str) -> None:
    assert check_guest_id(text) == text
    assert AttachRequest(guest=text).guest == text
    assert AttachRequest.model_validate_json(AttachRequest(guest=text).model_dump_json()) == (
        AttachRequest(guest=text)
    )


@pytest.mark.parametrize(
    "text",
    ["../x", "a;reboot", "a\nb", "$(id)", "é" * 127, "x" * 255, " ", "🐉" * 63, "\x1b[2J", "a/b"],
    ids=ascii,
)
def test_hostile_ids_are_only_text(text: str) -> None:
    assert AttachRequest(guest=text).guest == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1 to 255 bytes of text, this has 0"),
        ("x" * 256, "this has 256"),
        ("é" * 128, "this has 256"),
        ("x" * 10_000_000, "this has 10000000"),
        ("a\0b", "no NUL"),
        ("\ud800", "valid UTF-8"),
    ],
    ids=["empty", "256", "256 of two bytes", "huge", "NUL", "surrogate"],
)
def test_what_is_no_id(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        AttachRequest(guest=text)
    assert refused.value.key == "guest"
    assert expected in refused.value.expected


@pytest.mark.parametrize("value", [None, 7, b"vm-1", ["vm-1"]])
def test_an_id_is_text(value: object) -> None:
    with pytest.raises(ConfigError):
        AttachRequest.read({"guest": value})


# --- names and MACs -------------------------------------------------------------------------------


@given(st.from_regex(r"[A-Za-z0-9_.-]{1,15}", fullmatch=True))
def test_interface_names(name: str) -> None:
    if name in (".", ".."):
        with pytest.raises(ValueError, match="interface name"):
            check_interface_name(name)
    else:
        assert check_interface_name(name) == name


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a:b", "eth0\n", "é", "x" * 16, "%d", "\0"])
def test_interface_names_that_the_kernel_or_a_tool_would_misread(name: str) -> None:
    with pytest.raises(ValueError, match="interface name"):
        check_interface_name(name)


@pytest.mark.parametrize("mac", ["02:6d:73:00:00:02", "02-6D-73-00-00-02", "02:6D:73:00:00:02"])
def test_macs_are_written_in_one_way(mac: str) -> None:
    assert check_mac(mac) == "02:6d:73:00:00:02"


@pytest.mark.parametrize(
    ("mac", "expected"),
    [
        ("01:00:5e:00:00:01", "unicast"),
        ("ff:ff:ff:ff:ff:ff", "unicast"),
        ("00:00:00:00:00:00", "not all zeros"),
        ("02:6d:73:00:00", "six hex pairs"),
        ("02:6d:73:00:00:02:03", "six hex pairs"),
        ("026d73000002", "six hex pairs"),
        ("02:6d:73:00:00:0g", "six hex pairs"),
        ("02:6d:73:00:00:02\n", "six hex pairs"),
        ("", "six hex pairs"),
    ],
    ids=ascii,
)
def test_what_is_no_mac_of_an_interface(mac: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        check_mac(mac)


# --- requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"queues": 0}, "queues"),
        ({"queues": 257}, "queues"),
        ({"owner": -1}, "owner"),
        ({"owner": 2**32 - 1}, "owner"),
        ({"mtu": 67}, "mtu"),
        ({"mac": "01:00:00:00:00:00"}, "mac"),
        ({"tap": "x" * 16}, "tap"),
        ({"ipv4": "fd00::1"}, "ipv4"),
        ({"ipv4": "10.0.0.0/8"}, "ipv4"),
        ({"ipv6": "10.0.0.1"}, "ipv6"),
        ({"netns": ""}, "netns"),
        ({"netns": "a\0b"}, "netns"),
        ({"netns": "x", "owner": 1}, "owner"),
        ({"netns": "x", "queues": 2}, "queues"),
        ({"colour": "blue"}, "colour"),
    ],
    ids=str,
)
def test_a_request_that_cannot_be_is_refused_by_key(keys: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        AttachRequest(guest="vm-1", **keys)
    assert refused.value.key == key


def test_a_request_is_what_was_asked_and_nothing_else() -> None:
    request = AttachRequest.read(
        {"guest": "vm-1", "ipv4": "10.0.0.2", "mac": "02-00-00-00-00-0A", "netns": "ns"}
    )
    assert request.ipv4 == IPv4Address("10.0.0.2")
    assert (request.mac, request.netns, request.tap) == ("02:00:00:00:00:0a", "ns", None)


def test_resolvers_have_one_spelling() -> None:
    written = ["9.9.9.9", "tls://9.9.9.9:853#DNS.quad9.net.", "tls://2620:fe::fe", "fd00:0::1"]
    written += ["tls://[2620:FE::fe]:8853#bücher.test", "tls://9.9.9.9:54"]
    spec = NetworkSpec.read({"dns": written})
    assert [str(each) for each in spec.dns or ()] == [
        "9.9.9.9", "tls://9.9.9.9#dns.quad9.net", "tls://[2620:fe::fe]", "fd00::1",
        "tls://[2620:fe::fe]:8853#xn--bcher-kva.test", "tls://9.9.9.9:54",
    ]  # fmt: skip
    assert [str(each) for each in spec.plain_dns] == ["9.9.9.9", "fd00::1"]
    assert [str(read_upstream(each)) for each in spec.dns or ()] == [str(d) for d in spec.dns or ()]


def test_records_have_one_spelling() -> None:
    spec = NetworkSpec.read(
        {
            "records": {
                "DB.test.": "10.0.0.5",
                "www.test": ["Db.Test"],
                "x": ["fd00:0::1", "10.0.0.5"],
            }
        }
    )
    assert json.loads(spec.model_dump_json())["records"] == {
        "db.test": ["10.0.0.5"], "www.test": ["db.test"], "x": ["fd00::1", "10.0.0.5"]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("guest", "label"),
    [("vm-1", "vm-1"), ("VM_1", "vm_1"), ("x" * 63, "x" * 63), ("1", "1"), ("x" * 64, None),
     ("a.b", None), ("a b", None), ("bücher", None), ("\u212a", None), ("vm/1", None)],
    ids=repr,
)  # fmt: skip
def test_the_label_of_a_guest(guest: str, label: str | None) -> None:
    assert guest_label(guest) == label
