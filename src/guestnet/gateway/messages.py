"""What the daemon tells a worker (orders), what it is told (reports), and what workers tell others.

Orders and reports are one JSON object a line, over one socket a worker. Workers read what guests
wrote, so their reports are read as strictly as a stranger's: what is misshapen or too long ends the
worker, not the daemon. What one worker tells another is a packet each, and is read no less
strictly: what is wrong is left out.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..dns.pins import DEFAULT_MAX_ADDRESSES
from ..model import Decision
from ..naming import Records, Upstream

#: Bytes of one line. The longest order is a policy of 10,000 rules.
MAX_LINE_BYTES = 4 * 1024 * 1024
#: Bytes of one report: a decision with a name and a reason.
MAX_REPORT_BYTES = 16 * 1024

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Message(BaseModel):
    """A value that goes over the socket."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SetGuest(Message):
    """A guest whose policy has rules by name: it is here, and this holds for it from now on."""

    kind: Literal["set-guest"] = "set-guest"
    sequence: int
    guest: str
    #: Of its being here: who comes again under its id, or with other addresses, gets another.
    stay: int
    network: str
    addresses: tuple[Address, ...]
    gateways: tuple[Address, ...]
    #: Where it finds the host by its name.
    host: tuple[Address, ...] = ()
    #: Canonical policy text.
    policy: str
    #: Whether names have addresses of their own for it.
    synthetic: bool
    #: Interfaces its flows may leave by.
    egress: tuple[str, ...]


class SetNetwork(Message):
    """How the questions of a network's guests are answered from now on."""

    kind: Literal["set-network"] = "set-network"
    sequence: int
    network: str
    #: Resolvers that the questions are put to, the first one first.
    upstreams: tuple[Upstream, ...]
    #: Names of the network's own, as in `NetworkSpec`.
    records: Records
    serve_stale_s: int
    strip_ech: bool
    deny_encrypted_dns: bool
    #: Whether the gateway's routes are its guests', as every flow of theirs is relayed.
    relays_all: bool


class SetTrust(Message):
    """Who may say whose certificate is whose: authorities in PEM, as a worker opens no files."""

    kind: Literal["set-trust"] = "set-trust"
    certificates: str


class Peer(NamedTuple):
    """A guest as others of its network may find it."""

    guest: str
    network: str
    #: As text: for attaches, which each tell of one, objects would cost ten times as much.
    addresses: tuple[str, ...]


class SetPeers(Message):
    """Guests that have come and gone, those without rules by name included; never waited for."""

    kind: Literal["set-peers"] = "set-peers"
    come: tuple[Peer, ...] = ()
    gone: tuple[str, ...] = ()


class ForgetGuest(Message):
    """A guest is gone: its flows end, its pins are forgotten."""

    kind: Literal["forget-guest"] = "forget-guest"
    sequence: int
    guest: str


class SetPlaces(Message):
    """What only the machine knows about addresses."""

    kind: Literal["set-places"] = "set-places"
    sequence: int
    host: tuple[Address, ...]
    guests: tuple[Network, ...]


class PinsStand(Message):
    """The pins of an `AddPins` stand in the kernel, or could not be put there."""

    kind: Literal["pins-stand"] = "pins-stand"
    sequence: int


class Begin(Message):
    """What was known at the start has been told: what waits at the doors may be taken."""

    kind: Literal["begin"] = "begin"


class TellPins(Message):
    """A sibling was started again, and knows no pins."""

    kind: Literal["tell-pins"] = "tell-pins"
    #: Its number.
    worker: int


Order = Annotated[
    SetGuest
    | SetNetwork
    | SetTrust
    | SetPeers
    | ForgetGuest
    | SetPlaces
    | PinsStand
    | Begin
    | TellPins,
    Field(discriminator="kind"),
]


class Ready(Message):
    """The gateway listens, and this is how far it is confined."""

    kind: Literal["ready"] = "ready"
    confinement: tuple[str, ...]


class Done(Message):
    """An order is carried out."""

    kind: Literal["done"] = "done"
    sequence: int


class AddPins(Message):
    """Addresses a guest may reach under a rule by name: (rule, address), for `ttl_s` seconds.

    The answer to the guest waits for `PinsStand`, as its first packet may follow at once.
    """

    kind: Literal["add-pins"] = "add-pins"
    sequence: int
    guest: str
    #: `sequence` of the `SetGuest` whose policy the rules are counted in.
    told: int
    pins: Annotated[tuple[tuple[int, Address], ...], Field(max_length=256)]
    ttl_s: Annotated[int, Field(ge=1, le=86400)]


class Decided(Message):
    """One decision."""

    kind: Literal["decided"] = "decided"
    decision: Decision


class Pinned(Message):
    """To siblings: a guest is about to be told that a name is at these addresses, until a time."""

    stay: int
    name: Annotated[str, Field(max_length=255)]
    #: Times are of the machine's monotonic clock, which all its processes share.
    addresses: Annotated[
        tuple[tuple[Address, Annotated[float, Field(allow_inf_nan=False)]], ...],
        Field(max_length=DEFAULT_MAX_ADDRESSES),
    ]


Report = Annotated[Ready | Done | AddPins | Decided, Field(discriminator="kind")]

_ORDERS: TypeAdapter[Order] = TypeAdapter(Order)
_REPORTS: TypeAdapter[Report] = TypeAdapter(Report)


def line(message: Message) -> bytes:
    """A message as it goes over the socket."""
    return message.model_dump_json().encode() + b"\n"


def read_order(text: bytes) -> Order:
    """An order; raises `ValueError`."""
    return _ORDERS.validate_json(text)


def read_pinned(data: bytes) -> Pinned:
    """What a sibling tells; raises `ValueError` for anything else."""
    return Pinned.model_validate_json(data)


def read_report(text: bytes) -> Report:
    """A report; raises `ValueError` for anything that is none."""
    if len(text) > MAX_REPORT_BYTES:
        raise ValueError(f"a report of {len(text)} bytes")
    try:
        return _REPORTS.validate_json(text)
    except ValidationError as error:
        raise ValueError(f"no report: {error.errors()[0]['msg']}") from None
