"""A policy as chains: one distinct policy is compiled once, whoever uses it.

Each direction begins with a chain that parts IPv4 from IPv6. Each family's chain sorts the peer:
the host, the metadata services and other guests have chains of their own, which hold only the rules
that may open them (the floor); what can be routed nowhere is refused; everything else meets the
remaining rules in order. The first rule that matches decides, as `policy.decide` does for the same
words.

A policy with rules by name has one more chain, asked where destinations are rewritten: it walks the
same ladder, leaves what addresses decide to the other chains, and hands TCP whose verdict may need
a name to the gateway (and all questions to resolvers). So in the egress chain, where such a flow
arrives only if no gateway takes it, a rule by name refuses. What has no connection to relay (UDP,
ICMP) follows the pins: pairs of guest and address that the gateway vouches for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from ..policy import (
    DNS_PORT,
    NAME_SERVICES,
    WITH_PORTS,
    Action,
    AnyTarget,
    Direction,
    DnsTarget,
    DomainTarget,
    Group,
    GroupTarget,
    Mode,
    NetworkTarget,
    Policy,
    Protocol,
    Rule,
    Target,
    embed_ranges,
    has_names,
)
from .base import (
    EGRESS_DISPATCH,
    INGRESS_DISPATCH,
    RELAY_DISPATCH,
    STATIC_GROUPS,
    TO_RELAY,
    set_word,
)
from .names import TABLE
from .relayed import TO_RESOLVER
from .sets import range6
from .telling import PASS_EGRESS, PASS_INGRESS

Network = IPv4Network | IPv6Network

#: Pins of one rule in one family, of all guests; the gateway lets one have an eighth of it.
MAX_PINS = 65536
_FLOOR_GROUPS = (Group.HOST, Group.METADATA, Group.GUESTS)
_TEREDO = "2001::/32"
_TEREDO_CLIENT = "ip6 {side} & ::ffff:ffff"
_LAYER4 = {Protocol.TCP: "tcp", Protocol.UDP: "udp"}
_IPV4_ONLY, _IPV6_ONLY = "meta nfproto ipv4", "meta nfproto ipv6"
_NAME_SERVICES = "meta l4proto { tcp, udp } th dport { " + (
    ", ".join(map(str, (DNS_PORT, *NAME_SERVICES))) + " }"
)
_PINS = "-pins"


@dataclass(frozen=True, slots=True)
class PolicyChains:
    """The chains of one policy in table inet, each with its rules in order."""

    id: str
    chains: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def egress(self) -> str:
        """The chain a guest's own packets enter."""
        return f"{self.id}-egress"

    @property
    def ingress(self) -> str:
        """The chain packets to the guest enter."""
        return f"{self.id}-ingress"

    @property
    def relay(self) -> str | None:
        """The chain that hands flows to the gateway, of a policy with rules by name."""
        name = f"{self.id}-relay"
        return name if any(name == chain for chain, _rules in self.chains) else None

    def install_text(self) -> str:
        """One transaction that makes the chains and sends the policy's members there."""
        names = [name for name, _rules in self.chains]
        lines = [
            f"add set inet {TABLE} {members_set(self.id, version)} {{ type ipv{version}_addr; }}"
            for version in (4, 6)
        ]
        lines += [
            f"add set inet {TABLE} {pins} "
            f"{{ type ipv{v}_addr . ipv{v}_addr; size {MAX_PINS}; flags timeout; }}"
            for name in names
            for v, pins in _pins_sets(name)
        ]
        lines += [f"add chain inet {TABLE} {name}" for name in names]
        lines += [f"flush chain inet {TABLE} {name}" for name in names]
        lines += [
            f"add rule inet {TABLE} {name} {rule}" for name, rules in self.chains for rule in rules
        ]
        return "\n".join(lines) + "\n" + self.dispatch_text()

    def dispatch_text(self) -> str:
        """The rules that send members to the policy's chains."""
        low, high = members_set(self.id, 4), members_set(self.id, 6)
        relay = ""
        if self.relay is not None:
            relay = (
                f"add rule inet {TABLE} {RELAY_DISPATCH} ip saddr @{low} goto {self.relay}\n"
                f"add rule inet {TABLE} {RELAY_DISPATCH} ip6 saddr @{high} goto {self.relay}\n"
            )
        return relay + (
            f"add rule inet {TABLE} {EGRESS_DISPATCH} ip saddr @{low} goto {self.egress}\n"
            f"add rule inet {TABLE} {EGRESS_DISPATCH} ip6 saddr @{high} goto {self.egress}\n"
            f"add rule inet {TABLE} {INGRESS_DISPATCH} ip daddr @{low} goto {self.ingress}\n"
            f"add rule inet {TABLE} {INGRESS_DISPATCH} ip6 daddr @{high} goto {self.ingress}\n"
        )


