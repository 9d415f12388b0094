"""A rule's protocols and ports in nft's words: alternatives, of which each is a rule of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..policy import DNS_PORT, WITH_PORTS, DnsTarget, Protocol, Rule

#: Of chains that both families meet, the rules that one of them does not.
IPV4_ONLY, IPV6_ONLY = "meta nfproto ipv4", "meta nfproto ipv6"
_LAYER4 = {Protocol.TCP: "tcp", Protocol.UDP: "udp"}


def services(rule: Rule) -> list[str]:
    """All that a rule is about; an empty alternative is any protocol."""
    if isinstance(rule.target, DnsTarget):
        return _dns_services(rule)
    if not rule.protocols:
        return [""]
    found = []
    with_ports = [_LAYER4[p] for p in rule.protocols if p in WITH_PORTS]
    if with_ports:
        found.append(_transport(with_ports, rule))
    # ICMP of the other family is just another protocol, which no rule has a word for.
    if Protocol.ICMPV4 in rule.protocols:
        found.append(f"{IPV4_ONLY} meta l4proto icmp")
    if Protocol.ICMPV6 in rule.protocols:
        found.append(f"{IPV6_ONLY} meta l4proto ipv6-icmp")
    return found


def concerns_tcp(rule: Rule) -> bool:
    """Whether TCP is among a rule's protocols."""
    return not rule.protocols or Protocol.TCP in rule.protocols


def tcp_service(rule: Rule) -> list[str]:
    """The TCP part of them, if there is one."""
    return [_transport(["tcp"], rule)] if concerns_tcp(rule) else []


def services_beside_tcp(rule: Rule) -> list[str]:
    """The other part."""
    if not rule.protocols:
        return ["meta l4proto != tcp"]
    without_tcp = tuple(p for p in rule.protocols if p is not Protocol.TCP)
    if not without_tcp:
        return []
    ports = rule.ports if Protocol.UDP in without_tcp else ()
    return services(replace(rule, protocols=without_tcp, ports=ports))


def ports_of(rule: Rule) -> str:
    """A rule's ports as nft compares with them."""
    return any_of([str(ports) for ports in rule.ports])


def any_of(words: Sequence[str]) -> str:
    """One word, or an anonymous set of them."""
    return words[0] if len(words) == 1 else "{ " + ", ".join(words) + " }"


def contradict(peer: str, service: str) -> bool:
    """Whether a peer of one family is combined with ICMP of the other, which nft refuses."""
    wrong = IPV4_ONLY if peer.startswith("ip6 ") else IPV6_ONLY
    return bool(peer) and service.startswith(wrong)


def _dns_services(rule: Rule) -> list[str]:
    """Port 53 of TCP and UDP, as far as the rule leaves it."""
    protocols = [_LAYER4[p] for p in WITH_PORTS if not rule.protocols or p in rule.protocols]
    if not protocols or (rule.ports and not any(DNS_PORT in ports for ports in rule.ports)):
        return []
    return [f"meta l4proto {any_of(protocols)} th dport {DNS_PORT}"]


def _transport(protocols: list[str], rule: Rule) -> str:
    ports = f" th dport {ports_of(rule)}" if rule.ports else ""
    return f"meta l4proto {any_of(protocols)}{ports}"
