"""Variables for the guest's init: one for the interface, one for each active address family.

For an attachment with a transport there is one more, for whoever starts the VMM. Each value is
`key=value` pairs joined by commas. A key that has several values (`dns`) is repeated, in order; a
key that has none is absent.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from ..model import Attachment
from .interface import Family, families, transport_of


def variables(attachment: Attachment) -> dict[str, str]:
    """`GUESTNET_IFACE`, and `GUESTNET_IPV4` and `GUESTNET_IPV6` where the guest has the family."""
    interface = f"iface={attachment.guest_interface},mac={attachment.mac},mtu={attachment.mtu}"
    found = {"GUESTNET_IFACE": interface} | {
        f"GUESTNET_IPV{family.version}": ",".join(_pairs(family)) for family in families(attachment)
    }
    transport = transport_of(attachment)
    if transport is not None:
        # The path last: it may have a comma.
        header = "on" if transport.vnet_hdr else "off"
        words = f"kind={transport.kind},vnet_hdr={header},path={transport.path}"
        found["GUESTNET_TRANSPORT"] = words
    return found


def lines(attachment: Attachment) -> str:
    """The same as `KEY=VALUE` lines for a shell's `.` or systemd's EnvironmentFile."""
    return "\n".join(f"{key}={shlex.quote(value)}" for key, value in variables(attachment).items())


def _pairs(family: Family) -> Iterator[str]:
    yield f"addr={family.address}"
    if family.gateway is not None:
        yield f"gw={family.gateway}"
    for resolver in family.dns:
        yield f"dns={resolver}"
