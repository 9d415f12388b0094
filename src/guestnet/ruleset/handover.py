"""The chain that hands flows to the gateway, of a policy with rules by name.

It is asked where destinations are rewritten. All questions to resolvers are the gateway's, and so
is TCP whose verdict may need a name; `return` leaves a flow to the chains that decide by address.
"""

from __future__ import annotations

from ..policy import Direction, DnsTarget, DomainTarget, Group, Policy, Rule
from .base import TO_RELAY
from .ladder import Ladder, rules_of
from .relayed import TO_RESOLVER
from .services import concerns_tcp, ports_of, tcp_service


class Handover(Ladder):
    """Goes as far as the last rule by name: after it addresses decide alone."""

    def __init__(self, name: str, policy: Policy) -> None:
        rules = rules_of(policy, Direction.EGRESS)
        last = max((i for i, rule in rules if isinstance(rule.target, DomainTarget)), default=-1)
        super().__init__(
            f"{name}-relay", policy, Direction.EGRESS, [r for r in rules if r[0] <= last], "return"
        )

    def _first(self) -> list[str]:
        return [TO_RESOLVER, "meta l4proto != tcp return"]

    def _told(self) -> list[str]:
        return [f"meta l4proto tcp {TO_RELAY}"]

    def _last(self) -> str:
        return "return"

    def _floor(self, group: Group) -> list[str]:
        lines = super()._floor(group)
        return lines if any(TO_RELAY in line for line in lines) else []

    def _by_address(
        self,
        index: int,  # noqa: ARG002
        rule: Rule,
        peers: list[str],
        *,
        forwarded: bool,  # noqa: ARG002
    ) -> list[str]:
        if not concerns_tcp(rule):
            return []
        if isinstance(rule.target, DnsTarget):
            return []  # its port is the resolver's, which came first
        ports = f"tcp dport {ports_of(rule)}" if rule.ports else ""
        return [" ".join(part for part in (peer, ports, "return") if part) for peer in peers]

    def _by_name(self, index: int, rule: Rule) -> list[str]:  # noqa: ARG002
        return [
            f"{peer} {service} {TO_RELAY}".strip()
            for service in tcp_service(rule)
            for peer in self._reach_of(rule)
        ]
