"""Policies as the host holds them: each distinct text read once, and how many guests use each."""

from __future__ import annotations

from functools import lru_cache

from ..policy import DomainTarget, Policy, Protocol, parse_policy
from ..ruleset.chains import PolicyChains, policy_id
from ..ruleset.compile import compile_policy


@lru_cache(maxsize=1024)
def read_policy(text: str) -> Policy:
    """The policy of a canonical text; guests share few."""
    return parse_policy(text)


@lru_cache(maxsize=1024)
def id_of(text: str) -> str:
    """The id of the policy of a canonical text."""
    return policy_id(read_policy(text))


@lru_cache(maxsize=1024)
def pinning_rules(text: str) -> tuple[int, ...]:
    """Rules by name of a policy's canonical text that are about more than TCP."""
    return tuple(
        index
        for index, rule in enumerate(read_policy(text).rules)
        if isinstance(rule.target, DomainTarget) and rule.protocols != (Protocol.TCP,)
    )


class InstalledPolicies:
    """Compiled policies and how many guests use each."""

    def __init__(self) -> None:
        self.chains: dict[str, PolicyChains] = {}
        self._users: dict[str, int] = {}

    def use(self, policy: Policy) -> PolicyChains | None:
        """Count a user; returns the chains if they are new and have to be installed."""
        name = policy_id(policy)
        self._users[name] = self._users.get(name, 0) + 1
        if name in self.chains:
            return None
        self.chains[name] = compile_policy(policy)
        return self.chains[name]

    def drop(self, policy: Policy) -> None:
        """Count a user less; the chains stay until `sweep`."""
        self._users[policy_id(policy)] -= 1

    def cancel(self, policy: Policy) -> None:
        """Undo a `use` whose chains may not have come to stand: the next one installs them."""
        self.drop(policy)
        name = policy_id(policy)
        if self._users[name] <= 0:
            del self._users[name], self.chains[name]

    @property
    def unused(self) -> int:
        """Policies that nobody uses."""
        return sum(users <= 0 for users in self._users.values())

    def sweep(self) -> tuple[str, ...]:
        """Forget policies that nobody uses; returns the names of their chains."""
        unused = [name for name, users in self._users.items() if users <= 0]
        names = [chain for name in unused for chain, _rules in self.chains[name].chains]
        for name in unused:
            del self._users[name], self.chains[name]
        return tuple(names)
