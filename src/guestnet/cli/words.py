"""Words of a command that are replaced: what they ask for, and what they stand for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..model import Attachment

#: Words of a VMM that opens a TAP, and of one that has its frames on a socket: by the kinds of
#: docs/transports.md.
_TAP_WORDS = ("tap", "fd")
_SOCKET_WORDS = ("stream", "stream+vnet", "dgram", "dgram+vnet")
#: Where a VMM puts its own end that is told both (QEMU's dgram).
_LOCAL = "dgram_local"
_VM_WORDS = (*_TAP_WORDS, *_SOCKET_WORDS, _LOCAL, "mac", "kernel_args")
_WORDS = (*_VM_WORDS, "mtu", "ipv4", "ipv6", "gateway", "gateway6")
_WORD = re.compile("{(" + "|".join(map(re.escape, _WORDS)) + ")}")


@dataclass(frozen=True, slots=True)
class Words:
    """A command, and the words in it."""

    command: tuple[str, ...]
    found: frozenset[str]

    @classmethod
    def read(cls, command: Sequence[str]) -> Words:
        """Find the words; those that contradict each other are a `ConfigError` that names them."""
        found = frozenset(word for part in command for word in _WORD.findall(part))
        ways = [word for word in (*_TAP_WORDS, *_SOCKET_WORDS) if word in found]
        if len(ways) > 1 and not found.isdisjoint(_SOCKET_WORDS):
            text = " and ".join(f"{{{word}}}" for word in ways)
            raise ConfigError("command", text, "are ways to one and the same network: keep one")
        if _LOCAL in found and not any(word.startswith("dgram") for word in ways):
            raise ConfigError(
                "command", f"{{{_LOCAL}}}", "is the VMM's own end of {dgram}: name that too"
            )
        return cls(tuple(command), found)

    @property
    def is_vm(self) -> bool:
        """Whether the command is a VMM; otherwise it is a program."""
        return not self.found.isdisjoint(_VM_WORDS)

    @property
    def socket(self) -> str | None:
        """The kind of the socket that the VMM wants in place of a TAP."""
        return next((word for word in _SOCKET_WORDS if word in self.found), None)

    @property
    def opens_tap(self) -> bool:
        """Whether the VMM wants an open TAP."""
        return "fd" in self.found

    def transport(self, directory: Path) -> str | None:
        """The transport's text, with its socket in that directory."""
        return f"{self.socket}:{directory / 'net.sock'}" if self.socket is not None else None

    def replaced(self, attachment: Attachment) -> list[str]:
        """The command with what the words stand for, but for {fd}: it has no number yet."""
        values = self._values(attachment)
        return [_WORD.sub(lambda match: values[match[1]], part) for part in self.command]

    def _values(self, attachment: Attachment) -> dict[str, str]:
        values = {
            "tap": attachment.tap,
            "fd": "{fd}",
            "mac": attachment.mac,
            "mtu": str(attachment.mtu),
            "ipv4": str(attachment.ipv4 or ""),
            "ipv6": str(attachment.ipv6 or ""),
            "gateway": str(attachment.gateway_ipv4 or ""),
            "gateway6": str(attachment.gateway_ipv6 or ""),
        }
        if self.socket is not None and attachment.transport is not None:
            from ..frames.transport import Transport

            transport = Transport.parse(attachment.transport)
            values |= {self.socket: transport.path, _LOCAL: transport.peer_path}
        if "kernel_args" in self.found:
            from ..vmm import render

            values["kernel_args"] = render(attachment, "kernel-args").text
        return values
