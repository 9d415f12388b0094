"""The smallest readable policy that allows what was seen, and nothing else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from .names import is_below
from .rules import (
    WITH_PORTS,
    Action,
    Direction,
    DomainTarget,
    NetworkTarget,
    Policy,
    PortRange,
    Protocol,
    Rule,
    Target,
)

Address = IPv4Address | IPv6Address
#: A service: a protocol, and its port where it has one.
Service = tuple[Protocol, int | None]
#: The DNS's own port: no flow to it is ever relayed, so a rule for it opens the question alone.
_ASKED_ONLY: Service = (Protocol.UDP, 53)


@dataclass(frozen=True, slots=True)
class SeenFlow:
    """A flow that a guest opened: under a name whose address is public, or to an address."""

    protocol: Protocol
    port: int | None
    address: Address
    #: Canonical; empty where none is known, or where the address is not public.
    name: str = ""


def suggest(
    flows: Iterable[SeenFlow], questions: Iterable[str], *, suffixes: bool = False
) -> Policy:
    """A policy that allows these flows and questions: names over addresses, a rule a name.

    With `suffixes` names that share services and the name above them become one rule.
    """
    services: dict[Target, set[Service]] = defaultdict(set)
    for flow in flows:
        target = DomainTarget(flow.name) if flow.name else NetworkTarget(_alone(flow.address))
        services[target].add((flow.protocol, flow.port))
    named = {target.name for target in services if isinstance(target, DomainTarget)}
    for name in set(questions) - named:
        services[DomainTarget(name)].add(_ASKED_ONLY)
    if suffixes:
        services = _joined(services)
    rules = [
        rule for target in sorted(services, key=_order) for rule in _rules(target, services[target])
    ]
    return Policy(tuple(rules))


def _alone(address: Address) -> IPv4Network | IPv6Network:
    if isinstance(address, IPv4Address):
        return IPv4Network(address)
    return IPv6Network(address)


def _order(target: Target) -> tuple[bool, list[str]]:
    """Names before addresses, each below the name above it."""
    is_name = isinstance(target, DomainTarget)
    return not is_name, str(target).split(".")[::-1] if is_name else [str(target)]


def _rules(target: Target, services: Iterable[Service]) -> list[Rule]:
    """One rule for TCP and UDP where their ports are the same, one each where not."""
    ports: dict[Protocol, set[PortRange]] = defaultdict(set)
    others: set[Protocol] = set()
    for protocol, port in services:
        if protocol in WITH_PORTS and port:
            ports[protocol].add(PortRange(port, port))
        else:
            others.add(protocol)
    by_ports: dict[frozenset[PortRange], list[Protocol]] = defaultdict(list)
    for protocol in (p for p in WITH_PORTS if p in ports):
        by_ports[frozenset(ports[protocol])].append(protocol)
    found = [
        Rule(Action.ALLOW, Direction.EGRESS, target, tuple(protocols), tuple(sorted(listed)))
        for listed, protocols in by_ports.items()
    ]
    if others:
        found.append(Rule(Action.ALLOW, Direction.EGRESS, target, tuple(others)))
    return found


def _joined(services: dict[Target, set[Service]]) -> dict[Target, set[Service]]:
    """Names with the same parent and the same services as one suffix; top-level names never."""
    groups: dict[tuple[str, frozenset[Service]], list[DomainTarget]] = defaultdict(list)
    joined: dict[Target, set[Service]] = {}
    for target, wanted in services.items():
        parent = target.name.partition(".")[2] if isinstance(target, DomainTarget) else ""
        if isinstance(target, DomainTarget) and "." in parent:
            groups[parent, frozenset(wanted)].append(target)
        else:
            joined[target] = wanted
    for (parent, shared), members in groups.items():
        one = DomainTarget(parent, subdomains=True) if len(members) > 1 else members[0]
        joined[one] = joined.get(one, set()) | shared
    return {target: wanted for target, wanted in joined.items() if not _is_covered(target, joined)}


def _is_covered(target: Target, others: dict[Target, set[Service]]) -> bool:
    return isinstance(target, DomainTarget) and any(
        isinstance(other, DomainTarget)
        and other.subdomains
        and other != target
        and is_below(target.name, other.name)
        and others[target] <= others[other]
        for other in others
    )
