"""When `attach` returns the guest's network works, and putting a live device right disturbs it not.

A namespace guest may send its first packet at once; nothing here sends one twice.
"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from guestnet.host import Host
from hostile import assert_open, doors
from lab.addresses import ALLOWED
from lab.servers import ECHO
from lab.world import World

pytestmark = pytest.mark.root

NETWORKS = {
    "routed": {"name": "routed"},
    "bridge": {
        "name": "bridge",
        "topology": "bridge",
        "ipv4": "172.30.0.0/24",
        "ipv6": "fd42:6d73:63::/64",
    },
}
ATTEMPTS = 10
#: Less than the second after which a lost question for a neighbour is asked again.
AT_ONCE_S = 0.9


@pytest.mark.parametrize("topology", NETWORKS)
def test_a_namespace_guest_is_ready_when_attach_returns(
    world: World, tmp_path: Path, topology: str
) -> None:
    with Host.open(tmp_path / "state", site=world.site.path) as host:
        host.create_network(NETWORKS[topology])
        for number in range(ATTEMPTS):
            namespace = world.add_guest(f"{topology}-{number}")
            host.attach(f"vm-{number}", network=topology, netns=namespace.path, policy="public")
            with namespace.enter():
                for address in sorted(ALLOWED.addresses, key=str):  # IPv6 first
                    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
                    with socket.socket(family, socket.SOCK_DGRAM) as first:
                        first.settimeout(AT_ONCE_S)
                        first.sendto(b"at once", (str(address), ECHO))
                        assert first.recv(99) == b"at once"
            host.detach(f"vm-{number}")
            namespace.delete()


@pytest.mark.parametrize("wrong", ["mtu 1400", "address 02:00:00:00:00:99", "group 0", "down"])
@pytest.mark.parametrize("topology", NETWORKS)
def test_a_live_device_that_is_put_right_works_at_once(
    world: World, tmp_path: Path, topology: str, wrong: str
) -> None:
    wanted = doors(ALLOWED.addresses)
    with Host.open(tmp_path / "state", site=world.site.path) as host:
        host.create_network(NETWORKS[topology])
        tap = host.attach("vm", network=topology, netns=world.guest.path, policy="public").tap
        assert_open(world.guest, wanted)
        world.site.ip(f"link set {tap} {wrong}")
        host.reconcile()
        assert_open(world.guest, wanted)
        assert host.reconcile().steps == ()
