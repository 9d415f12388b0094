"""What people do today for each guest: four `ip` processes to attach it, one to detach it."""

from __future__ import annotations

import os
import shutil

from ..netns import Namespace

BRIDGE = "gnrecipe0"
_DEVICE_MTU = "1500"


class Recipe:
    """The recipe in one namespace; its callers have entered it (`Namespace.enter`).

    Processes are started by `posix_spawn`, and nothing is read from them: what is measured is
    `ip`, and not what a language adds to starting it.
    """

    def __init__(self, namespace: Namespace) -> None:
        path = shutil.which("ip")
        if path is None:
            raise FileNotFoundError("ip: install iproute2")
        self._path = path
        namespace.ip(f"link add {BRIDGE} type bridge", f"link set {BRIDGE} up")

    def attach(self, name: str) -> None:
        """A TAP with an MTU, as an enabled port of a bridge. No address, and no rule."""
        self._ip("tuntap", "add", name, "mode", "tap")
        self._ip("link", "set", name, "mtu", _DEVICE_MTU)
        self._ip("link", "set", name, "master", BRIDGE)
        self._ip("link", "set", name, "up")

    def detach(self, name: str) -> None:
        """Delete the TAP."""
        self._ip("link", "delete", name)

    def _ip(self, *arguments: str) -> None:
        pid = os.posix_spawn(self._path, ["ip", *arguments], os.environ)
        _, status = os.waitpid(pid, 0)
        if status:
            raise RuntimeError(f"ip {' '.join(arguments)}: status {status}")
