"""How a transport goes, as its owner may ask."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class State:
    """Counters since the attachment was first served by this daemon."""

    #: It is there for its VMM: listening, or trying to connect.
    serving: bool = False
    #: A VMM is connected; with datagrams, one has sent something.
    connected: bool = False
    #: The VMM's own socket, if it has a name.
    peer: str = ""
    connections: int = 0
    #: Frames from the VMM that were none; a stream's first ends the connection.
    malformed: int = 0
    #: Frames from the VMM that the TAP did not take.
    refused: int = 0
    #: Times that the pump ended unasked.
    restarts: int = 0
    #: What went wrong last, until it is right again.
    problem: str = ""
    confinement: tuple[str, ...] = ()

    def plus(self, earlier: State) -> State:
        """The same with the counters of an earlier time added."""
        return State(
            self.serving,
            self.connected,
            self.peer,
            self.connections + earlier.connections,
            self.malformed + earlier.malformed,
            self.refused + earlier.refused,
            self.restarts + earlier.restarts,
            self.problem or earlier.problem,
            self.confinement,
        )
