"""The constant part of the ruleset: identity at the device, then policy by address.

A packet's way:

1. *identity* (before fragments are put together): a frame from a guest's device must carry the
   device's leased MAC and address, in ARP and neighbour discovery too. Afterwards the source
   address *is* the guest. Bridge ports are checked in the bridge table; what comes from a port
   itself, not from its bridge, went around that (802.1D's reserved groups do) and is dropped.
2. *from_guest*: the source address must be a live guest's, and chooses the policy's egress chain,
   for forwarded packets and for those to the host alike.
3. *leave*: an allowed packet goes to another guest (and meets that one's ingress chain) or out by
   an egress interface of its network, and nowhere else; for a pool's address that nobody has there
   is no way out.
4. *to_guest*: the destination address must be a live guest's, and chooses the policy's ingress
   chain, for packets from outside, from the host and from other guests.

What a policy's relay chain hands to the gateway (*handover*) arrives at the host instead
(*handed_over*), with the guest's own source address; nobody else gets to the gateway's doors. On
a synthetic network all that goes to addresses which stand for names does too, and in the relayed
manner everything that may leave (`relayed`).

What passes and what is refused is told on the way (`telling`).

What comes from elsewhere with a guest's source address is no guest's, and is dropped. An error
message about a flow (*related*) passes only from an end of that flow.

Established flows are asked for a live guest too, so deleting a guest's elements cuts them at once.

A guest's policy is its membership in a set, not a verdict in a map: for each verdict that a map is
given the kernel walks all the others (nf_tables_validate), so an attach would cost what there is.
New flows therefore try one set per distinct policy; established ones never do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from ..address import SYNTHETIC_IPV4, SYNTHETIC_IPV6
from ..policy import Group, static_ranges, teredo_ranges, unroutable_groups
from .knocking import FROM_GATEWAY, KNOCK, KNOCKING
from .names import (
    EGRESS_DISPATCH,
    GROUP_PORT,
    GROUP_RETIRED,
    GROUP_ROUTED,
    INGRESS_DISPATCH,
    MARK_ASKED,
    MARK_TAKEN,
    NOT_POLICED,
    POLICED,
    RELAY_DISPATCH,
    TABLE,
)
from .relayed import ANSWER_RULES, QUESTIONS, RELAYED, TAKING_CHAINS
from .sets import interval_set, range4, range6
from .telling import FORGING, PASS_EGRESS, TELLING

#: Groups that rules can name and whose addresses are the same on every machine.
STATIC_GROUPS = (
    Group.METADATA,
    Group.PRIVATE,
    Group.LINK_LOCAL,
    Group.RESERVED,
    Group.PUBLIC,
)
#: Peers that guests in report mode sent datagrams to; beyond it they pass untold.
SEEN_SET_SIZE = 65536

#: Both ways: `rt mtu` is the smaller of the MTUs towards either end.
_CLAMP = "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu"
#: Ahead of NF_IP_PRI_CONNTRACK_DEFRAG (-400): queues of fragments are shared by all devices, so a
#: fragment that was not checked alone would be checked as part of somebody else's packet.
_BEFORE_DEFRAGMENTATION = -450
#: Raised when policies compile to other rules under the same names: an upgrade writes them anew.
POLICY_FORMAT = 3
#: Nothing comes back from there.
TO_RELAY = f"jump {KNOCK}"


def set_word(group: Group) -> str:
    """A group's name in set names: `link-local` → `link_local`."""
    return group.value.replace("-", "_")


def _group_sets() -> str:
    parts = [_sets(set_word(group), {group}, {group}) for group in STATIC_GROUPS]
    parts.append(_sets("unroutable", unroutable_groups(4), unroutable_groups(6)))
    return "".join(parts)


def _sets(word: str, low: Iterable[Group], high: Iterable[Group]) -> str:
    """Three sets that say one thing: in IPv4, in IPv6, and of the clients of Teredo."""
    four = [range4(*part) for group in sorted(low) for part in static_ranges(group, 4)]
    six = [range6(*part) for group in sorted(high) for part in static_ranges(group, 6)]
    teredo = [range6(*part) for group in sorted(high) for part in teredo_ranges(group)]
    return (
        interval_set(f"{word}4", "ipv4_addr", four)
        + interval_set(f"{word}6", "ipv6_addr", six)
        + interval_set(f"{word}_teredo", "ipv6_addr", teredo)
    )


