"""Reading one item of a policy (profile, default or rule) and gathering items into a policy."""

from __future__ import annotations

import re
from typing import NoReturn, TypeVar

from .groups import Group
from .rules import (
    BY_NAME_IS_EGRESS,
    MAX_PORT_RANGES,
    MAX_RULES,
    PORT_MAX,
    WITH_PORTS,
    Action,
    Direction,
    DnsTarget,
    DomainTarget,
    GroupTarget,
    Mode,
    Policy,
    PortRange,
    Protocol,
    Rule,
)
from .span import Span, near_hint, shown
from .targets import bare_ipv6_in, read_target

_ALLOW_DNS = Rule(Action.ALLOW, Direction.EGRESS, DnsTarget())
#: Profiles expand in place and compose.
PROFILES = {
    name: (_ALLOW_DNS, Rule(Action.ALLOW, Direction.EGRESS, GroupTarget(group)))
    for name, group in (
        ("public", Group.PUBLIC),
        ("private", Group.PRIVATE),
        ("host", Group.HOST),
    )
}
#: Profiles that are a whole policy. `all` opens everything above the floor.
TERMINAL = {"none": Policy(), "all": Policy(default_egress=Action.ALLOW)}
DEFAULTS = ("default_egress", "default_ingress")

MODE = "mode"

MODES = {mode.value: mode for mode in Mode}
ACTIONS = {action.value: action for action in Action}
DIRECTIONS = {direction.value: direction for direction in Direction}
PROTOCOLS = {protocol.value: protocol for protocol in Protocol}

_PORT = re.compile(r"0|[1-9][0-9]{0,9}")
_DIGITS = frozenset("0123456789")

_Word = TypeVar("_Word")


