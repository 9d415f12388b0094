"""Policy by name for a real VM, with what its busybox holds: nslookup, wget, nc, ping."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from guestnet import vmm
from guestnet.host import Host
from guestnet.model import Decision
from lab.addresses import ALLOWED, FORBIDDEN, RESOLVER
from lab.qemu import Guest, Result, address_args
from lab.servers import BANNER, HTTP, HTTPS, Arrival
from lab.world import World

pytestmark = [pytest.mark.root, pytest.mark.guest]

Address = IPv4Address | IPv6Address

ID = "vm-named"
POLICY = f"allow@{ALLOWED.name}:tcp:80+{BANNER},allow@{ALLOWED.name}:icmpv4+icmpv6"
PATIENCE_S = 20.0
#: Less than a silent client is waited for (3 s).
AT_ONCE_S = 2.5
BOTH = pytest.mark.parametrize("number", [0, 1], ids=["IPv4", "IPv6"])


@dataclass
class Stage:
    world: World
    host: Host
    vm: Guest

    def run(self, command: str) -> Result:
        """A command in the VM, which must be over at once, well or badly."""
        began = time.monotonic()
        result = self.vm.run(command, timeout_s=PATIENCE_S)
        took = time.monotonic() - began
        assert took < AT_ONCE_S, result.output
        return result

    def decided(self, **wanted: Any) -> Decision:
        """The last decision with these fields, as soon as there is one."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            for decision in reversed(self.host.decisions(ID)):
                if all(getattr(decision, key) == value for key, value in wanted.items()):
                    return decision
            assert time.monotonic() < deadline, self.host.decisions(ID)
            time.sleep(0.01)

    def arrivals(self) -> list[Arrival]:
        """What reached servers other than the resolver."""
        return [a for a in self.world.arrivals() if a.kind != "dns"]


@pytest.fixture(scope="module")
def the_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    state = tmp_path_factory.mktemp("names")
    with World() as world, Host.open(state, site=world.site.path) as host:
        host.create_network({"name": "net", "dns": [str(a) for a in RESOLVER.addresses]})
        given = host.attach(ID, network="net", policy=POLICY)
        net_args = vmm.render(given, "qemu").data
        assert isinstance(net_args, list)
        more = address_args(
            ipv6=given.ipv6, gateway_ipv6=given.gateway_ipv6, mtu=given.mtu, dns=given.dns
        )
        kernel_args = f"{vmm.render(given, 'kernel-args').text} {more}"
        with Guest(world.site, net_args, kernel_args) as vm:
            yield Stage(world, host, vm)
        host.detach(ID)


@pytest.fixture
def stage(the_stage: Stage) -> Stage:
    """The stage, with nothing written down of what arrived before."""
    the_stage.world.servers.forget()
    return the_stage


def url(address: Address) -> str:
    return f"http://[{address}]/" if address.version == 6 else f"http://{address}/"


def test_an_allowed_name_is_resolved_and_fetched(stage: Stage) -> None:
    told = stage.run(f"nslookup {ALLOWED.name}")
    assert told.ok
    assert all(str(address) in told.output for address in ALLOWED.addresses)
    page = json.loads(stage.run(f"wget -qO- http://{ALLOWED.name}/").output)
    assert (page["server"], page["host"]) == ("allowed", ALLOWED.name)
    flow = stage.decided(kind="flow", port=HTTP, verdict="allow")
    assert (flow.name, flow.rule_index) == (ALLOWED.name, 0)
    assert stage.run(f"ping -c 1 -W 3 {ALLOWED.name}").ok


@BOTH
def test_each_family_goes_by_the_name_it_was_told_for(stage: Stage, number: int) -> None:
    address = ALLOWED.addresses[number]
    assert stage.run(f"nslookup {ALLOWED.name}").ok
    page = stage.run(f"wget -qO- --header 'Host: {ALLOWED.name}' '{url(address)}'")
    assert json.loads(page.output)["address"] == str(address)
    # The server speaks first, and then says what it hears.
    assert stage.run(f"echo back | nc {address} {BANNER} | head -n 2").output == (
        "220 allowed\r\nback\n"
    )
    assert stage.decided(kind="flow", port=BANNER, address=address).name == ALLOWED.name
    assert stage.run(f"ping -c 1 -W 3 {address}").ok


def test_another_name_does_not_exist(stage: Stage) -> None:
    assert "NXDOMAIN" in stage.run(f"nslookup {FORBIDDEN.name}").output
    refused = stage.run(f"wget -qO- http://{FORBIDDEN.name}/")
    assert "bad address" in refused.output
    refusal = stage.decided(kind="dns", name=FORBIDDEN.name)
    assert (refusal.verdict, refusal.rule) == ("deny", "default_egress=deny")
    assert FORBIDDEN.name in refusal.reason
    assert stage.world.arrivals(kind="dns") == []
    assert stage.arrivals() == []


@BOTH
def test_another_name_at_an_allowed_address_is_reset(stage: Stage, number: int) -> None:
    address = ALLOWED.addresses[number]
    assert stage.run(f"nslookup {ALLOWED.name}").ok
    refused = stage.run(f"wget -qO- --header 'Host: {FORBIDDEN.name}' '{url(address)}'")
    assert "reset" in refused.output
    refusal = stage.decided(kind="flow", address=address, name=FORBIDDEN.name)
    assert (refusal.verdict, refusal.rule) == ("deny", "default_egress=deny")
    # Nothing was said there.
    assert all(a.kind == "tcp" for a in stage.arrivals())


@BOTH
def test_another_address_is_refused(stage: Stage, number: int) -> None:
    """Where a rule by name might have been about it the gateway says why; else `explain` does."""
    address = FORBIDDEN.addresses[number]
    assert "reset" in stage.run(f"wget -qO- '{url(address)}'").output
    refusal = stage.decided(kind="flow", address=address, port=HTTP)
    assert f"the guest resolved no name to {address}" in refusal.reason
    assert not stage.run(f"nc {address} {HTTPS} </dev/null").ok
    assert stage.host.explain(ID, "tcp", address, HTTPS).text == "default_egress=deny"
    assert not stage.vm.run(f"ping -c 1 -W 1 {address}", timeout_s=PATIENCE_S).ok
    assert stage.arrivals() == []
