"""Asking for what stands already is no error; asking for something else under its name is."""

from __future__ import annotations

from ..errors import ConflictError
from ..kernel.netns import netns_path
from ..model import Attachment, AttachRequest, NetworkSpec
from ..policy import Policy, parse_policy


def check_same_network(wanted: NetworkSpec, known: NetworkSpec) -> None:
    """Raise `ConflictError` if a network stands with other settings than are asked for now."""
    # A policy that nobody names now may have been set since the network was made.
    is_named = "policy" in wanted.model_fields_set
    if is_named and parse_policy(wanted.policy) != parse_policy(known.policy):
        raise ConflictError(
            "policy",
            wanted.policy,
            f"network {known.name!r} has {known.policy!s}; change it with policy set --network",
        )
    for key in type(wanted).model_fields.keys() - {"policy"}:
        asked, standing = getattr(wanted, key), getattr(known, key)
        # What was left to the machine was filled in when the network was made.
        if asked != standing and not (asked is None and key in ("mtu", "dns")):
            raise ConflictError(
                key,
                asked,
                f"network {known.name!r} exists with {key}={standing!s}; remove it first",
            )


def check_same_attachment(request: AttachRequest, policy: Policy | None, known: Attachment) -> None:
    """Raise `ConflictError` if a guest is attached in another way than is asked for now."""
    asked: dict[str, object] = {
        "network": request.network,
        "mac": request.mac,
        "mtu": request.mtu,
        "tap": request.tap,
        "ipv4": request.ipv4,
        "ipv6": request.ipv6,
        "policy": str(policy) if policy is not None else None,
    }
    standing: dict[str, object] = {key: getattr(known, key) for key in asked}
    for key in ("ipv4", "ipv6"):
        interface = getattr(known, key)
        standing[key] = interface.ip if interface is not None else None
    for key in ("guest_interface", "queues", "owner", "group", "transport"):
        asked[key], standing[key] = getattr(request, key), getattr(known, key)
    netns = str(netns_path(request.netns)) if request.netns is not None else None
    optional = ("mac", "mtu", "tap", "ipv4", "ipv6", "policy")
    differing = [
        k for k, v in asked.items() if v != standing[k] and not (v is None and k in optional)
    ]
    if netns != known.netns:
        differing.append("netns")
    if differing:
        key = differing[0]
        raise ConflictError(
            key,
            getattr(request, key),
            f"guest {known.guest!r} is attached with {key}={standing.get(key, known.netns)!s}; "
            "detach it first",
        )
