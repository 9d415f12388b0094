"""Real VMs whose network is a socket of guestnet's, told of it by `guestnet show` alone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from guestnet import vmm
from guestnet.host import Host
from lab.addresses import ALLOWED, METADATA, SITE_IPV4, SITE_IPV6
from lab.qemu import Guest, address_args
from lab.servers import ECHO
from lab.world import World

pytestmark = [pytest.mark.root, pytest.mark.guest]

KINDS = ("stream", "dgram", "tap-fd+vnet")


class Stage:
    """A VM behind each kind of transport."""

    def __init__(self, world: World, host: Host, directory: Path) -> None:
        self.world = world
        self.host = host
        self.directory = directory
        self.vms: dict[str, Guest] = {}

    def boot(self, kind: str) -> Guest:
        given = self.host.attach(
            kind, policy="allow@public", transport=f"{kind}:{self.directory}/{kind}.sock"
        )
        net_args: Any = vmm.render(given, "qemu").data
        kernel_args = vmm.render(given, "kernel-args").text
        more = address_args(
            ipv6=given.ipv6, gateway_ipv6=given.gateway_ipv6, mtu=given.mtu, dns=given.dns
        )
        handed = f"{self.directory}/{kind}.sock" if kind.startswith("tap-fd") else None
        return Guest(self.world.site, net_args, f"{kernel_args} {more}", handed_tap=handed)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    directory = tmp_path_factory.mktemp("stage")
    with (
        World() as world,
        Host.open(directory / "state", site=world.site.path) as host,
        contextlib.ExitStack() as stack,
        ThreadPoolExecutor() as pool,
    ):
        made = Stage(world, host, directory)
        for kind, booting in {kind: pool.submit(made.boot, kind) for kind in KINDS}.items():
            made.vms[kind] = booting.result()
            stack.callback(made.vms[kind].stop)
        yield made


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_allowed_and_what_is_not(stage: Stage, kind: str) -> None:
    vm = stage.vms[kind]
    for address, site in zip(ALLOWED.addresses, (SITE_IPV4.ip, SITE_IPV6.ip), strict=True):
        url = f"http://[{address}]/" if address.version == 6 else f"http://{address}/"
        assert vm.run(f"ping -c 1 -W 3 {address}").ok
        page = json.loads(vm.run(f"wget -qO- '{url}'").output)
        assert (page["server"], page["client"]) == ("allowed", str(site))
    for address in METADATA.addresses:
        assert not vm.run(f"ping -c 1 -W 1 {address}").ok


@pytest.mark.parametrize("kind", KINDS)
def test_a_megabyte_there_and_back(stage: Stage, kind: str) -> None:
    for address in ALLOWED.addresses:
        command = f"head -c 1000000 /dev/zero | nc {address} {ECHO} | wc -c"
        echoed = stage.vms[kind].run(command, timeout_s=30)
        assert echoed.output.strip() == "1000000"


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_was_wrong_with_it(stage: Stage, kind: str) -> None:
    info = stage.host.transport(kind)
    assert info is not None
    assert (info.connections, info.malformed, info.refused, info.restarts) == (1, 0, 0, 0)
    assert info.connected == (not kind.startswith("tap-fd"))


@pytest.mark.parametrize("kind", KINDS)
def test_detach_cuts_it_off(stage: Stage, kind: str) -> None:
    """Last on this page."""
    assert stage.host.detach(kind)
    assert not stage.vms[kind].run(f"ping -c 1 -W 1 {ALLOWED.ipv4}").ok
    assert not (stage.directory / f"{kind}.sock").exists()
