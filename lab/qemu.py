"""A real VM on a TAP: QEMU under plain emulation, with an agent that runs commands inside."""

from __future__ import annotations

import base64
import os
import select
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from typing import Any, Protocol, Self

from . import processes
from .image import Image, image
from .netns import Namespace

#: Seconds until the agent answers; two are usual, and a loaded machine takes more.
BOOT_TIMEOUT_S = 60.0
#: Seconds beyond a command's own limit in which the guest must say that it ran out.
AGENT_GRACE_S = 15.0
MEMORY_MIB = 128
#: More output than the guest's init sends is no reply of ours.
OUTPUT_MAX_BYTES = 4 << 20

#: Not the machine "microvm", though it is 0.2 s faster: it has neither HPET nor PM timer, and a
#: kernel that cannot calibrate its TSC against the PIT, as on a loaded machine, hangs for good.
_MACHINE = ("-M", "q35,sata=off,smbus=off,vmport=off", "-accel", "tcg", "-cpu", "max")
_QUIET = ("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-monitor", "none")
#: A PXE ROM would only be looked for, and is not installed everywhere.
_NO_ROM = ("-global", "virtio-net-pci.romfile=")
_KERNEL_ARGS = "console=ttyS0 quiet panic=-1 no_timer_check tsc=reliable mitigations=off nokaslr"


class Starter(Protocol):
    """Where a VMM is started: a namespace, or a command that starts another."""

    def popen(self, argv: Sequence[str], **kwargs: Any) -> subprocess.Popen[bytes]: ...


class GuestError(RuntimeError):
    """The VM did not boot, died, or its agent fell silent; holds the console's last lines."""


@dataclass(frozen=True)
class Result:
    """How a command in the guest ended: 137 or 143 is a command that ran out of time."""

    status: int
    output: str

    @property
    def ok(self) -> bool:
        """Whether it said that all went well."""
        return self.status == 0


