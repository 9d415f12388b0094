"""What must exist, and the steps from what stands to it. Pure: values in, ordered steps out.

The same steps serve an attach, a detach and a repair; `kernel.performing` does them and, when one
fails, undoes the earlier ones.
"""

from .desired import BridgeDevice, Desired, GuestDevice, bridge_device, guest_device
from .diff import Observed, SeenDevice, repair
from .steps import (
    Admit,
    Configure,
    Exchange,
    Expel,
    InstallBase,
    InstallPolicy,
    MakeBridge,
    MakeDevice,
    RemovePolicies,
    Retire,
    SetPlaces,
    Step,
)

__all__ = [
    "Admit",
    "BridgeDevice",
    "Configure",
    "Desired",
    "Exchange",
    "Expel",
    "GuestDevice",
    "InstallBase",
    "InstallPolicy",
    "MakeBridge",
    "MakeDevice",
    "Observed",
    "RemovePolicies",
    "Retire",
    "SeenDevice",
    "SetPlaces",
    "Step",
    "bridge_device",
    "guest_device",
    "repair",
]
