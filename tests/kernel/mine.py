"""An ordinary user's own guestnet, whose machine is the lab's site.

PYTEST_DONT_REWRITE: test modules import helpers from here before pytest loads its fixtures.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lab import processes
from lab.user import User
from lab.world import World


class Mine:
    """The user's guestnet."""

    def __init__(self, world: World, user: User) -> None:
        self.world, self.user = world, user

    def say(self, *arguments: str, **how: Any) -> str:
        """Run a command that succeeds; returns what it prints."""
        done = self.user.guestnet(*arguments, **how)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *arguments: str, **how: Any) -> Any:
        return json.loads(self.say(*arguments, "--json", **how))

    @property
    def socket(self) -> Path:
        return self.user.home / "run" / "guestnet" / "guestnet.sock"

    def up(self) -> int:
        """Start the daemon; returns its process."""
        return int(self.json("up")["pid"])

    def find(self, module: str) -> int | None:
        for pid in self.user.processes():
            if f"-m {module}" in processes.command_line(pid):
                return pid
        return None

    @property
    def log(self) -> str:
        """What the daemon has logged so far."""
        return (self.socket.parent / "guestnet.log").read_text()
