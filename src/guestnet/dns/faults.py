"""The two errors of this room, each naming whose bytes were wrong."""

from __future__ import annotations

from ..errors import GuestnetError
from .codes import Rcode


class BadQuestion(GuestnetError):  # noqa: N818
    """A guest's datagram that is no question we answer; `answers.failure` makes the reply to it.

    `rcode` is `None` where the only right answer is none at all.
    """

    code = "bad-question"

    def __init__(
        self,
        rcode: Rcode | None,
        id: int,
        reason: str,
        *,
        opcode: int = 0,
        recursion_desired: bool = False,
        question: bytes = b"",
        edns: bool = False,
    ) -> None:
        self.rcode = rcode
        self.id = id
        self.reason = reason
        self.opcode = opcode
        self.recursion_desired = recursion_desired
        #: The question section as asked, where it could be read; else empty.
        self.question = question
        #: Whether the guest spoke EDNS, so that the reply may.
        self.edns = edns
        super().__init__(f"bad DNS question: {reason}")


class BadResponse(GuestnetError):  # noqa: N818
    """An upstream's bytes that are no answer to what was asked.

    `mismatched` says that they may be somebody else's (another id, another question, not a
    response): a UDP asker ignores them and keeps waiting. Otherwise the upstream itself answered
    nonsense, and waiting for more is of no use.
    """

    code = "bad-response"

    def __init__(self, reason: str, *, mismatched: bool = False) -> None:
        self.reason = reason
        self.mismatched = mismatched
        super().__init__(f"bad DNS response: {reason}")