def pins_set(policy: str, rule: int, version: int) -> str:
    """The set of a rule's pins in one family: pairs of guest and address, each for a time."""
    return f"{policy}{_PINS}{rule}-{version}"


def _pins_sets(chain: str) -> list[tuple[int, str]]:
    """The sets that a chain of pins reads; none for other chains."""
    return [(version, f"{chain}-{version}") for version in (4, 6) if _PINS in chain]


def members_set(policy: str, version: int) -> str:
    """The set of a policy's guests in one family."""
    return f"{policy}-members{version}"


def removal_text(gone: Iterable[str], kept: Iterable[PolicyChains]) -> str:
    """One transaction that deletes chains nobody uses, and the members' sets beside them.

    The dispatch is written anew, as a single rule of it could only be named by a handle.
    """
    chains = list(gone)
    policies = dict.fromkeys(policy_of(name) for name in chains)
    dispatch = (EGRESS_DISPATCH, INGRESS_DISPATCH, RELAY_DISPATCH)
    lines = [f"flush chain inet {TABLE} {name}" for name in dispatch]
    lines += [f"flush chain inet {TABLE} {name}" for name in chains]
    lines += [f"delete chain inet {TABLE} {name}" for name in chains]
    lines += [
        f"delete set inet {TABLE} {members_set(policy, version)}"
        for policy in policies
        for version in (4, 6)
    ]
    lines += [f"delete set inet {TABLE} {pins}" for name in chains for _v, pins in _pins_sets(name)]
    return "\n".join(lines) + "\n" + "".join(policy.dispatch_text() for policy in kept)


def policy_of(chain: str) -> str:
    """The policy id that a chain's name begins with."""
    return "-".join(chain.split("-")[:2])


def policy_id(policy: Policy) -> str:
    """The name that the chains of a policy share: the same for the same meaning in words."""
    return "policy-" + hashlib.sha256(str(policy).encode()).hexdigest()[:16]


def refusal_chain(direction: Direction) -> str:
    """The chain that refuses, and counts it for the guest."""
    return "refuse_ingress" if direction is Direction.INGRESS else "refuse_egress"


def compile_policy(policy: Policy) -> PolicyChains:
    """The chains of a policy."""
    name = policy_id(policy)
    chains: list[tuple[str, tuple[str, ...]]] = []
    for direction, default in (
        (Direction.EGRESS, policy.default_egress),
        (Direction.INGRESS, policy.default_ingress),
    ):
        chains += _Compiler(name, policy, direction, default).chains()
    if has_names(policy):
        chains += _RelayCompiler(name, policy, Direction.EGRESS, policy.default_egress).chains()
    return PolicyChains(name, tuple(chains))


