"""What a policy says of datagrams, which do not say whom they mean, and of name services."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from ..policy import (
    DNS_PORT,
    NAME_SERVICES,
    REPORTED,
    Action,
    FlowName,
    Mode,
    Protocol,
    Verdict,
    has_names,
    needs_name,
)
from .guests import Guest, Guests

Address = IPv4Address | IPv6Address

#: TCP to DNS's own port is the resolver door's.
_NAME_SERVICES = {Protocol.TCP: NAME_SERVICES, Protocol.UDP: (DNS_PORT, *NAME_SERVICES)}


def name_service(guest: Guest, protocol: Protocol, port: int) -> Verdict | None:
    """The refusal of what resolves names beside the gateway, where that is nobody's to allow."""
    enforced = has_names(guest.policy) and guest.policy.mode is Mode.ENFORCE
    if not (enforced and port in _NAME_SERVICES.get(protocol, ())):
        return None
    reason = f"port {port} resolves names beside the gateway, where no rule sees them"
    return Verdict(Action.DENY, None, "name services", None, reason)


def judge(
    guests: Guests, guest: Guest, protocol: Protocol, address: Address, port: int, now: float
) -> tuple[Verdict, FlowName | None]:
    """The policy's verdict, and the name that the exchange goes by."""
    refused = name_service(guest, protocol, port)
    if refused is not None:
        return refused, None
    reports = guest.policy.mode is Mode.REPORT
    places = guests.places(guest)
    if not needs_name(guest.policy, protocol, address, port, places):
        return guests.decide(guest, address, port, None, protocol), None
    guests.hear_siblings()
    names = guests.pins.names_of(guest.id, address, now)
    agreed = guests.decide_pinned(guest, address, port, names, protocol)
    if agreed is not None:
        return agreed[0], FlowName(agreed[1], verified=True)
    if names:
        reason = (
            f"{address} was resolved for {', '.join(names)}, which the policy treats "
            "differently, and datagrams do not say which they mean"
        )
        if reports:
            return Verdict(Action.ALLOW, None, REPORTED, None, reason), None
        return Verdict(Action.DENY, None, "ambiguous name", None, reason), None
    return guests.decide(guest, address, port, None, protocol), None
