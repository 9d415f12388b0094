"""What an owner may say: rules, and the policy that orders them.

All values are frozen, checked and canonical: two rules that mean the same by spelling (ports out of
order, a protocol twice) are equal, and `str()` gives the one text that parses back to the value.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address, IPv6Network
from typing import ClassVar, TypeAlias

from ..errors import ConfigError
from .groups import FLOOR, Group, Network
from .names import canonical_name, is_below

#: Rules in one policy. A firewall rule each at worst; real policies have tens.
MAX_RULES = 10_000
#: Port ranges in one rule, so that one rule stays one firewall lookup of modest size.
MAX_PORT_RANGES = 256
PORT_MAX = 65535


class Action(StrEnum):
    """What a rule does with what it matches."""

    ALLOW = "allow"
    DENY = "deny"


class Mode(StrEnum):
    """Whether a policy stops what it denies."""

    ENFORCE = "enforce"
    REPORT = "report"
    """Egress above the floor passes, and what would be denied is told."""


class Direction(StrEnum):
    """Who opens the flow: the guest (egress) or its peer (ingress)."""

    EGRESS = "egress"
    INGRESS = "ingress"
    ANY = "any"

    def covers(self, other: Direction) -> bool:
        """Whether every flow of direction `other` is one of this direction."""
        return self is Direction.ANY or self is other


class Protocol(StrEnum):
    """The protocol above IP. A flow of `ANY` is one of none of the others (GRE, SCTP, …)."""

    ANY = "any"
    TCP = "tcp"
    UDP = "udp"
    ICMPV4 = "icmpv4"
    ICMPV6 = "icmpv6"

    @classmethod
    def numbered(cls, number: int) -> Protocol:
        """The protocol of an IP protocol number (IANA)."""
        return _NUMBERED.get(number, cls.ANY)


_NUMBERED = {1: Protocol.ICMPV4, 6: Protocol.TCP, 17: Protocol.UDP, 58: Protocol.ICMPV6}


#: What an error says of a rule by name in another direction.
BY_NAME_IS_EGRESS = "a rule by name is egress; who comes in is known by address"

#: The protocols whose flows have a port.
WITH_PORTS = (Protocol.TCP, Protocol.UDP)


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Ports `lo` to `hi`, both included, of 1 to 65535."""

    lo: int
    hi: int

    def __post_init__(self) -> None:
        if not 1 <= self.lo <= self.hi <= PORT_MAX:
            raise ConfigError("ports", str(self), f"is LO-HI with 1 <= LO <= HI <= {PORT_MAX}")

    def __str__(self) -> str:
        return str(self.lo) if self.lo == self.hi else f"{self.lo}-{self.hi}"

    def __contains__(self, port: int) -> bool:
        return self.lo <= port <= self.hi


@dataclass(frozen=True, slots=True)
class AnyTarget:
    """Every peer; as the target of an allow rule, every peer above the floor."""

    def __str__(self) -> str:
        return "any"


@dataclass(frozen=True, slots=True)
class DnsTarget:
    """The resolvers told to the guests (`Places.dns`): egress, tcp and udp, port 53 only."""

    def __str__(self) -> str:
        return "dns"


@dataclass(frozen=True, slots=True)
class GroupTarget:
    """Every peer of one group; a group of the floor may be narrowed to those `within` a network."""

    group: Group
    within: Network | None = None

    def __post_init__(self) -> None:
        if self.group is Group.NONE:
            raise ConfigError("target", "none", "is no peer that a rule can name")
        if self.within is not None and self.group not in FLOOR:
            groups = ", ".join(sorted(FLOOR))
            raise ConfigError("target", str(self), f"only {groups} are narrowed with '='")
        if self.within is not None:
            _check_network(self.within)

    def __str__(self) -> str:
        return self.group.value if self.within is None else f"{self.group}={written(self.within)}"


@dataclass(frozen=True, slots=True)
class NetworkTarget:
    """Every peer inside a network; an IPv4 network includes the IPv6 addresses that embed it."""

    network: Network

    def __post_init__(self) -> None:
        _check_network(self.network)

    def __str__(self) -> str:
        return written(self.network)


