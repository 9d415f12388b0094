"""The policy that what a guest was seen to use calls for."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from ..gateway.ports import SPEAKING_PORTS
from ..kernel.interface import Site
from ..model import Attachment
from ..policy import FLOOR, Group, Policy, Protocol, SeenFlow, classify, suggest
from .moment import Moment
from .seen import Seen

Address = IPv4Address | IPv6Address


def suggest_for(
    attachment: Attachment, seen: Seen, site: Site, moment: Moment, *, suffixes: bool
) -> Policy:
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
        for peer, number, port in site.counts.seen(own):
            protocol = Protocol.numbered(number)
            found.append((protocol, port, peer, names.get(peer, [""])))
    flows = []
    for protocol, port, address, each in found:
        group = classify(address, moment.places(attachment, address))
        if group not in FLOOR:
            known = each if group is Group.PUBLIC else [""]
            flows += [SeenFlow(protocol, port or None, address, name) for name in known]
    return suggest(flows, seen.questions(guest), suffixes=suffixes)
