"""How each step of a plan is done, and undone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import singledispatchmethod

from ..errors import GuestnetError
from ..plan import (
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
from ..ruleset.chains import removal_text
from ..ruleset.elements import admission_text
from . import devices, link
from .netlink import NetlinkSocket
from .nft import Nft

logger = logging.getLogger(__name__)


class Performer:
    """Does steps in the namespace of its caller's thread, where its sockets were opened."""

    def __init__(self, route: NetlinkSocket, nft: Nft) -> None:
        self._route = route
        self._nft = nft

    def perform(self, steps: Iterable[Step]) -> None:
        """Do the steps in order; when one fails, undo the earlier ones and raise its error."""
        undo: list[Callable[[], None]] = []
        try:
            for step in steps:
                undo.append(self._do(step))
        except BaseException:
            for back in reversed(undo):
                try:
                    back()
                except GuestnetError as error:
                    logger.error("undoing a step failed: %s", error)
            raise

    @singledispatchmethod
    def _do(self, step: object) -> Callable[[], None]:
        """Do one step, and return what undoes it."""
        raise TypeError(f"no way to do {step!r}")

    @_do.register
    def _(self, step: InstallBase) -> Callable[[], None]:
        text = step.base + "".join(p.install_text() for p in step.policies) + step.places
        # One transaction: guests that are attached must not be cut off in between.
        self._nft.run(text + admission_text(step.elements), about="base ruleset")
        return _nothing

    @_do.register
    def _(self, step: SetPlaces) -> Callable[[], None]:
        self._nft.run(step.places, about="pools, egress and resolvers")
        return _nothing

    @_do.register
    def _(self, step: InstallPolicy) -> Callable[[], None]:
        # Left standing when a later step fails: unused chains let nothing pass, and go in time.
        self._nft.run(step.chains.install_text(), about=step.chains.id)
        return _nothing

    @_do.register
    def _(self, step: RemovePolicies) -> Callable[[], None]:
        self._nft.run(removal_text(step.names, step.kept), about="unused policies")
        return _nothing

    @_do.register
    def _(self, step: MakeBridge) -> Callable[[], None]:
        existed = link.index_of(self._route, step.bridge.name) != 0
        devices.make_bridge(self._route, step.bridge)
        if existed:
            return _nothing
        return lambda: self._route.request([link.delete_link(step.bridge.name)])

    @_do.register
    def _(self, step: MakeDevice) -> Callable[[], None]:
        devices.make_guest_device(self._route, step.device)
        return lambda: self._route.request([link.delete_link(step.device.name)])

    @_do.register
    def _(self, step: Configure) -> Callable[[], None]:
        devices.configure(self._route, step.device)
        return _nothing

    @_do.register
    def _(self, step: Admit) -> Callable[[], None]:
        self._nft.change(add=step.elements)
        return lambda: self._nft.change(remove=step.elements)

    @_do.register
    def _(self, step: Exchange) -> Callable[[], None]:
        self._nft.change(add=step.new, remove=step.old)
        return lambda: self._nft.change(add=step.old, remove=step.new)

    @_do.register
    def _(self, step: Expel) -> Callable[[], None]:
        self._nft.change(remove=step.elements)
        return _nothing

    @_do.register
    def _(self, step: Retire) -> Callable[[], None]:
        if step.device is not None and not step.device.master:
            # Its elements are gone, so nothing passes; its group can wait for its deletion.
            devices.strip(self._route, step.device)
        else:
            devices.retire(self._route, [step.name])
        return _nothing


def _nothing() -> None:
    """Undo of a step that leaves nothing to undo."""
