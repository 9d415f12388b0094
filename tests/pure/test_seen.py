"""What is remembered of a guest for a suggestion, and how much of it at most."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from guestnet.host.seen import NAMES_OF_ADDRESS, REMEMBERED, Seen
from guestnet.model import Decision, read_decision
from guestnet.policy import Protocol

ADDRESS, OTHER = ip_address("93.184.216.34"), ip_address("2606:2800:220:1::34")


def told(name: str, *addresses: object, verdict: str = "allow") -> Decision:
    return read_decision(
        {
            "time": 0, "guest": "vm", "network": "net", "kind": "dns", "protocol": "udp",
            "port": 53, "name": name, "verdict": verdict, "rule": "", "answers": addresses,
        }
    )  # fmt: skip


def flow(name: str, port: int) -> Decision:
    known: dict[str, Any] = {"kind": "flow", "protocol": "tcp", "port": port, "address": ADDRESS}
    return replace(told(name), **known)


def test_an_address_keeps_all_its_names_the_last_first() -> None:
    seen = Seen()
    for name in ("a.test", "b.test", "a.test"):
        seen.take(told(name, ADDRESS))
    seen.take(told("c.test", ADDRESS, OTHER))
    assert seen.names("vm") == {ADDRESS: ["c.test", "a.test", "b.test"], OTHER: ["c.test"]}
    assert seen.names("another") == {}


def test_what_was_denied_is_not_remembered() -> None:
    seen = Seen()
    seen.take(told("a.test", ADDRESS, verdict="deny"))
    assert (seen.names("vm"), seen.questions("vm")) == ({}, [])


def test_a_zone_of_many_names_at_one_address_is_bounded() -> None:
    seen = Seen()
    for number in range(REMEMBERED + 10):
        seen.take(told(f"n{number}.test", ADDRESS))
        seen.take(flow(f"n{number}.test", 1 + number))
    assert len(seen.flows("vm")) == len(seen.questions("vm")) == REMEMBERED
    (names,) = seen.names("vm").values()
    assert names == [f"n{REMEMBERED + 9 - back}.test" for back in range(NAMES_OF_ADDRESS)]
    assert seen.flows("vm")[-1] == (Protocol.TCP, REMEMBERED + 10, ADDRESS, names[0])
    seen.forget("vm")
    assert (seen.flows("vm"), seen.questions("vm"), seen.names("vm")) == ([], [], {})
