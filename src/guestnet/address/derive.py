"""From a slot to what the guest is called on the wire.

A *slot* is a guest's position in its network's pool. On a routed network slot N owns the N-th /30
and the N-th /64; on a bridge network the slot is the offset of the address in the subnet.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..model.terms import Topology

if TYPE_CHECKING:
    from ..model import NetworkSpec

#: The slot is two bytes of a routed guest's MAC.
ROUTED_SLOTS = 65536
#: A bridge network's offsets fill at most three bytes of a TAP's name.
BRIDGE_SLOTS = 1 << 24
_ROUTED_PREFIX_IPV4 = 30
_ROUTED_PREFIX_IPV6 = 64

_FNV_OFFSET = 0xCBF29CE484222325
_FNV_PRIME = 0x100000001B3
_MASK_64 = (1 << 64) - 1

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Placement:
    """Everything that a slot decides."""

    slot: int
    tap: str
    mac: str
    #: MAC of the host's end: the TAP itself (routed) or the bridge.
    gateway_mac: str
    ipv4: IPv4Interface | None
    ipv6: IPv6Interface | None
    gateway_ipv4: IPv4Address | None
    gateway_ipv6: IPv6Address | None


def fnv1a_64(data: bytes) -> int:
    """FNV-1a, 64 bits (the Fowler–Noll–Vo hash's published constants)."""
    digest = _FNV_OFFSET
    for byte in data:
        digest = ((digest ^ byte) * _FNV_PRIME) & _MASK_64
    return digest


def capacity(spec: NetworkSpec) -> int:
    """How many guests the network's pools hold."""
    first, last = slot_bounds(spec)
    inside = last - first + 1
    if spec.topology is Topology.ROUTED:
        return inside
    return inside - sum(first <= slot <= last for slot in reserved_slots(spec))


def slot_bounds(spec: NetworkSpec) -> tuple[int, int]:
    """The first and last slot that is inside every pool of the network."""
    if spec.topology is Topology.ROUTED:
        sizes = [ROUTED_SLOTS]
        if spec.ipv4 is not None:
            sizes.append(1 << (_ROUTED_PREFIX_IPV4 - spec.ipv4.prefixlen))
        if spec.ipv6 is not None:
            sizes.append(1 << (_ROUTED_PREFIX_IPV6 - spec.ipv6.prefixlen))
        return 0, min(sizes) - 1
    sizes = [BRIDGE_SLOTS]
    if spec.ipv4 is not None:
        sizes.append(spec.ipv4.num_addresses - 1)
    if spec.ipv6 is not None:
        sizes.append(spec.ipv6.num_addresses)
    return 1, min(sizes) - 1


def reserved_slots(spec: NetworkSpec) -> tuple[int, ...]:
    """Slots of a bridge network that are the host's own; empty for a routed one."""
    if spec.topology is Topology.ROUTED:
        return ()
    reserved = set()
    if spec.ipv4 is not None and spec.gateway_ipv4 is not None:
        reserved.add(int(spec.gateway_ipv4) - int(spec.ipv4.network_address))
    if spec.ipv6 is not None:
        reserved.add(1)
    return tuple(sorted(reserved))


def hashed_offset(guest: str, spec: NetworkSpec) -> int:
    """Where a bridge network first looks for a guest's place: from its id alone."""
    first, last = slot_bounds(spec)
    start = min(first + 1, last)  # offset 1 is the usual gateway
    return fnv1a_64(guest.encode()) % (last - start + 1) + start


def placement(spec: NetworkSpec, number: int, slot: int, guest: str) -> Placement:
    """Names and addresses of `slot`; `number` is the network's own, for device names."""
    tap = f"gn{_base36(number)}-{slot:x}"
    if spec.topology is Topology.ROUTED:
        return _routed(spec, slot, tap)
    return _bridged(spec, slot, tap, guest)


def _routed(spec: NetworkSpec, slot: int, tap: str) -> Placement:
    ipv4 = ipv6 = gateway_ipv4 = gateway_ipv6 = None
    if spec.ipv4 is not None:
        gateway_ipv4 = spec.ipv4.network_address + 4 * slot + 1
        ipv4 = IPv4Interface((int(gateway_ipv4) + 1, _ROUTED_PREFIX_IPV4))
    if spec.ipv6 is not None:
        gateway_ipv6 = spec.ipv6.network_address + (slot << 64) + 1
        ipv6 = IPv6Interface((int(gateway_ipv6) + 1, _ROUTED_PREFIX_IPV6))
    mac = f"02:6d:73:{slot >> 8:02x}:{slot & 0xFF:02x}:"
    return Placement(slot, tap, mac + "02", mac + "01", ipv4, ipv6, gateway_ipv4, gateway_ipv6)


def _bridged(spec: NetworkSpec, slot: int, tap: str, guest: str) -> Placement:
    ipv4 = ipv6 = None
    if spec.ipv4 is not None:
        ipv4 = IPv4Interface((int(spec.ipv4.network_address) + slot, spec.ipv4.prefixlen))
    if spec.ipv6 is not None:
        ipv6 = IPv6Interface((int(spec.ipv6.network_address) + slot, spec.ipv6.prefixlen))
    return Placement(
        slot,
        tap,
        hashed_mac(guest),
        bridge_mac(spec),
        ipv4,
        ipv6,
        spec.gateway_ipv4,
        spec.gateway_ipv6,
    )


def hashed_mac(guest: str) -> str:
    """A locally administered unicast MAC: `02:` and the five low bytes of the id's hash."""
    return "02:" + (fnv1a_64(guest.encode()) & 0xFFFFFFFFFF).to_bytes(5, "big").hex(":")


def bridge_mac(spec: NetworkSpec) -> str:
    """The bridge's own MAC: fixed, or it would follow whichever port has the lowest."""
    return hashed_mac(f"bridge {spec.name}")


def link_local(mac: str) -> IPv6Address:
    """The link-local address a guest derives from its MAC (RFC 4291 appendix A)."""
    first, *rest = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([first ^ 0x02, *rest[:2], 0xFF, 0xFE, *rest[2:]])
    return IPv6Address(b"\xfe\x80" + bytes(6) + identifier)


def slot_of(spec: NetworkSpec, address: Address) -> int:
    """The slot that owns an address the owner asked for; ConfigError says why it can be none."""
    key = f"ipv{address.version}"
    pool: Network | None = spec.ipv4 if address.version == 4 else spec.ipv6
    if pool is None:
        raise ConfigError(key, str(address), f"network {spec.name!r} has no IPv{address.version}")
    if address not in pool:
        raise ConfigError(key, str(address), f"lies outside the pool {pool} of {spec.name!r}")
    offset = int(address) - int(pool.network_address)
    if spec.topology is Topology.ROUTED:
        size = 4 if address.version == 4 else 1 << 64
        slot, within = divmod(offset, size)
        if within != 2:
            right = ipaddress.ip_address(int(pool.network_address) + slot * size + 2)
            raise ConfigError(key, str(address), f"the guest of its block is {right}")
    else:
        slot = offset
    first, last = slot_bounds(spec)
    if not first <= slot <= last or slot in reserved_slots(spec):
        raise ConfigError(key, str(address), "is reserved for the network, gateway or broadcast")
    return slot


def slots_within(spec: NetworkSpec, network: Network) -> tuple[int, int] | None:
    """The first and last slot whose addresses touch `network`, or None if none do."""
    pool: Network | None = spec.ipv4 if network.version == 4 else spec.ipv6
    if pool is None:
        return None
    low = max(int(network.network_address), int(pool.network_address))
    high = min(int(network.broadcast_address), int(pool.broadcast_address))
    if low > high:
        return None
    shift = 0
    if spec.topology is Topology.ROUTED:
        shift = 2 if network.version == 4 else 64
    base = int(pool.network_address)
    first, last = slot_bounds(spec)
    bounds = max((low - base) >> shift, first), min((high - base) >> shift, last)
    return bounds if bounds[0] <= bounds[1] else None


def _base36(number: int) -> str:
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    text = ""
    while number:
        number, digit = divmod(number, 36)
        text = digits[digit] + text
    return text or "0"