_IDENTITY_SETS = """
  set identity4 { type ifname . ether_addr . ipv4_addr; }
  set identity6 { type ifname . ether_addr . ipv6_addr; }
  set announce6 { typeof meta iifname . @th,64,128; }
  counter retired { }
  counter spoofed_ipv4 { }
  counter spoofed_ipv6 { }
  counter forged_discovery { }
  counter foreign_ethertype { }
"""

# A booting guest sends from no address yet (DHCP, duplicate address detection, MLD): that is no
# forgery, and is dropped uncounted. Neighbour discovery by a guest may speak of its own addresses
# only; @th,64,128 is an advertisement's target address (RFC 4861 section 4.4). It always has hop
# limit 255 and is never fragmented (RFC 6980), which would hide from these rules what it is.
_IDENTITY_CHAINS = (
    FORGING
    + """  chain identity_ipv6 {
    ip6 hoplimit 255 exthdr frag exists counter name forged_discovery goto forged
    icmpv6 type { nd-router-advert, nd-redirect } counter name forged_discovery goto forged
    icmpv6 type nd-neighbor-advert iifname . @th,64,128 != @announce6 \
counter name forged_discovery goto forged
    accept
  }
  chain identity {
    meta protocol ip iifname . ether saddr . ip saddr @identity4 accept
    ip saddr 0.0.0.0 drop
    meta protocol ip counter name spoofed_ipv4 goto forged
    meta protocol ip6 iifname . ether saddr . ip6 saddr @identity6 goto identity_ipv6
    ip6 saddr :: drop
    meta protocol ip6 counter name spoofed_ipv6 goto forged
    counter name foreign_ethertype goto forged
  }
"""
)

_ASKING_CHAIN = f"""
  chain asking {{
    ip saddr . ip saddr != @live4 counter name unleased drop
    ip6 saddr . ip6 saddr != @live6 counter name unleased drop
    meta mark set {MARK_ASKED:#x}
    jump {EGRESS_DISPATCH}
    goto refuse_egress
  }}
"""

