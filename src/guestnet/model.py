"""The nouns every room shares, as frozen values that are validated once.

`NetworkSpec` is what an owner asks for, `AttachRequest` what they ask for one guest, `Attachment`
what they get. Addresses are `ipaddress` values, MACs lower-case text with colons, MTUs bytes.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface
from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from .errors import ConfigError
from .frames.transport import Kind, Transport
from .naming import Records, Resolver

#: IPv4's minimum (RFC 791) and the largest value the field of an interface takes.
MTU_MIN, MTU_MAX = 68, 65535
#: IPv6 does not run over links smaller than this (RFC 8200 section 5).
MTU_MIN_IPV6 = 1280
#: User and group ids as an ioctl takes them: a positive C int.
UID_MAX = 2**31 - 1
#: Descriptors in one message between processes (SCM_MAX_FD of net/scm.h).
TAP_FD_QUEUES_MAX = 253
#: A guest id is text for people and logs; nothing of it reaches a path, a shell or a device name.
GUEST_ID_MAX_BYTES = 255
#: IFNAMSIZ is 16 with the terminating zero (linux/if.h).
INTERFACE_NAME_MAX_BYTES = 15

DEFAULT_ROUTED_IPV4 = "172.16.0.0/12"
DEFAULT_ROUTED_IPV6 = "fd42:6d73:62::/48"
DEFAULT_BRIDGE_IPV4 = "172.30.0.0/24"
DEFAULT_BRIDGE_IPV6 = "fd42:6d73:63::/64"
DEFAULT_BRIDGE_NAME = "fcbr0"

_NETWORK_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
_INTERFACE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,15}")
#: A part of a key's path: a field's name, or a position in a list.
_KEY = re.compile(r"[a-z0-9_]+")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


class Topology(StrEnum):
    """How the guests of a network meet the host."""

    ROUTED = "routed"
    BRIDGE = "bridge"


def check_guest_id(value: str) -> str:
    """Return a guest's id unchanged, or raise `ValueError` saying what an id may be."""
    try:
        size = len(value.encode("utf-8"))
    except UnicodeEncodeError:
        raise ValueError("a guest id is valid UTF-8 text") from None
    if not 1 <= size <= GUEST_ID_MAX_BYTES:
        raise ValueError(f"a guest id is 1 to {GUEST_ID_MAX_BYTES} bytes of text, this has {size}")
    if "\0" in value:
        raise ValueError("a guest id has no NUL")
    return value


def check_interface_name(value: str) -> str:
    """Return an interface name the kernel takes, or raise `ValueError` (dev_valid_name())."""
    size = len(value.encode("utf-8", "surrogatepass"))
    if size > INTERFACE_NAME_MAX_BYTES:
        raise ValueError(
            f"an interface name has at most {INTERFACE_NAME_MAX_BYTES} bytes, this has {size}"
        )
    if not _INTERFACE_NAME.fullmatch(value) or value in (".", ".."):
        raise ValueError("an interface name is letters, digits, '_', '-' and '.'")
    return value


def check_mac(value: str) -> str:
    """Return a unicast MAC in lower case with colons, or raise `ValueError`."""
    text = value.lower().replace("-", ":")
    if not _MAC.fullmatch(text):
        raise ValueError("a MAC is six hex pairs, as 02:6d:73:00:00:02")
    if int(text[:2], 16) & 1:
        raise ValueError("the MAC of an interface is unicast: its first byte is even")
    if text == "00:00:00:00:00:00":
        raise ValueError("the MAC of an interface is not all zeros")
    return text


def _check_network_name(value: str) -> str:
    if not _NETWORK_NAME.fullmatch(value):
        raise ValueError(
            "a network's name is 1 to 32 lower-case letters, digits and '-', "
            "and begins and ends with a letter or digit"
        )
    return value


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


def _transport_text(value: str) -> str:
    return str(Transport.parse(value))


def _path_text(value: object) -> object:
    return str(value) if isinstance(value, PurePath) else value


def _egress(value: object) -> object:
    return (value,) if isinstance(value, str) else value


