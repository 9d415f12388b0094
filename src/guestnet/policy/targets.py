"""Reading a rule's target: the part after `@` and before the protocols."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from ..errors import ConfigError
from .groups import Group, Network
from .rules import (
    AnyTarget,
    DnsTarget,
    DomainTarget,
    GroupTarget,
    NetworkTarget,
    Target,
    written,
)
from .span import Span, near_hint, shown

#: The words of groups. `none` is not among them: it is a profile, and no address a peer has.
GROUP_WORDS = {
    **{group.value: group for group in Group if group is not Group.NONE},
    "meta": Group.METADATA,
}
WORDS: dict[str, Target] = {
    "any": AnyTarget(),
    "dns": DnsTarget(),
    **{word: GroupTarget(group) for word, group in GROUP_WORDS.items()},
}
#: `key=…` targets: a group of the floor narrowed to an address or network.
NARROWED = {
    "host": Group.HOST,
    "guests": Group.GUESTS,
    "metadata": Group.METADATA,
    "meta": Group.METADATA,
}
#: `key=…` targets whose value is a name, and whether the names below it are meant.
NAMED = {"domain": False, "suffix": True}
_BELOW = "*."

_IPV4_LIKE = re.compile(r"[0-9][0-9.-]*(/.*)?", re.DOTALL)
_PREFIX = re.compile(r"0|[1-9][0-9]{0,2}")
#: The longest text of an IPv6 network: eight groups of which the last two as IPv4, and a prefix.
_IPV6_TEXT_MAX = 49
_IPV6_START = re.compile(rf"[0-9A-Fa-f:.]{{2,{_IPV6_TEXT_MAX}}}(/[0-9]{{1,3}})?")


def read_target(span: Span, *, bare_ipv6: bool = False) -> Target:
    """The target that `span` says; raises `PolicyError`.

    `bare_ipv6` accepts IPv6 without brackets, for places where no `:ports` can follow.
    """
    text = span.text
    if not text:
        span.fail("a target is missing after '@'", "as in allow@public")
    if text in WORDS:
        return WORDS[text]
    if "=" in text:
        return _read_keyed(span, bare_ipv6=bare_ipv6)
    network = _read_network_like(span, bare_ipv6=bare_ipv6)
    if network is not None:
        return NetworkTarget(network)
    if text.startswith(_BELOW):
        return read_name(span.part(len(_BELOW)), subdomains=True)
    # One word alone is a word misspelt; a name of one label is written `domain=`.
    if "." in text.removesuffix("."):
        return read_name(span, subdomains=False)
    return span.fail(f"unknown target {shown(text)}", _target_hint(text))


def _target_hint(text: str) -> str:
    if text in ("none", "all"):
        return f"{text!r} is a whole policy, not a target"
    if text == "*":
        return "everything is 'any'"
    hint = near_hint(text, WORDS)
    if "," not in hint:
        return hint
    return f"{hint}, an IPv4 address or network, [IPv6], name.with.dots, domain=name"


def _read_keyed(span: Span, *, bare_ipv6: bool) -> Target:
    key = span.text.partition("=")[0]
    value = span.part(len(key) + 1)
    if key in NAMED:
        return read_name(value, subdomains=NAMED[key])
    if key not in NARROWED:
        if key in GROUP_WORDS:
            span.fail(f"{key!r} cannot be narrowed", "write the address or network alone")
        span.fail(f"unknown target {shown(key + '=')}", near_hint(key, (*NARROWED, *NAMED)))
    network = _read_network_like(value, bare_ipv6=bare_ipv6)
    if network is None:
        value.fail(
            f"{key}= takes an address or network, not {shown(value.text)}",
            f"as in {key}=10.0.0.1 or {key}=[fd00::/64]",
        )
    return GroupTarget(NARROWED[key], network)


def read_name(span: Span, *, subdomains: bool) -> DomainTarget:
    """The DNS name that `span` says, alone or with those below it; raises `PolicyError`."""
    text = span.text
    if text.startswith(_BELOW):
        name = text.removeprefix(_BELOW)
        span.fail("'*.' stands alone in front of a name", f"{_BELOW}{name} or suffix={name}")
    try:
        return DomainTarget(text, subdomains)
    except ConfigError as error:
        span.fail(f"not a name: {shown(text)}", error.expected)


def _read_network_like(span: Span, *, bare_ipv6: bool) -> Network | None:
    """The address or network that `span` says, or `None` if it does not look like one."""
    text = span.text
    if text.startswith("["):
        if not text.endswith("]"):
            span.fail("'[' without a ']' at the end", "as in [fd00::/8]")
        return _read_ipv6(span.part(1, len(text) - 1))
    if _IPV4_LIKE.fullmatch(text) and ":" not in text:
        return _read_ipv4(span)
    if bare_ipv6 and ":" in text:
        return _read_ipv6(span)
    return None


def _read_ipv4(span: Span) -> IPv4Network:
    address, prefix = _split_prefix(span, 32)
    try:
        value = IPv4Address(address.text)
    except ValueError:
        address.fail(f"not an IPv4 address: {shown(address.text)}", "four numbers of 0 to 255")
    network = IPv4Network((value, prefix), strict=False)
    _check_host_bits(span, network, value)
    return network


def _read_ipv6(span: Span) -> IPv6Network:
    address, prefix = _split_prefix(span, 128)
    if "%" in address.text:
        address.fail("a zone ('%…') has no meaning here", at=address.text.index("%"))
    try:
        value = IPv6Address(address.text)
    except ValueError:
        hint = "brackets are for IPv6 only" if "." in address.text else "as in [2001:db8::1]"
        address.fail(f"not an IPv6 address: {shown(address.text)}", hint)
    network = IPv6Network((value, prefix), strict=False)
    _check_host_bits(span, network, value)
    return network


def _split_prefix(span: Span, longest: int) -> tuple[Span, int]:
    address, *rest = span.split("/")
    if not rest:
        return address, longest
    prefix = Span(span.source, rest[0].start, span.end, span.where)
    if not _PREFIX.fullmatch(prefix.text) or int(prefix.text) > longest:
        prefix.fail(f"not a prefix length: {shown(prefix.text)}", f"0 to {longest}, in digits")
    return address, int(prefix.text)


def _check_host_bits(span: Span, network: Network, value: IPv4Address | IPv6Address) -> None:
    if network.network_address != value:
        one = written(IPv4Network(value) if isinstance(value, IPv4Address) else IPv6Network(value))
        span.fail(
            f"{span.text} has bits set beyond its prefix",
            f"the network is {written(network)}, the one address {one}",
        )


def bare_ipv6_in(text: str) -> str:
    """The IPv6 address or network that `text` begins with, unbracketed; empty if there is none."""
    found = _IPV6_START.match(text)
    candidate = found.group() if found else ""
    # `fd00::1:443` may be an address or an address and a port, so this only ever makes a hint.
    while ":" in candidate:
        try:
            IPv6Network(candidate, strict=False)
        except ValueError:
            candidate = candidate[:-1]
        else:
            return candidate
    return ""
