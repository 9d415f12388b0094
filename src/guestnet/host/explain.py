"""What would happen to a flow: the policy's answer, and what the machine adds to it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import replace
from enum import StrEnum
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

from ..dns import LocalRecords
from ..errors import ConfigError
from ..gateway.peeking import SPEAKING_PORTS
from ..kernel.conntrack import Tracked
from ..kernel.interface import Site
from ..model import Attachment, Topology
from ..naming import HOST_ALIAS, ZONE, guest_label, guests_zone, is_below
from ..policy import (
    DNS_PORT,
    FLOOR,
    NAME_SERVICES,
    WITH_PORTS,
    Action,
    Direction,
    FlowName,
    Group,
    Places,
    Policy,
    Protocol,
    SeenFlow,
    Verdict,
    canonical_name,
    classify,
    decide,
    decide_question,
    has_names,
    suggest,
)
from ..ruleset.relayed import GIVEN_UP
from .installed import read_policy
from .ledger import Ledger
from .seen import Seen

Address = IPv4Address | IPv6Address


#: Stand for the address that a name leads to, where it is not known yet.
SOME_PUBLIC: dict[int, Address] = {4: IPv4Address("192.0.0.9"), 6: IPv6Address("2001:1::1")}
#: IP protocol numbers (IANA) that rules have words for.
NUMBERED = {
    1: Protocol.ICMPV4,
    6: Protocol.TCP,
    17: Protocol.UDP,
    58: Protocol.ICMPV6,
}
_FOREIGN_ICMP = {4: Protocol.ICMPV6, 6: Protocol.ICMPV4}


class Explainer:
    """Answers for one moment, whose surroundings it looks at once.

    Its caller holds the host's lock.
    """

    def __init__(self, ledger: Ledger, site: Site) -> None:
        self._ledger = ledger
        self._site = site

    @cached_property
    def _around(self) -> Places:
        """The machine's addresses, and where guests' are."""
        return Places(
            host=self._site.outlook.surroundings().addresses,
            # What one network's pool leaves out may be another's pool.
            guests=tuple(
                part for places in self._ledger.network_places() for part in places.counted
            ),
        )

    def explain(
        self,
        attachment: Attachment,
        direction: Direction | str,
        protocol: Protocol | str,
        address: Address | str,
        port: int | None,
        name: FlowName | None = None,
    ) -> Verdict:
        """The verdict on a flow between a guest and `address`, which may be a name.

        `name` is what a flow to an address goes by.
        """
        way = _word(Direction, "direction", direction)
        kind = _word(Protocol, "protocol", protocol)
        if isinstance(address, str) and not _is_address(address):
            return self._explain_name(attachment, way, kind, address, port)
        peer = _address(address)
        resolving = self._resolving(attachment, way, kind, peer, port)
        if resolving is not None:
            return resolving
        other = self._ledger.holder_of_address(peer)
        if self._is_on_its_bridge(attachment, peer):
            return self._at_layer_2(attachment)
        places = self._places(attachment, peer)
        verdict = decide(read_policy(attachment.policy), way, kind, peer, port, places, name)
        if verdict.allowed and kind is _FOREIGN_ICMP[peer.version]:
            return Verdict(
                Action.DENY, None, "invalid", verdict.group,
                f"{kind} over IPv{peer.version} is no flow that connection tracking knows",
            )  # fmt: skip
        if not verdict.allowed:
            return verdict
        mine = attachment.ipv4 if peer.version == 4 else attachment.ipv6
        if other is not None and mine is not None:
            return self._at_the_other_end(other, way, mine.ip, kind, port, verdict)
        if way is Direction.INGRESS and self._is_impostor(verdict, peer, places):
            return Verdict(
                Action.DENY, None, "spoofed", verdict.group,
                f"`{verdict.text}` allows group {verdict.group}, but {peer} is no address of it: "
                "whoever claims it comes from outside",
            )  # fmt: skip
        if self._is_relayed(way, peer):
            return self._relayed(kind, peer, verdict, places)
        if way is Direction.INGRESS or verdict.group is Group.HOST:
            return verdict
        if verdict.group is Group.GUESTS:
            return Verdict(
                Action.DENY, None, "unleased", verdict.group,
                f"`{verdict.text}` allows it, but no guest has the address {peer}",
            )  # fmt: skip
        return self._leaving(attachment, peer, verdict)

    def by_policy(
        self,
        attachment: Attachment,
        direction: Direction,
        protocol: Protocol,
        peer: Address,
        port: int | None,
        name: FlowName | None,
    ) -> Verdict:
        """What a guest's policy says of a flow that the machine let pass."""
        policy, places = read_policy(attachment.policy), self._places(attachment, peer)
        return decide(policy, direction, protocol, peer, port, places, name)

    def suggest(self, attachment: Attachment, seen: Seen, *, suffixes: bool) -> Policy:
        """The smallest policy that allows what a guest was seen to use above the floor."""
        guest = attachment.guest
        names = seen.names(guest)
        found: list[tuple[Protocol, int, Address, Iterable[str]]] = []
        for protocol, port, address, name in seen.flows(guest):
            found.append((protocol, port, address, [name]))
            if name and port not in SPEAKING_PORTS:
                # Nobody said this name: all that lead there will have to agree (`decide_pinned`).
                found.append((protocol, port, address, names.get(address, [])))
        for own in attachment.addresses:
            for peer, number, port in self._site.counts.seen(own):
                protocol = NUMBERED.get(number, Protocol.ANY)
                found.append((protocol, port, peer, names.get(peer, [""])))
        flows = []
        for protocol, port, address, each in found:
            group = classify(address, self._places(attachment, address))
            if group not in FLOOR:
                known = each if group is Group.PUBLIC else [""]
                flows += [SeenFlow(protocol, port or None, address, name) for name in known]
        return suggest(flows, seen.questions(guest), suffixes=suffixes)

    def allows(self, attachment: Attachment, flow: Tracked, name: FlowName | None) -> bool:
        """Whether a flow that connection tracking knows, and goes by `name`, may go on."""
        egress = flow.source in attachment.addresses
        peer = flow.destination if egress else flow.source
        direction = Direction.EGRESS if egress else Direction.INGRESS
        protocol = NUMBERED.get(flow.protocol, Protocol.ANY)
        port = flow.port if protocol in WITH_PORTS else None
        return self.explain(attachment, direction, protocol, peer, port, name).allowed

    @staticmethod
    def _is_impostor(verdict: Verdict, peer: Address, places: Places) -> bool:
        """Whether a source that no guest has claims to be one, or an embedded form the host."""
        return verdict.group is Group.GUESTS or (
            verdict.group is Group.HOST and peer not in places.host
        )

    def _resolving(
        self,
        attachment: Attachment,
        way: Direction,
        kind: Protocol,
        peer: Address,
        port: int | None,
    ) -> Verdict | None:
        """Whatever resolver a guest asks, the gateway answers, if rules by name need that.

        Where all flows are relayed it answers what it is asked itself, whatever the policy.
        """
        if way is not Direction.EGRESS or kind not in WITH_PORTS:
            return None
        if not has_names(read_policy(attachment.policy)):
            if self._site.relays_all and port == DNS_PORT and self._ledger.is_gateway(peer):
                reason = "the gateway is the resolver here, and decides about each question"
                return Verdict(Action.ALLOW, None, "the gateway's resolver", None, reason)
            return None
        if port == DNS_PORT:
            reason = (
                "the gateway answers all questions to resolvers, as the policy has rules by name"
            )
            return Verdict(Action.ALLOW, None, "the gateway's resolver", None, reason)
        if port in NAME_SERVICES:
            reason = f"port {port} resolves names beside the gateway, where no rule sees them"
            return Verdict(Action.DENY, None, "name services", None, reason)
        return None

    def _explain_name(
        self, attachment: Attachment, way: Direction, kind: Protocol, text: str, port: int | None
    ) -> Verdict:
        """A flow to a name: may it be resolved, and may a public address of it be reached so?"""
        name = FlowName(canonical_name(text), verified=True)
        if way is not Direction.EGRESS:
            raise ConfigError("address", text, "peers that open flows have an address, no name")
        policy = read_policy(attachment.policy)
        if has_names(policy):
            if is_below(name.name, ZONE):
                return self._explain_own_name(attachment, kind, name.name, port)
            question = decide_question(policy, name.name)
            if not question.allowed:
                return question
            records = LocalRecords(self._ledger.network(attachment.network).spec.records)
            found = records.find(name.name)
            if found is not None and found.addresses:
                peer = found.addresses[0]
                return self.explain(attachment, way, kind, peer, port, name)
        peer = SOME_PUBLIC[attachment.addresses[0].version]
        verdict = decide(policy, way, kind, peer, port, self._places(attachment, peer), name)
        about = f" (asked for {peer}, standing for any public address of {name.name})"
        return replace(verdict, reason=verdict.reason + about)

    def _explain_own_name(
        self, attachment: Attachment, kind: Protocol, name: str, port: int | None
    ) -> Verdict:
        """A flow to the host's name, or to that of a guest of the same network."""
        peer: Address | None = attachment.gateway_ipv4 or attachment.gateway_ipv6
        if name != HOST_ALIAS:
            label, _dot, zone = name.partition(".")
            named = [a for a in self._ledger.attachments() if guest_label(a.guest) == label]
            here = [a for a in named if a.network == attachment.network]
            own = here[0].ipv4 or here[0].ipv6 if len(here) == 1 else None
            peer = own.ip if own and zone == guests_zone(attachment.network) else None
        if peer is None:
            reason = f"no guest of network {attachment.network} alone has the name {name}"
            return Verdict(Action.DENY, None, "guests' names", None, reason)
        return self.explain(attachment, Direction.EGRESS, kind, peer, port)

    def _is_on_its_bridge(self, attachment: Attachment, peer: Address) -> bool:
        """Whether an address is a guest's, or nobody's, on the bridge of this very guest."""
        if attachment.topology is not Topology.BRIDGE or self._ledger.is_gateway(peer):
            return False
        for pool in self._ledger.network(attachment.network).pools:
            # IPv6's first address is the routers' anycast one, IPv4's last the broadcast.
            special = pool.broadcast_address if pool.version == 4 else pool.network_address
            if peer in pool and peer != special:
                return True
        return False

    def _at_layer_2(self, attachment: Attachment) -> Verdict:
        """Between guests of one bridge its isolation decides, and no policy is asked."""
        if self._ledger.network(attachment.network).spec.isolate:
            return Verdict(
                Action.DENY, None, "isolate=true", Group.GUESTS,
                f"guests of network {attachment.network!r} are isolated from each other; "
                "make a network with isolate=false, or a routed one",
            )  # fmt: skip
        return Verdict(
            Action.ALLOW, None, "isolate=false", Group.GUESTS,
            "guests of a network without isolation reach each other at layer 2",
        )  # fmt: skip

    @cached_property
    def _gateways(self) -> set[Address]:
        return self._ledger.gateways()

    def _places(self, attachment: Attachment, peer: Address) -> Places:
        host = self._around.host
        # The guest's own beside the others', as it may be here since this moment only.
        if peer in self._gateways or peer in (attachment.gateway_ipv4, attachment.gateway_ipv6):
            host |= {peer}
        return replace(self._around, host=host, dns=self._resolvers(attachment))

    def _resolvers(self, attachment: Attachment) -> tuple[Address, ...]:
        """What a rule that names `dns` opens to a guest."""
        if self._site.relays_all or has_names(read_policy(attachment.policy)):
            return attachment.dns
        network = self._ledger.network(attachment.network)
        return tuple({*attachment.dns, *network.dns, *self._ledger.told_dns(attachment.network)})

    def _at_the_other_end(
        self,
        other: Attachment,
        way: Direction,
        mine: Address,
        kind: Protocol,
        port: int | None,
        allowed: Verdict,
    ) -> Verdict:
        """Between guests of different networks, or routed ones, both policies have a say."""
        theirs = Direction.INGRESS if way is Direction.EGRESS else Direction.EGRESS
        places = self._places(other, mine)
        verdict = decide(read_policy(other.policy), theirs, kind, mine, port, places)
        return allowed if verdict.allowed else verdict

    def _is_relayed(self, way: Direction, peer: Address) -> bool:
        """Whether a flow is the gateway's to take, whatever it is."""
        if not self._site.relays_all or way is not Direction.EGRESS:
            return False
        host = self._site.outlook.surroundings().addresses
        return peer not in host and not self._ledger.is_gateway(peer)

    @staticmethod
    def _relayed(kind: Protocol, peer: Address, allowed: Verdict, places: Places) -> Verdict:
        """The gateway relays TCP, UDP and pings, to addresses as they are written."""
        if allowed.group is Group.HOST and peer not in places.host:
            reason = f"{peer} embeds an address of the host, which the gateway does not go to so"
            return Verdict(Action.DENY, None, "embedded", allowed.group, reason)
        if allowed.group is Group.GUESTS:
            reason = f"`{allowed.text}` allows it, but no guest has the address {peer}"
            return Verdict(Action.DENY, None, "unleased", allowed.group, reason)
        if any(peer in network for network in GIVEN_UP):
            reason = f"`{allowed.text}` allows it, but addresses like {peer} were given up"
            return Verdict(Action.DENY, None, "relayed", allowed.group, reason)
        if kind is Protocol.ANY:
            reason = f"`{allowed.text}` allows it, but the gateway relays TCP, UDP and pings only"
            return Verdict(Action.DENY, None, "relayed", allowed.group, reason)
        return allowed

    def _leaving(self, attachment: Attachment, peer: Address, allowed: Verdict) -> Verdict:
        """Allowed packets leave by an egress interface of the network, or not at all."""
        egress = self._ledger.network(attachment.network).egress
        way = self._site.outlook.way_to(peer)
        devices = way.devices if way is not None else ()
        if way is not None and not way.is_unicast:
            return Verdict(
                Action.DENY, None, "egress", allowed.group,
                f"{peer} is a broadcast or anycast address of the host's own links, and no way out",
            )  # fmt: skip
        if set(devices) & set(egress):
            return allowed
        where = ", ".join(devices) or "nowhere"
        return Verdict(
            Action.DENY,
            None,
            "egress",
            allowed.group,
            f"`{allowed.text}` allows it, but the host routes {peer} to {where}, and guests of "
            f"{attachment.network!r} leave by {', '.join(egress) or 'no interface'} only; "
            "name that interface in the network's egress",
        )


def _is_address(text: str) -> bool:
    """Whether a text is meant as an address: digits and dots, or anything with a colon."""
    bare = text.strip("[]")
    return ":" in bare or "/" in bare or bare.replace(".", "").isdecimal()


def _address(address: Address | str) -> Address:
    if not isinstance(address, str):
        return address
    try:
        return ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        raise ConfigError("address", address, "is not an IPv4 or IPv6 address") from None


_Word = TypeVar("_Word", bound=StrEnum)


def _word(kind: type[_Word], key: str, value: str) -> _Word:
    try:
        return kind(value)
    except ValueError:
        words = ", ".join(member.value for member in kind)
        raise ConfigError(key, value, f"is one of {words}") from None