class _Compiler:
    """One direction of one policy."""

    def __init__(self, name: str, policy: Policy, direction: Direction, default: Action) -> None:
        self._egress = direction is Direction.EGRESS
        self._entry = f"{name}-{direction.value}"
        self._id = name
        self._default = default
        self._refuse = f"goto {refusal_chain(direction)}"
        self._names = self._egress and has_names(policy)
        self._reports = self._egress and policy.mode is Mode.REPORT
        #: The peer's side of the packet.
        self._side = "daddr" if self._egress else "saddr"
        self._rules = [
            (index, rule)
            for index, rule in enumerate(policy.rules)
            if rule.direction in (direction, Direction.ANY)
        ]

    def chains(self) -> list[tuple[str, tuple[str, ...]]]:
        """The entry chain, and before it a chain for each floor group that a rule opens."""
        floors = [(group, self._floor(group)) for group in _FLOOR_GROUPS]
        opened = [(self._floor_name(g), tuple(rules)) for g, rules in floors if rules]
        opened += self._pins_chains()
        entry = self._first()
        for group, rules in floors:
            verdict = f"goto {self._floor_name(group)}" if rules else self._refuse
            entry += [f"{match} {verdict}" for match in self._floor_match(group)]
        entry += [f"{match} {self._refuse}" for match in self._set("unroutable")]
        for index, rule in self._rules if not self._reports else ():
            entry += self._rule(index, rule)
        if self._reports:
            entry += self._told()
        allowed = self._default is Action.ALLOW
        entry.append(self._pass(forwarded=True) if allowed else self._refuse)
        return [*opened, *_by_family(self._entry, entry)]

    def _first(self) -> list[str]:
        """What comes before all rules: past the gateway there are no name services."""
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
                for family, ip, v in ((_IPV4_ONLY, "ip", 4), (_IPV6_ONLY, "ip6", 6))
                for match, word, service in (
                    ("meta l4proto udp ", "", "th dport"),
                    ("", "_other", "meta l4proto"),
                )
            ),
        ]

    def _floor_name(self, group: Group) -> str:
        return f"{self._entry}-{group.value}"

    def _pass(self, *, forwarded: bool) -> str:
        """What allowing means: egress still has to leave by the right door."""
        if not self._egress:
            return f"goto {PASS_INGRESS}"
        return "goto leave" if forwarded else f"goto {PASS_EGRESS}"

    # -- the floor ---------------------------------------------------------------------------

    def _floor(self, group: Group) -> list[str]:
        """Rules for peers of a floor group; empty where no rule opens it."""
        rules = [(index, rule) for index, rule in self._rules if self._concerns(rule, group)]
        if not any(rule.action is Action.ALLOW for _index, rule in rules):
            return []
        lines: list[str] = []
        for index, rule in rules:
            if isinstance(rule.target, DomainTarget):
                lines += self._named(index, rule)
            else:
                targets = self._floor_target(rule.target)
                lines += self._lines(index, rule, targets, forwarded=group is not Group.HOST)
        return [*lines, self._refuse]

    def _concerns(self, rule: Rule, group: Group) -> bool:
        """Whether a rule may match peers of a floor group: deny by any words, allow by its name."""
        if isinstance(rule.target, GroupTarget):
            return rule.target.group is group
        if isinstance(rule.target, DnsTarget):
            return self._egress
        return rule.action is Action.DENY

    def _floor_target(self, target: Target) -> list[str]:
        if isinstance(target, GroupTarget):
            return [""] if target.within is None else self._network(target.within)
        return self._target(target)

    def _floor_match(self, group: Group) -> list[str]:
        if group is Group.HOST:
            side = self._side
            return [
                f"fib {side} type local",
                f"ip6 {side} @host_embedded6",
                f"ip6 {side} {_TEREDO} {_TEREDO_CLIENT.format(side=side)} @host_teredo",
            ]
        return self._group(group)

    # -- rules -------------------------------------------------------------------------------

    def _rule(self, index: int, rule: Rule) -> list[str]:
        """A rule where the peer is in no floor group."""
        target = rule.target
        if isinstance(target, GroupTarget) and target.group not in STATIC_GROUPS:
            return []  # of the floor, which has chains of its own, or unroutable
        if isinstance(target, DomainTarget):
            return self._named(index, rule)
        return self._lines(index, rule, self._target(target), forwarded=True)

    def _lines(self, index: int, rule: Rule, targets: list[str], forwarded: bool) -> list[str]:
        allowed = rule.action is Action.ALLOW
        verdict = self._pass(forwarded=forwarded) if allowed else self._refuse
        return [
            " ".join(part for part in (target, service, "counter", verdict) if part)
            + f' comment "rule {index}"'
            for service in _services(rule)
            for target in targets
            if not _contradict(target, service)
        ]

    # -- rules by name -----------------------------------------------------------------------

    def _named(self, index: int, rule: Rule) -> list[str]:
        """A rule by name, for what the gateway did not take: TCP is refused, the rest has pins."""
        lines = [
            f'{target} {service} counter {self._refuse} comment "rule {index}"'.strip()
            for service in _tcp_service(rule)
            for target in self._reach_of(rule)
        ]
        return [*lines, *(f"{service} jump {self._pins_name(index)}" for service in _rest(rule))]

    def _reach_of(self, rule: Rule) -> list[str]:
        """Peers that a rule by name is about: a name that is allowed opens public ones only."""
        return self._group(Group.PUBLIC) if rule.action is Action.ALLOW else [""]

    def _pins_name(self, index: int) -> str:
        return f"{self._id}{_PINS}{index}"

    def _pins_chains(self) -> list[tuple[str, tuple[str, ...]]]:
        return [
            (self._pins_name(index), tuple(self._pins_rules(index, rule)))
            for index, rule in self._rules
            if isinstance(rule.target, DomainTarget) and _rest(rule)
        ]

    def _pins_rules(self, index: int, rule: Rule) -> list[str]:
        verdict = self._pass(forwarded=True) if rule.action is Action.ALLOW else self._refuse
        return [
            f"{ip} saddr . {ip} daddr @{pins_set(self._id, index, version)} "
            f'counter {verdict} comment "rule {index}"'
            for ip, version in (("ip", 4), ("ip6", 6))
        ]

    def _target(self, target: Target) -> list[str]:
        if isinstance(target, AnyTarget):
            return [""]
        if isinstance(target, DnsTarget):
            # Who may be asked depends on the network, so the asker is part of the key.
            if not self._egress:
                return []
            return ["ip saddr . ip daddr @resolver4", "ip6 saddr . ip6 daddr @resolver6"]
        if isinstance(target, NetworkTarget):
            return self._network(target.network)
        if isinstance(target, GroupTarget):
            return self._group(target.group)
        raise TypeError(f"no nftables words for {target!r}")

    def _group(self, group: Group) -> list[str]:
        return self._set(set_word(group))

    def _set(self, word: str) -> list[str]:
        side = self._side
        return [
            f"ip {side} @{word}4",
            f"ip6 {side} @{word}6",
            f"ip6 {side} {_TEREDO} {_TEREDO_CLIENT.format(side=side)} @{word}_teredo",
        ]

    def _network(self, network: Network) -> list[str]:
        side = self._side
        if isinstance(network, IPv6Network):
            return [f"ip6 {side} {network}"]
        lo, hi = int(network.network_address), int(network.broadcast_address)
        embedded = ", ".join(range6(*part) for part in embed_ranges(lo, hi))
        client = range6(*_inverted(lo, hi))
        return [
            f"ip {side} {network}",
            f"ip6 {side} {{ {embedded} }}",
            f"ip6 {side} {_TEREDO} {_TEREDO_CLIENT.format(side=side)} {client}",
        ]


