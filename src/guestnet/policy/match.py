"""The decision: one flow, one policy, one verdict.

The ladder, which the firewall's rules repeat step by step:

1. A peer that is unroutable (`groups.unroutable_groups`) is denied.
2. The first rule of the flow's direction that matches decides.
   a. An allow rule by address matches a peer of the floor only if it names the peer's group, or is
      `dns` and the peer a resolver.
   b. A deny rule by name matches a flow that goes by the name, whatever its address.
   c. An allow rule by name matches a flow that goes by the name, if the address is verified to be
      the name's and is public.
   d. No rule by name matches a flow without a name.
3. A peer of the floor is denied.
4. The direction's default decides.
5. In report mode what an egress flow above the floor is denied by is told, and the flow passes.

The firewall knows no names. It decides what is decided before the first rule by name that could
match (`needs_name`), and hands over the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

from ..errors import ConfigError
from .explain import (
    Flow,
    because_default,
    because_floor,
    because_question,
    because_reported,
    because_rule,
    because_unroutable,
)
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
from .names import FlowName, canonical_name
from .rules import (
    PORT_MAX,
    WITH_PORTS,
    Action,
    AnyTarget,
    Direction,
    DnsTarget,
    DomainTarget,
    GroupTarget,
    Mode,
    NetworkTarget,
    Policy,
    Protocol,
    Rule,
    Target,
    Verdict,
)

DNS_PORT = 53
#: What decides where a policy in report mode lets a flow pass that it would deny.
REPORTED = "mode=report"


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
    name: FlowName | None = None,
) -> Verdict:
    """What `policy` says to a flow of a guest with `peer`.

    `direction` is egress or ingress. `port` is the service's, required for tcp and udp and ignored
    for the rest; `Protocol.ANY` is an IP protocol that has no word here. `name` is what an egress
    flow goes by, if anything. Raises `ConfigError` on a question that no packet asks.
    """
    flow, found = _flow(direction, protocol, peer, port, places, name)
    verdict = _decide(policy, flow, found)
    if verdict.allowed or direction is not Direction.EGRESS or not _may_report(policy, found):
        return verdict
    return replace(verdict, action=Action.ALLOW, text=REPORTED, reason=because_reported(verdict))


def needs_name(
    policy: Policy, protocol: Protocol, peer: Address, port: int | None, places: Places
) -> bool:
    """Whether the verdict on an egress flow may depend on its name.

    It may if a rule by name that could match comes before all that decides by address. Otherwise
    `decide` says the same whatever the name. Takes and raises what `decide` does.
    """
    flow, found = _flow(Direction.EGRESS, protocol, peer, port, places, None)
    if policy.mode is Mode.REPORT:
        return _may_report(policy, found)
    if unroutable(found.address, found.group):
        return False
    for rule in policy.rules:
        if isinstance(rule.target, DomainTarget):
            if _serves(rule, flow) and (rule.action is Action.DENY or found.group is Group.PUBLIC):
                return True
        elif _matches(rule, flow, found):
            return False
    return False


def has_names(policy: Policy) -> bool:
    """Whether any rule of `policy` is by name, or names are to be told."""
    by_name = any(isinstance(rule.target, DomainTarget) for rule in policy.rules)
    return by_name or policy.mode is Mode.REPORT


def decide_question(policy: Policy, name: str) -> Verdict:
    """Whether a guest may ask the DNS for `name`; the verdict has no group.

    In the order of the egress rules: the first that denies the name altogether, allows it, or
    allows public addresses whatever their name, decides; else `default_egress`. A rule that denies
    only some services of the name goes by, as do the other rules by address, which say nothing
    about names. Raises `ConfigError` if `name` is none.
    """
    verdict = _decide_question(policy, canonical_name(name))
    if verdict.allowed or policy.mode is Mode.ENFORCE:
        return verdict
    return replace(verdict, action=Action.ALLOW, text=REPORTED, reason=because_reported(verdict))


def _decide_question(policy: Policy, name: str) -> Verdict:
    for index, rule in enumerate(policy.rules):
        if rule.direction.covers(Direction.EGRESS) and _answers(rule, name):
            text = str(rule)
            reason = because_question(name, rule.action, rule, text)
            return Verdict(rule.action, index, text, None, reason)
    action, text = _default(policy, Direction.EGRESS)
    return Verdict(action, None, text, None, because_question(name, action, None, text))


def opens_address(policy: Policy, peer: Address, places: Places) -> bool:
    """Whether a name that this guest resolves may lead to `peer`: public, or opened by address.

    What a rule opens by address for any service it opens for names as well; each flow is still
    decided for itself.
    """
    flow, found = _flow(Direction.EGRESS, Protocol.ANY, peer, None, places, None)
    if unroutable(found.address, found.group):
        return False
    if _may_report(policy, found):
        return True
    return found.group is Group.PUBLIC or any(
        rule.action is Action.ALLOW
        and rule.direction.covers(Direction.EGRESS)
        and isinstance(rule.target, (GroupTarget, NetworkTarget))
        and _reaches(rule.target, flow, found)
        and (found.group not in FLOOR or _names(rule.target, found.group))
        for rule in policy.rules
    )


def may_reach(policy: Policy, peer: Address, places: Places) -> Verdict:
    """Whether there is any egress flow to `peer` that `policy` allows by the peer's address.

    The verdict is that of the rule which allows most early, else of what denies the whole peer.
    """
    flow, found = _flow(Direction.EGRESS, Protocol.ANY, peer, None, places, None)
    family = Protocol.ICMPV4 if found.address.version == 4 else Protocol.ICMPV6
    if unroutable(found.address, found.group):
        return _decide(policy, flow, found)
    # What no rule has decided yet, by protocol.
    left = {p: [(1, PORT_MAX)] for p in (Protocol.TCP, Protocol.UDP, family, Protocol.ANY)}
    denied: tuple[int, Rule] | None = None
    for index, rule in enumerate(policy.rules):
        if not _is_about(rule, flow, found):
            continue
        for protocol, ranges in list(left.items()):
            if rule.protocols and protocol not in rule.protocols:
                continue
            if rule.ports and protocol not in WITH_PORTS:
                continue
            rest = _without(ranges, [(each.lo, each.hi) for each in rule.ports])
            if rest == ranges:
                continue
            if rule.action is Action.ALLOW:
                text = str(rule)
                reason = f"`{text}` lets it reach {found.address}"
                return Verdict(Action.ALLOW, index, text, found.group, reason)
            denied = denied or (index, rule)
            left[protocol] = rest
            if not rest:
                del left[protocol]
    if left or denied is None:
        return _undecided(policy, flow, found, None)
    index, rule = denied
    text = str(rule)
    reason = because_rule(flow, Action.DENY, text, None)
    return Verdict(Action.DENY, index, text, found.group, reason)


def _is_about(rule: Rule, flow: Flow, peer: _Peer) -> bool:
    """Whether a rule by address decides egress flows to a peer, of whatever service."""
    if not rule.direction.covers(Direction.EGRESS):
        return False
    if isinstance(rule.target, (DomainTarget, DnsTarget)):
        return False
    if not _reaches(rule.target, flow, peer):
        return False
    return rule.action is Action.DENY or peer.group not in FLOOR or _names(rule.target, peer.group)


def _without(ranges: list[tuple[int, int]], ports: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What is left of ranges of ports without some others; none given are all."""
    for low, high in ports or [(1, PORT_MAX)]:
        cut = [part for a, b in ranges for part in ((a, min(b, low - 1)), (max(a, high + 1), b))]
        ranges = [(a, b) for a, b in cut if a <= b]
    return ranges


