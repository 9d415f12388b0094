"""Send small datagrams as fast as it goes, for ever: `python -m lab.bench.flood ADDRESS PORT`.

Ends with its standard input. Where there is no way, it tries again soon: its guest is between two
attachments then.
"""

from __future__ import annotations

import select
import socket
import sys
import time

#: Datagrams between two looks at the standard input.
_BURST = 256
_RETRY_S = 0.0005


def main(address: str, port: int) -> None:
    """Flood one address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    target = (address, port)
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        while not select.select([sys.stdin], [], [], 0)[0]:
            try:
                for _ in range(_BURST):
                    sock.sendto(b"x", target)
            except OSError:
                time.sleep(_RETRY_S)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
