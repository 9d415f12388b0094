"""What workers remember of networks and of guests that others may find."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestnet.gateway import messages
from guestnet.gateway.messages import SetNetwork
from guestnet.gateway.peers import Peers
from guestnet.gateway.service import Service
from guestnet.naming import Upstream, read_upstream

HERE = (Upstream(IPv4Address("9.9.9.9")),)


def order(network: str, **options: Any) -> SetNetwork:
    choices: dict[str, Any] = {
        "upstreams": HERE, "records": {}, "serve_stale_s": 0, "strip_ech": True,
        "deny_encrypted_dns": True, "relays_all": False,
    }  # fmt: skip
    return SetNetwork(sequence=1, network=network, **{**choices, **options})


@pytest.mark.parametrize(
    ("options", "shared"),
    [
        ({}, True),
        ({"deny_encrypted_dns": False}, True),
        ({"records": {"db.test": (IPv4Address("10.0.0.5"),)}}, True),
        ({"records": {"db.test": ("www.test",)}}, False),
        ({"upstreams": (read_upstream("tls://9.9.9.9#dns.quad9.net"),)}, False),
        ({"strip_ech": False}, False),
        ({"serve_stale_s": 60}, False),
    ],
    ids=str,
)
def test_networks_share_answers_that_would_be_the_same(
    options: dict[str, Any], shared: bool
) -> None:
    first = Service.of(order("a"), ())
    second = Service.of(order("b", **options), [first])
    assert (second.cache is first.cache) is shared


IDS = ["vm", "VM", "Vm", "other", "no label", "a.b"]
#: Guests that come (to one of two networks) and go.
steps = st.lists(st.tuples(st.sampled_from(IDS), st.sampled_from(["a", "b", None])), max_size=20)


@given(steps)
def test_who_is_there_is_found_under_a_name_of_its_own(steps: list[tuple[str, str | None]]) -> None:
    peers, there = Peers(), dict[str, str]()
    addresses = {guest: ip_address(f"10.0.0.{number}") for number, guest in enumerate(IDS, 1)}
    for guest, network in steps:
        if network is None:
            peers.go([guest])
            there.pop(guest, None)
        else:
            peers.come([messages.Peer(guest, network, (str(addresses[guest]),))])
            there[guest] = network
    for network in "ab":
        for label in ("vm", "other"):
            having = [g for g, n in there.items() if n == network and g.lower() == label]
            found = peers.named(f"{label}.{network}.guestnet.internal")
            assert (found.guest if found else None) == (having[0] if len(having) == 1 else None)
    for guest, address in addresses.items():
        peer = peers.at(address)
        assert (peer is not None) == (guest in there)
        if peer is not None:
            name = peers.name_of(peer)
            assert name is None or peers.named(name) is peer
            assert not (name is not None and guest in ("no label", "a.b"))