def _may_report(policy: Policy, peer: _Peer) -> bool:
    """Whether a denial of flows to `peer` is told only: never of the floor."""
    return (
        policy.mode is Mode.REPORT
        and peer.group not in FLOOR
        and not unroutable(peer.address, peer.group)
    )


def _answers(rule: Rule, name: str) -> bool:
    """Whether an egress rule decides if `name` may be asked for."""
    match rule.target:
        case DomainTarget() as target:
            whole = not rule.protocols and not rule.ports
            return target.holds(name) and (rule.action is Action.ALLOW or whole)
        case AnyTarget() | GroupTarget(Group.PUBLIC):
            return rule.action is Action.ALLOW
        case _:
            return False


def _flow(
    direction: Direction,
    protocol: Protocol,
    peer: Address,
    port: int | None,
    places: Places,
    name: FlowName | None,
) -> tuple[Flow, _Peer]:
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
        name=name if direction is Direction.EGRESS else None,
    )
    return flow, found


def _decide(policy: Policy, flow: Flow, peer: _Peer) -> Verdict:
    if unroutable(peer.address, peer.group):
        return Verdict(Action.DENY, None, "floor: unroutable", peer.group, because_unroutable(flow))
    passed: Rule | None = None
    for index, rule in enumerate(policy.rules):
        if _matches(rule, flow, peer):
            text = str(rule)
            reason = because_rule(flow, rule.action, text, passed)
            return Verdict(rule.action, index, text, peer.group, reason)
        if passed is None and _could_allow(rule, flow):
            passed = rule
    return _undecided(policy, flow, peer, passed)


def _undecided(policy: Policy, flow: Flow, peer: _Peer, passed: Rule | None) -> Verdict:
    """What holds where no rule matches."""
    if peer.group in FLOOR:
        reason = because_floor(flow, passed)
        return Verdict(Action.DENY, None, f"floor: {peer.group}", peer.group, reason)
    action, text = _default(policy, flow.direction)
    return Verdict(action, None, text, peer.group, because_default(flow, action, text, passed))


def _default(policy: Policy, direction: Direction) -> tuple[Action, str]:
    action = policy.default(direction)
    return action, f"default_{direction}={action}"


def _could_allow(rule: Rule, flow: Flow) -> bool:
    """Whether a rule that did not match would, were the flow's name or address another."""
    if not isinstance(rule.target, DomainTarget) or rule.action is Action.DENY:
        return False
    if flow.name is None:
        return flow.group is Group.PUBLIC and _serves(rule, flow)
    return rule.target.holds(flow.name.name) and _serves(rule, flow)


def _matches(rule: Rule, flow: Flow, peer: _Peer) -> bool:
    if not _serves(rule, flow):
        return False
    if isinstance(rule.target, DomainTarget):
        goes_by_it = flow.name is not None and rule.target.holds(flow.name.name)
        return goes_by_it and (rule.action is Action.DENY or flow.is_named)
    if not _reaches(rule.target, flow, peer):
        return False
    # A deny rule of any target covers the floor; an allow rule opens it only by name.
    return rule.action is Action.DENY or peer.group not in FLOOR or _names(rule.target, peer.group)


def _serves(rule: Rule, flow: Flow) -> bool:
    """Whether the flow is of the rule's direction, protocols and ports."""
    if not rule.direction.covers(flow.direction):
        return False
    if rule.protocols and flow.protocol not in rule.protocols:
        return False
    if not rule.ports:
        return True
    return flow.port is not None and any(flow.port in ports for ports in rule.ports)


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