_INET_CHAINS = f"""
  set guests4 {{ type ipv4_addr; flags interval; }}
  set guests6 {{ type ipv6_addr; flags interval; }}
  set guests_teredo {{ type ipv6_addr; flags interval; }}
  set host_embedded6 {{ type ipv6_addr; flags interval; }}
  set host_teredo {{ type ipv6_addr; flags interval; }}
  set leave4 {{ type ipv4_addr . ifname; flags interval; }}
  set leave6 {{ type ipv6_addr . ifname; flags interval; }}
  set resolver4 {{ type ipv4_addr . ipv4_addr; flags interval; }}
  set resolver6 {{ type ipv6_addr . ipv6_addr; flags interval; }}
  set synthetic4 {{ type ipv4_addr; flags interval; }}
  set synthetic6 {{ type ipv6_addr; flags interval; }}
  set shared {{ type ifname . ifname; }}
  set live4 {{ type ipv4_addr . ipv4_addr; }}
  set live6 {{ type ipv6_addr . ipv6_addr; }}
  set isolated {{ type ifname . ifname; }}
  map resolver_door {{ type inet_proto : inet_service; }}
  set doors {{ type inet_proto . inet_service; }}
  set seen4 {{ type ipv4_addr . ipv4_addr . inet_service; size {SEEN_SET_SIZE}; \
flags dynamic,timeout; timeout 7d; }}
  set seen6 {{ type ipv6_addr . ipv6_addr . inet_service; size {SEEN_SET_SIZE}; \
flags dynamic,timeout; timeout 7d; }}
  set seen_other4 {{ type ipv4_addr . ipv4_addr . inet_proto; size {SEEN_SET_SIZE}; \
flags dynamic,timeout; timeout 7d; }}
  set seen_other6 {{ type ipv6_addr . ipv6_addr . inet_proto; size {SEEN_SET_SIZE}; \
flags dynamic,timeout; timeout 7d; }}
  counter unleased {{ }}
  counter invalid {{ }}

  chain invalid {{
    counter name invalid drop
  }}
{TELLING}{KNOCKING}  chain {EGRESS_DISPATCH} {{
  }}
  chain {INGRESS_DISPATCH} {{
  }}
  chain to_guest {{
    ip daddr . ip daddr != @live4 counter name unleased drop
    ip6 daddr . ip6 daddr != @live6 counter name unleased drop
    ct state vmap {{ established : accept, related : accept, \
invalid : goto invalid, untracked : goto invalid }}
    jump {INGRESS_DISPATCH}
    goto refuse_ingress
  }}
  chain leave {{
    meta oifgroup {POLICED} goto to_guest
    ct state established,related accept
    ip daddr @guests4 goto refuse_egress
    ip6 daddr @guests6 goto refuse_egress
    ip6 daddr 2001::/32 ip6 daddr & ::ffff:ffff @guests_teredo goto refuse_egress
    meta mark {MARK_ASKED:#x} meta mark set {MARK_TAKEN:#x} accept
    ip saddr . oifname @leave4 goto {PASS_EGRESS}
    ip6 saddr . oifname @leave6 goto {PASS_EGRESS}
    goto refuse_egress
  }}
  chain related {{
    ip saddr . ct original ip saddr @live4 goto leave
    ip saddr . ct reply ip saddr @live4 goto leave
    ip6 saddr . ct original ip6 saddr @live6 goto leave
    ip6 saddr . ct reply ip6 saddr @live6 goto leave
    goto invalid
  }}
  chain from_guest {{
    iifname . oifname @shared accept
    iifname . oifname @isolated goto refuse_egress
    ip saddr . ip saddr != @live4 counter name unleased drop
    ip6 saddr . ip6 saddr != @live6 counter name unleased drop
    ct state vmap {{ established : goto leave, related : goto related, \
invalid : goto invalid, untracked : goto invalid }}
    jump {EGRESS_DISPATCH}
    goto refuse_egress
  }}
  chain {RELAY_DISPATCH} {{
  }}
  chain handover {{
    type nat hook prerouting priority dstnat - 2; policy accept;
    meta iifgroup {POLICED} ip saddr @synthetic4 ip daddr {SYNTHETIC_IPV4} \
meta l4proto tcp {TO_RELAY}
    meta iifgroup {POLICED} ip6 saddr @synthetic6 ip6 daddr {SYNTHETIC_IPV6} \
meta l4proto tcp {TO_RELAY}
    meta iifgroup {POLICED} jump {RELAY_DISPATCH}
    meta iifgroup {POLICED} jump {QUESTIONS}
    meta iifgroup {POLICED} meta l4proto tcp jump {RELAYED}
  }}
  chain handed_over {{
    ip saddr . ip saddr != @live4 counter name unleased drop
    ip6 saddr . ip6 saddr != @live6 counter name unleased drop
    meta l4proto . th dport @doors accept
  }}
  chain impostor {{
    ip saddr @guests4 counter name spoofed_ipv4 drop
    ip6 saddr @guests6 counter name spoofed_ipv6 drop
    ip6 saddr @host_embedded6 counter name spoofed_ipv6 drop
    ip6 saddr 2001::/32 ip6 saddr & ::ffff:ffff @guests_teredo counter name spoofed_ipv6 drop
    ip6 saddr 2001::/32 ip6 saddr & ::ffff:ffff @host_teredo counter name spoofed_ipv6 drop
  }}
  chain prerouting {{
    type filter hook prerouting priority {_BEFORE_DEFRAGMENTATION}; policy accept;
    meta iifgroup {GROUP_RETIRED:#x} counter name retired drop
    meta iifgroup {GROUP_ROUTED:#x} goto identity
    meta iifgroup {GROUP_PORT:#x} counter name foreign_ethertype drop
    meta iifgroup {NOT_POLICED} iifname != "lo" ip saddr . ip saddr @live4 \
counter name spoofed_ipv4 drop
    meta iifgroup {NOT_POLICED} iifname != "lo" ip6 saddr . ip6 saddr @live6 \
counter name spoofed_ipv6 drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    meta oifgroup {GROUP_RETIRED:#x} counter name retired drop
    meta oifgroup {POLICED} meta nfproto ipv4 fib saddr type local counter name spoofed_ipv4 drop
    meta oifgroup {POLICED} meta nfproto ipv6 fib saddr type local counter name spoofed_ipv6 drop
    meta oifgroup {POLICED} meta iifgroup {NOT_POLICED} jump impostor
    meta iifgroup {POLICED} {_CLAMP}
    meta oifgroup {POLICED} {_CLAMP}
    meta iifgroup {POLICED} jump from_guest
    meta oifgroup {POLICED} jump to_guest
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    meta iifgroup {POLICED} icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
    meta iifgroup {POLICED} ct status dnat jump handed_over
    meta iifgroup {POLICED} meta mark {MARK_TAKEN:#x} goto taken_over
    meta iifgroup {POLICED} jump from_guest
    iifname != "lo" meta l4proto . th dport @doors counter name invalid drop
  }}
  chain output {{
    type filter hook output priority filter; policy accept;
    meta oifgroup {GROUP_RETIRED:#x} counter name retired drop
    meta oifgroup {POLICED} icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
{FROM_GATEWAY}{ANSWER_RULES}    meta oifgroup {POLICED} jump to_guest
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr . oifname @leave4 masquerade
    ip6 saddr . oifname @leave6 masquerade
  }}
"""