GuestId = Annotated[str, Field(strict=True), AfterValidator(check_guest_id)]
NetworkName = Annotated[str, AfterValidator(_check_network_name)]
InterfaceName = Annotated[str, AfterValidator(check_interface_name)]
TransportText = Annotated[str, AfterValidator(_transport_text)]
Mac = Annotated[str, AfterValidator(check_mac)]
Mtu = Annotated[int, Field(ge=MTU_MIN, le=MTU_MAX)]
Ipv4Pool = Annotated[IPv4Network, BeforeValidator(_exact_network)]
Ipv6Pool = Annotated[ipaddress.IPv6Network, BeforeValidator(_exact_network)]


class Value(BaseModel):
    """A frozen model whose construction raises `ConfigError` rather than pydantic's own error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise config_error(error) from None

    @classmethod
    def read(cls, data: object, *, key: str = "") -> Self:
        """Build from parsed JSON or TOML; an error's key is prefixed with `key`."""
        try:
            return cls.model_validate(data)
        except ConfigError as error:
            raise ConfigError(_join(key, error.key), error.value, error.expected) from None
        except ValidationError as error:
            raise config_error(error, key) from None


def config_error(error: ValidationError, prefix: str = "") -> ConfigError:
    """The first of pydantic's findings in guestnet's words: key, value, what would be right."""
    first = error.errors(include_url=False)[0]
    # Where a key takes several types, pydantic adds the one that it tried; that is no key.
    parts = [str(part) for part in first["loc"] if _KEY.fullmatch(str(part))]
    key = _join(prefix, ".".join(parts))
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if first["type"] == "extra_forbidden":
        message = "no such key"
    elif first["type"] == "missing":
        return ConfigError(key, None, "is required")
    return ConfigError(key or "value", first["input"], message)


def _join(prefix: str, key: str) -> str:
    return ".".join(part for part in (prefix, key) if part)


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


class AttachRequest(Value):
    """What an owner asks for one guest; everything but the id may be left to guestnet."""

    guest: GuestId
    network: NetworkName = "default"
    #: Policy text; `None` is the network's.
    policy: str | None = None
    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None
    mac: Mac | None = None
    mtu: Mtu | None = None
    #: TAP (or host end of the veth) name.
    tap: InterfaceName | None = None
    #: A network namespace (name under /run/netns, or path) makes this a namespace guest.
    netns: Annotated[str, BeforeValidator(_path_text)] | None = None
    #: The interface's name as the guest sees it.
    guest_interface: InterfaceName = "eth0"
    #: More than 1 makes a multi-queue TAP.
    queues: Annotated[int, Field(ge=1, le=256)] = 1
    #: User and group id that may open the TAP, or use the transport's socket, without privileges.
    owner: Annotated[int, Field(ge=0, le=UID_MAX)] | None = None
    group: Annotated[int, Field(ge=0, le=UID_MAX)] | None = None
    #: For a VMM that does not open the TAP itself: `stream:/run/vm-1.sock` (docs/transports.md).
    transport: TransportText | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.netns is not None:
            if not self.netns or "\0" in self.netns:
                raise ConfigError("netns", self.netns, "is a namespace's name or path")
            for key in ("owner", "group"):
                if getattr(self, key) is not None:
                    raise ConfigError(
                        key, getattr(self, key), "a namespace guest has no TAP to own"
                    )
            if self.queues != 1:
                raise ConfigError("queues", self.queues, "a namespace guest has no TAP queues")
            if self.transport is not None:
                raise ConfigError("transport", self.transport, "a namespace guest has no VMM")
        if self.transport is not None and self.queues > 1:
            most = TAP_FD_QUEUES_MAX if Transport.parse(self.transport).kind is Kind.TAP_FD else 1
            if self.queues > most:
                right = f"this transport has {most}; only tap-fd hands over several"
                raise ConfigError("queues", self.queues, right)
        return self


