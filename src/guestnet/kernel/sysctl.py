"""Kernel settings under /proc/sys/net, which show the namespace of the reading thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import HostError

_ROOT = Path("/proc/sys/net")
#: Of each flow: its bytes, and when it began (nf_conntrack-sysctl.rst).
_ACCOUNTS = ("netfilter/nf_conntrack_acct", "netfilter/nf_conntrack_timestamp")


def read(key: str) -> str | None:
    """A setting by its path below net/ (`ipv4/ip_forward`); None where the kernel has none."""
    try:
        return (_ROOT / key).read_text().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError.from_os("read", f"net/{key}", error) from None


def write(key: str, value: str) -> None:
    """Set a setting."""
    try:
        (_ROOT / key).write_text(value)
    except OSError as error:
        raise HostError.from_os("write", f"net/{key}", error) from None


def forwarding_changes(version: int, egress: tuple[str, ...]) -> dict[str, tuple[str, str | None]]:
    """What has to change for forwarding to be on: (former, wanted) by key. Changes nothing itself.

    `None` is wanted of settings that the kernel changes along with the switch, so that they can be
    put back in their turn. Turning IPv6 forwarding on makes the kernel deaf to router
    advertisements, so an egress interface that lives by them is told to keep listening
    (accept_ra=2, ip-sysctl.rst), first.
    """
    switch = "ipv4/ip_forward" if version == 4 else "ipv6/conf/all/forwarding"
    changes: dict[str, tuple[str, str | None]] = {}
    if version == 6:
        for device in egress:
            if read(f"ipv6/conf/{device}/accept_ra") == "1":
                changes[f"ipv6/conf/{device}/accept_ra"] = ("1", "2")
    if read(switch) == "0":
        changes[switch] = ("0", "1")
        changes |= {key: (value, None) for key, value in _followers(version)}
    return changes


def accounting_changes() -> dict[str, tuple[str, str | None]]:
    """The same for connection tracking to count a flow's bytes and take its time."""
    return {key: ("0", "1") for key in _ACCOUNTS if read(key) == "0"}


def _followers(version: int) -> Iterator[tuple[str, str]]:
    """Settings that are not what turning forwarding off again would make them."""
    for device in sorted(path.name for path in (_ROOT / f"ipv{version}/conf").iterdir()):
        key = f"ipv{version}/conf/{device}/forwarding"
        if device != "all" and read(key) == "1":
            yield key, "1"
    if version == 4 and read("ipv4/conf/all/accept_redirects") == "0":
        yield "ipv4/conf/all/accept_redirects", "0"
