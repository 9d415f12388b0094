"""Where each command stands. Only that of the command line's is imported: it is there sooner."""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperGroup

#: Modules with the commands that their `register` adds, in the order of the help.
ROOMS = {
    "lifecycle": ("up", "down"),
    "guests": ("attach", "detach", "ls", "show"),
    "machine": ("gc", "doctor", "version"),
    "execute": ("exec",),
    "handed": ("with-tap",),
    "run": ("run",),
    "watch": ("watch",),
    "networks": ("network",),
    "policies": ("policy",),
}
_ROOM_OF = {command: room for room, commands in ROOMS.items() for command in commands}


class Commands(TyperGroup):
    """The commands of all rooms, each as it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Their names."""
        return list(_ROOM_OF)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """One of them. For a name that is none's all are there, to suggest what was meant."""
        for room in [_ROOM_OF[cmd_name]] if cmd_name in _ROOM_OF else ROOMS:
            if not self.commands.keys() >= set(ROOMS[room]):
                self.commands.update(commands_of(room))
        return self.commands.get(cmd_name)


def commands_of(room: str) -> dict[str, Any]:
    """A room's commands, by name."""
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.callback()(lambda: None)  # a group, however few they are
    importlib.import_module(f".{room}", __package__).register(app)
    commands: dict[str, Any] = getattr(typer.main.get_command(app), "commands")  # noqa: B009
    return commands
