"""The policy as a table (TOML `[policy]`, JSON): every error names the path of its key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from ..errors import ConfigError
from .items import (
    ACTIONS,
    DEFAULTS,
    DIRECTIONS,
    MODE,
    MODES,
    PROTOCOLS,
    Draft,
    read_ports,
    read_protocols,
    read_rule,
    read_word,
)
from .rules import (
    BY_NAME_IS_EGRESS,
    PORT_MAX,
    WITH_PORTS,
    Direction,
    DomainTarget,
    Policy,
    PortRange,
    Protocol,
    Rule,
    Target,
)
from .span import Span, nearest, shown
from .targets import NAMED, read_name, read_target

KEYS = ("profiles", "rules", *DEFAULTS, MODE)
TARGET_KEYS = ("target", *NAMED)
RULE_KEYS = ("action", "direction", *TARGET_KEYS, "protocols", "ports")

_Value = TypeVar("_Value")


def read_table(table: Mapping[str, object]) -> Policy:
    """A policy from `profiles`, `rules`, `default_egress`, `default_ingress`, `mode`: all optional.

    Profiles expand before the rules.
    """
    _check_keys(table, KEYS, "policy")
    draft = Draft()
    for index, entry in enumerate(_sequence(table.get("profiles", ()), "policy.profiles")):
        draft.add_profile(_span(entry, f"policy.profiles[{index}]"))
    for index, entry in enumerate(_sequence(table.get("rules", ()), "policy.rules")):
        where = f"policy.rules[{index}]"
        draft.add_rule(_read_rule_entry(entry, where), _marker(entry, where))
    for name in DEFAULTS:
        if name in table:
            span = _span(table[name], f"policy.{name}")
            draft.add_default(name, read_word(span, "action", ACTIONS), span)
    if MODE in table:
        span = _span(table[MODE], f"policy.{MODE}")
        draft.add_mode(read_word(span, "mode", MODES), span)
    return draft.policy()


def read_list(entries: Sequence[object]) -> Policy:
    """A policy from a list of items: each is the text of one item, a rule's table, or a `Rule`."""
    draft = Draft()
    for index, entry in enumerate(entries):
        where = f"policy[{index}]"
        if isinstance(entry, str):
            draft.add_item(_one_item(entry, where))
        else:
            draft.add_rule(_read_rule_entry(entry, where), _marker(entry, where))
    return draft.policy()


def _read_rule_entry(entry: object, where: str) -> Rule:
    if isinstance(entry, Rule):
        return entry
    if isinstance(entry, str):
        return read_rule(_one_item(entry, where))
    if isinstance(entry, Mapping):
        return _read_rule_table(entry, where)
    raise ConfigError(where, entry, "is a rule's text, as in 'allow@public:tcp:443', or its table")


def _read_rule_table(table: Mapping[str, object], where: str) -> Rule:
    _check_keys(table, RULE_KEYS, where)
    if "action" not in table:
        raise ConfigError(f"{where}.action", None, "is required")
    action = read_word(_span(table["action"], f"{where}.action"), "action", ACTIONS)
    direction = Direction.EGRESS
    if "direction" in table:
        span = _span(table["direction"], f"{where}.direction")
        direction = read_word(span, "direction", DIRECTIONS)
    target = _read_table_target(table, where)
    if isinstance(target, DomainTarget) and direction is not Direction.EGRESS:
        raise ConfigError(f"{where}.direction", table["direction"], BY_NAME_IS_EGRESS)
    protocols = _parts(table, "protocols", where, _read_protocol_entry)
    ports = _parts(table, "ports", where, _read_port_entry)
    if ports and not set(protocols) <= {Protocol.ANY, *WITH_PORTS}:
        raise ConfigError(f"{where}.ports", table["ports"], "only tcp and udp have ports")
    return Rule(action, direction, target, protocols, ports)


def _read_table_target(table: Mapping[str, object], where: str) -> Target:
    """What one of `target`, `domain` and `suffix` says."""
    key, *more = [key for key in TARGET_KEYS if key in table] or ["target"]
    if more:
        raise ConfigError(
            f"{where}.{more[0]}", table[more[0]], f"stands in the place of {key}: give one"
        )
    if key not in table:
        raise ConfigError(f"{where}.{key}", None, "is required, or domain or suffix in its place")
    span = _span(table[key], f"{where}.{key}")
    if key in NAMED:
        return read_name(span, subdomains=NAMED[key])
    return read_target(span, bare_ipv6=True)


def _parts(
    table: Mapping[str, object],
    key: str,
    where: str,
    read: Callable[[object, str], tuple[_Value, ...]],
) -> tuple[_Value, ...]:
    """The values of a list of a rule's table; absent is any, but an empty list would be nothing."""
    if key not in table:
        return ()
    entries = _sequence(table[key], f"{where}.{key}")
    if not entries:
        raise ConfigError(f"{where}.{key}", entries, "is empty; leave it out for any")
    found = [read(entry, f"{where}.{key}[{index}]") for index, entry in enumerate(entries)]
    if len(found) > 1 and () in found:
        raise ConfigError(f"{where}.{key}", entries, "'any' stands alone")
    return tuple(value for values in found for value in values)


def _read_protocol_entry(entry: object, where: str) -> tuple[Protocol, ...]:
    span = _span(entry, where)
    read_word(span, "protocol", PROTOCOLS)
    return read_protocols(span)


def _read_port_entry(entry: object, where: str) -> tuple[PortRange, ...]:
    # bool is an int in Python; a port that is `true` is a mistake.
    if isinstance(entry, int) and not isinstance(entry, bool):
        if not 1 <= entry <= PORT_MAX:
            # Not the number itself: Python refuses to print one of thousands of digits.
            raise ConfigError(where, "a number", f"is a port, 1 to {PORT_MAX}")
        return (PortRange(entry, entry),)
    span = _span(entry, where)
    if "+" in span.text:
        span.fail("one port or range per entry", at=span.text.index("+"))
    return read_ports(span)


def _one_item(text: str, where: str) -> Span:
    span = Span.whole(text, where).stripped()
    for index, char in enumerate(span.text):
        if char in ",\n#":
            span.fail("one item per entry", "make it two entries of the list", at=index)
    return span


def _span(value: object, where: str) -> Span:
    if not isinstance(value, str):
        raise ConfigError(where, value, "is text")
    return Span.whole(str(value), where)


def _marker(entry: object, where: str) -> Span:
    """What an error about a whole entry shows."""
    return Span.whole(str(entry) if isinstance(entry, (str, Rule)) else "", where)


def _sequence(value: object, where: str) -> Sequence[object]:
    if isinstance(value, (list, tuple)):
        return value
    raise ConfigError(where, value, "is a list")


def _check_keys(table: Mapping[str, object], known: tuple[str, ...], where: str) -> None:
    for key, value in table.items():
        if key in known:
            continue
        meant = nearest(str(key), known)
        hint = f"did you mean {meant!r}?" if meant else "one of " + ", ".join(known)
        raise ConfigError(f"{where}.{shown(str(key))[1:-1]}", value, f"no such key; {hint}")
