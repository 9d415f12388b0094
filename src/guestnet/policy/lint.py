"""Rules that cannot do what their owner meant: never reached, or naming what they cannot open.

Every remark is true whatever the machine's addresses are, so silence is no proof. Not looked for:
a rule covered only by several earlier rules together (two halves of its ports, egress and ingress
rules for `any`), an IPv6 network covered by the IPv4 network it embeds, and coverage by the service
of more than `MAX_COMPARED` other rules of overlapping targets.

A deny rule by name still matches what no allow rule by name does: flows that only claim the name,
and those to addresses that are not public. Behind an allow rule for all else it is remarked on as
coming too late, not as never matching.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv6Network
from typing import NamedTuple, TypeAlias

from .groups import (
    FLOOR,
    UNROUTABLE,
    Address,
    Group,
    Network,
    Places,
    classify,
    groups_inside,
    unroutable_groups,
)
from .match import DNS_PORT
from .rules import (
    WITH_PORTS,
    Action,
    AnyTarget,
    Direction,
    DnsTarget,
    DomainTarget,
    GroupTarget,
    NetworkTarget,
    Policy,
    PortRange,
    Protocol,
    Rule,
    Target,
)

#: Earlier rules compared with one rule, beyond those found by an index. Keeps lint linear.
MAX_COMPARED = 32

_BOTH = (Action.DENY, Action.ALLOW)


@dataclass(frozen=True, slots=True)
class Remark:
    """Something about one rule that its owner should know."""

    rule: int
    """The rule's position, from 0."""
    text: str
    """The rule's canonical text."""
    message: str
    """What is wrong and what to write instead."""


def warnings(policy: Policy, places: Places | None = None) -> tuple[Remark, ...]:
    """Remarks on `policy`, in order of its rules; `places` adds those about this machine."""
    remarks = []
    seen = _Seen()
    for index, rule in enumerate(policy.rules):
        message = _powerless(rule, places)
        if not message:
            # A powerless rule decides nothing, so it covers nothing either.
            message = seen.coverer(rule)
            seen.add(rule)
        if message:
            remarks.append(Remark(index, str(rule), message))
    return tuple(remarks)


# --- rules that match nothing by themselves -------------------------------------------------------


def _powerless(rule: Rule, places: Places | None) -> str:
    """Why `rule` can never match, whatever stands before it; empty if it can."""
    match rule.target:
        case DnsTarget():
            return _powerless_dns(rule)
        case GroupTarget(group, None) if rule.action is Action.ALLOW and group in UNROUTABLE:
            return f"allows nothing: {group} addresses never leave the guest's own link"
        case GroupTarget(group, within) if within is not None:
            return _powerless_narrowed(group, within, places)
        case NetworkTarget(network):
            if isinstance(network, IPv6Network) and rule.protocols == (Protocol.ICMPV4,):
                return "never matches: ICMP of IPv6 is icmpv6"
            return _powerless_network(network, places) if rule.action is Action.ALLOW else ""
    return ""


def _powerless_dns(rule: Rule) -> str:
    if rule.direction is Direction.INGRESS:
        return "never matches: the guest asks its resolvers, so dns is egress"
    if rule.protocols and not set(rule.protocols) & set(WITH_PORTS):
        return "never matches: dns is tcp and udp"
    if rule.ports and not any(DNS_PORT in ports for ports in rule.ports):
        return f"never matches: dns is port {DNS_PORT} only; name the resolver's address instead"
    return ""


def _powerless_narrowed(group: Group, within: Network, places: Places | None) -> str:
    if group is Group.METADATA and group not in groups_inside(within):
        return f"never matches: no known metadata service is inside {within}"
    alone = _address(within)
    if places is not None and alone is not None and classify(alone, places) is not group:
        return f"never matches: {alone} is {classify(alone, places)}"
    return ""


