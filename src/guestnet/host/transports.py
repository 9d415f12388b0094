"""Attachments whose VMM speaks a socket, as the host sees them: each is served, as long as it is.

The caller holds the host's lock.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterable

from ..errors import BusyError, GuestnetError
from ..frames.transport import Kind, Transport
from ..kernel.interface import Site
from ..kernel.tap import handover
from ..kernel.tap.handover import HandedTap
from ..model import Attachment, TransportInfo
from ..pump import places
from ..pump.handout import Handout
from ..pump.places import Owner
from ..pump.supervisor import Pump

logger = logging.getLogger(__name__)

#: A daemon that was killed takes its pumps along, but not at once: how long their TAPs are waited
#: for.
RELEASE_S = 2.0
_RELEASE_POLL_S = 0.05


class Transports:
    """Starts and ends what serves each attachment that has a transport."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._serving: dict[str, Pump | Handout] = {}
        #: Why an attachment is not served.
        self._problems: dict[str, str] = {}

    def serve(self, attachment: Attachment) -> None:
        """Begin to serve an attachment whose TAP stands; without a transport, do nothing."""
        if attachment.transport is None or attachment.guest in self._serving:
            return
        transport = Transport.parse(attachment.transport)
        owner = Owner(attachment.owner, attachment.group)
        place = None
        if transport.kind is not Kind.STREAM_CLIENT:
            place = places.make(transport, owner)
        try:
            self._serving[attachment.guest] = self._server(attachment, transport, owner, place)
        except BaseException:
            if place is not None:
                place.remove()
            raise
        self._problems.pop(attachment.guest, None)

    def _server(
        self,
        attachment: Attachment,
        transport: Transport,
        owner: Owner,
        place: places.Place | None,
    ) -> Pump | Handout:
        open_tap = functools.partial(self._open_tap, attachment, transport)
        name = repr(attachment.guest)
        if transport.kind is Kind.TAP_FD and place is not None:
            return Handout(place, open_tap, name)

        def open_queue() -> int:
            return self._when_released(open_tap).fds[0]

        return Pump(transport, owner, attachment.mtu, place, open_queue, name)

    def _open_tap(self, attachment: Attachment, transport: Transport) -> HandedTap:
        from ..kernel.tap.opening import open_and_hand  # most hosts open none

        work = functools.partial(
            open_and_hand,
            attachment.tap,
            attachment.mac,
            attachment.queues,
            transport.vnet_hdr,
        )
        with self._site.within(work) as waiting:
            return handover.take(waiting, attachment.tap)

    @staticmethod
    def _when_released(open_tap: functools.partial[HandedTap]) -> HandedTap:
        deadline = time.monotonic() + RELEASE_S
        while True:
            try:
                return open_tap()
            except BusyError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_RELEASE_POLL_S)

    def resume_all(self, attachments: Iterable[Attachment]) -> None:
        """Serve the attachments of a former process, whose pumps may be ending yet."""
        deadline = time.monotonic() + RELEASE_S
        for attachment in attachments:
            while not self.clear(attachment) and time.monotonic() < deadline:
                time.sleep(_RELEASE_POLL_S)
            self.resume(attachment)

    def resume(self, attachment: Attachment) -> None:
        """Serve an attachment that could not be served before."""
        if attachment.transport is None or attachment.guest in self._serving:
            return
        self.clear(attachment)
        try:
            self.serve(attachment)
        except GuestnetError as error:
            if self._problems.get(attachment.guest) != str(error):
                logger.error("transport of %r: %s", attachment.guest, error)
            self._problems[attachment.guest] = str(error)

    def clear(self, attachment: Attachment) -> bool:
        """Remove the socket file that a former process left; False if somebody listens there."""
        if attachment.transport is None or attachment.guest in self._serving:
            return True
        transport = Transport.parse(attachment.transport)
        if transport.kind is Kind.STREAM_CLIENT:
            return True  # the VMM's
        return places.clear(transport, Owner(attachment.owner, attachment.group))

    def end(self, guest: str) -> None:
        """Serve a guest no more: its VMM is hung up on, and the socket's file goes."""
        self._problems.pop(guest, None)
        server = self._serving.pop(guest, None)
        if server is not None:
            server.close(keep_place=False)

    def info(self, attachment: Attachment) -> TransportInfo | None:
        """How an attachment's transport goes; None if it has none."""
        if attachment.transport is None:
            return None
        server = self._serving.get(attachment.guest)
        if server is None:
            problem = self._problems.get(attachment.guest, "")
            return TransportInfo(
                guest=attachment.guest, transport=attachment.transport, problem=problem
            )
        state = server.state
        return TransportInfo(
            guest=attachment.guest,
            transport=attachment.transport,
            serving=state.serving,
            connected=state.connected,
            peer=state.peer,
            pid=server.pid,
            connections=state.connections,
            malformed=state.malformed,
            refused=state.refused,
            restarts=state.restarts,
            problem=state.problem,
        )

    def close(self, *, keep_places: bool = False) -> None:
        """End all; sockets' files stay if the next process is to take them up."""
        for server in self._serving.values():
            server.close(keep_place=keep_places)
        self._serving.clear()
