"""The summary of a run: what is told twice is one flow."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

from guestnet.cli.summary import Summary
from guestnet.model import Decision


def test_a_forwarded_flow_counts_once_and_with_its_bytes() -> None:
    begun = Decision(
        time=0.0, guest="vm", network="default", kind="flow", protocol="tcp",
        address=IPv4Address("93.184.216.34"), port=80, verdict="allow", rule="allow@public",
        event="begin", flow=7,
    )  # fmt: skip
    ended = replace(begun, event="end", bytes_up=10, bytes_down=20)
    refused = replace(begun, verdict="deny", event=None, omitted=3)
    summary = Summary()
    for decision in (begun, ended, begun, refused):
        summary.take(decision)
    allowed, denied = summary.lines()
    assert (allowed.count, allowed.bytes_up, allowed.bytes_down) == (2, 10, 20)
    assert (denied.verdict, denied.count, summary.omitted) == ("deny", 1, 3)
