"""The TAP device as an object: made, set up, and its frames read and written by this process.

Attaching a guest does not go this way (its VMM reads the frames); this is for those who are the
VMM themselves, or want a device of their own.
"""

from .attach import TapSpec
from .device import Tap, random_mac
from .frames import FrameDevice
from .ioctl import Offload
from .virtio import VirtioHeaderError, VirtioNetHeader

__all__ = [
    "FrameDevice",
    "Offload",
    "Tap",
    "TapSpec",
    "VirtioHeaderError",
    "VirtioNetHeader",
    "random_mac",
]
