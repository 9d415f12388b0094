"""The TAP device as an object: made, set up, and its frames read and written by this process.

Attaching a guest does not go this way (its VMM reads the frames); this is for those who are the
VMM themselves, or want a device of their own. Names are imported when they are first used: whoever
only wants the numbers in `ioctl` does not wait for the rest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...frames.virtio import VirtioHeaderError, VirtioNetHeader
    from .attach import TapSpec
    from .device import Tap, random_mac
    from .frames import FrameDevice
    from .ioctl import Offload

__all__ = [
    "FrameDevice",
    "Offload",
    "Tap",
    "TapSpec",
    "VirtioHeaderError",
    "VirtioNetHeader",
    "random_mac",
]

_HOMES = {
    "FrameDevice": "frames",
    "Offload": "ioctl",
    "Tap": "device",
    "TapSpec": "attach",
    "VirtioHeaderError": "..frames.virtio",
    "VirtioNetHeader": "..frames.virtio",
    "random_mac": "device",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