def _powerless_network(network: Network, places: Places | None) -> str:
    alone = _address(network)
    known = {classify(alone, places)} if places and alone is not None else groups_inside(network)
    if len(known) == 1 and known <= FLOOR:
        (group,) = known
        return (
            f"allows nothing: only a rule that names {group} opens it; "
            f"write {GroupTarget(group, network)}"
        )
    if known <= unroutable_groups(network.version):
        groups = ", ".join(sorted(known))
        return f"allows nothing: {groups} addresses never leave the guest's own link"
    return ""


def _address(network: Network) -> Address | None:
    alone = network.prefixlen == network.max_prefixlen
    return network.network_address if alone else None


# --- rules that an earlier rule covers ------------------------------------------------------------

_Key: TypeAlias = tuple[str | int | Group, ...]


class _Service(NamedTuple):
    """What of a flow a rule asks besides the peer."""

    direction: Direction
    protocols: tuple[Protocol, ...]
    ports: tuple[PortRange, ...]

    @classmethod
    def of(cls, rule: Rule) -> _Service:
        if isinstance(rule.target, DnsTarget):
            protocols = tuple(p for p in WITH_PORTS if not rule.protocols or p in rule.protocols)
            return cls(Direction.EGRESS, protocols, (PortRange(DNS_PORT, DNS_PORT),))
        return cls(rule.direction, rule.protocols, rule.ports)

    def covers(self, other: _Service) -> bool:
        """Whether every flow of `other` is one of this, the peers being the same."""
        return (
            (not self.ports or (bool(other.ports) and _hold(self.ports, other.ports)))
            and self.direction.covers(other.direction)
            and (not self.protocols or _include(self.protocols, other.protocols))
        )


def _hold(wide: tuple[PortRange, ...], narrow: tuple[PortRange, ...]) -> bool:
    """Whether `wide` has the ports of `narrow`. Being canonical, one range does."""
    if narrow[0].lo < wide[0].lo or narrow[-1].hi > wide[-1].hi:
        return False
    return all(any(own.lo <= one.lo and one.hi <= own.hi for own in wide) for one in narrow)


def _include(wide: tuple[Protocol, ...], narrow: tuple[Protocol, ...]) -> bool:
    """Whether `wide`, which is not any, has all of `narrow`, which may be any."""
    return bool(narrow) and all(protocol in wide for protocol in narrow)


@dataclass(slots=True)
class _Seen:
    """Earlier rules by target and action, so that a rule is compared with few of them."""

    by_target: dict[tuple[_Key, Action], dict[_Service, Rule]] = field(default_factory=dict)
    prefixes: dict[int, set[int]] = field(default_factory=lambda: {4: set(), 6: set()})

    def add(self, rule: Rule) -> None:
        services = self.by_target.setdefault((_key(rule.target), rule.action), {})
        services.setdefault(_Service.of(rule), rule)
        network = _network(rule.target)
        if network is not None:
            self.prefixes[network.version].add(network.prefixlen)

    def coverer(self, rule: Rule) -> str:
        """A remark naming an earlier rule that decides all that `rule` would, or empty."""
        earlier = self._first(self._covering(rule), rule)
        if earlier is not None:
            return _covered(rule, earlier)
        earlier = self._first(_overtaking(rule), rule)
        return "" if earlier is None else _too_late(earlier)

    def _first(self, keys: Iterable[tuple[_Key, Action]], rule: Rule) -> Rule | None:
        """An earlier rule at one of `keys` that has all of the service of `rule`."""
        service = _Service.of(rule)
        budget = MAX_COMPARED
        for key in keys:
            services = self.by_target.get(key)
            if services is None:
                continue
            if service in services:
                return services[service]
            for other, earlier in services.items():
                if budget == 0:
                    break
                budget -= 1
                if other.covers(service):
                    return earlier
        return None

    def _covering(self, rule: Rule) -> Iterator[tuple[_Key, Action]]:
        """Keys of the earlier rules whose peers include all peers that `rule` matches.

        A deny rule matches the floor as well, an allow rule that does not name it does not: so an
        allow rule covers a deny rule only where no peer of it can be of the floor.
        """
        target = rule.target
        yield _key(AnyTarget()), Action.DENY
        if _above_floor(rule):
            yield _key(AnyTarget()), Action.ALLOW
        for group in _groups_holding(rule):
            yield from ((_key(GroupTarget(group)), action) for action in _BOTH)
        if isinstance(target, DnsTarget):
            yield from ((_key(target), action) for action in _BOTH)
        if isinstance(target, DomainTarget):
            actions = _BOTH if rule.action is Action.ALLOW else (Action.DENY,)
            yield from ((key, action) for key in _wider_names(target) for action in actions)
        network = _network(target)
        if network is None:
            return
        for wider in self._supernets(network):
            yield ("network", *wider), Action.DENY
            if isinstance(target, GroupTarget):
                yield from ((("within", target.group, *wider), action) for action in _BOTH)
            elif rule.action is Action.ALLOW:
                yield ("network", *wider), Action.ALLOW

    def _supernets(self, network: Network) -> Iterator[tuple[int, int, int]]:
        """The network itself and what contains it, of the prefix lengths that were seen."""
        value, bits = int(network.network_address), network.max_prefixlen
        for prefix in self.prefixes[network.version]:
            if prefix <= network.prefixlen:
                host_bits = bits - prefix
                yield network.version, prefix, value >> host_bits << host_bits