def _by_family(name: str, lines: list[str]) -> list[tuple[str, tuple[str, ...]]]:
    """A chain that parts the families first: a packet tries no rule that only the other meets.

    A rule by address is up to three lines, of which IPv4 needs one.
    """
    low = tuple(line for line in lines if not line.startswith(("ip6 ", _IPV6_ONLY)))
    high = tuple(line for line in lines if not line.startswith(("ip ", _IPV4_ONLY)))
    first = (f"{_IPV4_ONLY} goto {name}-4", f"goto {name}-6")
    return [(f"{name}-4", low), (f"{name}-6", high), (name, first)]


class _RelayCompiler(_Compiler):
    """The chain that hands flows to the gateway: `return` leaves a flow to the egress chain."""

    def __init__(self, name: str, policy: Policy, direction: Direction, default: Action) -> None:
        super().__init__(name, policy, direction, default)
        self._entry = f"{name}-relay"
        self._refuse = "return"
        named = [index for index, rule in self._rules if isinstance(rule.target, DomainTarget)]
        last = max(named, default=-1)
        self._rules = [(index, rule) for index, rule in self._rules if index <= last]
        self._default = Action.DENY

    def _first(self) -> list[str]:
        return [TO_RESOLVER, "meta l4proto != tcp return"]

    def _told(self) -> list[str]:
        return [f"meta l4proto tcp {TO_RELAY}"]

    def _pass(self, *, forwarded: bool) -> str:  # noqa: ARG002
        return "return"

    def _floor(self, group: Group) -> list[str]:
        lines = super()._floor(group)
        return lines if any(TO_RELAY in line for line in lines) else []

    def _lines(
        self,
        index: int,  # noqa: ARG002
        rule: Rule,
        targets: list[str],
        forwarded: bool,  # noqa: ARG002
    ) -> list[str]:
        if rule.protocols and Protocol.TCP not in rule.protocols:
            return []
        ports = f"tcp dport {_any_of([str(ports) for ports in rule.ports])}" if rule.ports else ""
        if isinstance(rule.target, DnsTarget):
            return []  # its port is the resolver's, which came first
        return [" ".join(part for part in (target, ports, "return") if part) for target in targets]

    def _named(self, index: int, rule: Rule) -> list[str]:  # noqa: ARG002
        return [
            f"{target} {service} {TO_RELAY}".strip()
            for service in _tcp_service(rule)
            for target in self._reach_of(rule)
        ]

    def _pins_chains(self) -> list[tuple[str, tuple[str, ...]]]:
        return []


