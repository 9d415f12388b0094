"""A guest's share of what is told: the gateway keeps to it, and so does who hears the gateway."""

from __future__ import annotations

from dataclasses import dataclass

#: Decisions of one guest in one second that are told one by one, and where its policy reports: what
#: it used is to be known then.
TOLD_PER_SECOND, REPORTED_PER_SECOND = 200, 2000


@dataclass(slots=True)
class Share:
    """A guest's share of what is told: the rest is counted, and costs next to nothing."""

    per_second: int = TOLD_PER_SECOND
    second: int = 0
    told: int = 0
    omitted: int = 0

    def leave_out(self, second: int) -> bool:
        """Count one that is left out, if the share of this second (of the epoch) is used up."""
        if self.second != second or self.told < self.per_second:
            return False
        self.omitted += 1
        return True

    def take(self, now: float) -> int | None:
        """How many were left out before one that may be told now; `None` leaves it out too."""
        second = int(now)
        if self.leave_out(second):
            return None
        if self.second != second:
            self.second, self.told = second, 0
        self.told += 1
        omitted, self.omitted = self.omitted, 0
        return omitted
