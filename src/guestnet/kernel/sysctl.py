"""Kernel settings under /proc/sys/net, which show the namespace of the reading thread."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ..errors import HostError
from .netns import inside

logger = logging.getLogger(__name__)

#: A setting's former value and the wanted one.
Change = tuple[str, str | None]

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


class Sysctls:
    """Those of a namespace, by their paths below net/; None is the calling process's."""

    def __init__(self, netns_fd: int | None) -> None:
        self._netns_fd = netns_fd

    def read(self, key: str) -> str | None:
        """A setting; None where the kernel has none."""
        with inside(self._netns_fd):
            return read(key)

    def write(self, values: Mapping[str, str]) -> None:
        """Set settings."""
        with inside(self._netns_fd):
            for key, value in values.items():
                write(key, value)

    def restore(self, former: Mapping[str, str]) -> None:
        """Write former values back, as far as what they belong to is still there."""
        with inside(self._netns_fd):
            for key, value in former.items():
                try:
                    if read(key) not in (None, value):
                        write(key, value)
                except HostError as error:
                    logger.warning("a former setting could not be put back: %s", error)

    def forwarding_changes(
        self, egress: tuple[str, ...], versions: Iterable[int]
    ) -> dict[str, Change]:
        """What has to change for forwarding to be on. Changes nothing itself.

        `None` is wanted of settings that the kernel changes along with the switch, so that they
        can be put back in their turn. Turning IPv6 forwarding on makes the kernel deaf to router
        advertisements, so an egress interface that lives by them is told to keep listening
        (accept_ra=2, ip-sysctl.rst), first.
        """
        changes: dict[str, Change] = {}
        with inside(self._netns_fd):
            for version in versions:
                changes |= _forwarding_changes(version, egress)
        return changes

    def accounting_changes(self) -> dict[str, Change]:
        """The same for connection tracking to count a flow's bytes and take its time."""
        with inside(self._netns_fd):
            return {key: ("0", "1") for key in _ACCOUNTS if read(key) == "0"}


def _forwarding_changes(version: int, egress: tuple[str, ...]) -> dict[str, Change]:
    switch = "ipv4/ip_forward" if version == 4 else "ipv6/conf/all/forwarding"
    changes: dict[str, Change] = {}
    if version == 6:
        for device in egress:
            if read(f"ipv6/conf/{device}/accept_ra") == "1":
                changes[f"ipv6/conf/{device}/accept_ra"] = ("1", "2")
    if read(switch) == "0":
        changes[switch] = ("0", "1")
        changes |= {key: (value, None) for key, value in _followers(version)}
    return changes


def _followers(version: int) -> Iterator[tuple[str, str]]:
    """Settings that are not what turning forwarding off again would make them."""
    for device in sorted(path.name for path in (_ROOT / f"ipv{version}/conf").iterdir()):
        key = f"ipv{version}/conf/{device}/forwarding"
        if device != "all" and read(key) == "1":
            yield key, "1"
    if version == 4 and read("ipv4/conf/all/accept_redirects") == "0":
        yield "ipv4/conf/all/accept_redirects", "0"
