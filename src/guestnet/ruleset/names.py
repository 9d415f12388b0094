"""Names and numbers by which guestnet's part of the kernel's state is known to be guestnet's."""

from __future__ import annotations

from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

TABLE = "guestnet"

#: A rule here for each policy in use: its members go to its chain.
EGRESS_DISPATCH, INGRESS_DISPATCH = "egress_policies", "ingress_policies"
#: The same for policies with rules by name, whose chains hand flows to the gateway.
RELAY_DISPATCH = "relay_policies"

#: Link groups ("gnt" and a number). What a device may do follows from its group, so the rules need
#: no list of devices. The low byte's high half says which checks apply.
GROUP_ROUTED = 0x676E7410  # a routed guest's device: identity and policy are checked here
GROUP_BRIDGE = 0x676E7411  # a bridge: its ports checked identity, policy is checked here
GROUP_PORT = 0x676E7420  # a guest's port on a bridge: identity is checked here
GROUP_RETIRED = 0x676E74F0  # detached, waiting to be deleted: nothing passes
GROUP_POLICED_MASK = 0xFFFFFFF0

#: nft's words for "is one of the devices where policy is checked", and for the others.
POLICED = f"and {GROUP_POLICED_MASK:#x} == {GROUP_ROUTED:#x}"
NOT_POLICED = f"and {GROUP_POLICED_MASK:#x} != {GROUP_ROUTED:#x}"

#: Marks of guests' packets on their way in where the gateway takes over what a policy allows (see
#: `relayed`), and of what the gateway answers for others. The first byte is that of our routes'
#: protocol; the higher ones are left to tools that use bits of the mark.
MARK_ASKED, MARK_TAKEN, MARK_ANSWER = 0xE6, 0xE7, 0xE8

#: What a worker of the gateway writes about guests' connections bears this mark and its number.
MARK_WORKER, MARK_WORKER_MASK, MOST_WORKERS = 0xD0, 0xFFFFFFF0, 16
#: The first of the nfnetlink_log groups at which guests' connections knock, and their number.
KNOCK_GROUP, KNOCK_GROUPS = 0x6750, 16
#: Where guests' connections are let in: local here, and nobody's anywhere else (unassigned ones of
#: IANA's special addresses, and of the discard prefix: RFC 6890 and 6666).
DOOR_ADDRESSES: dict[int, IPv4Address | IPv6Address] = {
    4: IPv4Address("192.0.0.11"),
    6: IPv6Address("100::b"),
}

#: The prefix of device names that guestnet chooses, as nft and iptables both match it.
DEVICE_PREFIX = "gn"


class Family(IntEnum):
    """Netfilter families of our tables (NFPROTO_*, linux/netfilter.h)."""

    INET = 1
    ARP = 3
    BRIDGE = 7

    @property
    def word(self) -> str:
        """As nft writes it."""
        return self.name.lower()
