"""The stage: `guest — site — internet`, three namespaces of which only the last two are linked.

    guest        nothing but loopback: the test attaches it (as a namespace guest), or does not
    site         where guestnet runs: `up0` 45.66.77.2 and 2a0a:1234::2, default routes by it
    internet     the router 45.66.77.1, and behind it every server of `lab.addresses`

The internet has no route back to any guest pool, as the real one has none: a packet that leaves the
site without masquerade is never answered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Self

from .addresses import (
    LIAR,
    RESOLVER,
    ROUTER_IPV4,
    ROUTER_IPV6,
    SERVERS,
    SITE_IPV4,
    SITE_IPV6,
    UPLINK,
    WORKSHOPS,
    Server,
)
from .capture import Capture
from .certificates import Certificates, certificates
from .internet import Servers
from .liar import Liar
from .netns import Namespace, veth
from .servers import Arrival
from .workshop import Workshop


class World:
    """A site with an uplink to an internet of seven servers, until the end of its `with` block."""

    guest: Namespace
    site: Namespace
    internet: Namespace
    servers: Servers
    certificates: Certificates

    def __init__(self, *, mtu: int | None = None) -> None:
        self._mtu = mtu
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.certificates = certificates((*SERVERS, *WORKSHOPS))
            self.internet = stack.enter_context(Namespace("internet"))
            resolvers = [str(address) for address in RESOLVER.addresses]
            self.site = stack.enter_context(Namespace("site", nameservers=resolvers))
            self.guest = stack.enter_context(Namespace("guest"))
            self._build()
            self.servers = stack.enter_context(Servers(self.internet, SERVERS, self.certificates))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add_guest(self, label: str = "guest", *, nameservers: Sequence[str] = ()) -> Namespace:
        """One more empty namespace, gone with the world; its programs ask `nameservers`."""
        return self._stack.enter_context(Namespace(label, nameservers=nameservers))

    def lie(self) -> Liar:
        """Start the lying resolver at `LIAR`'s addresses; it ends with the world."""
        self.internet.ip(
            *(f"address add {a}/{a.max_prefixlen} dev lo" for a in LIAR.addresses),
        )
        return self._stack.enter_context(Liar(self.internet))

    def open_workshops(self) -> dict[int, Workshop]:
        """Start the workshops, by the family of their address; they end with the world."""
        found: dict[int, Workshop] = {}
        for server in WORKSHOPS:
            (address,) = server.addresses
            self.internet.ip(f"address add {address}/{address.max_prefixlen} dev lo")
            leaf = self.certificates.leaf(server.label)
            workshop = Workshop(self.internet, address, leaf)
            found[address.version] = self._stack.enter_context(workshop)
        return found

    def serve(self, namespace: Namespace, server: Server) -> Servers:
        """Play a server elsewhere, as on the site itself; its addresses must be there already."""
        return self._stack.enter_context(Servers(namespace, [server]))

    def capture(
        self, expression: str = "", *, namespace: Namespace | None = None, interface: str = UPLINK
    ) -> Capture:
        """Watch an interface; by default the site's uplink, where every leak shows."""
        return Capture(namespace or self.site, interface, expression)

    def arrivals(
        self, server: Server | None = None, *, kind: str | None = None, port: int | None = None
    ) -> list[Arrival]:
        """What reached the internet's servers (`Servers.arrivals`)."""
        return self.servers.arrivals(server, kind=kind, port=port)

    def _build(self) -> None:
        for namespace in (self.internet, self.site, self.guest):
            _plain(namespace)
        veth(self.internet, "site0", self.site, UPLINK, mtu=self._mtu)
        # nodad: an address that is still being checked for duplicates cannot be bound.
        self.internet.ip(
            f"address add {ROUTER_IPV4} dev site0",
            f"address add {ROUTER_IPV6} dev site0 nodad",
            *(
                f"address add {address}/{address.max_prefixlen} dev lo"
                for server in SERVERS
                for address in server.addresses
            ),
        )
        self.site.ip(
            f"address add {SITE_IPV4} dev {UPLINK}",
            f"address add {SITE_IPV6} dev {UPLINK} nodad",
            f"route add default via {ROUTER_IPV4.ip} dev {UPLINK}",
            f"route add default via {ROUTER_IPV6.ip} dev {UPLINK}",
        )


def _plain(namespace: Namespace) -> None:
    """A new namespace copies the machine's IPv4 settings; give each run the kernel's own.

    No forwarding: whoever needs it turns it on. No reverse-path filter: it would hide a spoofed
    packet that guestnet let through.
    """
    for key in ("all", "default"):
        namespace.sysctl(f"ipv4.conf.{key}.rp_filter", 0)
        namespace.sysctl(f"ipv6.conf.{key}.forwarding", 0)
    namespace.sysctl("ipv4.ip_forward", 0)
