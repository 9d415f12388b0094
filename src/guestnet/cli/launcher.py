"""The other side of `launch`: started early, told what to do when that is known."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Self

from ..kernel.process import start_process


class Launcher:
    """The process that enters the guest's network and runs the command there.

    A Python that starts takes as long as a network that comes into being, so it starts beside.
    Signals are to be blocked: it begins as its parent is. Ends with the `with` block.
    """

    def __init__(self) -> None:
        reading, self._writing = os.pipe()
        os.set_inheritable(reading, True)
        try:
            self._process = start_process(
                "the process for the command",
                [sys.executable, "-I", "-m", "guestnet.cli.launch", str(reading)],
                close_fds=False,  # what the caller left open is for the command
            )
        except BaseException:
            os.close(self._writing)
            raise
        finally:
            os.close(reading)
        self.pid = self._process.pid
        self.poll, self.kill = self._process.poll, self._process.kill

    def tell(self, spec: Mapping[str, Any]) -> None:
        """Say what to do."""
        with (
            suppress(BrokenPipeError),  # it has ended: who waits for it will see
            open(self._writing, "w", encoding="utf-8", closefd=False) as words,
        ):
            json.dump(spec, words)
        self._hang_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End it, and with it the command."""
        self.kill()
        self._process.wait()
        self._hang_up()

    def _hang_up(self) -> None:
        if self._writing >= 0:
            os.close(self._writing)
            self._writing = -1
