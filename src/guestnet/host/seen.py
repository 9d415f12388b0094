"""What guests were seen to use, for a policy that is made of it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

from ..model.decision import Decision
from ..policy import Protocol

Address = IPv4Address | IPv6Address
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

#: Different flows, names and addresses of one guest that are remembered; the oldest goes.
REMEMBERED = 4096
#: Names of one address that a suggestion is made with: a guest may own a zone in which every name
#: leads to one address, and each of its flows would count under all of them.
NAMES_OF_ADDRESS = 32


@dataclass(slots=True)
class _Guest:
    #: (protocol, port, address, name), in the order in which they were last seen.
    flows: OrderedDict[tuple[Protocol, int, Address, str], None] = field(
        default_factory=OrderedDict
    )
    questions: OrderedDict[str, None] = field(default_factory=OrderedDict)
    #: The name that each address was last told for.
    last_names: OrderedDict[Address, str] = field(default_factory=OrderedDict)
    #: (address, name) that it was told for.
    names: OrderedDict[tuple[Address, str], None] = field(default_factory=OrderedDict)


class Seen:
    """Fed with decisions from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._guests: dict[str, _Guest] = {}

    def take(self, decision: Decision) -> None:
        """Remember what passed.

        Not forwarded flows: these may go untold, and so come from the kernel's own sets.
        """
        if decision.verdict != "allow" or decision.event is not None:
            return
        with self._lock:
            guest = self._guests.setdefault(decision.guest, _Guest())
            if decision.kind == "dns":
                _remember(guest.questions, decision.name, None)
                for address in decision.answers:
                    _remember(guest.names, (address, decision.name), None)
                    _remember(guest.last_names, address, decision.name)
            elif decision.address is not None:
                protocol = Protocol(decision.protocol)
                key = (protocol, decision.port, decision.address, decision.name)
                _remember(guest.flows, key, None)

    def flows(self, guest: str) -> list[tuple[Protocol, int, Address, str]]:
        """Flows that the gateway let pass."""
        with self._lock:
            return list(self._guests.get(guest, _Guest()).flows)

    def questions(self, guest: str) -> list[str]:
        """Names that were asked for and answered."""
        with self._lock:
            return list(self._guests.get(guest, _Guest()).questions)

    def names(self, guest: str) -> dict[Address, list[str]]:
        """The names that each address was told for, the last `NAMES_OF_ADDRESS` of them."""
        found: dict[Address, list[str]] = {}
        with self._lock:
            told = list(self._guests.get(guest, _Guest()).names)
        for address, name in reversed(told):
            names = found.setdefault(address, [])
            if len(names) < NAMES_OF_ADDRESS:
                names.append(name)
        return found

    def name_of(self, guest: str, address: Address) -> str:
        """The name that an address was last told for, or empty."""
        with self._lock:
            return self._guests.get(guest, _Guest()).last_names.get(address, "")

    def forget(self, guest: str) -> None:
        """Forget a guest."""
        with self._lock:
            self._guests.pop(guest, None)


def _remember(known: OrderedDict[_Key, _Value], key: _Key, value: _Value) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > REMEMBERED:
        known.popitem(last=False)
