"""What would happen to a flow: the policy's answer, and what the machine adds to it."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

from ..dns import LocalRecords
from ..errors import ConfigError
from ..kernel.conntrack import Tracked
from ..kernel.interface import Site
from ..model import Attachment, Topology
from ..naming import HOST_ALIAS, ZONE, guest_label, guests_zone, is_below
from ..policy import (
    DNS_PORT,
    NAME_SERVICES,
    WITH_PORTS,
    Action,
    Direction,
    FlowName,
    Group,
    Places,
    Protocol,
    Verdict,
    canonical_name,
    decide,
    decide_question,
    has_names,
)
from ..ruleset.relayed import GIVEN_UP
from .installed import read_policy
from .ledger import Ledger
from .moment import Moment

Address = IPv4Address | IPv6Address


#: Stand for the address that a name leads to, where it is not known yet.
SOME_PUBLIC: dict[int, Address] = {4: IPv4Address("192.0.0.9"), 6: IPv6Address("2001:1::1")}
_FOREIGN_ICMP = {4: Protocol.ICMPV6, 6: Protocol.ICMPV4}


class Explainer:
    """Answers for one moment, whose surroundings it looks at once.

    Its caller holds the host's lock.
    """

    def __init__(self, ledger: Ledger, site: Site) -> None:
        self._ledger = ledger
        self._site = site
        self._moment = Moment(ledger, site)

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
        if self._is_on_its_bridge(attachment, peer):
            return self._at_layer_2(attachment)
        places = self._moment.places(attachment, peer)
        verdict = decide(read_policy(attachment.policy), way, kind, peer, port, places, name)
        if not verdict.allowed:
            return verdict
        return self._beyond_policy(attachment, way, kind, peer, port, verdict, places)

    def _beyond_policy(
        self,
        attachment: Attachment,
        way: Direction,
        kind: Protocol,
        peer: Address,
        port: int | None,
        allowed: Verdict,
        places: Places,
    ) -> Verdict:
        """What becomes of a flow that a guest's policy allows."""
        if kind is _FOREIGN_ICMP[peer.version]:
            reason = f"{kind} over IPv{peer.version} is no flow that connection tracking knows"
            return _denied("invalid", allowed, reason)
        other = self._ledger.holder_of_address(peer)
        mine = attachment.ipv4 if peer.version == 4 else attachment.ipv6
        if other is not None and mine is not None:
            return self._at_the_other_end(other, way, mine.ip, kind, port, allowed)
        if way is Direction.INGRESS and self._is_impostor(allowed, peer, places):
            reason = (
                f"`{allowed.text}` allows group {allowed.group}, but {peer} is no address of it: "
                "whoever claims it comes from outside"
            )
            return _denied("spoofed", allowed, reason)
        if self._is_relayed(way, peer):
            return self._relayed(kind, peer, allowed, places)
        if way is Direction.INGRESS or allowed.group is Group.HOST:
            return allowed
        if allowed.group is Group.GUESTS:
            reason = f"`{allowed.text}` allows it, but no guest has the address {peer}"
            return _denied("unleased", allowed, reason)
        return self._leaving(attachment, peer, allowed)

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
        policy, places = read_policy(attachment.policy), self._moment.places(attachment, peer)
        return decide(policy, direction, protocol, peer, port, places, name)

    def allows(self, attachment: Attachment, flow: Tracked, name: FlowName | None) -> bool:
        """Whether a flow that connection tracking knows, and goes by `name`, may go on."""
        egress = flow.source in attachment.addresses
        peer = flow.destination if egress else flow.source
        direction = Direction.EGRESS if egress else Direction.INGRESS
        protocol = Protocol.numbered(flow.protocol)
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
        verdict = decide(policy, way, kind, peer, port, self._moment.places(attachment, peer), name)
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
        places = self._moment.places(other, mine)
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
            return _denied("embedded", allowed, reason)
        if allowed.group is Group.GUESTS:
            reason = f"`{allowed.text}` allows it, but no guest has the address {peer}"
            return _denied("unleased", allowed, reason)
        if any(peer in network for network in GIVEN_UP):
            reason = f"`{allowed.text}` allows it, but addresses like {peer} were given up"
            return _denied("relayed", allowed, reason)
        if kind is Protocol.ANY:
            reason = f"`{allowed.text}` allows it, but the gateway relays TCP, UDP and pings only"
            return _denied("relayed", allowed, reason)
        return allowed

    def _leaving(self, attachment: Attachment, peer: Address, allowed: Verdict) -> Verdict:
        """Allowed packets leave by an egress interface of the network, or not at all."""
        egress = self._ledger.network(attachment.network).egress
        way = self._site.outlook.way_to(peer)
        devices = way.devices if way is not None else ()
        if way is not None and not way.is_unicast:
            reason = (
                f"{peer} is a broadcast or anycast address of the host's own links, and no way out"
            )
            return _denied("egress", allowed, reason)
        if set(devices) & set(egress):
            return allowed
        where = ", ".join(devices) or "nowhere"
        reason = (
            f"`{allowed.text}` allows it, but the host routes {peer} to {where}, and guests of "
            f"{attachment.network!r} leave by {', '.join(egress) or 'no interface'} only; "
            "name that interface in the network's egress"
        )
        return _denied("egress", allowed, reason)


def _denied(text: str, allowed: Verdict, reason: str) -> Verdict:
    """What a policy allows, denied by something else."""
    return Verdict(Action.DENY, None, text, allowed.group, reason)


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
