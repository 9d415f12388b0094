"""`python -m guestnet.daemon`: what `guestnet up` starts in the background."""

from __future__ import annotations

import argparse
import sys

from ..settings import Settings
from .serve import run


def main() -> int:
    """Serve until told to stop; returns the exit status."""
    parser = argparse.ArgumentParser(prog="guestnetd", description=__doc__)
    for option in ("state-dir", "run-dir", "config", "site", "socket-group", "rootless"):
        parser.add_argument(f"--{option}")
    parser.add_argument("--report-fd", type=int, help="where to say how the start went, as JSON")
    arguments = vars(parser.parse_args())
    report_fd = arguments.pop("report_fd")
    return run(lambda: Settings.load(**arguments), report_fd=report_fd)


if __name__ == "__main__":
    sys.exit(main())
