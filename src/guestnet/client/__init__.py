"""The daemon's client: what `Host` does, asked of the process that has it open.

    with connect() as client:
        attachment = client.attach("vm-1", policy="public")

`Guestnet` is the interface that `Host` and `Client` have in common.
"""

from .api import NO_DAEMON, Api, error_from
from .client import Client, Guestnet, absolute_netns, connect, network_path

__all__ = [
    "NO_DAEMON",
    "Api",
    "Client",
    "Guestnet",
    "absolute_netns",
    "connect",
    "error_from",
    "network_path",
]
