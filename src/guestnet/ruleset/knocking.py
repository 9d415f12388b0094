"""How the gateway takes over a guest's TCP: nobody answers the guest before the other end has.

1. *knock*: the SYN of a connection that is the gateway's is logged to one of `KNOCK_GROUPS` groups
   (nfnetlink_log), each of which a worker reads, and dropped. Which one follows from the flow's
   ends: what a guest repeats comes to the same worker. A guest has a quarter of the groups, so that
   one who floods them fills the room of that quarter. Without a gateway it is refused.
2. The worker decides and dials. What it sends bears its mark (`MARK_WORKER`). That is the guest's
   SYN once the other end has answered, to an address of ours (`DOOR_ADDRESSES`), where *let_in* has
   connection tracking give it to that worker's door. Everything else of the flow takes that way by
   its entry, like that of any redirected flow.
3. Or it is the refusal: a reset, or the ICMP error that the worker was told. Nothing else of a
   worker's mark passes (*from_gateway*), and nothing in the name of, or to, who has not knocked of
   late: what others are about to open is not a worker's to take. A refusal is of no connection, so
   it is not tracked: other tools drop what is invalid. Where they give a flow's mark back to its
   packets, the door's own answers bear a worker's mark.

What is no SYN and belongs to no flow gets the reset of a closed port.
"""

from __future__ import annotations

from .doors import Doors
from .names import (
    DOOR_ADDRESSES,
    KNOCK_GROUP,
    KNOCK_GROUPS,
    MARK_WORKER,
    MARK_WORKER_MASK,
    NOT_POLICED,
    POLICED,
    TABLE,
)
from .telling import SHARES_SIZE, UNTOLD

#: Bytes of a SYN that are read: the longest headers of IPv6 and TCP.
SYN_BYTES = 100
#: SYNs of one guest in a second that are looked at, and how many at once after a rest.
KNOCKS_PER_SECOND, KNOCKS_BURST = 10_000, 5000
#: What it says depends on whether there is a gateway.
KNOCK = "knock"
#: The map of workers' marks and doors.
KNOCK_DOOR = "knock_door"

_MARKED = f"meta mark & {MARK_WORKER_MASK:#x} == {MARK_WORKER:#x}"
_FLOOD = f"limit rate over {KNOCKS_PER_SECOND}/second burst {KNOCKS_BURST} packets counter"
_SET = f"size {SHARES_SIZE}; flags dynamic,timeout; timeout 1m"
#: Longer than a worker may take to answer.
_RECENTLY = f"size {SHARES_SIZE}; flags dynamic,timeout; timeout 2m"
#: Groups that one guest's connections are spread over.
_GUEST_GROUPS = 4
_PARTS = range(KNOCK_GROUPS // _GUEST_GROUPS)


def _choice(what: str, chain: str, numbers: range) -> str:
    members = ", ".join(f"{i} : goto {chain}{number}" for i, number in enumerate(numbers))
    return f"jhash {what} mod {len(numbers)} vmap {{ {members} }}"


def _of_group(number: int) -> str:
    return f"""  chain knock{number} {{
    log group {KNOCK_GROUP + number} snaplen {SYN_BYTES} queue-threshold 1
    drop
  }}
"""


def _of_part(part: int) -> str:
    numbers = range(part * _GUEST_GROUPS, (part + 1) * _GUEST_GROUPS)
    return f"""  chain knock_part{part} {{
    {_choice("ip saddr . tcp sport . ip daddr . tcp dport", "knock", numbers)}
    {_choice("ip6 saddr . tcp sport . ip6 daddr . tcp dport", "knock", numbers)}
    drop
  }}
"""


#: The constant part.
KNOCKING = (
    f"""
  set knocking4 {{ type ipv4_addr; {_SET}; }}
  set knocking6 {{ type ipv6_addr; {_SET}; }}
  set knocked4 {{ type ipv4_addr; {_RECENTLY}; }}
  set knocked6 {{ type ipv6_addr; {_RECENTLY}; }}
  map {KNOCK_DOOR} {{ type mark : inet_service; }}
"""
    + "".join(map(_of_group, range(KNOCK_GROUPS)))
    + "".join(map(_of_part, _PARTS))
    + f"""  chain knocked {{
    update @knocking4 {{ ip saddr {_FLOOD} }} drop
    update @knocking6 {{ ip6 saddr {_FLOOD} }} drop
    update @knocked4 {{ ip saddr }}
    update @knocked6 {{ ip6 saddr }}
    {_choice("ip saddr", "knock_part", _PARTS)}
    {_choice("ip6 saddr", "knock_part", _PARTS)}
    drop
  }}
  chain {KNOCK} {{
    meta l4proto tcp goto refuse_egress
  }}
  chain let_in {{
    type nat hook output priority -102; policy accept;
    {_MARKED} oifname "lo" meta l4proto tcp {UNTOLD} \
dnat ip to {DOOR_ADDRESSES[4]} : meta mark map @{KNOCK_DOOR}
    {_MARKED} oifname "lo" meta l4proto tcp {UNTOLD} \
dnat ip6 to {DOOR_ADDRESSES[6]} : meta mark map @{KNOCK_DOOR}
  }}
  chain untracked_refusals {{
    type filter hook output priority raw; policy accept;
    {_MARKED} meta oifgroup {POLICED} notrack
  }}
  chain from_gateway {{
    meta oifgroup {POLICED} ip saddr {DOOR_ADDRESSES[4]} ct direction reply goto to_guest
    meta oifgroup {POLICED} ip6 saddr {DOOR_ADDRESSES[6]} ct direction reply goto to_guest
    oifname "lo" ip saddr . ip saddr != @live4 drop
    oifname "lo" ip6 saddr . ip6 saddr != @live6 drop
    oifname "lo" ip saddr != @knocked4 drop
    oifname "lo" ip6 saddr != @knocked6 drop
    oifname "lo" ip daddr {DOOR_ADDRESSES[4]} ct status dnat accept
    oifname "lo" ip6 daddr {DOOR_ADDRESSES[6]} ct status dnat accept
    meta oifgroup {NOT_POLICED} drop
    ip daddr . ip daddr != @live4 counter name unleased drop
    ip6 daddr . ip6 daddr != @live6 counter name unleased drop
    ip daddr != @knocked4 drop
    ip6 daddr != @knocked6 drop
    tcp flags & (syn | rst) == rst accept
    icmp type destination-unreachable icmp code != frag-needed accept
    icmpv6 type destination-unreachable accept
    drop
  }}
"""
)
#: In the output hook, before a guest's ingress.
FROM_GATEWAY = f"    {_MARKED} goto from_gateway\n"


def knock_text(doors: Doors | None) -> str:
    """What the places say about it."""
    lines = [f"flush chain inet {TABLE} {KNOCK}", f"flush map inet {TABLE} {KNOCK_DOOR}"]
    if doors is None:
        lines.append(f"add rule inet {TABLE} {KNOCK} meta l4proto tcp goto refuse_egress")
    else:
        members = ", ".join(f"{MARK_WORKER + i:#x} : {p}" for i, p in enumerate(doors.relay_tcp))
        closed = f"{UNTOLD} redirect to :{doors.relay_tcp[0]}"
        lines += [
            f"add element inet {TABLE} {KNOCK_DOOR} {{ {members} }}",
            f"add rule inet {TABLE} {KNOCK} tcp flags & (fin | syn | rst | ack) != syn {closed}",
            f"add rule inet {TABLE} {KNOCK} meta l4proto tcp goto knocked",
        ]
    return "\n".join(lines) + "\n"