class Guest:
    """A running VM in `namespace`, answering commands, until `stop()` or the end of its block.

    `net_args` are QEMU's own words for the interface and `kernel_args` the guest's addresses, as
    `guestnet show --format qemu` gives them, or as `tap_args()` and `address_args()` below do.
    `handed_tap` is the socket of a tap-fd transport, by which QEMU is started.
    `owner` is the user who runs QEMU, if that is not ourselves.
    """

    def __init__(
        self,
        namespace: Starter,
        net_args: Sequence[str] = (),
        kernel_args: str = "",
        *,
        guest_image: Image | None = None,
        memory_mib: int = MEMORY_MIB,
        boot_timeout_s: float = BOOT_TIMEOUT_S,
        handed_tap: str | None = None,
        owner: int | None = None,
    ) -> None:
        made = guest_image or image()
        self._directory = tempfile.TemporaryDirectory(prefix="gnlab-vm-")
        if owner is not None:
            os.chown(self._directory.name, owner, owner)
        self._console = Path(self._directory.name, "console")
        # The guest holds the other end: when ours closes, however we end, it powers off.
        self._agent, remote = socket.socketpair()
        self._buffer = bytearray()
        argv = [
            "qemu-system-x86_64",
            *_MACHINE,
            *_QUIET,
            *_NO_ROM,
            *("-m", str(memory_mib)),
            *("-kernel", str(made.kernel), "-initrd", str(made.initramfs)),
            *("-append", f"{_KERNEL_ARGS} {kernel_args}".strip()),
            *("-chardev", f"file,id=console,path={self._console}", "-serial", "chardev:console"),
            *("-chardev", f"socket,id=agent,fd={remote.fileno()}"),
            *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=agent"),
            *net_args,
        ]
        if handed_tap is not None:
            argv = [sys.executable, "-m", "guestnet.cli", "with-tap", handed_tap, "--", *argv]
        errors = Path(self._directory.name, "stderr")
        try:
            with remote, errors.open("wb") as stderr:
                self._process = namespace.popen(
                    argv, pass_fds=[remote.fileno()], stdout=stderr, stderr=stderr
                )
            self._errors = errors
            self.boot_s = self._wait_ready(boot_timeout_s)
        except BaseException:
            self.stop()
            raise

    @classmethod
    def on_tap(
        cls,
        namespace: Namespace,
        tap: str,
        mac: str,
        *,
        ipv4: IPv4Interface | None = None,
        gateway_ipv4: IPv4Address | None = None,
        ipv6: IPv6Interface | None = None,
        gateway_ipv6: IPv6Address | None = None,
        mtu: int | None = None,
        dns: Sequence[IPv4Address | IPv6Address] = (),
    ) -> Self:
        """A VM on an existing TAP, told these addresses; what is left out it does not have."""
        return cls(
            namespace,
            tap_args(tap, mac),
            address_args(ipv4, gateway_ipv4, ipv6, gateway_ipv6, mtu=mtu, dns=dns),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """QEMU's own."""
        return self._process.pid

    @property
    def console(self) -> str:
        """What the guest's kernel and init wrote so far."""
        return self._console.read_text(errors="replace") if self._console.exists() else ""

    def run(self, command: str | Sequence[str], timeout_s: float = 10.0) -> Result:
        """Run a shell command (or an argument list) in the guest; stdout and stderr in one.

        Each command is a shell of its own; what it leaves in the background goes on. Raises
        `GuestError` when the guest itself does not answer; a failed command is a `Result`.
        """
        text = command if isinstance(command, str) else shlex.join(command)
        encoded = base64.b64encode(text.encode()).decode()
        deadline = time.monotonic() + timeout_s + AGENT_GRACE_S
        try:
            self._agent.sendall(f"{max(1, round(timeout_s))} {encoded}\n".encode())
        except OSError as error:
            raise self._failure(f"the agent is gone ({error})") from None
        status, _, size = self._read_line(deadline).partition(" ")
        if not (status.isdecimal() and size.isdecimal() and int(size) <= OUTPUT_MAX_BYTES):
            raise self._failure(f"the agent answered {status} {size}")
        output = self._read(int(size), deadline)
        return Result(int(status), output.decode(errors="replace"))

    def stop(self) -> None:
        """End the VM; harmless when repeated."""
        self._agent.close()
        if hasattr(self, "_process"):
            processes.stop(self._process)
        self._directory.cleanup()

    def _wait_ready(self, timeout_s: float) -> float:
        start = time.monotonic()
        if self._read_line(start + timeout_s) != "ready":
            raise self._failure("the agent did not say that it is ready")
        return time.monotonic() - start

    def _read_line(self, deadline: float) -> str:
        while b"\n" not in self._buffer:
            self._receive(deadline)
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer[:] = rest
        return line.decode(errors="replace")

    def _read(self, size: int, deadline: float) -> bytes:
        while len(self._buffer) < size:
            self._receive(deadline)
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _receive(self, deadline: float) -> None:
        readable, _, _ = select.select([self._agent], [], [], max(0, deadline - time.monotonic()))
        if not readable:
            raise self._failure("the guest does not answer")
        data = self._agent.recv(1 << 16)
        if not data:
            raise self._failure("the VM ended")
        self._buffer += data

    def _failure(self, problem: str) -> GuestError:
        errors = self._errors.read_text(errors="replace").strip()
        last = "\n".join(self.console.splitlines()[-30:])
        return GuestError(f"{problem}\nQEMU: {errors or 'nothing'}\nconsole:\n{last}")


def tap_args(tap: str, mac: str) -> list[str]:
    """QEMU's words for one interface on an existing TAP."""
    return [
        *("-netdev", f"tap,id=net0,ifname={tap},script=no,downscript=no"),
        *("-device", f"virtio-net-pci,netdev=net0,mac={mac}"),
    ]


def address_args(
    ipv4: IPv4Interface | None = None,
    gateway_ipv4: IPv4Address | None = None,
    ipv6: IPv6Interface | None = None,
    gateway_ipv6: IPv6Address | None = None,
    *,
    mtu: int | None = None,
    dns: Sequence[IPv4Address | IPv6Address] = (),
) -> str:
    """The kernel arguments that the guest's init understands (see `init.sh`)."""
    words = []
    if ipv4 is not None:
        words.append(f"ip={ipv4.ip}::{gateway_ipv4 or ''}:{ipv4.netmask}::eth0:off")
    if ipv6 is not None:
        words.append(f"ip6={ipv6},{gateway_ipv6 or ''}")
    if mtu is not None:
        words.append(f"mtu={mtu}")
    if dns:
        words.append(f"dns={','.join(map(str, dns))}")
    return " ".join(words)
