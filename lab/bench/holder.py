"""A process that opens a host, says what that took as JSON, and holds it until its input ends.

`python -m lab.bench.holder STATE_DIRECTORY`, in the site's namespace. A process of its own, because
what another one has allocated before would count as its memory.
"""

from __future__ import annotations

import json
import sys
import time

from guestnet import Host


def main(state: str) -> None:
    """Open, report, wait."""
    begin = time.perf_counter()
    with Host.open(state) as host:
        seconds = time.perf_counter() - begin
        print(json.dumps({"open_s": seconds, "guests": len(host.attachments())}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
