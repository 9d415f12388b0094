"""Which addresses are special: the one page of prefixes on which the groups stand.

Sources: the IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890 and the RFCs named per
line), and the clouds' own documentation for their metadata services. Each table is *painted* in
order over the whole address space: a later line wins where lines overlap.
"""

from __future__ import annotations

from enum import StrEnum


class Group(StrEnum):
    """What an address is to a guest. Every address is in exactly one group."""

    NONE = "none"
    """Not an address of anyone: 0.0.0.0/8 and `::`."""
    HOST = "host"
    """The machine that runs the guests: every address of every interface of it."""
    METADATA = "metadata"
    """A cloud's metadata service, which hands out the machine's credentials."""
    GUESTS = "guests"
    """The pools of all networks of this host."""
    LOOPBACK = "loopback"
    PRIVATE = "private"
    """RFC 1918, shared (carrier-grade NAT) and unique local addresses."""
    LINK_LOCAL = "link-local"
    MULTICAST = "multicast"
    """Multicast, and the limited broadcast 255.255.255.255."""
    RESERVED = "reserved"
    """Everything else that is not globally reachable."""
    PUBLIC = "public"


#: Metadata services that answer with credentials or secrets of the machine. DNS and time services
#: at such addresses (169.254.169.253 and .123, fd00:ec2::253 and ::123) hand out no credentials and
#: stay link-local or private, as the same cloud's in-subnet resolver does.
#: OpenStack's fe80::a9fe:a9fe is IPv6 link-local, so no rule at all can open it.
METADATA_IPV4 = (
    "169.254.169.254",  # AWS, Azure, GCP, OpenStack, OCI, DigitalOcean, Firecracker MMDS, …
    "169.254.169.252",  # GKE metadata server
    "169.254.170.2",  # AWS ECS task credentials
    "169.254.170.23",  # AWS EKS pod identity
    "169.254.0.23",  # Tencent Cloud
    "169.254.42.42",  # Scaleway
    "168.63.129.16",  # Azure WireServer; a public address to everyone else
    "100.100.100.200",  # Alibaba Cloud
    "100.96.0.96",  # Volcengine
    "100.80.80.80",  # UCloud
    "192.0.0.192",  # Oracle Cloud Classic
)
METADATA_IPV6 = (
    "fd00:ec2::254",  # AWS
    "fd00:ec2::23",  # AWS EKS pod identity
    "fd20:ce::254",  # GCP
    "fd00:c1::a9fe:a9fe",  # Oracle Cloud
    "fd00:100::100:200",  # Alibaba Cloud
    "fd00:42::42",  # Scaleway
    "fd00:a9fe:a9fe::1",  # Akamai (Linode)
)

IPV4: tuple[tuple[str, Group], ...] = (
    ("0.0.0.0/0", Group.PUBLIC),
    ("192.0.0.0/24", Group.RESERVED),  # IETF protocol assignments, RFC 6890 …
    ("192.0.0.9/32", Group.PUBLIC),  # … of which PCP anycast (RFC 7723) …
    ("192.0.0.10/32", Group.PUBLIC),  # … and TURN anycast (RFC 8155) are globally reachable
    ("192.0.2.0/24", Group.RESERVED),  # TEST-NET-1, RFC 5737
    ("192.88.99.0/24", Group.RESERVED),  # 6to4 relay anycast, deprecated by RFC 7526
    ("198.18.0.0/15", Group.RESERVED),  # benchmarking, RFC 2544
    ("198.51.100.0/24", Group.RESERVED),  # TEST-NET-2, RFC 5737
    ("203.0.113.0/24", Group.RESERVED),  # TEST-NET-3, RFC 5737
    ("240.0.0.0/4", Group.RESERVED),  # future use, RFC 1112
    ("224.0.0.0/4", Group.MULTICAST),  # RFC 5771
    ("255.255.255.255/32", Group.MULTICAST),  # limited broadcast, RFC 919
    ("169.254.0.0/16", Group.LINK_LOCAL),  # RFC 3927
    ("10.0.0.0/8", Group.PRIVATE),  # RFC 1918
    ("172.16.0.0/12", Group.PRIVATE),  # RFC 1918
    ("192.168.0.0/16", Group.PRIVATE),  # RFC 1918
    ("100.64.0.0/10", Group.PRIVATE),  # shared address space, RFC 6598
    ("127.0.0.0/8", Group.LOOPBACK),  # RFC 1122
    *((f"{address}/32", Group.METADATA) for address in METADATA_IPV4),
    ("0.0.0.0/8", Group.NONE),  # "this network", RFC 791
)

#: Without the prefixes that embed IPv4: those take the group of what they embed (see `groups`).
IPV6: tuple[tuple[str, Group], ...] = (
    # Only 2000::/3 is assigned as global unicast (RFC 4291 section 2.4). The rest is reserved
    # unless named below; that covers the registry's 64:ff9b:1::/48 (local-use NAT64, RFC 8215),
    # 100::/64 (discard, RFC 6666), 100:0:0:1::/64 (dummy, RFC 9780), 5f00::/16 (SRv6 SIDs,
    # RFC 9602) and the deprecated site-local fec0::/10 (RFC 3879).
    ("::/0", Group.RESERVED),
    ("2000::/3", Group.PUBLIC),
    # IETF protocol assignments (RFC 2928), among them 2001:2::/48 (benchmarking, RFC 5180) and
    # 2001:10::/28 (ORCHID, RFC 4843), but for the ones the registry calls globally reachable:
    ("2001::/23", Group.RESERVED),
    ("2001:1::1/128", Group.PUBLIC),  # PCP anycast, RFC 7723
    ("2001:1::2/128", Group.PUBLIC),  # TURN anycast, RFC 8155
    ("2001:1::3/128", Group.PUBLIC),  # DNS-SD registration anycast, RFC 9665
    ("2001:3::/32", Group.PUBLIC),  # AMT, RFC 7450
    ("2001:4:112::/48", Group.PUBLIC),  # AS112, RFC 7535
    ("2001:20::/28", Group.PUBLIC),  # ORCHIDv2, RFC 7343
    ("2001:30::/28", Group.PUBLIC),  # drone remote ID, RFC 9374
    ("2001:db8::/32", Group.RESERVED),  # documentation, RFC 3849
    ("3fff::/20", Group.RESERVED),  # documentation, RFC 9637
    ("ff00::/8", Group.MULTICAST),  # RFC 4291 section 2.7
    ("fe80::/10", Group.LINK_LOCAL),  # RFC 4291 section 2.5.6
    ("fc00::/7", Group.PRIVATE),  # unique local, RFC 4193
    *((f"{address}/128", Group.METADATA) for address in METADATA_IPV6),
)

#: Painted after the embedding prefixes, because both lie inside ::/96 (RFC 4291 section 2.5).
IPV6_LAST: tuple[tuple[str, Group], ...] = (
    ("::/128", Group.NONE),
    ("::1/128", Group.LOOPBACK),
)
