"""The TCP flows of all guests: whose each is, how many there may be, and their end."""

from __future__ import annotations

from .connection import Connection, Means
from .doorway import Doorway
from .guests import Guest
from .knocking import Door, Knock

#: Flows of one guest at a time, which the workers share evenly, and of all in one worker; more are
#: refused. Browsers open some hundred.
GUEST_FLOWS, ALL_FLOWS = 4096, 30_000


class Relaying:
    """A worker's share of them."""

    def __init__(self, doorway: Doorway, means: Means, guest_flows: int = GUEST_FLOWS) -> None:
        self._means = means
        self._guest_flows = guest_flows
        self.flows = 0
        self._door = Door(doorway, means.reactor, self._begin)

    def _begin(self, knock: Knock) -> None:
        guest = self._means.guests.at(knock.syn.guest)
        if guest is None:
            knock.refuse()  # detached meanwhile
            return
        connection = Connection(self._means, knock, guest, self._left)
        if len(guest.flows) >= self._guest_flows or self.flows >= ALL_FLOWS:
            connection.refuse_for(
                "limit: flows", f"at most {self._guest_flows} flows at a time at a worker"
            )
            return
        self.flows += 1
        guest.flows.add(connection)
        try:
            connection.start()
        except Exception:
            connection.reset("fault")  # undecided is denied
            raise

    def recheck(self, guest: Guest) -> None:
        """Ask the guest's policy once more about each of its flows, and reset those it denies."""
        for connection in list(guest.flows):
            if isinstance(connection, Connection):
                connection.recheck()

    def end_all(self, guest: Guest) -> None:
        """Reset every flow of a guest that is gone."""
        for flow in list(guest.flows):
            flow.reset()

    def _left(self, connection: Connection) -> None:
        """A connection is at its end; it may never have been counted."""
        if connection in connection.guest.flows:
            connection.guest.flows.discard(connection)
            self.flows -= 1
