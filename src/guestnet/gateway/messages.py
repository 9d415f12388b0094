"""What the daemon tells a worker (orders), what it is told (reports), and what workers tell others.

Orders and reports are one JSON object a line, over one socket a worker. The daemon is believed.
Workers read what guests wrote, so their reports are read as strictly as a stranger's (`reports`).
What one worker tells another is a packet each, and is read no less strictly: what is wrong is left
out. Plain values all of them, as workers are without pydantic.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Any, ClassVar, Literal, NamedTuple

from ..dns.pins import DEFAULT_MAX_ADDRESSES
from ..model.decision import Decision
from ..naming import Records, Upstream

#: Bytes of one line. The longest order is a policy of 10,000 rules.
MAX_LINE_BYTES = 4 * 1024 * 1024
#: Bytes of one report: a decision with a name and a reason.
MAX_REPORT_BYTES = 16 * 1024
#: Pins of one answer, and how long they may stand.
MAX_PINS, MAX_PIN_S = 256, 86400
#: Characters of a name that a sibling tells.
MAX_NAME = 255

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, kw_only=True)
class Message:
    """A value that goes over the socket."""

    #: For pydantic, which reads reports: a key that is none of a message's is an error.
    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
class SetPeers(Message):
    """Guests that have come and gone, those without rules by name included; never waited for."""

    kind: Literal["set-peers"] = "set-peers"
    come: tuple[Peer, ...] = ()
    gone: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ForgetGuest(Message):
    """A guest is gone: its flows end, its pins are forgotten."""

    kind: Literal["forget-guest"] = "forget-guest"
    sequence: int
    guest: str


@dataclass(frozen=True, kw_only=True)
class SetPlaces(Message):
    """What only the machine knows about addresses."""

    kind: Literal["set-places"] = "set-places"
    sequence: int
    host: tuple[Address, ...]
    guests: tuple[Network, ...]


@dataclass(frozen=True, kw_only=True)
class PinsStand(Message):
    """The pins of an `AddPins` stand in the kernel, or could not be put there."""

    kind: Literal["pins-stand"] = "pins-stand"
    sequence: int


@dataclass(frozen=True, kw_only=True)
class Begin(Message):
    """What was known at the start has been told: what waits at the doors may be taken."""

    kind: Literal["begin"] = "begin"


@dataclass(frozen=True, kw_only=True)
class TellPins(Message):
    """A sibling has ended: who comes in its place knows no pins, and finds them in the inbox."""

    kind: Literal["tell-pins"] = "tell-pins"
    #: Its number.
    worker: int


@dataclass(frozen=True, kw_only=True)
class Settle(Message):
    """Tell what was decided so far, and then that it is done."""

    kind: Literal["settle"] = "settle"
    sequence: int


Order = (
    SetGuest
    | SetNetwork
    | SetTrust
    | SetPeers
    | ForgetGuest
    | SetPlaces
    | PinsStand
    | Begin
    | TellPins
    | Settle
)


@dataclass(frozen=True, kw_only=True)
class Ready(Message):
    """The gateway listens, and this is how far it is confined."""

    kind: Literal["ready"] = "ready"
    confinement: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Done(Message):
    """An order is carried out."""

    kind: Literal["done"] = "done"
    sequence: int


@dataclass(frozen=True, kw_only=True)
class AddPins(Message):
    """Addresses a guest may reach under a rule by name: (rule, address), for `ttl_s` seconds.

    The answer to the guest waits for `PinsStand`, as its first packet may follow at once.
    """

    kind: Literal["add-pins"] = "add-pins"
    sequence: int
    guest: str
    #: `sequence` of the `SetGuest` whose policy the rules are counted in.
    told: int
    pins: tuple[tuple[int, Address], ...]
    ttl_s: int

    def __post_init__(self) -> None:
        """Raise `ValueError` for what does not fit."""
        if len(self.pins) > MAX_PINS or not 1 <= self.ttl_s <= MAX_PIN_S:
            raise ValueError(f"{len(self.pins)} pins for {self.ttl_s} s")


@dataclass(frozen=True, kw_only=True)
class Decided(Message):
    """One decision."""

    kind: Literal["decided"] = "decided"
    decision: Decision


@dataclass(frozen=True, kw_only=True)
class Pinned(Message):
    """To siblings: a guest is about to be told that a name is at these addresses, until a time."""

    stay: int
    name: str
    #: Times are of the machine's clock since its start, which all its processes share.
    addresses: tuple[tuple[Address, float], ...]


Report = Ready | Done | AddPins | Decided


def line(message: Message) -> bytes:
    """A message as it goes over the socket."""
    text = json.dumps(vars(message), default=_plain, ensure_ascii=False, separators=(",", ":"))
    return text.encode() + b"\n"


def _plain(value: object) -> object:
    return vars(value) if isinstance(value, Decision) else str(value)


# -- orders, in a worker -----------------------------------------------------------------------


def read_order(text: bytes) -> Order:
    """An order. What JSON has no words for becomes what it was; nothing else is looked at."""
    fields = json.loads(text)
    return _ORDERS[fields["kind"]](**{k: _READ.get(k, _same)(v) for k, v in fields.items()})


def _same(value: Any) -> object:
    return value


def _addresses(texts: list[str]) -> tuple[Address, ...]:
    return tuple(map(ip_address, texts))


def _peers(found: list[list[Any]]) -> tuple[Peer, ...]:
    return tuple(Peer(guest, network, tuple(texts)) for guest, network, texts in found)


def _upstreams(found: list[list[Any]]) -> tuple[Upstream, ...]:
    return tuple(Upstream(ip_address(address), *rest) for address, *rest in found)


def _records(found: dict[str, list[str]]) -> Records:
    return {name: tuple(map(_address_or_name, data)) for name, data in found.items()}


def _address_or_name(text: str) -> Address | str:
    try:
        return ip_address(text)
    except ValueError:
        return text


_ORDERS: Mapping[str, Callable[..., Order]] = {
    each.kind: each
    for each in (
        *(SetGuest, SetNetwork, SetTrust, SetPeers, ForgetGuest, SetPlaces),
        *(PinsStand, Begin, TellPins, Settle),
    )
}
#: Keys whose values JSON has no words for.
_READ: Mapping[str, Callable[[Any], object]] = {
    "addresses": _addresses,
    "gateways": _addresses,
    "host": _addresses,
    "guests": lambda texts: tuple(map(ip_network, texts)),
    "egress": tuple,
    "come": _peers,
    "gone": tuple,
    "upstreams": _upstreams,
    "records": _records,
}


# -- what a sibling tells ----------------------------------------------------------------------


def read_pinned(data: bytes) -> Pinned:
    """What a sibling tells; raises `ValueError` for anything else."""
    try:
        told = json.loads(data)
    except RecursionError:
        raise ValueError("what no sibling tells: too deep") from None
    match told:
        case {"stay": int(stay), "name": str(name), "addresses": list(pairs), **rest}:
            if rest or len(name) > MAX_NAME or len(pairs) > DEFAULT_MAX_ADDRESSES:
                raise ValueError("what no sibling tells: too much")
            name.encode()  # it may be passed on; half a surrogate pair raises ValueError here
            return Pinned(stay=stay, name=name, addresses=tuple(map(_pair, pairs)))
    raise ValueError("what no sibling tells")


def _pair(pair: object) -> tuple[Address, float]:
    match pair:
        case [str(text), float(until)] if math.isfinite(until):
            return ip_address(text), until
    raise ValueError("what no sibling tells: an address and a time")
