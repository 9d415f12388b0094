"""What a guest sees of another end that is not there.

A connection that cannot be made fails as it would without guestnet: nobody answers the guest before
the other end has. One that stands can only be reset, which the decision explains (docs/ways.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

import pytest

from beside import MANNERS, Beside, beside, of
from ends import End, named
from lab.addresses import ALLOWED
from lab.caller import Caller

pytestmark = pytest.mark.root

Address = IPv4Address | IPv6Address

BOTH = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
PORT, CLOSED = 9000, 9001
#: Where the internet's router has no way to, or says nothing.
NOWHERE: dict[int, Address] = {
    4: IPv4Address("93.184.216.99"),
    6: IPv6Address("2606:2800:220:1::99"),
}
SILENT: dict[int, Address] = {
    4: IPv4Address("93.184.216.98"),
    6: IPv6Address("2606:2800:220:1::98"),
}
#: What a cable, and guestnet, show of it.
ERRORS = {
    "closed port": ("ECONNREFUSED",),
    "unreachable": ("EHOSTUNREACH", "ENETUNREACH"),
    "silent": ("ETIMEDOUT",),
}
#: What a relayed connection shows of one that fails later.
RESET = "ECONNRESET"
_DROPS = f"""
table inet dead {{
  chain input {{
    type filter hook input priority 0
    tcp dport {PORT} drop
  }}
}}
"""


@pytest.fixture(scope="module", params=["forwarded", "relays_all", "rootless"])
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Beside]:
    with beside(MANNERS[request.param], tmp_path_factory.mktemp("nobody")) as made:
        internet = made.world.internet
        internet.sysctl("ipv4.ip_forward", 1)
        internet.sysctl("ipv6.conf.all.forwarding", 1)
        for version in (4, 6):
            internet.ip(
                f"route add unreachable {NOWHERE[version]}",
                f"route add blackhole {SILENT[version]}",
            )
        # Who connects out there gives up soon.
        for each in (made.world.site, made.guest.namespace, made.direct.namespace):
            each.sysctl("ipv4.tcp_syn_retries", 1)
            each.sysctl("ipv4.tcp_retries2", 2)
        yield made


def outcome(caller: Caller, address: Address, port: int) -> str:
    """The error that connecting there ends with, during it or after it."""
    try:
        with caller.connect(address, port) as stream:
            stream.recv(1)
    except OSError as error:
        return named(error)
    return "none"


@contextlib.contextmanager
def dead(stage: Beside) -> Iterator[None]:
    """The server's machine takes no packet any more."""
    stage.world.internet.run(["nft", "-f", "-"], stdin=_DROPS)
    try:
        yield
    finally:
        stage.world.internet.run(["nft", "delete", "table", "inet", "dead"])


@BOTH
@pytest.mark.parametrize("what", ["closed port", "unreachable", "silent"])
def test_what_cannot_be_reached(stage: Beside, what: str, version: int) -> None:
    to: dict[str, Address] = {"closed port": of(ALLOWED, version), "unreachable": NOWHERE[version]}
    address = to.get(what, SILENT[version])
    direct = outcome(stage.direct, address, CLOSED)
    through = outcome(stage.guest, address, CLOSED)
    assert direct in ERRORS[what]
    assert through == direct


@BOTH
def test_a_server_that_dies_with_its_window_closed(stage: Beside, version: int) -> None:
    observed = []
    for caller in (stage.direct, stage.guest):
        told: list[str] = []
        with stage.meeting(caller, version, PORT) as (near, _far), dead(stage):
            client = End(near, "client", told)
            client.fills()
            client.fails()
            client.reads()
        observed.append(told[-1])
    failure = RESET if stage.manner.is_relayed else "ETIMEDOUT"
    assert observed == ["client read until ETIMEDOUT b''", f"client read until {failure} b''"]