class Attachment(Value):
    """One guest's interface on a network, as it stands in the kernel."""

    guest: GuestId
    network: NetworkName
    topology: Topology
    #: The owner's order of leases on this slot: a late detach of an older one does nothing.
    generation: int
    #: Position in the network's pool; addresses, MAC and TAP name derive from it.
    slot: int
    #: Device on the host's side: a TAP, or the host end of a veth for a namespace guest.
    tap: str
    mac: str
    #: Addresses with the prefix length the guest configures.
    ipv4: IPv4Interface | None
    ipv6: IPv6Interface | None
    gateway_ipv4: IPv4Address | None
    gateway_ipv6: IPv6Address | None
    mtu: int
    dns: tuple[IPv4Address | IPv6Address, ...]
    #: Canonical policy text.
    policy: str
    #: Whether the guest brought no policy: then it has its network's, and follows that.
    inherits_policy: bool = False
    netns: str | None = None
    guest_interface: str = "eth0"
    queues: int = 1
    owner: int | None = None
    group: int | None = None
    #: Canonical text of the transport, if there is one.
    transport: str | None = None

    @property
    def kind(self) -> Literal["tap", "veth"]:
        """What stands on the host's side."""
        return "tap" if self.netns is None else "veth"

    @property
    def addresses(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """The guest's own addresses: one of each family that it has, IPv4 first."""
        return tuple(each.ip for each in (self.ipv4, self.ipv6) if each is not None)


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


class TransportInfo(Value):
    """How an attachment's transport goes; counters are since its daemon began."""

    guest: GuestId
    transport: str
    #: It is there for its VMM: listening, or trying to connect.
    serving: bool = False
    #: A VMM is connected. With tap-fd nobody knows: the TAP is its own.
    connected: bool = False
    #: The VMM's own socket, if it has a name.
    peer: str = ""
    #: The process that carries its frames.
    pid: int | None = None
    connections: int = 0
    #: Frames from the VMM that were none; in a stream, each ended the connection.
    malformed: int = 0
    #: Frames from the VMM that the TAP did not take.
    refused: int = 0
    #: Times that the process ended unasked.
    restarts: int = 0
    #: What went wrong last; empty when nothing is wrong.
    problem: str = ""


class Usage(Value):
    """A guest's counters, as the guest sees them: `rx` is what it received."""

    guest: GuestId
    rx_bytes: int
    tx_bytes: int
    rx_packets: int
    tx_packets: int
    #: New flows and packets of this guest's address that a rule refused.
    refused: int


class Decision(Value):
    """One thing that was decided about a guest: a flow, a question, a refusal.

    A flow that the kernel forwards is told twice: when it begins and when it ended. Everything else
    is told once: a flow through the gateway when it ended, the rest when it was decided.
    """

    #: Seconds since the epoch, when it was decided; of an end, when that was.
    time: float
    guest: GuestId
    network: NetworkName
    #: `dns` for a question to the gateway, `flow` for all else.
    kind: Literal["flow", "dns"]
    #: Who opened the flow: the guest (egress) or its peer (ingress).
    direction: Literal["egress", "ingress"] = "egress"
    #: `any` is one that policies have no word for (GRE, SCTP, …).
    protocol: Literal["tcp", "udp", "icmpv4", "icmpv6", "any"]
    #: The name asked for, spoken (SNI, Host) or pinned; empty when none is known.
    name: Annotated[str, Field(max_length=255)] = ""
    #: The other end; empty for a question.
    address: IPv4Address | IPv6Address | None = None
    #: The service's; 0 where the protocol has none.
    port: Annotated[int, Field(ge=0, le=65535)]
    verdict: Literal["allow", "deny"]
    #: Text of the deciding rule, or the default or limit that decided.
    rule: Annotated[str, Field(max_length=1024)]
    #: Its position in the policy, from 0; `None` when no rule decided.
    rule_index: int | None = None
    reason: Annotated[str, Field(max_length=2048)] = ""
    #: What a question was answered with, as far as it is addresses.
    answers: Annotated[tuple[IPv4Address | IPv6Address, ...], Field(max_length=64)] = ()
    #: Bytes from the guest, and to it.
    bytes_up: int = 0
    bytes_down: int = 0
    #: Of a forwarded flow until the kernel forgot it, some time after its last packet.
    duration_s: float = 0.0
    #: Which of the two a forwarded flow's decision is; `None` of all else.
    event: Literal["begin", "end"] | None = None
    #: A forwarded flow's number, at both; others get it later. `None` of all else.
    flow: int | None = None
    #: Decisions like this one that were left out since the last that was told.
    omitted: int = 0


class Finding(Value):
    """One thing `doctor` looked at."""

    check: str
    status: Literal["ok", "warning", "error"]
    detail: str
    #: What to do about it; empty when nothing is wrong.
    remedy: str = ""


class Repairs(Value):
    """What `reconcile` found different from the store and put right, in words, in order."""

    steps: tuple[str, ...] = ()
