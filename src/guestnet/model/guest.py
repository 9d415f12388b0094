"""Guests: what an owner asks for one, and what it has."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import PurePath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ..errors import ConfigError
from ..frames.transport import Kind, Transport
from .terms import TAP_FD_QUEUES_MAX, UID_MAX, Topology
from .value import GuestId, InterfaceName, Mac, Mtu, NetworkName, Value


def _transport_text(value: str) -> str:
    return str(Transport.parse(value))


def _path_text(value: object) -> object:
    return str(value) if isinstance(value, PurePath) else value


TransportText = Annotated[str, AfterValidator(_transport_text)]


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
