"""guestnet: a microVM gets its network with one call.

    import guestnet
    attachment = guestnet.attach("vm-1", policy="public")     # asks the daemon: guestnet up

`connect()` gives a `Client` of the daemon, `Host.open()` the same interface in this process. Names
are imported when they are first used, so `import guestnet` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import Client, Guestnet, connect
    from .errors import (
        BusyError,
        ConfigError,
        ConflictError,
        GuestnetError,
        HostError,
        NotFoundError,
        PolicyError,
        PoolFullError,
        UnreachableError,
    )
    from .host import Host
    from .kernel.tap import Tap
    from .kernel.tap.handover import HandedTap, receive_tap
    from .model import Attachment, AttachRequest, NetworkInfo, NetworkSpec, TransportInfo
    from .policy import Policy, Verdict, parse_policy
    from .pump.port import FramePort
    from .settings import Settings

__all__ = [
    "AttachRequest",
    "Attachment",
    "BusyError",
    "Client",
    "ConfigError",
    "ConflictError",
    "FramePort",
    "Guestnet",
    "GuestnetError",
    "HandedTap",
    "Host",
    "HostError",
    "NetworkInfo",
    "NetworkSpec",
    "NotFoundError",
    "Policy",
    "PolicyError",
    "PoolFullError",
    "Settings",
    "Tap",
    "TransportInfo",
    "UnreachableError",
    "Verdict",
    "attach",
    "connect",
    "detach",
    "parse_policy",
    "receive_tap",
]

_HOMES = {
    "client": ("Client", "Guestnet", "connect"),
    "errors": tuple(name for name in __all__ if name.endswith("Error")),
    "host": ("Host",),
    "kernel.tap": ("Tap",),
    "kernel.tap.handover": ("HandedTap", "receive_tap"),
    "model": ("AttachRequest", "Attachment", "NetworkInfo", "NetworkSpec", "TransportInfo"),
    "policy": ("Policy", "Verdict", "parse_policy"),
    "pump.port": ("FramePort",),
    "settings": ("Settings",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def attach(guest: str, **options: Any) -> Attachment:
    """Ask the daemon to give a guest its network; `options` are the fields of `AttachRequest`."""
    from .client import connect

    with connect() as client:
        return client.attach(guest, **options)


def detach(guest: str, generation: int | None = None) -> bool:
    """Ask the daemon to cut a guest off; True if it was attached."""
    from .client import connect

    with connect() as client:
        return client.detach(guest, generation)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("guestnet")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
