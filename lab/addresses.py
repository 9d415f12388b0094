"""Who is who on the lab's internet.

The public-looking addresses are some that guestnet's policy counts as public; documentation space
would be refused as reserved. They exist inside the namespaces of a `World` and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface


@dataclass(frozen=True)
class Server:
    """One server on the internet, by the name it answers to in the lab's DNS and certificates."""

    label: str
    name: str
    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None
    #: Further names of the same addresses, in its certificate as well.
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every name it answers to."""
        return (self.name, *self.aliases)

    @property
    def addresses(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """Both families, or the one it has."""
        return tuple(address for address in (self.ipv4, self.ipv6) if address is not None)


def _server(
    label: str, name: str, ipv4: str | None, ipv6: str | None = None, aliases: tuple[str, ...] = ()
) -> Server:
    return Server(
        label,
        name,
        None if ipv4 is None else IPv4Address(ipv4),
        None if ipv6 is None else IPv6Address(ipv6),
        aliases,
    )


ALLOWED = _server(
    "allowed",
    "allowed.example.test",
    "93.184.216.34",
    "2606:2800:220:1::34",
    ("shared.example.test", "pkg.test", "cdn.pkg.test"),
)
FORBIDDEN = _server("forbidden", "forbidden.example.test", "151.101.1.69", "2a04:4e42::645")
#: Answers DNS for every name on this page, on UDP and TCP.
RESOLVER = _server("resolver", "resolver.example.test", "8.8.8.8", "2001:4860:4860::8888")
#: Where `lab.liar` answers, if a test starts it: it says what no resolver should.
LIAR = _server("liar", "liar.example.test", "9.9.9.9", "2620:fe::fe")
#: Where `lab.workshop` works, if a test starts it: by a name that leads to one family, and under
#: one more that a policy for the others leaves out.
WORKSHOPS = tuple(
    _server(
        f"tools{version}",
        f"tools{version}.example.test",
        ipv4,
        ipv6,
        (f"index{version}.pkg.test", f"tools{version}.other.test"),
    )
    for version, ipv4, ipv6 in (
        (4, "185.199.108.153", None),
        (6, None, "2606:50c0:8000::153"),
    )
)
#: Addresses of somebody's private network, reachable through the uplink if nothing forbids it.
PRIVATE = _server("private", "private.example.test", "10.20.30.40", "fd77::40")
#: Cloud metadata services, which answer so that a leak shows.
METADATA = _server("metadata", "metadata.example.test", "169.254.169.254", "fd00:ec2::254")
METADATA_AZURE = _server("metadata-azure", "azure.example.test", "168.63.129.16")
METADATA_ALIBABA = _server("metadata-alibaba", "alibaba.example.test", "100.100.100.200")

SERVERS = (
    ALLOWED,
    FORBIDDEN,
    RESOLVER,
    PRIVATE,
    METADATA,
    METADATA_AZURE,
    METADATA_ALIBABA,
)

#: The site's uplink `up0`, and the router it leads to.
SITE_IPV4 = IPv4Interface("45.66.77.2/24")
SITE_IPV6 = IPv6Interface("2a0a:1234::2/64")
ROUTER_IPV4 = IPv4Interface("45.66.77.1/24")
ROUTER_IPV6 = IPv6Interface("2a0a:1234::1/64")
UPLINK = "up0"

Address = IPv4Address | IPv6Address

#: Names whose owner publishes addresses that are not theirs to open; the lab's resolver knows them.
REBINDING: dict[str, tuple[Address, ...]] = {
    "to-private.example.test": PRIVATE.addresses,
    "to-metadata.example.test": METADATA.addresses,
    "to-site.example.test": (SITE_IPV4.ip, SITE_IPV6.ip),
    "to-loopback.example.test": (IPv4Address("127.0.0.1"), IPv6Address("::1")),
    "to-nat64.example.test": (IPv6Address("64:ff9b::a14:1e28"),),
    # One address that would pass, and one that must not.
    "to-both.example.test": (*ALLOWED.addresses, *PRIVATE.addresses),
}
