"""What the formats read from an `Attachment`: its TAP, if it has one, and its address families."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

from ..errors import ConfigError
from ..frames.transport import Transport
from ..model import Attachment


@dataclass(frozen=True, slots=True)
class Family:
    """One active address family of a guest."""

    version: int
    #: The guest's address with the prefix length that it configures.
    address: IPv4Interface | IPv6Interface
    gateway: IPv4Address | IPv6Address | None
    #: The attachment's resolvers of this family, in its order.
    dns: tuple[IPv4Address | IPv6Address, ...]


def families(attachment: Attachment) -> tuple[Family, ...]:
    """The families that the guest has an address in, IPv4 first.

    Resolvers of a family without an address are left out: the guest could not reach them.
    """
    found = (
        (4, attachment.ipv4, attachment.gateway_ipv4),
        (6, attachment.ipv6, attachment.gateway_ipv6),
    )
    return tuple(
        Family(version, address, gateway, tuple(d for d in attachment.dns if d.version == version))
        for version, address, gateway in found
        if address is not None
    )


def tap_name(attachment: Attachment, vmm: str) -> str:
    """The TAP that `vmm` opens; a namespace guest has none, which is a `ConfigError`."""
    if attachment.netns is not None:
        raise ConfigError(
            "netns",
            attachment.netns,
            f"a namespace guest has a veth and no TAP for {vmm} to open; use env or cloud-init",
        )
    if attachment.transport is not None:
        raise ConfigError(
            "transport",
            attachment.transport,
            f"the TAP is not for {vmm} to open by its name; attach the guest without a transport",
        )
    return attachment.tap


def transport_of(attachment: Attachment) -> Transport | None:
    """How the VMM gets its frames, if it does not open the TAP."""
    return Transport.parse(attachment.transport) if attachment.transport is not None else None


def misfit(transport: Transport, right: str) -> ConfigError:
    """A transport that a VMM does not speak, and what it does."""
    return ConfigError("transport", str(transport), right)


def single_queue_tap_name(attachment: Attachment, vmm: str) -> str:
    """The TAP of a `vmm` that opens one queue; a multi-queue TAP is a `ConfigError`.

    The kernel compares IFF_MULTI_QUEUE of TUNSETIFF with the device's and answers EINVAL when they
    differ (drivers/net/tun.c, tun_set_iff()), so such a VMM would fail later and say less.
    """
    name = tap_name(attachment, vmm)
    if attachment.queues != 1:
        raise ConfigError(
            "queues",
            attachment.queues,
            f"{vmm} opens a TAP with one queue; attach the guest with queues=1",
        )
    return name
