"""A policy as chains: one distinct policy is compiled once, whoever uses it.

All walk the same ladder (`ladder`). Two of them decide about packets on their way, from a guest and
to it (`forwarding`); a policy with rules by name has a third, which hands flows to the gateway
before that (`handover`).
"""

from __future__ import annotations

from ..policy import Direction, Policy, has_names
from .chains import PolicyChains, policy_id
from .forwarding import Forwarding
from .handover import Handover


def compile_policy(policy: Policy) -> PolicyChains:
    """The chains of a policy."""
    name = policy_id(policy)
    chains = Forwarding(name, policy, Direction.EGRESS).chains()
    chains += Forwarding(name, policy, Direction.INGRESS).chains()
    if has_names(policy):
        chains += Handover(name, policy).chains()
    return PolicyChains(name, tuple(chains))
