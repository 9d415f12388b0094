"""The policy room: what may a guest do?

The boundary: owners' text goes in, `Policy` values and `Verdict`s come out. It is pure: it knows
nothing of sockets, kernels or clocks, and what only the machine knows about addresses (its own, its
guests', its resolvers) arrives as `Places`. The rooms above compile the same policies for the
kernel; `decide` is what their rules must agree with, flow by flow.

    policy = parse_policy("deny@8.8.8.0/24,public,allow@host=10.0.0.1:tcp:8080")
    verdict = decide(policy, Direction.EGRESS, Protocol.TCP, address, 443, places)
"""

from .grammar import MAX_TEXT, parse_policy
from .groups import (
    FLOOR,
    UNROUTABLE,
    Group,
    Places,
    classify,
    embed_ranges,
    embedded_ipv4,
    static_ranges,
    teredo_low_bits,
    teredo_ranges,
    unroutable,
    unroutable_groups,
)
from .lint import Remark, warnings
from .match import (
    DNS_PORT,
    REPORTED,
    decide,
    decide_question,
    has_names,
    may_reach,
    needs_name,
    opens_address,
)
from .names import MAX_NAME, NAME_SERVICES, FlowName, canonical_name, is_below
from .rules import (
    MAX_PORT_RANGES,
    MAX_RULES,
    SEALED,
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
    PortRange,
    Protocol,
    Rule,
    Target,
    Verdict,
)
from .suggest import SeenFlow, suggest

__all__ = [
    "DNS_PORT",
    "FLOOR",
    "MAX_NAME",
    "MAX_PORT_RANGES",
    "MAX_RULES",
    "MAX_TEXT",
    "NAME_SERVICES",
    "REPORTED",
    "SEALED",
    "UNROUTABLE",
    "WITH_PORTS",
    "Action",
    "AnyTarget",
    "Direction",
    "DnsTarget",
    "DomainTarget",
    "FlowName",
    "Group",
    "GroupTarget",
    "Mode",
    "NetworkTarget",
    "Places",
    "Policy",
    "PortRange",
    "Protocol",
    "Remark",
    "Rule",
    "SeenFlow",
    "Target",
    "Verdict",
    "canonical_name",
    "classify",
    "decide",
    "decide_question",
    "embed_ranges",
    "embedded_ipv4",
    "has_names",
    "is_below",
    "may_reach",
    "needs_name",
    "opens_address",
    "parse_policy",
    "static_ranges",
    "suggest",
    "teredo_low_bits",
    "teredo_ranges",
    "unroutable",
    "unroutable_groups",
    "warnings",
]
