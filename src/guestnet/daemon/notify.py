"""Telling the service manager how it goes (sd_notify(3), by hand)."""

from __future__ import annotations

import logging
import os
import socket

logger = logging.getLogger(__name__)


def notify(*lines: str) -> None:
    """Send `NAME=value` lines to `$NOTIFY_SOCKET`; without one there is nobody to tell."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        # An abstract address begins with a zero byte (unix(7)).
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect(address)
            sock.sendall("\n".join(lines).encode())
    except OSError as error:
        logger.warning("cannot notify the service manager: %s", error)