def _overtaking(rule: Rule) -> Iterator[tuple[_Key, Action]]:
    """Keys of the earlier rules that allow all that a deny rule by name was meant to deny."""
    if isinstance(rule.target, DomainTarget) and rule.action is Action.DENY:
        yield _key(AnyTarget()), Action.ALLOW
        yield _key(GroupTarget(Group.PUBLIC)), Action.ALLOW
        yield from ((key, Action.ALLOW) for key in _wider_names(rule.target))


def _wider_names(target: DomainTarget) -> Iterator[_Key]:
    """The target's key, and those of the targets that hold all its names."""
    if not target.subdomains:
        yield _key(target)
    labels = target.name.split(".")
    for first in range(len(labels)):
        yield ("suffix", ".".join(labels[first:]))


def _above_floor(rule: Rule) -> bool:
    """Whether no peer of the floor can match `rule`."""
    match rule.target:
        case GroupTarget(group):
            return group not in FLOOR
        case DnsTarget():
            return False
        case _:
            return rule.action is Action.ALLOW


def _groups_holding(rule: Rule) -> frozenset[Group]:
    """The group, if there is one, that every peer of `rule` is in on every machine."""
    match rule.target:
        case GroupTarget(group):
            return frozenset({group})
        case NetworkTarget(network) if rule.action is Action.ALLOW:
            reachable = groups_inside(network) - FLOOR - unroutable_groups(network.version)
            return reachable if len(reachable) == 1 else frozenset()
        case DomainTarget() if rule.action is Action.ALLOW:
            return frozenset({Group.PUBLIC})
        case _:
            return frozenset()


def _network(target: Target) -> Network | None:
    match target:
        case NetworkTarget(network):
            return network
        case GroupTarget(_, within):
            return within
        case _:
            return None


def _key(target: Target) -> _Key:
    match target:
        case GroupTarget(group, None):
            return ("group", group)
        case GroupTarget(group, within) if within is not None:
            return ("within", group, *_network_key(within))
        case NetworkTarget(network):
            return ("network", *_network_key(network))
        case DomainTarget(name, subdomains):
            return ("suffix" if subdomains else "name", name)
        case _:
            return (str(target),)


def _network_key(network: Network) -> tuple[int, int, int]:
    return network.version, network.prefixlen, int(network.network_address)


def _covered(rule: Rule, earlier: Rule) -> str:
    if rule == earlier:
        return "repeats an earlier rule"
    return f"never matches: the earlier `{earlier}` decides all of it"


def _too_late(earlier: Rule) -> str:
    return (
        f"comes too late: the earlier `{earlier}` allows the public addresses of the name; "
        "write the deny rule ahead of it"
    )
