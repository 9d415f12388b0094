"""The world wired by hand, without guestnet: the lab's own check and the benchmarks' baseline."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Interface

from .addresses import UPLINK
from .netns import Namespace, veth
from .world import World

#: The guest's side and the site's side of the one hand-made link.
GUEST_IPV4, GATEWAY_IPV4 = IPv4Interface("172.16.0.2/30"), IPv4Interface("172.16.0.1/30")
GUEST_IPV6, GATEWAY_IPV6 = IPv6Interface("fd42:6d73:62::2/64"), IPv6Interface("fd42:6d73:62::1/64")
GUEST_MAC = "02:6d:73:00:00:02"
DEVICE = "plain0"

_MASQUERADE = f"""
table inet plain {{
  chain postrouting {{
    type nat hook postrouting priority srcnat
    oifname {UPLINK} masquerade
  }}
}}
"""


def forward(world: World, *, masquerade: bool = True) -> None:
    """Make the site a router, and unless told otherwise one that hides its guests' addresses."""
    world.site.sysctl("ipv4.ip_forward", 1)
    world.site.sysctl("ipv6.conf.all.forwarding", 1)
    if masquerade:
        world.site.run(["nft", "-f", "-"], stdin=_MASQUERADE)


def attach_namespace(world: World, guest: Namespace) -> None:
    """Link a namespace guest to the site by veth, with addresses and default routes."""
    veth(world.site, DEVICE, guest, "eth0")
    _address_gateway(world)
    guest.ip(
        f"address add {GUEST_IPV4} dev eth0",
        f"address add {GUEST_IPV6} dev eth0 nodad",
        f"route add default via {GATEWAY_IPV4.ip} dev eth0",
        f"route add default via {GATEWAY_IPV6.ip} dev eth0",
    )


def add_tap(world: World) -> None:
    """A TAP in the site for a VM that is told `GUEST_IPV4` and `GUEST_IPV6`."""
    world.site.ip(f"tuntap add dev {DEVICE} mode tap", f"link set {DEVICE} up")
    _address_gateway(world)


def _address_gateway(world: World) -> None:
    world.site.ip(
        f"address add {GATEWAY_IPV4} dev {DEVICE}",
        f"address add {GATEWAY_IPV6} dev {DEVICE} nodad",
    )
