"""The sentence of a verdict: why, and of a denial the rule that would allow it.

The suggested rule is as narrow as the flow and is valid policy text, in backquotes.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network

from .groups import FLOOR, Address, Group
from .names import FlowName
from .rules import (
    WITH_PORTS,
    Action,
    Direction,
    DnsTarget,
    DomainTarget,
    GroupTarget,
    NetworkTarget,
    PortRange,
    Protocol,
    Rule,
    Target,
    Verdict,
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
    name: FlowName | None = None
    """What it says it is to; `None` if it says nothing, or is ingress."""

    @property
    def is_named(self) -> bool:
        """Whether a rule by name may allow it: it really is to its name, at a public address."""
        verified = self.name is not None and self.name.verified
        return verified and self.group is Group.PUBLIC

    def __str__(self) -> str:
        what = "IP" if self.protocol is Protocol.ANY else self.protocol.value
        service = "" if self.port is None else f" port {self.port}"
        if self.direction is Direction.EGRESS:
            name = "" if self.name is None else f" as {self.name.name}"
            return f"{what} to {self.peer}{service} ({self.group}){name}"
        return f"{what} from {self.peer} ({self.group})" + (
            f" to the guest's{service}" if service else ""
        )


def allowing_rule(flow: Flow) -> Rule:
    """The narrowest rule that, ahead of all others, allows `flow`."""
    network = ip_network(flow.peer)
    target: Target = NetworkTarget(network)
    if flow.group in FLOOR:
        target = GroupTarget(flow.group, network)
    elif flow.name is not None and flow.is_named:
        target = DomainTarget(flow.name.name)
    if flow.is_dns and flow.protocol in WITH_PORTS:
        return Rule(Action.ALLOW, flow.direction, DnsTarget())
    protocols = () if flow.protocol is Protocol.ANY else (flow.protocol,)
    # Port 0 cannot be written in a rule: the rule that allows it has no ports.
    ports = (PortRange(flow.port, flow.port),) if flow.port else ()
    return Rule(Action.ALLOW, flow.direction, target, protocols, ports)


def because_unroutable(flow: Flow) -> str:
    """The reason of a flow that no policy can allow."""
    return f"{flow}: {flow.group} addresses never leave the guest's own link, so no rule allows it"


def because_rule(flow: Flow, action: Action, text: str, passed: Rule | None = None) -> str:
    """The reason of a flow that a rule decided. `passed` is as `why_passed` takes it."""
    if action is Action.ALLOW:
        return f"{flow} is allowed by `{text}`"
    return (
        f"{flow} is denied by `{text}`{why_passed(flow, passed)}; "
        f"`{allowing_rule(flow)}` ahead of it would allow it"
    )


def because_floor(flow: Flow, passed: Rule | None = None) -> str:
    """The reason of a flow to the host, a metadata service or a guest that no rule names."""
    return (
        f"{flow} is denied because only a rule that names {flow.group} opens it"
        f"{why_passed(flow, passed)}; `{allowing_rule(flow)}` would allow it"
    )


def because_default(flow: Flow, action: Action, text: str, passed: Rule | None = None) -> str:
    """The reason of a flow that no rule matches."""
    if action is Action.ALLOW:
        return f"{flow} is allowed by `{text}`: no rule matches it"
    return (
        f"{flow} is denied by `{text}`: no rule matches it{why_passed(flow, passed)}; "
        f"`{allowing_rule(flow)}` would allow it"
    )


def why_passed(flow: Flow, rule: Rule | None) -> str:
    """Why `rule`, an allow rule by name whose service the flow is of, did not match: a clause."""
    if rule is None:
        return ""
    if flow.name is None:
        why = "the flow's name is not known"
    elif flow.group is not Group.PUBLIC:
        why = "a name opens public addresses only"
    else:
        why = f"{flow.peer} is no known address of {flow.name.name}"
    return f" (not allowed by `{rule}`: {why})"


def because_question(name: str, action: Action, rule: Rule | None, text: str) -> str:
    """The reason of a question to the DNS that `rule` decided, or a default."""
    question = f"the question for {name}"
    if action is Action.ALLOW:
        if rule is not None and isinstance(rule.target, DomainTarget):
            return f"{question} is allowed by `{text}`"
        return f"{question} is allowed by `{text}`, which asks for no name"
    suggestion = Rule(Action.ALLOW, Direction.EGRESS, DomainTarget(name))
    if rule is not None:
        return f"{question} is denied by `{text}`; `{suggestion}` ahead of it would allow it"
    return f"{question} is denied by `{text}`: no rule allows it; `{suggestion}` would allow it"


def because_reported(verdict: Verdict) -> str:
    """Of what passes only because the policy reports."""
    return f"report mode lets it pass; enforced: {verdict.reason}"
