"""Variables for the guest's init: one for the interface, one for each active address family.

Each value is `key=value` pairs joined by commas. A key that has several values (`dns`) is repeated,
in order; a key that has none is absent.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from ..model import Attachment
from .interface import Family, families


def variables(attachment: Attachment) -> dict[str, str]:
    """`GUESTNET_IFACE`, and `GUESTNET_IPV4` and `GUESTNET_IPV6` where the guest has the family."""
    interface = f"iface={attachment.guest_interface},mac={attachment.mac},mtu={attachment.mtu}"
    return {"GUESTNET_IFACE": interface} | {
        f"GUESTNET_IPV{family.version}": ",".join(_pairs(family)) for family in families(attachment)
    }


def lines(attachment: Attachment) -> str:
    """The same as `KEY=VALUE` lines for a shell's `.` or systemd's EnvironmentFile."""
    return "\n".join(f"{key}={shlex.quote(value)}" for key, value in variables(attachment).items())


def _pairs(family: Family) -> Iterator[str]:
    yield f"addr={family.address}"
    if family.gateway is not None:
        yield f"gw={family.gateway}"
    for resolver in family.dns:
        yield f"dns={resolver}"
