"""The command line: `guestnet …`.

Every command but `up` is a client of the daemon and speaks its JSON, so that starting one costs no
import of models, server or kernel rooms. What prints for people prints for programs with `--json`.
"""

from __future__ import annotations


def main() -> None:
    """Run the command in `sys.argv`; ends the process."""
    from .app import main as run

    run()