def _tcp_service(rule: Rule) -> list[str]:
    """The TCP part of a rule's services, if it has one."""
    if rule.protocols and Protocol.TCP not in rule.protocols:
        return []
    return [_transport(["tcp"], rule)]


def _rest(rule: Rule) -> list[str]:
    """What a rule's services have beside TCP, as alternatives."""
    if not rule.protocols:
        return ["meta l4proto != tcp"]
    without_tcp = tuple(p for p in rule.protocols if p is not Protocol.TCP)
    if not without_tcp:
        return []
    ports = rule.ports if Protocol.UDP in without_tcp else ()
    return _services(replace(rule, protocols=without_tcp, ports=ports))


def _inverted(lo: int, hi: int) -> tuple[int, int]:
    """A range of IPv4 addresses as Teredo hides them (RFC 4380 section 4)."""
    mask = int(IPv4Address("255.255.255.255"))
    return hi ^ mask, lo ^ mask


def _services(rule: Rule) -> list[str]:
    """Protocols and ports, as alternatives; an empty one is any."""
    if isinstance(rule.target, DnsTarget):
        return _dns_services(rule)
    if not rule.protocols:
        return [""]
    found = []
    with_ports = [_LAYER4[p] for p in rule.protocols if p in WITH_PORTS]
    if with_ports:
        found.append(_transport(with_ports, rule))
    # ICMP of the other family is just another protocol, which no rule has a word for.
    if Protocol.ICMPV4 in rule.protocols:
        found.append(f"{_IPV4_ONLY} meta l4proto icmp")
    if Protocol.ICMPV6 in rule.protocols:
        found.append(f"{_IPV6_ONLY} meta l4proto ipv6-icmp")
    return found


def _dns_services(rule: Rule) -> list[str]:
    """Port 53 of TCP and UDP, as far as the rule leaves it."""
    protocols = [_LAYER4[p] for p in WITH_PORTS if not rule.protocols or p in rule.protocols]
    if not protocols or (rule.ports and not any(DNS_PORT in ports for ports in rule.ports)):
        return []
    return [f"meta l4proto {_any_of(protocols)} th dport {DNS_PORT}"]


def _transport(protocols: list[str], rule: Rule) -> str:
    words = f"meta l4proto {_any_of(protocols)}"
    if rule.ports:
        words += f" th dport {_any_of([str(ports) for ports in rule.ports])}"
    return words


def _any_of(words: list[str]) -> str:
    return words[0] if len(words) == 1 else "{ " + ", ".join(words) + " }"


def _contradict(target: str, service: str) -> bool:
    """Whether a target of one family is combined with ICMP of the other, which nft refuses."""
    wrong = _IPV4_ONLY if target.startswith("ip6 ") else _IPV6_ONLY
    return bool(target) and service.startswith(wrong)
