"""What a benchmark plays on: a far end, a site with an uplink to it, and guests' namespaces.

    far    a router and a server's public-looking addresses
    site   `up0` with default routes to the far end; guestnet, or what is compared with it, is here

Leaner than `lab.world.World`: no servers run that nobody asks, and there may be two side by side.
"""

from __future__ import annotations

import contextlib
from typing import Self

from ..addresses import ALLOWED, ROUTER_IPV4, ROUTER_IPV6, SITE_IPV4, SITE_IPV6, UPLINK
from ..netns import Namespace, veth

FAR_IPV4, FAR_IPV6 = ALLOWED.addresses


class Stage:
    """Two linked namespaces, and more on demand, until the end of the `with` block."""

    site: Namespace
    far: Namespace

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.far = stack.enter_context(Namespace("far"))
            # What runs there finds a resolver at the far end, if somebody has one listen.
            self.site = stack.enter_context(Namespace("site", nameservers=[str(FAR_IPV4)]))
            for namespace in (self.far, self.site):
                plain(namespace)
            veth(self.far, "site0", self.site, UPLINK)
            self.far.ip(
                f"address add {ROUTER_IPV4} dev site0",
                f"address add {ROUTER_IPV6} dev site0 nodad",
                f"address add {FAR_IPV4}/32 dev lo",
                f"address add {FAR_IPV6}/128 dev lo",
            )
            self.site.ip(
                f"address add {SITE_IPV4} dev {UPLINK}",
                f"address add {SITE_IPV6} dev {UPLINK} nodad",
                f"route add default via {ROUTER_IPV4.ip} dev {UPLINK}",
                f"route add default via {ROUTER_IPV6.ip} dev {UPLINK}",
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add_guest(self) -> Namespace:
        """One more namespace with nothing in it, gone with the stage."""
        guest = self._stack.enter_context(Namespace("guest"))
        plain(guest)
        return guest


def plain(namespace: Namespace) -> None:
    """Give a namespace the kernel's own settings: a new one copies the machine's.

    Congestion control is the kernel's own (CUBIC), or Reno where a container may not choose that:
    BBR, which some machines have, paces by a timer whatever goes through a relay.
    """
    for name in ("cubic", "reno"):
        with contextlib.suppress(PermissionError, FileNotFoundError):
            namespace.sysctl("ipv4.tcp_congestion_control", name)
            break
    for key in ("all", "default"):
        namespace.sysctl(f"ipv4.conf.{key}.rp_filter", 0)
        namespace.sysctl(f"ipv6.conf.{key}.forwarding", 0)
    namespace.sysctl("ipv4.ip_forward", 0)
