"""The decision: one flow, one policy, one verdict.

The ladder, which the firewall's rules repeat step by step:

1. A peer that is unroutable (`groups.unroutable_groups`) is denied.
2. The first rule of the flow's direction that matches decides. An allow rule matches a peer of the
   floor only if it names the peer's group, or is `dns` and the peer a resolver.
3. A peer of the floor is denied.
4. The direction's default decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from ..errors import ConfigError
from .explain import Flow, because_default, because_floor, because_rule, because_unroutable
from .groups import (
    FLOOR,
    Address,
    Group,
    Network,
    Places,
    classify,
    embedded_ipv4,
    unroutable,
    without_scope,
)
from .rules import (
    PORT_MAX,
    WITH_PORTS,
    Action,
    Direction,
    DnsTarget,
    GroupTarget,
    NetworkTarget,
    Policy,
    Protocol,
    Rule,
    Target,
    Verdict,
)

DNS_PORT = 53


@dataclass(frozen=True, slots=True)
class _Peer:
    """What rules ask about the other end, worked out once per decision."""

    address: Address
    embedded: IPv4Address | None
    group: Group

    def inside(self, network: Network) -> bool:
        """Whether the peer, or the IPv4 address it embeds, lies in `network`."""
        return self.address in network or (self.embedded is not None and self.embedded in network)


def decide(
    policy: Policy,
    direction: Direction,
    protocol: Protocol,
    peer: Address,
    port: int | None,
    places: Places,
) -> Verdict:
    """What `policy` says to a flow of a guest with `peer`.

    `direction` is egress or ingress. `port` is the service's, required for tcp and udp and ignored
    for the rest; `Protocol.ANY` is an IP protocol that has no word here. Raises `ConfigError` on a
    question that no packet asks.
    """
    _check_question(direction, protocol, port)
    peer = without_scope(peer)
    found = _Peer(
        peer,
        embedded_ipv4(peer) if isinstance(peer, IPv6Address) else None,
        classify(peer, places),
    )
    flow = Flow(
        direction,
        _protocol_on_wire(protocol, peer),
        peer,
        port if protocol in WITH_PORTS else None,
        found.group,
        is_dns=direction is Direction.EGRESS and port == DNS_PORT and peer in places.dns,
    )
    return _decide(policy, flow, found)


def _decide(policy: Policy, flow: Flow, peer: _Peer) -> Verdict:
    if unroutable(peer.address, peer.group):
        return Verdict(Action.DENY, None, "floor: unroutable", peer.group, because_unroutable(flow))
    for index, rule in enumerate(policy.rules):
        if _matches(rule, flow, peer):
            text = str(rule)
            reason = because_rule(flow, rule.action, text)
            return Verdict(rule.action, index, text, peer.group, reason)
    if peer.group in FLOOR:
        return Verdict(Action.DENY, None, f"floor: {peer.group}", peer.group, because_floor(flow))
    action = policy.default(flow.direction)
    text = f"default_{flow.direction}={action}"
    return Verdict(action, None, text, peer.group, because_default(flow, action, text))


def _matches(rule: Rule, flow: Flow, peer: _Peer) -> bool:
    if not rule.direction.covers(flow.direction):
        return False
    if rule.protocols and flow.protocol not in rule.protocols:
        return False
    if rule.ports and not any(flow.port in ports for ports in rule.ports if flow.port is not None):
        return False
    if not _reaches(rule.target, flow, peer):
        return False
    # A deny rule of any target covers the floor; an allow rule opens it only by name.
    return rule.action is Action.DENY or peer.group not in FLOOR or _names(rule.target, peer.group)


def _reaches(target: Target, flow: Flow, peer: _Peer) -> bool:
    match target:
        case DnsTarget():
            return flow.is_dns and flow.protocol in WITH_PORTS
        case GroupTarget(group, within):
            return peer.group is group and (within is None or peer.inside(within))
        case NetworkTarget(network):
            return peer.inside(network)
        case _:
            return True


def _names(target: Target, group: Group) -> bool:
    """Whether an allow rule of this target opens `group`, a group of the floor."""
    if isinstance(target, GroupTarget):
        return target.group is group
    return isinstance(target, DnsTarget)


def _protocol_on_wire(protocol: Protocol, peer: Address) -> Protocol:
    """ICMP of the other family is just another protocol: IPv6 may carry number 1, IPv4 58."""
    family = {Protocol.ICMPV4: 4, Protocol.ICMPV6: 6}.get(protocol, peer.version)
    return protocol if family == peer.version else Protocol.ANY


def _check_question(direction: Direction, protocol: Protocol, port: int | None) -> None:
    if direction is Direction.ANY:
        raise ConfigError("direction", direction.value, "a flow is egress or ingress")
    if protocol in WITH_PORTS and port is None:
        # Without a port, a deny rule with ports could not match and a later allow rule would.
        raise ConfigError("port", port, f"a {protocol} flow has a port")
    if port is not None and not 0 <= port <= PORT_MAX:
        raise ConfigError("port", port, f"is 0 to {PORT_MAX}")
