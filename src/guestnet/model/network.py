"""Networks: what an owner asks for, and how one stands."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from ..errors import ConfigError
from ..naming import read_records, read_resolver
from .terms import MTU_MIN_IPV6, Topology, check_interface_name
from .value import InterfaceName, Mtu, NetworkName, Value

DEFAULT_ROUTED_IPV4 = "172.16.0.0/12"
DEFAULT_ROUTED_IPV6 = "fd42:6d73:62::/48"
DEFAULT_BRIDGE_IPV4 = "172.30.0.0/24"
DEFAULT_BRIDGE_IPV6 = "fd42:6d73:63::/64"
DEFAULT_BRIDGE_NAME = "fcbr0"


def _exact_network(value: object) -> object:
    """Point out host bits with the network that was probably meant; leave the rest to pydantic."""
    if isinstance(value, str):
        try:
            loose = ipaddress.ip_network(value, strict=False)
        except ValueError:
            return value
        if "/" not in value:
            raise ValueError(f"a network is written with its prefix length, as {value}/24")
        if ipaddress.ip_address(value.partition("/")[0]) != loose.network_address:
            raise ValueError(f"has host bits set; the network is {loose}")
    return value


def _egress(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Ipv4Pool = Annotated[IPv4Network, BeforeValidator(_exact_network)]
Ipv6Pool = Annotated[ipaddress.IPv6Network, BeforeValidator(_exact_network)]
Resolver = Annotated[IPv4Address | IPv6Address | str, BeforeValidator(read_resolver)]
Records = Annotated[
    dict[str, tuple[IPv4Address | IPv6Address | str, ...]], BeforeValidator(read_records)
]


class NetworkSpec(Value):
    """A pool of guest addresses and how it meets the world.

    `ipv4` and `ipv6` are the pools; `None` leaves the family out. A *routed* network cuts its pools
    into a /30 and a /64 per guest. A *bridge* network is one subnet, its `gateway` (default: the
    first address) on the bridge device `bridge`.
    """

    name: NetworkName = "default"
    topology: Topology = Topology.ROUTED
    #: IPv4 pool: /1 to /30. A bridge network takes /8 to /30.
    ipv4: Ipv4Pool | None = None
    #: IPv6 pool: /64 or wider (routed), /64 to /120 (bridge).
    ipv6: Ipv6Pool | None = None
    #: Bytes; `None` is the MTU of the egress interface when the network is created.
    mtu: Mtu | None = None
    #: Interfaces by which guests leave the host; ("auto",) follows the default routes.
    egress: Annotated[tuple[str, ...], BeforeValidator(_egress)] = ("auto",)
    #: Resolvers: addresses, and `tls://ADDRESS[:PORT][#NAME]` for those that only the gateway asks.
    #: Addresses are told to guests without rules by name, and opened to them by a rule that names
    #: `dns`. `None` is the host's own, without those on its loopback.
    dns: tuple[Resolver, ...] | None = None
    #: Names of the network's own: addresses, or the one name that another stands for.
    records: Records = Field(default_factory=dict)
    #: Seconds beyond its end for which an answer is given when no resolver answers; 0 is never.
    serve_stale_s: Annotated[int, Field(ge=0, le=86400)] = 0
    #: HTTPS and SVCB answers lose the key with which a client would hide the name that it means.
    strip_ech: bool = True
    #: Public resolvers over HTTPS and TLS exist for rules by their name only.
    deny_encrypted_dns: bool = True
    #: Policy text of guests that bring none; `None` is sealed.
    policy: str | None = None
    #: Whether each name that a guest may ask for has an address of its own there, in place of the
    #: real one, which the gateway asks for when the guest connects.
    synthetic: bool = False
    #: Bridge only: guests of the network do not see each other's frames.
    isolate: bool = True
    #: Bridge only: the bridge's device name.
    bridge: InterfaceName | None = None
    #: Bridge only: the host's IPv4 address on the bridge.
    gateway: IPv4Address | None = None
    #: Seconds a released address rests before another guest may get it.
    rest_s: Annotated[float, Field(ge=0, le=86400)] = 30.0

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        """Pools default per topology; an explicit `None` (JSON null) leaves a family out."""
        if not isinstance(data, Mapping):
            return data
        data = dict(data)
        bridge = data.get("topology", Topology.ROUTED) == Topology.BRIDGE
        data.setdefault("ipv4", DEFAULT_BRIDGE_IPV4 if bridge else DEFAULT_ROUTED_IPV4)
        data.setdefault("ipv6", DEFAULT_BRIDGE_IPV6 if bridge else DEFAULT_ROUTED_IPV6)
        if bridge:
            data.setdefault("bridge", DEFAULT_BRIDGE_NAME)
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        bridge = self.topology is Topology.BRIDGE
        if self.ipv4 is None and self.ipv6 is None:
            raise ConfigError("ipv4", None, "a network needs ipv4, ipv6 or both")
        if self.ipv4 is not None:
            shortest = 8 if bridge else 1
            if not shortest <= self.ipv4.prefixlen <= 30:
                raise ConfigError("ipv4", str(self.ipv4), f"a pool is /{shortest} to /30")
        if self.ipv6 is not None:
            shortest, longest = (64, 120) if bridge else (16, 64)
            if not shortest <= self.ipv6.prefixlen <= longest:
                raise ConfigError(
                    "ipv6",
                    str(self.ipv6),
                    f"a {self.topology.value} pool is /{shortest} to /{longest}",
                )
            if self.mtu is not None and self.mtu < MTU_MIN_IPV6:
                raise ConfigError(
                    "mtu",
                    self.mtu,
                    f"IPv6 needs {MTU_MIN_IPV6} bytes; raise it or set ipv6 to none",
                )
        if not bridge and self.bridge is not None:
            raise ConfigError("bridge", self.bridge, "only a network of topology bridge has one")
        self._check_gateway(bridge)
        self._check_egress()
        return self

    def _check_gateway(self, bridge: bool) -> None:
        if self.gateway is None:
            return
        shown = str(self.gateway)
        if not bridge or self.ipv4 is None:
            raise ConfigError(
                "gateway", shown, "only a bridge network with ipv4 has one of your choice"
            )
        if self.gateway not in self.ipv4:
            raise ConfigError("gateway", shown, f"lies outside {self.ipv4}")
        if self.gateway in (self.ipv4.network_address, self.ipv4.broadcast_address):
            raise ConfigError(
                "gateway", shown, f"is the network or broadcast address of {self.ipv4}"
            )

    def _check_egress(self) -> None:
        if not self.egress:
            raise ConfigError("egress", [], "name an interface, or 'auto' for the default routes")
        for name in self.egress:
            try:
                check_interface_name(name)
            except ValueError as error:
                raise ConfigError("egress", name, str(error)) from None
        if "auto" in self.egress and len(self.egress) > 1:
            raise ConfigError("egress", list(self.egress), "'auto' stands alone")

    def __hash__(self) -> int:
        """Equal networks have equal names; records, being a dictionary, cannot be hashed."""
        return hash(self.name)

    @property
    def plain_dns(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """Those of `dns` that guests can ask themselves."""
        return tuple(each for each in self.dns or () if not isinstance(each, str))

    @property
    def gateway_ipv4(self) -> IPv4Address | None:
        """The host's address on a bridge network; a routed one has a gateway per guest."""
        if self.topology is not Topology.BRIDGE or self.ipv4 is None:
            return None
        return self.gateway or self.ipv4.network_address + 1

    @property
    def gateway_ipv6(self) -> IPv6Address | None:
        """The host's IPv6 address on a bridge network: the first of its subnet."""
        if self.topology is not Topology.BRIDGE or self.ipv6 is None:
            return None
        return self.ipv6.network_address + 1

    @classmethod
    def from_env(cls, environ: Mapping[str, str], **defaults: Any) -> Self:
        """Overlay `GUESTNET_BRIDGE`, `_SUBNET`, `_SUBNET6`, `_EGRESS` and `_MTU` on `defaults`.

        A set but empty or unusable variable is an error that names the variable. `none` leaves a
        family out; `_EGRESS` takes a comma-separated list.
        """
        data = dict(defaults)
        keys = {}
        for variable, key in _ENVIRONMENT.items():
            if variable not in environ:
                continue
            text = environ[variable].strip()
            if not text:
                raise ConfigError(variable, environ[variable], "is set but empty; unset it")
            keys[key] = variable
            data[key] = _from_env(key, text)
        if "bridge" in keys:
            data["topology"] = Topology.BRIDGE
        try:
            return cls(**data)
        except ConfigError as error:
            root = error.key.split(".")[0]
            if root in keys:
                variable = keys[root]
                raise ConfigError(variable, environ[variable], error.expected) from None
            raise


_ENVIRONMENT = {
    "GUESTNET_BRIDGE": "bridge",
    "GUESTNET_SUBNET": "ipv4",
    "GUESTNET_SUBNET6": "ipv6",
    "GUESTNET_EGRESS": "egress",
    "GUESTNET_MTU": "mtu",
}


def _from_env(key: str, text: str) -> object:
    if key in ("ipv4", "ipv6") and text.lower() == "none":
        return None
    if key == "egress":
        return tuple(part.strip() for part in text.split(","))
    return text


class Skipped(Value):
    """A part of a pool that is not handed out, and the address or route of the host it overlaps."""

    pool: str
    reason: str


class NetworkInfo(Value):
    """A network as it stands: its settings with every default filled in, and how full it is."""

    spec: NetworkSpec
    #: Interfaces by which its guests leave now.
    egress: tuple[str, ...]
    #: Guests the pools can hold, without what is skipped.
    capacity: int
    attached: int
    #: Released addresses that still rest.
    resting: int
    skipped: tuple[Skipped, ...] = ()
