"""Names of our own: the host's alias, and whatever else an owner gives a guest by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .answers import addresses
from .codes import Address
from .names import labels_of, text_of, wire_of
from .question import Question

#: Short, as a guest may be resumed on another network, where the same name has another address.
LOCAL_TTL_S = 30


class LocalRecords:
    """Addresses by name. Names are taken in any case, with or without a trailing dot."""

    def __init__(self, records: Mapping[str, Iterable[Address]]) -> None:
        """Raises `ValueError` for a key that is no name."""
        self._records = {_canonical(name): tuple(found) for name, found in records.items()}

    def addresses_of(self, name: str) -> tuple[Address, ...]:
        """All addresses of a name in canonical text; none if it is not one of ours."""
        return self._records.get(name, ())

    def answer(self, question: Question) -> bytes | None:
        """The reply, or `None` if the name is not ours. A type we have not is NODATA, not a miss:
        asking an upstream for a name of ours would tell it, and let it answer.
        """
        found = self._records.get(question.name)
        return None if found is None else addresses(question, found, LOCAL_TTL_S)


def _canonical(name: str) -> str:
    return text_of(labels_of(wire_of(name)))
