"""The command line's table of commands is what its rooms add."""

from __future__ import annotations

import subprocess
import sys

import pytest

from guestnet.cli.rooms import ROOMS, commands_of


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_the_commands_that_it_is_opened_for(room: str) -> None:
    assert tuple(commands_of(room)) == ROOMS[room]


def guestnet(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-P", "-m", "guestnet.cli", *arguments]
    return subprocess.run(argv, capture_output=True, text=True)


def test_the_help_shows_all() -> None:
    shown = guestnet("--help").stdout.partition("Commands:")[2].splitlines()
    assert [line.split()[0] for line in shown if line.strip()] == [
        command for commands in ROOMS.values() for command in commands
    ]


def test_a_command_that_is_none_is_likened_to_one() -> None:
    done = guestnet("atach")
    assert done.returncode == 2
    assert "attach" in done.stderr
