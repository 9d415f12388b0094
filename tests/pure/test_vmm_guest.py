"""What the guest is told: the kernel's argument, variables, cloud-init."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from attachments import attachment
from guestnet.errors import ConfigError
from guestnet.model import Attachment
from guestnet.vmm import render

IPV4_ONLY: dict[str, Any] = {"ipv6": None, "gateway_ipv6": None}
IPV6_ONLY: dict[str, Any] = {"ipv4": None, "gateway_ipv4": None}


def test_kernel_argument_is_exact() -> None:
    expected = "ip=172.16.0.6::172.16.0.5:255.255.255.252::eth0:off"
    assert render(attachment(), "kernel-args").text == expected
    assert render(attachment(**IPV4_ONLY), "kernel-args").text == expected


def test_kernel_argument_takes_two_ipv4_resolvers() -> None:
    dns = ("2620:fe::fe", "9.9.9.9", "1.1.1.1", "8.8.8.8")
    argument = render(attachment(dns=dns), "kernel-args", dns=True).text
    assert argument.endswith(":eth0:off:9.9.9.9:1.1.1.1")


def test_kernel_argument_with_dns_but_no_resolver_is_the_plain_one() -> None:
    guest = attachment(dns=("2620:fe::fe",))
    assert render(guest, "kernel-args", dns=True) == render(guest, "kernel-args")


def test_kernel_argument_needs_ipv4() -> None:
    with pytest.raises(ConfigError, match="no IPv6; use env or cloud-init"):
        render(attachment(**IPV6_ONLY), "kernel-args")


def test_env_has_a_variable_for_each_active_family() -> None:
    ipv4 = {"GUESTNET_IPV4": "addr=172.16.0.6/30,gw=172.16.0.5,dns=9.9.9.9"}
    ipv6 = {"GUESTNET_IPV6": "addr=fd42:6d73:62:1::2/64,gw=fd42:6d73:62:1::1,dns=2620:fe::fe"}
    interface = {"GUESTNET_IFACE": "iface=eth0,mac=02:6d:73:00:01:02,mtu=1420"}
    assert render(attachment(), "env").data == interface | ipv4 | ipv6
    assert render(attachment(**IPV4_ONLY), "env").data == interface | ipv4
    assert render(attachment(**IPV6_ONLY), "env").data == interface | ipv6


def test_env_repeats_dns_or_leaves_it_out() -> None:
    data = render(attachment(dns=("9.9.9.9", "1.1.1.1")), "env").data
    assert isinstance(data, dict)
    assert data["GUESTNET_IPV4"].endswith(",dns=9.9.9.9,dns=1.1.1.1")
    assert data["GUESTNET_IPV6"].endswith(",gw=fd42:6d73:62:1::1")


def _ethernet(guest: Attachment) -> dict[str, Any]:
    config = yaml.safe_load(render(guest, "cloud-init").text)
    assert config["version"] == 2
    (device,) = config["ethernets"].values()
    assert isinstance(device, dict)
    return device


def test_cloud_init_dual_stack_keeps_the_order_of_resolvers() -> None:
    assert _ethernet(attachment()) == {
        "match": {"macaddress": "02:6d:73:00:01:02"},
        "set-name": "eth0",
        "mtu": 1420,
        "dhcp4": False,
        "dhcp6": False,
        "accept-ra": False,
        "addresses": ["172.16.0.6/30", "fd42:6d73:62:1::2/64"],
        "routes": [
            {"to": "0.0.0.0/0", "via": "172.16.0.5"},
            {"to": "::/0", "via": "fd42:6d73:62:1::1"},
        ],
        "nameservers": {"addresses": ["2620:fe::fe", "9.9.9.9"]},
    }


def test_cloud_init_single_family_leaves_the_other_out() -> None:
    ipv4, ipv6 = _ethernet(attachment(**IPV4_ONLY)), _ethernet(attachment(**IPV6_ONLY))
    assert ipv4["addresses"] == ["172.16.0.6/30"]
    assert ipv4["routes"] == [{"to": "0.0.0.0/0", "via": "172.16.0.5"}]
    assert ipv4["nameservers"] == {"addresses": ["9.9.9.9"]}
    assert ipv6["addresses"] == ["fd42:6d73:62:1::2/64"]
    assert ipv6["routes"] == [{"to": "::/0", "via": "fd42:6d73:62:1::1"}]
    assert ipv6["nameservers"] == {"addresses": ["2620:fe::fe"]}


def test_cloud_init_without_resolvers_or_gateways_has_no_empty_keys() -> None:
    device = _ethernet(attachment(dns=(), gateway_ipv4=None, gateway_ipv6=None))
    assert "nameservers" not in device
    assert "routes" not in device
