"""guestnet of an ordinary user, as a contender, and what its guests weigh."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from guestnet.client import Client

from ..netns import Lent
from ..user import User
from . import contenders, machine
from .contenders import Contender
from .stage import Stage

#: Of a memory's measure: one guest alone, and so many.
GUESTS = 20
_MTU = 1500


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


def weights(note: Callable[[str], None]) -> list[tuple[str, float, float, float]]:
    """Who, proportional bytes of one guest alone, of each of `GUESTS`, and resident of each.

    Of the processes that the guests need, without what the kernel has for them.
    """
    note("memory of guestnet")
    found = [("guestnet", *_guestnet())]
    for name in contenders.USER_MODE:
        note(f"memory of {name}")
        found.append((name, *_user_mode(name)))
    return found


def _guestnet() -> tuple[float, float, float]:
    with Stage() as stage, daemon(stage) as (user, client):
        _attach(client, "vm-0", _MTU)
        alone, _ = _weigh(user.processes())
        for number in range(1, GUESTS):
            _attach(client, f"vm-{number}", _MTU)
        proportional, resident = _weigh(user.processes())
        return alone, proportional / GUESTS, resident / GUESTS


def _user_mode(name: str) -> tuple[float, float, float]:
    with Stage() as stage, contextlib.ExitStack() as stack:
        pids = []
        for number in range(GUESTS):
            guest = stage.add_guest()
            command = contenders.USER_MODE[name](guest, _MTU)
            pids.append(stack.enter_context(contenders.beside(stage, guest, command)))
            if number == 0:
                alone, _ = _weigh(pids)
        proportional, resident = _weigh(pids)
        return alone, proportional / GUESTS, resident / GUESTS


def _weigh(pids: Iterator[int] | Sequence[int] | set[int]) -> tuple[float, float]:
    each = list(pids)
    proportional = sum(map(machine.proportional_bytes, each))
    return proportional, sum(map(machine.resident_bytes, each))
