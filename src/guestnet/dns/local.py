"""Names of our own: the host's alias, guests, and whatever else an owner gives a name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from .answers import addresses
from .codes import VERSIONS, Address, Rtype
from .names import labels_of, text_of, wire_of
from .question import Question

#: Short, as a guest may be resumed on another network, where the same name has another address.
LOCAL_TTL_S = 30


class Found(NamedTuple):
    """What a name of our own leads to."""

    chain: tuple[str, ...]
    """The name itself, then the target of each alias."""
    addresses: tuple[Address, ...] | None
    """Of the last name; `None` if that one is not ours."""


class LocalRecords:
    """Addresses by name, or for an alias the one name that it stands for.

    Names are taken in any case, with or without a trailing dot.
    """

    def __init__(self, records: Mapping[str, Iterable[Address | str]]) -> None:
        """Raises `ValueError` for what is no name, and for aliases that lead in a circle."""
        self._addresses: dict[str, tuple[Address, ...]] = {}
        self._aliases: dict[str, str] = {}
        for name, data in records.items():
            values = tuple(data)
            targets = [each for each in values if isinstance(each, str)]
            if targets:
                self._aliases[_canonical(name)] = _canonical(targets[0])
            else:
                found = tuple(each for each in values if not isinstance(each, str))
                self._addresses[_canonical(name)] = found
        for name in self._aliases:
            if len(self._chain(name)) > len(self._aliases) + 1:
                raise ValueError(f"{name!r} is an alias in a circle")

    def find(self, name: str) -> Found | None:
        """What a name in canonical text leads to; `None` if it is not ours."""
        if name in self._addresses:
            return Found((name,), self._addresses[name])
        if name not in self._aliases:
            return None
        chain = self._chain(name)
        return Found(chain, self._addresses.get(chain[-1]))

    def answer(self, question: Question) -> bytes | None:
        """The reply, or `None` if the name is not ours or what its aliases lead to is not.

        A type we have not is NODATA, not a miss: asking an upstream for a name of ours would tell
        it, and let it answer.
        """
        found = self.find(question.name)
        if found is None or (found.addresses is None and question.qtype != Rtype.CNAME):
            return None
        return addresses(question, found.addresses or (), LOCAL_TTL_S, aliases=found.chain[1:])

    def addresses_for(self, question: Question) -> tuple[Address, ...]:
        """The addresses that the reply to a question holds."""
        found = self.find(question.name)
        ours = found.addresses if found is not None else None
        return tuple(each for each in ours or () if each.version == VERSIONS.get(question.qtype))

    def _chain(self, name: str) -> tuple[str, ...]:
        """From a name to the end of its aliases, or one step beyond their number."""
        chain = [name]
        while (target := self._aliases.get(chain[-1])) and len(chain) < len(self._aliases) + 2:
            chain.append(target)
        return tuple(chain)


def _canonical(name: str) -> str:
    return text_of(labels_of(wire_of(name)))
