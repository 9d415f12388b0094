"""What every command starts from: the global options, and how to print."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..settings import Settings

if TYPE_CHECKING:
    from ..client import Api


@dataclass
class Context:
    """The global options of one run of the command line."""

    state_dir: str | None = None
    run_dir: str | None = None
    config: str | None = None
    rootless: bool = False
    #: `--json` was given.
    json: bool = False

    def settings(self, *, site: str | None = None, socket_group: str | None = None) -> Settings:
        """The settings; the global options and these come before everything else."""
        return Settings.load(
            state_dir=self.state_dir,
            run_dir=self.run_dir,
            config=self.config,
            rootless="on" if self.rootless else None,
            site=site,
            socket_group=socket_group,
        )

    @cached_property
    def api(self) -> Api:
        """The daemon's API; who asks nothing, as `run`, waits for no HTTP to be imported."""
        from ..client import Api

        return Api(self.settings().client_socket)


def of(ctx: typer.Context) -> Context:
    """The `Context` of typer's."""
    found: Any = ctx.find_object(Context)
    assert isinstance(found, Context)
    return found


def _remember(ctx: typer.Context, value: bool) -> bool:
    of(ctx).json = value
    return value


#: A parameter of every command that prints. `Context.json` has it too, for errors.
Json = Annotated[bool, typer.Option("--json", callback=_remember, help="Print JSON, for programs.")]

#: Parameters of commands that stay: descriptors of who started them (`kernel.caller`).
ReadyFd = Annotated[
    int | None,
    typer.Option(metavar="N", help="Write a line to this descriptor when all is ready."),
]
ExitFd = Annotated[
    int | None,
    typer.Option(metavar="N", help="End when the other end of this descriptor is closed."),
]
