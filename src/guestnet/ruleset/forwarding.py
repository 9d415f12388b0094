"""The chains that decide about packets on their way, in one direction.

A rule by name refuses TCP here, as it arrives only if no gateway takes it (`handover`). What has no
connection to relay (UDP, ICMP) follows the pins: pairs of guest and address that the gateway
vouches for.
"""

from __future__ import annotations

from ..policy import (
    DNS_PORT,
    NAME_SERVICES,
    Action,
    Direction,
    DomainTarget,
    Policy,
    Rule,
    has_names,
)
from .chains import Chain, pins_chain, pins_set
from .ladder import Ladder, rules_of
from .services import (
    IPV4_ONLY,
    IPV6_ONLY,
    any_of,
    contradict,
    services,
    services_beside_tcp,
    tcp_service,
)
from .telling import PASS_EGRESS, PASS_INGRESS

_NAME_SERVICES = (
    f"meta l4proto {{ tcp, udp }} th dport {any_of([str(p) for p in (DNS_PORT, *NAME_SERVICES)])}"
)


class Forwarding(Ladder):
    """Allows, refuses, and counts for each rule."""

    def __init__(self, name: str, policy: Policy, direction: Direction) -> None:
        is_egress = direction is Direction.EGRESS
        super().__init__(
            f"{name}-{direction.value}",
            policy,
            direction,
            rules_of(policy, direction),
            f"goto {'refuse_egress' if is_egress else 'refuse_ingress'}",
        )
        self._id = name
        self._default = policy.default_egress if is_egress else policy.default_ingress
        self._names = is_egress and has_names(policy)

    def _first(self) -> list[str]:
        """Past the gateway there are no name services."""
        if self._reports:
            return [f"meta l4proto {{ tcp, udp }} th dport {DNS_PORT} counter {self._refuse}"]
        return [f"{_NAME_SERVICES} counter {self._refuse}"] if self._names else []

    def _told(self) -> list[str]:
        """In report mode everything above the floor passes: TCP by the gateway, which tells."""
        return [
            f"meta l4proto tcp counter {self._refuse}",
            *(
                f"{family} {match}update @seen{word}{v} {{ {ip} saddr . {ip} daddr . {service} }} "
                "goto leave"
                for family, ip, v in ((IPV4_ONLY, "ip", 4), (IPV6_ONLY, "ip6", 6))
                for match, word, service in (
                    ("meta l4proto udp ", "", "th dport"),
                    ("", "_other", "meta l4proto"),
                )
            ),
        ]

    def _last(self) -> str:
        return self._verdict(self._default)

    def _verdict(self, action: Action, *, forwarded: bool = True) -> str:
        """What allowing means: egress still has to leave by the right door."""
        if action is Action.DENY:
            return self._refuse
        if not self._is_egress:
            return f"goto {PASS_INGRESS}"
        return "goto leave" if forwarded else f"goto {PASS_EGRESS}"

    def _by_address(
        self, index: int, rule: Rule, peers: list[str], *, forwarded: bool
    ) -> list[str]:
        verdict = self._verdict(rule.action, forwarded=forwarded)
        return [
            " ".join(part for part in (peer, service, "counter", verdict) if part)
            + f' comment "rule {index}"'
            for service in services(rule)
            for peer in peers
            if not contradict(peer, service)
        ]

    def _by_name(self, index: int, rule: Rule) -> list[str]:
        """For what the gateway did not take: TCP is refused, the rest has pins."""
        lines = [
            f'{peer} {service} counter {self._refuse} comment "rule {index}"'.strip()
            for service in tcp_service(rule)
            for peer in self._reach_of(rule)
        ]
        pins = pins_chain(self._id, index)
        return [*lines, *(f"{service} jump {pins}" for service in services_beside_tcp(rule))]

    def _called(self) -> list[Chain]:
        return [
            (pins_chain(self._id, index), tuple(self._pins(index, rule)))
            for index, rule in self._rules
            if isinstance(rule.target, DomainTarget) and services_beside_tcp(rule)
        ]

    def _pins(self, index: int, rule: Rule) -> list[str]:
        return [
            f"{ip} saddr . {ip} daddr @{pins_set(self._id, index, version)} "
            f'counter {self._verdict(rule.action)} comment "rule {index}"'
            for ip, version in (("ip", 4), ("ip6", 6))
        ]
