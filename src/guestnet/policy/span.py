"""A piece of policy text that knows where it stands, so that an error points at its character."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NoReturn

from ..errors import PolicyError

#: A longer line is shown as the part around the error.
_SHOWN_LINE = 200
_SHOWN_AROUND = 60
#: A longer word is not a typing mistake, and comparing it with others costs its square.
_LONGEST_TYPO = 40
#: Words of other firewalls, which no spelling distance leads to ours.
_OTHER_WORDS = {
    "accept": "here it is 'allow'",
    "permit": "here it is 'allow'",
    "drop": "here it is 'deny'",
    "block": "here it is 'deny'",
    "reject": "here it is 'deny'",
    "in": "here it is 'ingress'",
    "out": "here it is 'egress'",
    "both": "here it is 'any'",
    "icmp": "icmpv4, icmpv6 or icmpv4+icmpv6",
    "http": "a protocol and its port: tcp:80",
    "https": "a protocol and its port: tcp:443",
    "ssh": "a protocol and its port: tcp:22",
    "localhost": "'loopback' never leaves the guest; the machine itself is 'host'",
    "internet": "here it is 'public'",
    "lan": "here it is 'private'",
}


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `end` (excluded) of `source`; `where` is the source's key, if any."""

    source: str
    start: int
    end: int
    where: str = ""

    @classmethod
    def whole(cls, source: str, where: str = "") -> Span:
        """All of `source`."""
        return cls(source, 0, len(source), where)

    @property
    def text(self) -> str:
        """The characters themselves."""
        return self.source[self.start : self.end]

    def part(self, start: int, end: int | None = None) -> Span:
        """Characters `start` to `end` of this span."""
        stop = self.end if end is None else self.start + end
        return Span(self.source, self.start + start, stop, self.where)

    def stripped(self) -> Span:
        """Without the blanks at both ends."""
        text = self.text
        lead = len(text) - len(text.lstrip(" \t\r"))
        return self.part(lead, max(lead, len(text.rstrip(" \t\r"))))

    def split(self, separator: str) -> list[Span]:
        """The parts between one-character separators; always at least one, maybe empty."""
        parts, start = [], self.start
        while (stop := self.source.find(separator, start, self.end)) >= 0:
            parts.append(Span(self.source, start, stop, self.where))
            start = stop + 1
        parts.append(Span(self.source, start, self.end, self.where))
        return parts

    def fail(self, problem: str, hint: str = "", at: int = 0) -> NoReturn:
        """Raise `PolicyError` at the `at`-th character of this span.

        The error's text is the line in question, or of a very long one the part around the error.
        """
        position = self.start + at
        first = self.source.rfind("\n", 0, position) + 1
        last = self.source.find("\n", position)
        last = len(self.source) if last < 0 else last
        notes = [self.where] if self.where else []
        if "\n" in self.source:
            notes.append(f"line {self.source.count(chr(10), 0, first) + 1}")
        if last - first > _SHOWN_LINE:
            notes.append(f"character {position - first + 1}")
            first, last = max(first, position - _SHOWN_AROUND), min(last, position + _SHOWN_AROUND)
        note = ", ".join(notes) + ": " if notes else ""
        line = _printable(self.source[first:last])
        raise PolicyError(line, position - first, note + problem, hint)


def _printable(text: str) -> str:
    """The same length, without what would move a terminal's cursor."""
    return "".join(char if char.isprintable() else "?" for char in text)


def shown(text: str) -> str:
    """A word for an error's sentence: quoted, and cut when long."""
    return repr(text if len(text) <= _LONGEST_TYPO else text[:_LONGEST_TYPO] + "…")


def nearest(word: str, words: Collection[str]) -> str:
    """The one of `words` that was probably meant by `word`, or empty."""
    if len(word) > _LONGEST_TYPO:
        return ""
    return next(iter(get_close_matches(word.lower(), list(words), n=1)), "")


def near_hint(word: str, words: Collection[str]) -> str:
    """A hint for an unknown word: its lower case, its neighbour, or all there are."""
    if word.lower() in words:
        return f"words are lower case: {word.lower()!r}"
    if word.lower() in _OTHER_WORDS:
        return _OTHER_WORDS[word.lower()]
    meant = nearest(word, words)
    return f"did you mean {meant!r}?" if meant else "one of " + ", ".join(words)