# What is accepted is said, not what is dropped: a match on a field fails for a message that is
# misshapen so as not to have it.
_ARP_IDENTITY = """\
  chain identity_arp {
    iifname . ether saddr . arp saddr ip @identity4 \
iifname . arp saddr ether . arp saddr ip @identity4 accept
    arp saddr ip 0.0.0.0 drop
    counter name spoofed_arp drop
  }
"""

_ARP_TABLE = f"""
table arp {TABLE} {{
  set identity4 {{ type ifname . ether_addr . ipv4_addr; }}
  counter retired {{ }}
  counter spoofed_arp {{ }}
  chain input {{
    type filter hook input priority filter; policy accept;
    meta iifgroup {GROUP_RETIRED:#x} counter name retired drop
    meta iifgroup {GROUP_PORT:#x} counter name spoofed_arp drop
    meta iifgroup {GROUP_ROUTED:#x} goto identity_arp
  }}
{_ARP_IDENTITY}}}
"""

_BRIDGE_CHAINS = f"""
  counter spoofed_arp {{ }}
{_ARP_IDENTITY}  chain identity_port {{
    ether type != {{ ip, ip6, arp }} counter name foreign_ethertype goto forged
    ether type arp goto identity_arp
    goto identity
  }}
  chain prerouting {{
    type filter hook prerouting priority -300; policy accept;
    meta iifgroup {GROUP_RETIRED:#x} counter name retired drop
    meta iifgroup {GROUP_PORT:#x} goto identity_port
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    meta oifgroup {GROUP_RETIRED:#x} counter name retired drop
  }}
  chain output {{
    type filter hook output priority filter; policy accept;
    meta oifgroup {GROUP_RETIRED:#x} counter name retired drop
  }}
"""


def _body() -> str:
    return (
        f"table inet {TABLE} {{{_IDENTITY_SETS}{_group_sets()}"
        f"{_INET_CHAINS}{_ASKING_CHAIN}{TAKING_CHAINS}{_IDENTITY_CHAINS}}}\n"
        f"{_ARP_TABLE}"
        f"table bridge {TABLE} {{{_IDENTITY_SETS}{_IDENTITY_CHAINS}{_BRIDGE_CHAINS}}}\n"
    )


_BODY = _body()
#: Names this release's constant part; an empty chain of this name stands in the table, so a later
#: start sees without reading every rule whether what stands there is what it would write.
FINGERPRINT = "base-" + hashlib.sha256(f"{_BODY}{POLICY_FORMAT}".encode()).hexdigest()[:12]


def base_text() -> str:
    """The constant part, replacing whatever a former release left in our tables."""
    replace = "".join(
        f"add table {family} {TABLE}\ndelete table {family} {TABLE}\n"
        for family in ("inet", "arp", "bridge")
    )
    return f"{replace}{_BODY}add chain inet {TABLE} {FINGERPRINT}\n"
