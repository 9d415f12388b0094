"""The relayed manner: what a policy allows goes to the gateway, and nothing is forwarded outward.

It is the site's, not a policy's: the same chains decide in both manners. Where the forwarded manner
asks them on the way out, this one asks on the way in, before routing:

0. Questions to the site itself are the gateway's resolver's, which decides about each.
1. *relayed* lets go by what stays within the site: packets to the site itself, to guests, and the
   answers of flows that others began with a guest. What is to go to addresses of the host that the
   site is not (a private namespace) is taken at once: only the gateway can tell them.
2. *asking* marks the packet and asks the guest's policy. A refusal is what it is elsewhere; where
   the policy says `leave`, that chain sees the mark, sets another (taken) and accepts.
   Where the gateway is to tell of refusals too, TCP is not asked about: the gateway does that.
3. What is taken knocks (TCP, when a connection begins: `knocking`) or is delivered to this machine
   by a route for its mark: datagrams to the gateway's door with their destination as it was
   (TPROXY), echo requests to its raw sockets. Anything else is refused, as is all while there is no
   gateway.
   Later datagrams of a flow are taken without being asked about: the gateway has decided the flow.

Datagrams and echo requests to addresses that stand for names are taken in both manners.

The gateway's answers bear a mark as well, and pass to guests only, where they must belong to a
flow that the guest began. Pings are answered by the gateway alone, not by the kernel in its place.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from ..address import SYNTHETIC_IPV4, SYNTHETIC_IPV6
from .knocking import KNOCK
from .names import MARK_ANSWER, MARK_ASKED, MARK_TAKEN, NOT_POLICED, POLICED, TABLE
from .telling import UNTOLD

Address = IPv4Address | IPv6Address


class Manner(StrEnum):
    """What becomes of a flow that is allowed by address."""

    FORWARDED = "forwarded"
    RELAYED = "relayed"


#: Chains that the site's places fill: what is asked about on its way in, and how it is taken.
RELAYED, TAKE = "relayed", "take"
#: Filled likewise: questions to the site itself, which the gateway answers.
QUESTIONS = "questions"
TO_RESOLVER = (
    f"meta l4proto {{ tcp, udp }} th dport 53 {UNTOLD} redirect to :meta l4proto map @resolver_door"
)
_ECHO = "echo-request"
#: IPv4-compatible and site-local addresses, both given up (RFC 4291 section 2.5.5.1, RFC 3879). The
#: kernel redirects no connection to them, as no address here has their scope: refused aloud.
GIVEN_UP = (IPv6Network("::/96"), IPv6Network("fec0::/10"))

#: The constant part. `jump` and not `goto`: what falls through is refused.
TAKING_CHAINS = f"""
  chain {RELAYED} {{
  }}
  chain {TAKE} {{
  }}
  chain {QUESTIONS} {{
  }}
  chain redirect_taken {{
    type nat hook prerouting priority dstnat - 1; policy accept;
    meta iifgroup {POLICED} meta mark {MARK_TAKEN:#x} meta l4proto tcp jump {KNOCK}
  }}
  chain ask {{
    type filter hook prerouting priority dstnat + 1; policy accept;
    meta iifgroup {POLICED} ip saddr @synthetic4 ip daddr {SYNTHETIC_IPV4} \
meta l4proto {{ udp, icmp }} meta mark set {MARK_TAKEN:#x} accept
    meta iifgroup {POLICED} ip6 saddr @synthetic6 ip6 daddr {SYNTHETIC_IPV6} \
meta l4proto {{ udp, ipv6-icmp }} meta mark set {MARK_TAKEN:#x} accept
    meta iifgroup {POLICED} jump {RELAYED}
  }}
  chain take_asked {{
    type filter hook prerouting priority dstnat + 2; policy accept;
    meta iifgroup {POLICED} meta mark {MARK_TAKEN:#x} ct status dnat accept
    meta iifgroup {POLICED} meta mark {MARK_TAKEN:#x} jump {TAKE}
    meta iifgroup {POLICED} meta mark {{ {MARK_ASKED:#x}, {MARK_TAKEN:#x} }} goto refuse_egress
  }}
  chain taken_over {{
    ip saddr . ip saddr != @live4 counter name unleased drop
    ip6 saddr . ip6 saddr != @live6 counter name unleased drop
    ct status confirmed accept
    {UNTOLD} accept
  }}
"""

#: In the output hook, before a guest's ingress.
ANSWER_RULES = f"""\
    meta mark {MARK_ANSWER:#x} meta oifgroup {NOT_POLICED} drop
    meta mark {MARK_ANSWER:#x} ct state != {{ established, related }} drop
    meta oifgroup {POLICED} meta mark != {MARK_ANSWER:#x} icmp type echo-reply \
fib saddr type != local drop
    meta oifgroup {POLICED} meta mark != {MARK_ANSWER:#x} icmpv6 type echo-reply \
fib saddr type != local drop
"""


def manner_text(
    manner: Manner, host: Iterable[Address], datagrams: int | None, *, told: bool = False
) -> str:
    """What the places say about the manner; `datagrams` is the port of the gateway's UDP door."""
    host = list(host)
    chains: dict[str, list[str]] = {TAKE: [], RELAYED: [], QUESTIONS: []}
    if datagrams is not None:
        chains[TAKE] = [
            f"meta l4proto udp tproxy to :{datagrams} accept",
            f"icmp type {_ECHO} accept",
            f"icmpv6 type {_ECHO} accept",
        ]
    if manner is Manner.RELAYED:
        low = ", ".join(str(each) for each in host if each.version == 4)
        high = ", ".join(str(each) for each in host if each.version == 6)
        chains[RELAYED] = _relayed(low, high, told)
        # The host's own are its own services, and nobody asks by loopback addresses.
        chains[QUESTIONS] = [
            f"ip daddr {{ {', '.join(['127.0.0.0/8', *([low] if low else [])])} }} return",
            f"ip6 daddr {{ {', '.join(['::1', *([high] if high else [])])} }} return",
            f"fib daddr type local {TO_RESOLVER}",
        ]
    lines = []
    for name, rules in chains.items():
        lines.append(f"flush chain inet {TABLE} {name}")
        lines += [f"add rule inet {TABLE} {name} {rule}" for rule in rules]
    return "\n".join(lines) + "\n"


def _relayed(low: str, high: str, told: bool) -> list[str]:
    take = f"meta mark set {MARK_TAKEN:#x} accept"
    return [
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept",
        "fib daddr type local accept",
        "ip daddr @guests4 accept",
        "ip6 daddr @guests6 accept",
        "ct state vmap { invalid : goto invalid, untracked : goto invalid }",
        "ct direction reply accept",
        # A guest's errors about flows of its own end here: the other end is the gateway.
        "ct state related drop",
        f"ct state established {take}",
        f"ip6 daddr {{ {', '.join(map(str, GIVEN_UP))} }} goto refuse_egress",
        *([f"ip daddr {{ {low} }} {take}"] if low else []),
        *([f"ip6 daddr {{ {high} }} {take}"] if high else []),
        *([f"meta l4proto tcp {take}"] if told else []),
        "goto asking",
    ]