class Draft:
    """A policy while its items are read; every `add_*` checks that the item may stand there."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []
        self._defaults: dict[str, Action] = {}
        self._from_profiles: set[Rule] = set()
        self._terminal = ""
        self._mode: Mode | None = None

    def policy(self) -> Policy:
        """What was gathered."""
        if self._terminal:
            return TERMINAL[self._terminal]
        return Policy(tuple(self._rules), **self._defaults, mode=self._mode or Mode.ENFORCE)

    def add_item(self, span: Span) -> None:
        """Read one item of the text grammar."""
        key, equals, _ = span.text.partition("=")
        if "@" in span.text:
            self.add_rule(read_rule(span), span)
        elif equals and key.strip() in DEFAULTS:
            value = span.part(len(key) + 1).stripped()
            self.add_default(key.strip(), read_word(value, "action", ACTIONS), span)
        elif equals and key.strip() == MODE:
            value = span.part(len(key) + 1).stripped()
            self.add_mode(read_word(value, "mode", MODES), span)
        else:
            self.add_profile(span)

    def add_rule(self, rule: Rule, span: Span) -> None:
        """Append one rule, which `span` said."""
        self._refuse_beside_terminal(span)
        if len(self._rules) >= MAX_RULES:
            span.fail(f"more than {MAX_RULES} rules", "name networks instead of single addresses")
        self._rules.append(rule)

    def add_default(self, name: str, action: Action, span: Span) -> None:
        """Set one default, once."""
        self._refuse_beside_terminal(span)
        if name in self._defaults:
            span.fail(f"{name} is given twice")
        self._defaults[name] = action

    def add_mode(self, mode: Mode, span: Span) -> None:
        """Set the mode, once."""
        self._refuse_beside_terminal(span)
        if self._mode is not None:
            span.fail("mode is given twice")
        self._mode = mode

    def add_profile(self, span: Span) -> None:
        """Expand a profile. A rule that an earlier profile brought is not repeated."""
        word = span.text
        if word in TERMINAL:
            if self._terminal or self._rules or self._defaults or self._mode:
                span.fail(f"{word!r} is a whole policy and stands alone")
            self._terminal = word
            return
        if word not in PROFILES:
            _fail_unknown_item(span)
        for rule in PROFILES[word]:
            if rule not in self._from_profiles:
                self._from_profiles.add(rule)
                self.add_rule(rule, span)

    def _refuse_beside_terminal(self, span: Span) -> None:
        if self._terminal:
            span.fail(f"{self._terminal!r} is a whole policy and stands alone")


def _fail_unknown_item(span: Span) -> NoReturn:
    word = span.text
    if not word:
        span.fail("nothing stands here", "a rule as in allow@public, a profile, or none")
    first = re.split(r"[:\s]", word, maxsplit=1)[0].lower()
    if first in ACTIONS:
        span.fail("a rule needs '@' and a target", f"as in {first}@public")
    key, equals, _ = word.partition("=")
    if equals:
        span.fail(f"unknown setting {shown(key)}", near_hint(key, (*DEFAULTS, MODE)))
    hint = near_hint(word, (*PROFILES, *TERMINAL))
    span.fail(f"unknown profile {shown(word)}", f"{hint}; rules begin with 'allow' or 'deny'")


def read_rule(span: Span) -> Rule:
    """One rule: `<action>[:direction]@<target>[:protocols[:ports]]` or `…@<target>:ports`."""
    _refuse_blank(span)
    at = span.text.find("@")
    if at < 0:
        _fail_unknown_item(span)
    action, *directions = span.part(0, at).split(":")
    if len(directions) > 1:
        directions[1].fail("only a direction stands between the action and '@'")
    target, service = _split_target(span.part(at + 1))
    found_action = read_word(action, "action", ACTIONS)
    direction = Direction.EGRESS
    if directions:
        direction = read_word(directions[0], "direction", DIRECTIONS)
    found = read_target(target)
    if isinstance(found, DomainTarget) and direction is not Direction.EGRESS:
        directions[0].fail(BY_NAME_IS_EGRESS)
    return Rule(found_action, direction, found, *_read_service(service))


def _read_service(service: list[Span]) -> tuple[tuple[Protocol, ...], tuple[PortRange, ...]]:
    """Protocols and ports of the parts that follow a target; empty means any."""
    if not service:
        return (), ()
    first, *rest = service
    if first.text[:1] in _DIGITS:
        found_ports = read_ports(first)
        if rest:
            hint = f"as in {rest[0].text}:{first.text}" if rest[0].text in PROTOCOLS else ""
            rest[0].fail("nothing follows the ports; protocols stand before them", hint)
        return (), found_ports
    if len(rest) > 1:
        rest[1].fail("nothing follows the ports")
    protocols = read_protocols(first)
    found_ports = read_ports(rest[0]) if rest else ()
    if found_ports and not set(protocols) <= set(WITH_PORTS):
        rest[0].fail("only tcp and udp have ports", "write a rule of its own for icmp")
    return protocols, found_ports


def _split_target(span: Span) -> tuple[Span, list[Span]]:
    """The target, and the parts between colons that follow it. Brackets keep colons together."""
    text = span.text
    bracket, colon = text.find("["), text.find(":")
    if bracket >= 0 and (colon < 0 or bracket < colon):
        close = text.find("]", bracket)
        if close < 0:
            span.fail("'[' without ']'", "as in [fd00::/8]", at=bracket)
        rest = span.part(close + 1)
        if rest.text and not rest.text.startswith(":"):
            inside = "the prefix stands inside: [fd00::/8]" if rest.text.startswith("/") else ""
            rest.fail(f"unexpected {shown(rest.text)} after ']'", inside)
        return span.part(0, close + 1), rest.split(":")[1:]
    if "://" in text:
        span.fail("a URL is no target", "the name and its ports, as in api.example.com:443")
    bare = bare_ipv6_in(text.partition("=")[2] or text)
    if bare:
        span.fail("an IPv6 address stands in brackets", f"[{bare}]")
    target, *rest_parts = span.split(":")
    return target, rest_parts


def read_protocols(span: Span) -> tuple[Protocol, ...]:
    """Protocols joined by `+`; empty means any."""
    found = [read_word(part, "protocol", PROTOCOLS) for part in span.split("+")]
    if Protocol.ANY in found and len(found) > 1:
        span.fail("'any' includes the other protocols", "write one or the other")
    return () if found == [Protocol.ANY] else tuple(found)


def read_ports(span: Span) -> tuple[PortRange, ...]:
    """Ports and ranges joined by `+`; empty means any."""
    if span.text == "any":
        return ()
    parts = span.split("+")
    if len(parts) > MAX_PORT_RANGES:
        parts[MAX_PORT_RANGES].fail(f"more than {MAX_PORT_RANGES} port ranges in one rule")
    return tuple(map(_read_port_range, parts))


def _read_port_range(span: Span) -> PortRange:
    ends = span.split("-")
    if len(ends) > 2:
        ends[2].fail("a port range is LO-HI", "several are joined with '+'")
    low, high = _read_port(ends[0]), _read_port(ends[-1])
    if low > high:
        span.fail(f"the port range {span.text} is reversed", f"{high}-{low}")
    return PortRange(low, high)


def _read_port(span: Span) -> int:
    if not _PORT.fullmatch(span.text):
        hint = "'any' stands alone" if span.text == "any" else "any, 443, 8000-8100 or 80+443"
        span.fail(f"not a port: {shown(span.text)}" if span.text else "a port is missing", hint)
    port = int(span.text)
    if not 1 <= port <= PORT_MAX:
        span.fail(f"port {port} is out of range", f"1 to {PORT_MAX}")
    return port


def read_word(span: Span, kind: str, words: dict[str, _Word]) -> _Word:
    """One of `words`, or an error that names the nearest."""
    if span.text in words:
        return words[span.text]
    if not span.text:
        span.fail(f"{_article(kind)} is missing", "one of " + ", ".join(words))
    return span.fail(f"unknown {kind} {shown(span.text)}", near_hint(span.text, words))


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def _refuse_blank(span: Span) -> None:
    for index, char in enumerate(span.text):
        if char.isspace():
            span.fail("a blank inside a rule", "items are separated by commas", at=index)
