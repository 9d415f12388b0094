"""The sentence of a verdict: why, and of a denial the rule that would allow it.

The suggested rule is as narrow as the flow and is valid policy text, in backquotes.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network

from .groups import FLOOR, Address, Group
from .rules import (
    WITH_PORTS,
    Action,
    Direction,
    DnsTarget,
    GroupTarget,
    NetworkTarget,
    PortRange,
    Protocol,
    Rule,
    Target,
)


@dataclass(frozen=True, slots=True)
class Flow:
    """One flow between a guest and a peer, as rules see it."""

    direction: Direction
    protocol: Protocol
    peer: Address
    port: int | None
    """The service's port; `None` unless tcp or udp."""
    group: Group
    is_dns: bool
    """Whether the guest asks port 53 of one of its resolvers."""

    def __str__(self) -> str:
        what = "IP" if self.protocol is Protocol.ANY else self.protocol.value
        service = "" if self.port is None else f" port {self.port}"
        if self.direction is Direction.EGRESS:
            return f"{what} to {self.peer}{service} ({self.group})"
        return f"{what} from {self.peer} ({self.group})" + (
            f" to the guest's{service}" if service else ""
        )


def allowing_rule(flow: Flow) -> Rule:
    """The narrowest rule that, ahead of all others, allows `flow`."""
    network = ip_network(flow.peer)
    target: Target = NetworkTarget(network)
    if flow.group in FLOOR:
        target = GroupTarget(flow.group, network)
    if flow.is_dns and flow.protocol in WITH_PORTS:
        return Rule(Action.ALLOW, flow.direction, DnsTarget())
    protocols = () if flow.protocol is Protocol.ANY else (flow.protocol,)
    # Port 0 cannot be written in a rule: the rule that allows it has no ports.
    ports = (PortRange(flow.port, flow.port),) if flow.port else ()
    return Rule(Action.ALLOW, flow.direction, target, protocols, ports)


def because_unroutable(flow: Flow) -> str:
    """The reason of a flow that no policy can allow."""
    return f"{flow}: {flow.group} addresses never leave the guest's own link, so no rule allows it"


def because_rule(flow: Flow, action: Action, text: str) -> str:
    """The reason of a flow that a rule decided."""
    if action is Action.ALLOW:
        return f"{flow} is allowed by `{text}`"
    return f"{flow} is denied by `{text}`; `{allowing_rule(flow)}` ahead of it would allow it"


def because_floor(flow: Flow) -> str:
    """The reason of a flow to the host, a metadata service or a guest that no rule names."""
    return (
        f"{flow} is denied because only a rule that names {flow.group} opens it; "
        f"`{allowing_rule(flow)}` would allow it"
    )


def because_default(flow: Flow, action: Action, text: str) -> str:
    """The reason of a flow that no rule matches."""
    if action is Action.ALLOW:
        return f"{flow} is allowed by `{text}`: no rule matches it"
    return (
        f"{flow} is denied by `{text}`: no rule matches it; `{allowing_rule(flow)}` would allow it"
    )
