"""The guest kernel's `ip=` argument: an IPv4 address without any user space.

Source: Documentation/admin-guide/nfs/nfsroot.rst of Linux. The kernel needs CONFIG_IP_PNP; many
distributions' kernels lack it, and an initramfs may read the same argument from /proc/cmdline.
"""

from __future__ import annotations

from ..errors import ConfigError
from ..model import Attachment
from .interface import families

#: The argument has room for <dns0-ip> and <dns1-ip>.
MAX_DNS = 2


def ip_argument(attachment: Attachment, *, dns: bool = False) -> str:
    """`ip=<guest>::<gateway>:<netmask>::<interface>:off`; a guest without IPv4 is a `ConfigError`.

    `dns` appends the first two IPv4 resolvers, which the kernel writes to /proc/net/pnp. It is off
    by default: readers of the argument other than the kernel often expect seven fields.
    """
    ipv4 = attachment.ipv4
    if ipv4 is None:
        raise ConfigError(
            "ipv4", None, "the kernel's ip= argument has no IPv6; use env or cloud-init"
        )
    gateway = attachment.gateway_ipv4 or ""
    argument = f"ip={ipv4.ip}::{gateway}:{ipv4.netmask}::{attachment.guest_interface}:off"
    resolvers = families(attachment)[0].dns[:MAX_DNS] if dns else ()
    return ":".join([argument, *map(str, resolvers)])
