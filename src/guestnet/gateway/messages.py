"""What the daemon tells the gateway (orders) and what the gateway tells it (reports).

One JSON object a line, over one socket. The gateway reads what guests wrote, so its reports are
read as strictly as a stranger's: what is misshapen or too long ends the gateway, not the daemon.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..model import Decision

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
    network: str
    addresses: tuple[Address, ...]
    gateways: tuple[Address, ...]
    #: Canonical policy text.
    policy: str
    #: Resolvers that its questions are put to.
    upstreams: tuple[Address, ...]
    #: Whether names have addresses of their own for it.
    synthetic: bool
    #: Interfaces its flows may leave by.
    egress: tuple[str, ...]


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


Order = Annotated[SetGuest | ForgetGuest | SetPlaces | PinsStand, Field(discriminator="kind")]


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


Report = Annotated[Ready | Done | AddPins | Decided, Field(discriminator="kind")]

_ORDERS: TypeAdapter[Order] = TypeAdapter(Order)
_REPORTS: TypeAdapter[Report] = TypeAdapter(Report)


def line(message: Message) -> bytes:
    """A message as it goes over the socket."""
    return message.model_dump_json().encode() + b"\n"


def read_order(text: bytes) -> Order:
    """An order; raises `ValueError`."""
    return _ORDERS.validate_json(text)


def read_report(text: bytes) -> Report:
    """A report; raises `ValueError` for anything that is none."""
    if len(text) > MAX_REPORT_BYTES:
        raise ValueError(f"a report of {len(text)} bytes")
    try:
        return _REPORTS.validate_json(text)
    except ValidationError as error:
        raise ValueError(f"no report: {error.errors()[0]['msg']}") from None
