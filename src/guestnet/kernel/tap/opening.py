"""Opening a standing TAP for another process, which is handed it (`handover`)."""

from __future__ import annotations

import socket

from .device import Tap
from .handover import TapFacts, hand
from .ioctl import Offload


def open_and_hand(name: str, mac: str, queues: int, vnet_hdr: bool) -> socket.socket:
    """Open a standing TAP in this namespace; the handed TAP waits in the socket returned.

    A socket, as those pass from a site in another process where plain descriptors do not.
    """
    receiving, giving = socket.socketpair()
    with giving:
        try:
            with Tap.open(name, queues=queues, vnet_hdr=vnet_hdr, existing="require") as tap:
                words = tuple(
                    str(flag.name).lower() for flag in Offload if flag and flag in tap.offload
                )
                hand(giving, TapFacts(name, mac, tap.mtu, queues, vnet_hdr, words), tap.queues)
        except BaseException:
            receiving.close()
            raise
    return receiving
