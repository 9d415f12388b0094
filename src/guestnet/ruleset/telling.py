"""What of flows and refusals is told, and how much of it: the part of the ruleset that tells.

Flows are told by connection tracking, at their beginning and their end; what is refused has no
entry there and is logged (nfnetlink_log) instead. Both have a share for each guest, so that one who
floods costs the listener no more than that and drowns nobody else's. Flows beyond it are counted in
`told`, refusals in `refused`, and those of them that are told in `telling`.

What the gateway takes over it tells itself. A flow that is not to be told has its events turned off
(`ct event`) before it begins; packets of flows that stand pass none of this.
"""

from __future__ import annotations

#: The nfnetlink_log group that the site's listener has, if there is one ("gn").
LOG_GROUP = 0x676E
#: What the log's prefix says: which side was refused, or that a device is not who it says it is.
EGRESS, INGRESS, IDENTITY = "egress", "ingress", "identity"
#: Bytes of a packet that are looked at: the longest IPv4 header and both ports.
SNAPLEN = 64
#: Flows of one guest in a second that are told, and how many at once after a rest.
FLOWS_PER_SECOND, FLOWS_BURST = 100, 200
#: The same for packets that are refused: who is refused mostly tries again.
REFUSALS_PER_SECOND, REFUSALS_BURST = 50, 100
#: The same for packets of one device under another identity than its own.
FORGERIES_PER_SECOND, FORGERIES_BURST = 10, 20
#: Guests whose shares are kept apart; beyond it flows are told unbounded, and refusals not at all.
SHARES_SIZE = 131072

#: Sets whose elements count for a guest's address; each is one for IPv4 and one for IPv6.
COUNTING = (REFUSED, LOGGED, UNTOLD_FLOWS) = ("refused", "telling", "told")

#: Events that nobody waits for instead of the beginning and the end.
UNTOLD = "ct event set label"
#: Where packets that a policy allows go, unless they still have to leave by the right door.
PASS_EGRESS, PASS_INGRESS = "pass_egress", "pass_ingress"

_FLOWS = f"limit rate over {FLOWS_PER_SECOND}/second burst {FLOWS_BURST} packets counter"
_REFUSALS = f"limit rate {REFUSALS_PER_SECOND}/second burst {REFUSALS_BURST} packets counter"
_FORGERIES = f"limit rate {FORGERIES_PER_SECOND}/second burst {FORGERIES_BURST} packets"
_DYNAMIC = f"size {SHARES_SIZE}; flags dynamic"


def _log(prefix: str) -> str:
    return f'log prefix "{prefix}" group {LOG_GROUP} snaplen {SNAPLEN}'


def _passing(chain: str, side: str) -> str:
    # A flow's later packets come here too until it is answered: its share was taken by the first.
    return f"""
  chain {chain} {{
    ct status confirmed accept
    update @told4 {{ ip {side} {_FLOWS} }} {UNTOLD}
    update @told6 {{ ip6 {side} {_FLOWS} }} {UNTOLD}
    accept
  }}"""


def _refusing(chain: str, side: str, prefix: str) -> str:
    return f"""
  chain {chain} {{
    update @refused4 {{ ip {side} counter }}
    update @refused6 {{ ip6 {side} counter }}
    update @telling4 {{ ip {side} {_REFUSALS} }} {_log(prefix)}
    update @telling6 {{ ip6 {side} {_REFUSALS} }} {_log(prefix)}
    goto refuse
  }}"""


TELLING = (
    f"""
  set told4 {{ type ipv4_addr; {_DYNAMIC}; }}
  set told6 {{ type ipv6_addr; {_DYNAMIC}; }}
  set refused4 {{ type ipv4_addr; {_DYNAMIC}; }}
  set refused6 {{ type ipv6_addr; {_DYNAMIC}; }}
  set telling4 {{ type ipv4_addr; {_DYNAMIC}; }}
  set telling6 {{ type ipv6_addr; {_DYNAMIC}; }}
  counter refused {{ }}

  chain refuse {{
    counter name refused
    meta l4proto tcp reject with tcp reset
    drop
  }}"""
    + _refusing("refuse_egress", "saddr", EGRESS)
    + _refusing("refuse_ingress", "daddr", INGRESS)
    + _passing(PASS_EGRESS, "saddr")
    + _passing(PASS_INGRESS, "daddr")
    + "\n"
)

#: Of both tables that check identity.
FORGING = f"""
  set forging {{ type ifname; {_DYNAMIC},timeout; timeout 1m; }}
  chain forged {{
    update @forging {{ iifname {_FORGERIES} }} {_log(IDENTITY)}
    drop
  }}
"""
