"""Names of guestnet's own, which no resolver is asked for: the host's, and guests' of a network.

A guest finds another of its network if its policy lets it reach that one by any protocol and port.
Of all others it hears the same, whether they are there or not: their ids are not its to guess.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from ..dns import (
    LOCAL_TTL_S,
    VERSIONS,
    Ede,
    Question,
    Rcode,
    Rtype,
    addresses,
    no_data,
    pointer,
    refusal,
    reversed_address,
)
from ..naming import HOST_ALIAS, ZONE, guests_zone, is_below
from ..policy import Action, Verdict
from .guests import Guest, Guests, is_allowed

Address = IPv4Address | IPv6Address

#: What stands in a decision where no rule of the policy has decided.
_RULE = "guests' names"


class Own(NamedTuple):
    """An answer about a name of our own."""

    wire: bytes
    #: What is told of it; the host's name is asked so often that it is not told.
    verdict: Verdict | None = None
    addresses: tuple[Address, ...] = ()


def own_answer(guests: Guests, guest: Guest, question: Question) -> Own | None:
    """The answer if the question is about us, else `None`."""
    name = question.name
    if is_below(name, ZONE):
        return _forward(guests, guest, question)
    address = reversed_address(name)
    if address is None:
        return None
    if address in guest.host:
        return Own(_pointed(question, HOST_ALIAS))
    return _reverse(guests, guest, question, address) if guests.is_a_guest_s(address) else None


def _forward(guests: Guests, guest: Guest, question: Question) -> Own:
    name, zone = question.name, guests_zone(guest.network)
    if name == HOST_ALIAS:
        return Own(addresses(question, guest.host, LOCAL_TTL_S))
    if name in (ZONE, zone):
        return Own(no_data(question))
    peer = guests.peers.named(name) if is_below(name, zone) else None
    if peer is None:
        reason = f"no guest of network {guest.network} has the name {name}"
        return _unknown(guest, question, Verdict(Action.DENY, None, _RULE, None, reason))
    verdicts = {each: _may_reach(guests, guest, each) for each in peer.addresses}
    found = tuple(each for each, verdict in verdicts.items() if is_allowed(verdict))
    if not found:
        return _unknown(guest, question, next(iter(verdicts.values())))
    told = tuple(each for each in found if each.version == VERSIONS.get(question.qtype))
    return Own(addresses(question, found, LOCAL_TTL_S), verdicts[found[0]], told)


def _reverse(guests: Guests, guest: Guest, question: Question, address: Address) -> Own:
    peer = guests.peers.at(address)
    name = guests.peers.name_of(peer) if peer is not None else None
    if peer is None or name is None or peer.network != guest.network:
        reason = f"no guest of network {guest.network} has a name at {address}"
        return _unknown(guest, question, Verdict(Action.DENY, None, _RULE, None, reason))
    verdict = _may_reach(guests, guest, address)
    if not is_allowed(verdict):
        return _unknown(guest, question, verdict)
    return Own(_pointed(question, name), verdict)


def _may_reach(guests: Guests, guest: Guest, address: Address) -> Verdict:
    if address in guest.addresses:
        return Verdict(Action.ALLOW, None, _RULE, None, "a guest may know its own name")
    return guests.may_reach(guest, address)


def _pointed(question: Question, name: str) -> bytes:
    if question.qtype != Rtype.PTR:
        return no_data(question)
    return pointer(question, name, LOCAL_TTL_S)


def _unknown(guest: Guest, question: Question, verdict: Verdict) -> Own:
    text = f"no guest of network {guest.network} that this one may reach has this name or address"
    return Own(refusal(question, Rcode.NXDOMAIN, Ede.BLOCKED, text), verdict)
