"""Getting hold of a TAP, so that either all of it is as asked or nothing is changed.

The order of steps is the safety:

1. look at what has the name; refuse what is not a TAP or what someone holds;
2. open the queues (TUNSETIFF, with IFF_TUN_EXCL when creating: the kernel then decides races);
3. of a multi-queue TAP, look again: attaching to one is never refused, so only the count can tell
   that another process came at the same moment, and then this one withdraws;
4. header, offloads, MAC, MTU, owner, group;
5. persistence last: until then, a TAP that we made vanishes with its descriptors.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, InstanceOf, model_validator

from ...errors import BusyError, ConfigError, ConflictError, HostError, NotFoundError
from ...frames import virtio
from ...model import InterfaceName, Mac, Value
from . import ioctl
from .control import Control, Device
from .frames import TAP_MTU_MAX, TAP_MTU_MIN
from .holders import UNKNOWN, describe_holders
from .ioctl import OFFLOAD_DEFAULT, Ioctl, Offload, TunFlag

logger = logging.getLogger(__name__)

TUN_PATH = "/dev/net/tun"
#: What the kernel completes when no name is given: the lowest free number.
NAME_PATTERN = "gntap%d"
#: MAX_TAP_QUEUES of drivers/net/tun.c.
QUEUES_MAX = 256

_MISSING = "there is no interface of this name"
_USO = Offload.USO4 | Offload.USO6
#: A name can be taken and freed between two looks; more often than this it is an error.
_LOOKS_MAX = 3

_OPEN_REMEDY = {
    errno.ENOENT: "there is no TUN driver here: `modprobe tun`, or give the container the device",
    errno.ENODEV: "the TUN driver is not loaded: `modprobe tun`",
    errno.ENXIO: "the TUN driver is not loaded: `modprobe tun`",
    errno.EACCES: "this user may not open it: run as root, or give the user read and write access",
    errno.EPERM: "the device is forbidden here: allow it in the container's device rules (10:200)",
}


class Existing(StrEnum):
    """What to do about a persistent TAP of that name which nobody holds."""

    #: Use it if it is there, make it if not.
    ATTACH = "attach"
    #: Make a new one, or fail.
    REFUSE = "refuse"
    #: Use it, or fail with `NotFoundError`.
    REQUIRE = "require"


class TapSpec(Value):
    """What `Tap.open` was asked for, validated."""

    name: InterfaceName | None = None
    mac: Mac | None = None
    mtu: Annotated[int, Field(ge=TAP_MTU_MIN, le=TAP_MTU_MAX)] | None = None
    vnet_hdr: bool = False
    offload: InstanceOf[Offload] | None = None
    queues: Annotated[int, Field(ge=1, le=QUEUES_MAX)] = 1
    persistent: bool = False
    owner: Annotated[int, Field(ge=0, le=2**32 - 2)] | None = None
    group: Annotated[int, Field(ge=0, le=2**32 - 2)] | None = None
    existing: Existing = Existing.ATTACH

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.name is None and self.existing is Existing.REQUIRE:
            raise ConfigError("name", None, "name the TAP to attach to")
        if self.offload and not self.vnet_hdr:
            raise ConfigError("offload", self.offload, "offloads need vnet_hdr=True")
        if self.offload and Offload.CSUM not in self.offload:
            raise ConfigError("offload", self.offload, "segmentation offloads need Offload.CSUM")
        if self.offload and self.offload & _USO not in (Offload.NONE, _USO):
            raise ConfigError("offload", self.offload, "the kernel takes USO4 and USO6 together")
        return self


@dataclass(slots=True)
class Attached:
    """Open descriptors of a TAP, not yet owned by a `Tap`."""

    name: str
    queues: list[int]
    #: Our TUNSETIFF made the device.
    created: bool
    offload: Offload = Offload.NONE


def attach(control: Control, spec: TapSpec, undo: ExitStack) -> Attached:
    """Create or attach to the TAP; everything done is registered in `undo`."""
    attached, before = _open_device(control, spec, undo)
    attached.offload = _set_header(attached, spec)
    _set_link(control, attached, spec, before, undo)
    _set_access(attached, spec, before, undo)
    if attached.created and len(attached.queues) > 1:
        # Until it had an owner, every user who may open /dev/net/tun could add a queue.
        _check_alone(control, attached)
    if spec.persistent:
        set_persistent(attached.queues[0], attached.name, True)
        if attached.created:
            undo.callback(set_persistent, attached.queues[0], attached.name, False)
    return attached


def delete(control: Control, name: str) -> bool:
    """Delete a persistent TAP that nobody holds; False if there is no interface of that name."""
    try:
        with ExitStack() as undo:
            spec = TapSpec(name=name, existing=Existing.REQUIRE)
            attached, _before = _open_device(control, spec, undo)
            set_persistent(attached.queues[0], attached.name, False)
    except NotFoundError:
        return False
    return True


def set_persistent(queue: int, name: str, persistent: bool) -> None:
    """Whether the device outlives its last descriptor."""
    ioctl.by_value(queue, Ioctl.TUNSETPERSIST, int(persistent), name)


# -- steps 1 to 3: the queues ------------------------------------------------------------------


def _open_device(
    control: Control, spec: TapSpec, undo: ExitStack
) -> tuple[Attached, Device | None]:
    """Return the open queues and, for a device that was there before, how it looked."""
    for _ in range(_LOOKS_MAX):
        before = _look(control, spec)
        flags = TunFlag.TAP | TunFlag.NO_PI
        flags |= TunFlag.VNET_HDR if spec.vnet_hdr else TunFlag(0)
        if spec.queues > 1 or (before is not None and before.multi_queue):
            flags |= TunFlag.MULTI_QUEUE
        try:
            attached = _open_queues(spec, flags if before else flags | TunFlag.EXCL, undo)
        except BusyError:
            if before is None:
                continue  # EXCL refused: the name was taken since we looked
            raise
        if attached.created:
            if spec.existing is Existing.REQUIRE:  # it went away after we looked
                raise NotFoundError("name", spec.name, _MISSING)
            return attached, None
        if flags & TunFlag.MULTI_QUEUE:
            _check_alone(control, attached)
        return attached, before
    raise ConflictError("name", spec.name, "interfaces of this name come and go; try another")


def _look(control: Control, spec: TapSpec) -> Device | None:
    """Return the persistent, unheld TAP to attach to, None to create one, or refuse."""
    device = control.find(spec.name) if spec.name is not None else None
    if device is None:
        if spec.existing is Existing.REQUIRE:
            raise NotFoundError("name", spec.name, _MISSING)
        return None
    if not device.is_tap:
        kind = device.kind or "physical or loopback"
        raise ConflictError("name", device.name, f"is taken by an interface of kind {kind}")
    # Of a persistent single-queue TAP only the carrier tells, which its holder can switch off and
    # on: good enough to name the reason of a refusal, but TUNSETIFF decides where it is asked.
    certain = device.multi_queue or not device.persistent
    too_many = spec.queues > 1 and not device.multi_queue
    if device.queues_held and (certain or too_many or spec.existing is Existing.REFUSE):
        raise _busy(device.name)
    if spec.existing is Existing.REFUSE:
        raise ConflictError(
            "name", device.name, "this TAP exists already; existing='attach' uses it"
        )
    if too_many:
        raise ConflictError("queues", spec.queues, f"{device.name} was made with a single queue")
    return device


def _open_queues(spec: TapSpec, flags: int, undo: ExitStack) -> Attached:
    """Open every queue; a failure closes those that were opened."""
    with ExitStack() as opened:
        first = _open_tun(opened)
        name = spec.name or NAME_PATTERN
        name, _ = ioctl.unpack_flags(_set_iff(first, name, flags))
        queues = [first]
        while len(queues) < spec.queues:
            queues.append(_open_tun(opened))
            _set_iff(queues[-1], name, flags & ~TunFlag.EXCL)
        # A device that only our queues are attached to was there before us only if it persists;
        # this holds even if the one we looked at went away and TUNSETIFF made another.
        created = not is_persistent(first, name)
        undo.push(opened.pop_all())
    return Attached(name, queues, created)


def _open_tun(opened: ExitStack) -> int:
    try:
        # Never blocking: waiting is done by poll, where other events can end it too.
        fd = os.open(TUN_PATH, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        remedy = _OPEN_REMEDY.get(error.errno or 0, "")
        raise HostError.from_os("open", TUN_PATH, error, remedy) from None
    opened.callback(os.close, fd)
    return fd


def _set_iff(fd: int, name: str, flags: int) -> bytes:
    try:
        return ioctl.by_pointer(fd, Ioctl.TUNSETIFF, ioctl.pack_flags(name, flags), name)
    except HostError as error:
        if error.errno == errno.EBUSY:
            raise _busy(name) from error
        if error.errno != errno.EPERM:
            raise
        remedy = (
            "creating a TAP needs CAP_NET_ADMIN in this network namespace, and attaching to one"
            " needs that or to be its owner: as root, make it persistent with this uid as owner"
        )
        raise HostError(error.call, name, error.errno, remedy) from None


def _check_alone(control: Control, attached: Attached) -> None:
    device = control.find(attached.name)
    if device is not None and device.queues_held > len(attached.queues):
        raise _busy(attached.name)


def _busy(name: str) -> BusyError:
    try:
        holder = describe_holders(name)
    except OSError:  # no /proc
        holder = UNKNOWN
    return BusyError(f"TAP {name}", holder, "stop that process, or choose another name")


def is_persistent(queue: int, name: str) -> bool:
    """Whether the device of this descriptor outlives it."""
    data = ioctl.by_pointer(queue, Ioctl.TUNGETIFF, ioctl.pack_flags("", 0), name)
    return bool(ioctl.unpack_flags(data)[1] & TunFlag.PERSIST)


# -- step 4: settings --------------------------------------------------------------------------


def _set_header(attached: Attached, spec: TapSpec) -> Offload:
    """Set up the virtio header and return the offloads that are on."""
    fd, name = attached.queues[0], attached.name
    if not spec.vnet_hdr:
        # Offloads outlive the descriptor that set them. Left on, a reader without the header
        # would get unfinished checksums and 64 KiB frames and could not tell.
        ioctl.by_value(fd, Ioctl.TUNSETOFFLOAD, Offload.NONE, name)
        return Offload.NONE
    ioctl.by_pointer(fd, Ioctl.TUNSETVNETLE, ioctl.pack_c_int(1), name)
    ioctl.by_pointer(fd, Ioctl.TUNSETVNETHDRSZ, ioctl.pack_c_int(virtio.HEADER_BYTES), name)
    wanted = OFFLOAD_DEFAULT if spec.offload is None else spec.offload
    return _negotiate(fd, name, wanted)


def _negotiate(fd: int, name: str, wanted: Offload) -> Offload:
    """Turn on as much of `wanted` as the kernel takes; less than that is a warning."""
    for offer in dict.fromkeys((wanted, wanted & ~_USO, wanted & Offload.CSUM)):
        try:
            ioctl.by_value(fd, Ioctl.TUNSETOFFLOAD, offer, name)
        except HostError as error:
            words = "+".join(flag.name or "?" for flag in offer)
            logger.warning("%s: goes without the offloads %s: %s", name, words, error)
        else:
            return offer
    return Offload.NONE


def _set_link(
    control: Control, attached: Attached, spec: TapSpec, before: Device | None, undo: ExitStack
) -> None:
    fd, name = attached.queues[0], attached.name
    if spec.mac is not None:
        set_mac(fd, name, spec.mac)
        if before is not None:
            undo.callback(_restore, set_mac, fd, name, before.mac)
    if spec.mtu is not None:
        control.set_mtu(name, spec.mtu)
        if before is not None:
            undo.callback(_restore, control.set_mtu, name, before.mtu)


def _set_access(attached: Attached, spec: TapSpec, before: Device | None, undo: ExitStack) -> None:
    """Say who may attach. A new TAP without owner and group would be open to every user."""
    fd, name = attached.queues[0], attached.name
    owner = spec.owner
    if owner is None and spec.group is None and attached.created:
        owner = os.geteuid()
    for request, wanted, former in (
        (Ioctl.TUNSETOWNER, owner, before and before.owner),
        (Ioctl.TUNSETGROUP, spec.group, before and before.group),
    ):
        if wanted is None:
            continue
        detail = f"is {wanted} mapped in this user namespace?"
        ioctl.by_value(fd, request, wanted, name, detail)
        if former is not None:
            undo.callback(_restore, ioctl.by_value, fd, request, former, name)


def set_mac(queue: int, name: str, mac: str) -> None:
    """Set the device's MAC; its owner may, without CAP_NET_ADMIN, by the descriptor."""
    ioctl.by_pointer(queue, Ioctl.SIOCSIFHWADDR, ioctl.pack_mac("", mac), name)


def get_mac(queue: int, name: str) -> str:
    """The device's MAC, lower case with colons."""
    data = ioctl.by_pointer(queue, Ioctl.SIOCGIFHWADDR, ioctl.pack_flags("", 0), name)
    return ioctl.unpack_mac(data)


def _restore(step: Callable[..., None], *arguments: object) -> None:
    """Undo one setting; the error that led here is what the caller must see, so only log others."""
    try:
        step(*arguments)
    except HostError as error:
        logger.warning("could not be undone: %s", error)
