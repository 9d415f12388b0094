"""guestnet of an ordinary user, as a contender, and what its guests weigh."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from guestnet.client import Client

from ..netns import Lent
from ..user import User
from . import contenders, machine
from .contenders import Contender
from .stage import Stage

#: Memory is weighed of one guest, and of so many.
GUESTS = 20
_MTU = 1500
#: Memory is weighed when it changes by no more than this part within so long.
_SETTLED, _SETTLE_S, _SETTLE_MAX_S = 0.001, 0.5, 10.0


@contextlib.contextmanager
def daemon(stage: Stage) -> Iterator[tuple[User, Client]]:
    """A user at home in the stage's site, whose daemon is up."""
    with User(stage.site) as user:
        up = user.guestnet("up", "--json")
        if up.returncode:
            raise RuntimeError(f"guestnet up: {up.stderr}")
        try:
            with Client(Path(json.loads(up.stdout)["socket"])) as client:
                yield user, client
        finally:
            user.guestnet("down")


@contextlib.contextmanager
def rootless(mtus: Sequence[int]) -> Iterator[list[Contender]]:
    """Guests of one rootless site, whose every flow the gateway relays."""
    with Stage() as stage, daemon(stage) as (user, client), contextlib.ExitStack() as stack:
        guests = []
        for mtu in mtus:
            netns = _attach(client, f"mtu-{mtu}", mtu)
            guests.append((mtu, Lent(Path(netns), f"mtu-{mtu}")))
            stack.callback(guests[-1][1].delete)
        pids = tuple(user.processes())
        yield [Contender(f"guestnet, MTU {m}", guest, stage.far, pids) for m, guest in guests]


def _attach(client: Client, name: str, mtu: int) -> str:
    netns = client.attach(name, netns="new", policy="public", mtu=mtu).netns
    assert netns is not None
    return netns


@dataclass(frozen=True)
class Weight:
    """Bytes of the processes that guests need, without what the kernel has for them."""

    words: str
    #: What processes have in common is divided among them: of one guest, and of `GUESTS`.
    one: float
    many: float
    #: Resident, each process by itself: of `GUESTS`.
    resident: float


def weights(note: Callable[[str], None]) -> Iterator[Weight]:
    """guestnet's, whose processes are there for all guests, and those that are one a guest."""
    note("memory of guestnet")
    with Stage() as stage, daemon(stage) as (user, client):
        _attach(client, "vm-0", _MTU)
        one, _ = _weigh(user.processes)
        for number in range(1, GUESTS):
            _attach(client, f"vm-{number}", _MTU)
        yield Weight("guestnet", one, *_weigh(user.processes))
    for name in contenders.USER_MODE:
        note(f"memory of {name}")
        yield _one_each(name)


def _one_each(name: str) -> Weight:
    command, pids = contenders.USER_MODE[name], list[int]()
    with Stage() as stage, contextlib.ExitStack() as stack:
        for number in range(GUESTS):
            guest = stage.add_guest()
            way = contenders.beside(stage, guest, command(guest, _MTU))
            pids.append(stack.enter_context(way))
            if number == 0:
                one, _ = _weigh(lambda: pids)
        return Weight(name, one, *_weigh(lambda: pids))


def _weigh(pids: Callable[[], Iterable[int]]) -> tuple[float, float]:
    """Proportional and resident bytes, once the processes are done with their beginning."""
    deadline = time.monotonic() + _SETTLE_MAX_S
    before, found = 0.0, _sum(machine.proportional_bytes, pids())
    while abs(found - before) > _SETTLED * found and time.monotonic() < deadline:
        time.sleep(_SETTLE_S)
        before, found = found, _sum(machine.proportional_bytes, pids())
    return found, _sum(machine.resident_bytes, pids())


def _sum(measure: Callable[[int], int], pids: Iterable[int]) -> float:
    return float(sum(map(measure, pids)))
