"""The order in which a policy's chains look at a packet, the same in all of them.

Each begins with a chain that parts IPv4 from IPv6. Each family's chain sorts the peer: the host,
the metadata services and other guests have chains of their own, which hold only the rules that may
open them (the floor); what can be routed nowhere is refused; everything else meets the remaining
rules in order. The first rule that matches decides, as `policy.decide` does for the same words.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from ..policy import (
    Action,
    Direction,
    DnsTarget,
    DomainTarget,
    Group,
    GroupTarget,
    Mode,
    Policy,
    Rule,
)
from .base import STATIC_GROUPS
from .chains import Chain
from .peers import Peers
from .services import IPV4_ONLY, IPV6_ONLY

#: In the order in which they are looked for; `policy.FLOOR`.
_FLOOR_GROUPS = (Group.HOST, Group.METADATA, Group.GUESTS)
#: A rule and its position in the policy.
NumberedRule = tuple[int, Rule]


def rules_of(policy: Policy, direction: Direction) -> list[NumberedRule]:
    """The rules that are about a direction."""
    return [
        (index, rule)
        for index, rule in enumerate(policy.rules)
        if rule.direction in (direction, Direction.ANY)
    ]


class Ladder(ABC):
    """One direction of one policy: the walk. What is said on the way is the subclasses'."""

    def __init__(
        self,
        entry: str,
        policy: Policy,
        direction: Direction,
        rules: Iterable[NumberedRule],
        refuse: str,
    ) -> None:
        """`entry` is the name of the chain that packets enter, `refuse` the verdict of denial."""
        self._entry = entry
        self._rules = list(rules)
        self._refuse = refuse
        self._is_egress = direction is Direction.EGRESS
        self._peers = Peers(direction)
        self._reports = self._is_egress and policy.mode is Mode.REPORT

    def chains(self) -> list[Chain]:
        """The entry chain, and before it those that it leads to."""
        floors = [(group, self._floor(group)) for group in _FLOOR_GROUPS]
        opened = [(self._floor_name(g), tuple(rules)) for g, rules in floors if rules]
        entry = self._first()
        for group, rules in floors:
            verdict = f"goto {self._floor_name(group)}" if rules else self._refuse
            entry += [f"{peer} {verdict}" for peer in self._peers.of_group(group)]
        entry += [f"{peer} {self._refuse}" for peer in self._peers.unroutable()]
        if self._reports:
            entry += self._told()
        else:
            for index, rule in self._rules:
                entry += self._above_floor(index, rule)
        entry.append(self._last())
        return [*opened, *self._called(), *_by_family(self._entry, entry)]

    def _floor_name(self, group: Group) -> str:
        return f"{self._entry}-{group.value}"

    def _floor(self, group: Group) -> list[str]:
        """Rules for peers of a floor group; empty where no rule opens it."""
        rules = [(index, rule) for index, rule in self._rules if self._concerns(rule, group)]
        if not any(rule.action is Action.ALLOW for _index, rule in rules):
            return []
        lines: list[str] = []
        for index, rule in rules:
            target = rule.target
            if isinstance(target, DomainTarget):
                lines += self._by_name(index, rule)
                continue
            if not isinstance(target, GroupTarget):
                peers = self._peers.of_target(target)
            else:
                peers = [""] if target.within is None else self._peers.of_network(target.within)
            lines += self._by_address(index, rule, peers, forwarded=group is not Group.HOST)
        return [*lines, self._refuse]

    def _concerns(self, rule: Rule, group: Group) -> bool:
        """Whether a rule may match peers of a floor group: deny by any words, allow by its name."""
        if isinstance(rule.target, GroupTarget):
            return rule.target.group is group
        if isinstance(rule.target, DnsTarget):
            return self._is_egress
        return rule.action is Action.DENY

    def _above_floor(self, index: int, rule: Rule) -> list[str]:
        target = rule.target
        if isinstance(target, GroupTarget) and target.group not in STATIC_GROUPS:
            return []  # of the floor, which has chains of its own, or unroutable
        if isinstance(target, DomainTarget):
            return self._by_name(index, rule)
        return self._by_address(index, rule, self._peers.of_target(target), forwarded=True)

    def _reach_of(self, rule: Rule) -> list[str]:
        """Peers that a rule by name is about: a name that is allowed opens public ones only."""
        return self._peers.of_group(Group.PUBLIC) if rule.action is Action.ALLOW else [""]

    def _called(self) -> list[Chain]:
        """Chains that rules jump to."""
        return []

    @abstractmethod
    def _first(self) -> list[str]:
        """What comes before all rules."""

    @abstractmethod
    def _by_address(
        self, index: int, rule: Rule, peers: list[str], *, forwarded: bool
    ) -> list[str]:
        """A rule about peers that addresses tell; the host's own are not `forwarded` to."""

    @abstractmethod
    def _by_name(self, index: int, rule: Rule) -> list[str]:
        """A rule by name."""

    @abstractmethod
    def _told(self) -> list[str]:
        """What stands in the place of all rules above the floor in report mode."""

    @abstractmethod
    def _last(self) -> str:
        """What becomes of packets that no rule is about."""


def _by_family(name: str, lines: list[str]) -> list[Chain]:
    """A chain that parts the families first: a packet tries no rule that only the other meets.

    A rule by address is up to three lines, of which IPv4 needs one.
    """
    low = tuple(line for line in lines if not line.startswith(("ip6 ", IPV6_ONLY)))
    high = tuple(line for line in lines if not line.startswith(("ip ", IPV4_ONLY)))
    first = (f"{IPV4_ONLY} goto {name}-4", f"goto {name}-6")
    return [(f"{name}-4", low), (f"{name}-6", high), (name, first)]
