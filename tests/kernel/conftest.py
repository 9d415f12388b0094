"""The stage for tests on a real kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestnet.host import Host
from lab.netns import Namespace
from lab.user import User
from lab.waiting import eventually
from lab.world import World
from mine import Mine
from stage import GuestOf, Stage


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """An empty network namespace."""
    with Namespace("test") as made:
        yield made


@pytest.fixture
def world() -> Iterator[World]:
    """guest — site — internet, new for each test: it takes a tenth of a second."""
    with World() as made:
        yield made


@pytest.fixture
def host(world: World, tmp_path: Path) -> Iterator[Host]:
    """guestnet on the world's site, without a network yet."""
    with Host.open(tmp_path / "state", site=world.site.path) as opened:
        yield opened


@pytest.fixture
def guest_of(stage: Stage) -> Iterator[GuestOf]:
    """Attach a guest of the module's stage by its policy; detached with the test's end."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments, **how: stack.enter_context(stage.guest(*arguments, **how))


@pytest.fixture
def mine(world: World) -> Iterator[Mine]:
    """An ordinary user of the world's site, who leaves nothing behind."""
    with User(world.site) as user:
        yield Mine(world, user)
        user.guestnet("down")
        eventually(lambda: not user.processes())
