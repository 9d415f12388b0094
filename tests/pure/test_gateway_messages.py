"""What goes between the daemon, its workers and their siblings is what arrives, or nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest

from guestnet.gateway.messages import (
    MAX_REPORT_BYTES,
    AddPins,
    Begin,
    Decided,
    Done,
    ForgetGuest,
    Order,
    Peer,
    Pinned,
    PinsStand,
    Ready,
    Report,
    SetGuest,
    SetNetwork,
    SetPeers,
    SetPlaces,
    Settle,
    SetTrust,
    TellPins,
    line,
    read_order,
    read_pinned,
)
from guestnet.gateway.reports import read_report
from guestnet.model import Decision
from guestnet.naming import read_upstream

V4, V6 = IPv4Address("10.0.0.5"), IPv6Address("fd00::5")
GUEST = 'ünknown "vm"\n'

ORDERS: list[Order] = [
    SetGuest(
        sequence=1, guest=GUEST, stay=1, network="default", addresses=(V4, V6), gateways=(V4,),
        host=(V6,), policy="allow@*.example.test", synthetic=True, egress=("eth0", "eth1"),
    ),
    SetNetwork(
        sequence=2, network="a", serve_stale_s=60, strip_ech=False, deny_encrypted_dns=True,
        relays_all=True,
        upstreams=(read_upstream("9.9.9.9"), read_upstream("tls://[fd00::1]:8853#a.test")),
        records={"a.test": (V4, V6), "b.test": ("a.test",)},
    ),
    SetTrust(certificates="-----BEGIN\n"),
    SetPeers(come=(Peer(GUEST, "a", ("10.0.0.1", "fd00::1")),), gone=("vm-2",)),
    ForgetGuest(sequence=3, guest=GUEST),
    SetPlaces(sequence=4, host=(V4, V6), guests=(ip_network("10.0.0.0/8"), ip_network("fd00::/8"))),
    PinsStand(sequence=5),
    Begin(),
    TellPins(worker=1),
    Settle(sequence=9),
]  # fmt: skip

DECISION = Decision(
    time=1.5, guest=GUEST, network="default", kind="dns", protocol="udp", name="a.test", port=53,
    verdict="allow", rule="allow@a.test", rule_index=0, answers=(V4, V6), omitted=3,
)  # fmt: skip
FLOW = Decision(
    time=1.5, guest="vm", network="default", kind="flow", protocol="tcp", address=V6, port=443,
    verdict="deny", rule="default_egress=deny", reason="no rule", bytes_up=1, duration_s=0.25,
)  # fmt: skip
REPORTS: list[Report] = [
    Ready(confinement=("limits", "seccomp")),
    Done(sequence=7),
    AddPins(sequence=8, guest=GUEST, told=1, pins=((0, V4), (2, V6)), ttl_s=60),
    Decided(decision=DECISION),
    Decided(decision=FLOW),
]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.kind)
def test_an_order_is_the_same_after_the_socket(order: Order) -> None:
    sent = line(order)
    assert sent.endswith(b"\n")
    assert b"\n" not in sent[:-1]
    assert read_order(sent) == order


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.kind)
def test_a_report_is_the_same_after_the_socket(report: Report) -> None:
    assert read_report(line(report)) == report


def test_a_sibling_hears_what_was_told() -> None:
    told = Pinned(stay=1, name="a.test", addresses=((V4, 1.5), (V6, 2e9)))
    assert read_pinned(line(told)) == told


@pytest.mark.parametrize(
    ("report", "changes"),
    [
        (Ready(confinement=()), {"kind": "unready"}),
        (Done(sequence=1), {"kind": "set-guest"}),
        (Done(sequence=1), {"sequence": "x"}),
        (Done(sequence=1), {"more": 1}),
        (REPORTS[2], {"pins": [[0, "nowhere"]]}),
        (REPORTS[2], {"pins": [[0, "10.0.0.5"]] * 257}),
        (REPORTS[2], {"ttl_s": 0}),
        (REPORTS[2], {"ttl_s": 86401}),
        (Decided(decision=FLOW), {"decision": None}),
    ],
)
def test_what_is_no_report_is_not_believed(report: Report, changes: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match="no report"):
        read_report(json.dumps({**json.loads(line(report)), **changes}).encode())


@pytest.mark.parametrize(
    "changes",
    [
        {"guest": ""},
        {"guest": "x" * 256},
        {"guest": "a\0b"},
        {"network": "No Network"},
        {"kind": "gossip"},
        {"verdict": "perhaps"},
        {"protocol": "sctp"},
        {"address": "nowhere"},
        {"port": 65536},
        {"port": -1},
        {"name": "x" * 256},
        {"rule": "x" * 1025},
        {"reason": "x" * 2049},
        {"answers": ["10.0.0.5"] * 65},
        {"event": "middle"},
        {"more": 1},
        {"time": "today"},
        {"time": math.nan},
        {"duration_s": math.inf},
        {"duration_s": "1e999"},
    ],
    ids=str,
)
def test_what_is_no_decision_is_not_believed(changes: Mapping[str, Any]) -> None:
    told = {"kind": "decided", "decision": {**json.loads(FLOW.text()), **changes}}
    with pytest.raises(ValueError, match="no report"):
        read_report(json.dumps(told).encode())


def test_a_report_has_an_end() -> None:
    with pytest.raises(ValueError, match="bytes"):
        read_report(b" " * MAX_REPORT_BYTES + line(Done(sequence=1)))


def test_a_decision_in_short_is_without_what_is_as_ever() -> None:
    assert json.loads(FLOW.text(brief=True)) == {
        "time": 1.5, "guest": "vm", "network": "default", "kind": "flow", "protocol": "tcp",
        "address": "fd00::5", "port": 443, "verdict": "deny", "rule": "default_egress=deny",
        "reason": "no rule", "bytes_up": 1, "duration_s": 0.25,
    }  # fmt: skip
    whole = json.loads(FLOW.text())
    assert ip_address(whole["address"]) == FLOW.address
    assert (whole["answers"], whole["event"], whole["direction"]) == ([], None, "egress")