@dataclass(frozen=True, slots=True)
class DomainTarget:
    """Every flow that goes by a DNS name; an allow rule asks that its address be the name's too.

    Raises `ConfigError` if `name` is none.
    """

    name: str
    """Canonical, whatever spelling was given."""
    subdomains: bool = False
    """Whether the names below it are meant as well."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", canonical_name(self.name))

    def __str__(self) -> str:
        if self.subdomains:
            return f"*.{self.name}"
        # Bare, these would read back as a word or as an address.
        needs_key = "." not in self.name or _ADDRESS_LIKE.issuperset(self.name)
        return f"domain={self.name}" if needs_key else self.name

    def holds(self, name: str) -> bool:
        """Whether `name`, which is canonical, is meant."""
        return is_below(name, self.name) if self.subdomains else name == self.name

    def covers(self, other: DomainTarget) -> bool:
        """Whether every name of `other` is one of this."""
        return self.holds(other.name) and (self.subdomains or not other.subdomains)


_ADDRESS_LIKE = frozenset("0123456789.-")

Target: TypeAlias = AnyTarget | DnsTarget | GroupTarget | NetworkTarget | DomainTarget


def _check_network(network: Network) -> None:
    if isinstance(network, IPv6Network) and network.network_address.scope_id is not None:
        raise ConfigError("target", str(network), "an address in a rule has no zone ('%')")


def written(network: Network) -> str:
    """A network in the grammar's words: one address without its /32, IPv6 in brackets."""
    address = network.network_address
    text = str(address)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        # Python 3.13 changed how it writes these; the canonical text must outlive an upgrade.
        text = f"::ffff:{address.ipv4_mapped}"
    if network.prefixlen < network.max_prefixlen:
        text += f"/{network.prefixlen}"
    return f"[{text}]" if network.version == 6 else text


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. Ports are the service's: the destination's for egress, the guest's for ingress.

    Empty `protocols` is any, empty `ports` is any. Ports without protocols means tcp and udp.
    Rules by name are egress: only the flow that the guest opens says where it goes.
    """

    action: Action
    direction: Direction
    target: Target
    protocols: tuple[Protocol, ...] = ()
    ports: tuple[PortRange, ...] = ()

    def __post_init__(self) -> None:
        protocols = _canonical_protocols(self.protocols)
        ports = _merged_ports(self.ports)
        if ports and not protocols:
            protocols = WITH_PORTS
        if ports and not set(protocols) <= set(WITH_PORTS):
            raise ConfigError("ports", "+".join(map(str, ports)), "only tcp and udp have ports")
        if len(ports) > MAX_PORT_RANGES:
            raise ConfigError("ports", len(ports), f"at most {MAX_PORT_RANGES} ranges in one rule")
        if isinstance(self.target, DomainTarget) and self.direction is not Direction.EGRESS:
            raise ConfigError("direction", self.direction.value, BY_NAME_IS_EGRESS)
        object.__setattr__(self, "protocols", protocols)
        object.__setattr__(self, "ports", ports)

    def __str__(self) -> str:
        direction = "" if self.direction is Direction.EGRESS else f":{self.direction}"
        protocols = ":" + "+".join(self.protocols) if self.protocols else ""
        ports = ":" + "+".join(map(str, self.ports)) if self.ports else ""
        return f"{self.action}{direction}@{self.target}{protocols}{ports}"


def _canonical_protocols(protocols: Iterable[Protocol]) -> tuple[Protocol, ...]:
    """Each once, in the enumeration's order; `ANY` among them is no restriction at all."""
    given = set(protocols)
    if Protocol.ANY in given:
        return ()
    return tuple(protocol for protocol in Protocol if protocol in given)


def _merged_ports(ports: Iterable[PortRange]) -> tuple[PortRange, ...]:
    """The same ports as sorted ranges that neither overlap nor touch."""
    merged: list[PortRange] = []
    for ports_range in sorted(ports):
        if merged and ports_range.lo <= merged[-1].hi + 1:
            merged[-1] = PortRange(merged[-1].lo, max(merged[-1].hi, ports_range.hi))
        else:
            merged.append(ports_range)
    return tuple(merged)


@dataclass(frozen=True, slots=True)
class Policy:
    """Ordered rules, of which the first that matches decides, and what holds when none does."""

    rules: tuple[Rule, ...] = ()
    default_egress: Action = Action.DENY
    default_ingress: Action = Action.DENY
    mode: Mode = Mode.ENFORCE

    #: Nothing but the gateway's own services: the policy of a guest that has none.
    SEALED: ClassVar[Policy]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(self.rules))
        if len(self.rules) > MAX_RULES:
            raise ConfigError("policy.rules", len(self.rules), f"at most {MAX_RULES} rules")

    def __str__(self) -> str:
        items = ["mode=report"] if self.mode is Mode.REPORT else []
        items += [
            f"{name}={action}"
            for name, action in (
                ("default_egress", self.default_egress),
                ("default_ingress", self.default_ingress),
            )
            if action is not Action.DENY
        ]
        return ",".join([*items, *map(str, self.rules)]) or "none"

    def default(self, direction: Direction) -> Action:
        """What holds in `direction` (egress or ingress) when no rule matches."""
        return self.default_egress if direction is Direction.EGRESS else self.default_ingress


Policy.SEALED = Policy()
SEALED = Policy.SEALED


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the policy says to one flow, and which rule said it."""

    action: Action
    rule: int | None
    """Position of the deciding rule, from 0; `None` when a default or the floor decided."""
    text: str
    """The deciding rule's canonical text, or `default_egress=deny`, `floor: metadata`, …"""
    group: Group | None
    """The peer's group; `None` of a question to the DNS, which has no peer."""
    reason: str
    """One sentence; of a denial it also says what would allow the flow."""

    @property
    def allowed(self) -> bool:
        """Whether the flow passes."""
        return self.action is Action.ALLOW
