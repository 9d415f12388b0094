"""A TAP as a network interface of the host, and the descriptors that keep it.

Everything about a `Tap` but its frames: its life, its name, MAC, MTU, state and addresses.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import warnings
import weakref
from ipaddress import IPv4Interface, IPv6Interface
from typing import Self

from ...errors import ConfigError, HostError
from ...model.terms import check_mac
from . import attach, ioctl
from .attach import Attached
from .control import Control, Interface
from .frames import TAP_MTU_MAX, TAP_MTU_MIN
from .ioctl import Ioctl, TunFlag
from .wait import Readiness


class TapInterface:
    """The host's end of a TAP. Make and close it as `Tap`.

    Every method raises `HostError` (call, interface, errno) when the kernel refuses, also EBADF
    after `close()`, and `ConfigError` for an argument that can never be right.
    """

    def __init__(self, control: Control, attached: Attached) -> None:
        """Take over descriptors that are set up; not for callers, who use `Tap.open`."""
        self._control = control
        self._name = attached.name
        self._queues = tuple(attached.queues)
        self._readiness = Readiness()
        self._addresses: dict[int, Interface] = {}
        self._mtu_seen = control.mtu(attached.name)
        self._leak = weakref.finalize(self, _leaked, self._name, self._queues, control)
        # At exit the kernel closes everything; a warning then would blame correct programs.
        self._leak.atexit = False

    def close(self) -> None:
        """Close every queue; a TAP that is not persistent disappears. Closing twice is fine."""
        if self._leak.detach() is None:
            return
        # Coroutines first: a loop must not watch a number that the next open() gets.
        self._readiness.fail(self._closed_error)
        for queue in self._queues:
            os.close(queue)
        self._control.close()

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return not self._leak.alive

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._queues)} queues"
        return f"<Tap {self._name} {state}>"

    # -- the interface -------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The interface's name now, also if it was renamed; after `close()`, the last one known."""
        if not self.closed:
            data = ioctl.by_pointer(
                self._queues[0], Ioctl.TUNGETIFF, ioctl.pack_flags("", 0), self._name
            )
            self._name = ioctl.unpack_flags(data)[0]
        return self._name

    @property
    def ifindex(self) -> int:
        """The kernel's number of the interface."""
        return self._control.ifindex(self._live_name())

    @property
    def mac(self) -> str:
        """The interface's MAC, read from the kernel; lower case with colons."""
        return attach.get_mac(self._descriptor(0), self._name)

    def set_mac(self, mac: str) -> None:
        """Set a unicast MAC, at any time."""
        try:
            checked = check_mac(mac)
        except ValueError as error:
            raise ConfigError("mac", mac, str(error)) from None
        attach.set_mac(self._descriptor(0), self._name, checked)

    @property
    def mtu(self) -> int:
        """Bytes a frame carries after its Ethernet header, read from the kernel."""
        self._mtu_seen = self._control.mtu(self._live_name())
        return self._mtu_seen

    def set_mtu(self, mtu: int) -> None:
        """Set the MTU, 68 to 65521 bytes, at any time; needs CAP_NET_ADMIN."""
        if not TAP_MTU_MIN <= mtu <= TAP_MTU_MAX:
            raise ConfigError("mtu", mtu, f"the MTU of a TAP is {TAP_MTU_MIN} to {TAP_MTU_MAX}")
        self._control.set_mtu(self._live_name(), mtu)
        self._mtu_seen = mtu

    @property
    def is_up(self) -> bool:
        """Whether the interface is administratively up."""
        return self._control.is_up(self._live_name())

    def bring_up(self) -> None:
        """Start the interface; before that nothing can be sent, and nothing arrives."""
        self._control.set_up(self._live_name(), True)

    def bring_down(self) -> None:
        """Stop the interface; the kernel drops its routes and its global IPv6 addresses."""
        self._control.set_up(self._live_name(), False)

    def set_ip(self, interface: str | IPv4Interface | IPv6Interface) -> None:
        """Give the interface an address with its prefix length, as "10.0.0.1/24" or "fd00::1/64".

        It replaces what `set_ip` of this object gave before in the same family; addresses of
        others stay (unless the kernel counts them as secondaries of the one replaced). An IPv6
        address is usable at once.
        """
        wanted = _interface(interface)
        name = self._live_name()
        former = self._addresses.pop(wanted.version, None)
        if former is not None and former != wanted:
            self._control.remove_address(name, former)
        try:
            self._control.add_address(name, wanted)
        except HostError:
            if former is not None:
                self._control.add_address(name, former)
                self._addresses[former.version] = former
            raise
        self._addresses[wanted.version] = wanted

    @property
    def is_persistent(self) -> bool:
        """Whether the interface outlives this process."""
        return attach.is_persistent(self._descriptor(0), self._name)

    def persist(self, persistent: bool = True) -> None:
        """Let the interface outlive its descriptors, or (False) disappear with the last of them."""
        attach.set_persistent(self._descriptor(0), self._name, persistent)

    # -- descriptors ---------------------------------------------------------------------------

    @property
    def queues(self) -> tuple[int, ...]:
        """The descriptors, one a queue: non-blocking, close-on-exec, owned by this object."""
        self._descriptor(0)
        return self._queues

    def fileno(self) -> int:
        """The descriptor of queue 0, for event loops."""
        return self._descriptor(0)

    def enable_queue(self, queue: int, enabled: bool = True) -> None:
        """Let the kernel use a queue of a multi-queue TAP or not; all are in use after `open`."""
        if len(self._queues) == 1:
            raise ConfigError("queue", queue, "this Tap has one queue, which is always in use")
        flag = TunFlag.ATTACH_QUEUE if enabled else TunFlag.DETACH_QUEUE
        data = ioctl.pack_flags("", flag)
        ioctl.by_pointer(self._descriptor(queue), Ioctl.TUNSETQUEUE, data, self._name)

    # -- inside --------------------------------------------------------------------------------

    def _live_name(self) -> str:
        self._descriptor(0)
        return self.name

    def _descriptor(self, queue: int) -> int:
        if self.closed:
            raise self._closed_error()
        if not 0 <= queue < len(self._queues):
            raise ConfigError("queue", queue, f"this Tap has queues 0 to {len(self._queues) - 1}")
        return self._queues[queue]

    def _closed_error(self) -> HostError:
        return HostError("use", self._name, errno.EBADF, "this Tap is closed")


def _leaked(name: str, queues: tuple[int, ...], control: Control) -> None:
    """What happens to a Tap that was dropped without `close()`."""
    for queue in queues:
        os.close(queue)
    control.close()
    warnings.warn(f"unclosed Tap {name}", ResourceWarning, stacklevel=2)


def _interface(value: str | IPv4Interface | IPv6Interface) -> Interface:
    if isinstance(value, str):
        if "/" not in value:
            raise ConfigError("ip", value, "an address with its prefix length, as 10.0.0.1/24")
        try:
            value = ipaddress.ip_interface(value)
        except ValueError as error:
            raise ConfigError("ip", value, str(error)) from None
    if value.ip.is_multicast or value.ip.is_unspecified:
        raise ConfigError("ip", str(value), "the address of an interface is unicast")
    return value
