"""The daemon's side of the gateway: start it, tell it, hear it, start it again.

`Gateway` keeps everything that it told, so that a gateway that was restarted is told again. Its
thread is the one that starts the process: the kernel ends the process with that thread.
"""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from ..errors import HostError
from ..model import Attachment, Decision
from ..ruleset import Doors
from .doorway import Doorway
from .messages import (
    MAX_REPORT_BYTES,
    AddPins,
    Address,
    Decided,
    Done,
    ForgetGuest,
    Message,
    Network,
    PinsStand,
    Ready,
    SetGuest,
    SetPlaces,
    line,
    read_report,
)

logger = logging.getLogger(__name__)

#: How long an order may take until whoever gave it goes on without its being carried out.
ORDER_TIMEOUT_S = 5.0
#: A gateway that lived for less is started again only after a pause, doubled each time.
SHORT_LIFE_S = 10.0
PAUSE_S = 0.1
PAUSE_MAX_S = 10.0
#: How long it may take to reset its flows when it is told to end.
LAST_WORD_S = 1.0
#: nobody: owns nothing on a machine.
UID = GID = 65534


class Gateway:
    """One gateway process, as long as it is wanted."""

    def __init__(
        self,
        doorway: Doorway,
        netns_fd: int | None,
        add_pins: Callable[[AddPins, SetGuest], None],
        on_decision: Callable[[Decision], None],
    ) -> None:
        self._doorway = doorway
        self._netns_fd = netns_fd
        self._add_pins = add_pins
        self._on_decision = on_decision
        self._lock = threading.Condition()
        self._guests: dict[str, SetGuest] = {}
        self._places: SetPlaces | None = None
        self._sequence = 0
        self._done = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._sending = threading.Lock()
        self._stopping = False
        self.confinement: tuple[str, ...] = ()
        #: Times that the process ended unasked.
        self.crashes = 0
        self._thread = threading.Thread(target=self._run, name="guestnet-gateway", daemon=True)
        self._thread.start()

    @property
    def doors(self) -> Doors:
        """The ports that flows are redirected to."""
        return self._doorway.ports

    @property
    def pid(self) -> int | None:
        """The process's id while it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def set_guest(
        self,
        attachment: Attachment,
        upstreams: Iterable[Address],
        egress: Iterable[str],
        *,
        synthetic: bool,
    ) -> None:
        """Tell of a guest, or of its new policy; returns when that holds."""
        own = (attachment.ipv4, attachment.ipv6)
        gateways = (attachment.gateway_ipv4, attachment.gateway_ipv6)
        with self._lock:
            order = SetGuest(
                sequence=self._next(),
                guest=attachment.guest,
                network=attachment.network,
                addresses=tuple(each.ip for each in own if each is not None),
                gateways=tuple(each for each in gateways if each is not None),
                policy=attachment.policy,
                upstreams=tuple(upstreams),
                egress=tuple(egress),
                synthetic=synthetic,
            )
            known = self._guests.get(attachment.guest)
            if known is not None and known.model_copy(update={"sequence": order.sequence}) == order:
                return  # told before, and nothing about it is new
            self._guests[attachment.guest] = order
        self._tell(order)

    def tell_again(self) -> None:
        """Tell of every guest once more: what stood for it in the kernel may be gone."""
        with self._lock:
            orders = []
            for guest, known in self._guests.items():
                orders.append(known.model_copy(update={"sequence": self._next()}))
                self._guests[guest] = orders[-1]
        for order in orders:
            self._tell(order)

    def forget(self, guest: str) -> None:
        """End a guest's flows; returns when they are ended."""
        with self._lock:
            if self._guests.pop(guest, None) is None:
                return
            order = ForgetGuest(sequence=self._next(), guest=guest)
            if self._control is None:
                return  # no process, no flows
        self._tell(order)

    def set_places(self, host: Iterable[Address], guests: Iterable[Network]) -> None:
        """Tell which addresses are the host's and the guests' pools."""
        with self._lock:
            known = self._places
            order = SetPlaces(sequence=self._next(), host=tuple(host), guests=tuple(guests))
            if known is not None and (known.host, known.guests) == (order.host, order.guests):
                return
            self._places = order
        self._tell(order)

    def knows(self, guest: str) -> bool:
        """Whether the gateway was told of a guest."""
        return guest in self._guests

    def close(self) -> None:
        """End the process; flows it relayed are reset."""
        with self._lock:
            self._stopping = True
            self._lock.notify_all()
            if self._control is not None:
                with suppress(OSError):  # its end, which it hears, and so does the thread
                    self._control.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._doorway.close()

    # -- telling -----------------------------------------------------------------------------

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _tell(self, order: SetGuest | ForgetGuest | SetPlaces) -> None:
        """Send an order and wait for it to be carried out.

        Nothing is waited for while no process runs: the next one is told everything at its start.
        """
        self._send(order)
        deadline = time.monotonic() + ORDER_TIMEOUT_S
        with self._lock:
            while self._done < order.sequence and not self._stopping:
                left = deadline - time.monotonic()
                if left <= 0:
                    # It is alive and does not listen: a new one does.
                    logger.error("the gateway did not carry out %s; ending it", order.kind)
                    if self._process is not None:
                        self._process.kill()
                    return
                self._lock.wait(left)

    def _send(self, message: Message) -> None:
        control = self._control
        if control is not None:
            with self._sending, suppress(OSError):  # it has ended; the thread notices
                control.sendall(line(message))

    # -- the process -------------------------------------------------------------------------

    def _run(self) -> None:
        pause = PAUSE_S
        while not self._stopping:
            began = time.monotonic()
            try:
                self._live_once()
            except (OSError, ValueError) as error:
                logger.error("the gateway: %s", error)
            self._bury()
            if self._stopping:
                return
            self.crashes += 1
            lived = time.monotonic() - began
            logger.error("the gateway ended after %.1f s; starting it again", lived)
            pause = PAUSE_S if lived >= SHORT_LIFE_S else min(pause * 2, PAUSE_MAX_S)
            with self._lock:
                self._lock.wait_for(lambda: self._stopping, timeout=pause)

    def _live_once(self) -> None:
        """Start a process and hear it until it ends."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            descriptors = self._doorway.descriptors
            setup = {
                "control": theirs.fileno(),
                "netns": self._netns_fd,
                "uid": UID,
                "gid": GID,
                **descriptors,
            }
            passed = [theirs.fileno(), *(n for numbers in descriptors.values() for n in numbers)]
            if self._netns_fd is not None:
                passed.append(self._netns_fd)
            process = subprocess.Popen(
                [sys.executable, "-I", "-m", "guestnet.gateway", json.dumps(setup)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=passed,
                env={"PYTHONMALLOC": "default", "LC_ALL": "C.UTF-8"},
                cwd="/",
            )
            theirs.close()
            # What is known goes first: an order given meanwhile must not be followed by its
            # predecessor.
            with self._sending, suppress(OSError):
                with self._lock:
                    self._process, self._control = process, ours
                    if self._stopping:
                        process.kill()
                    known = [*([self._places] if self._places else []), *self._guests.values()]
                for message in known:
                    ours.sendall(line(message))
            for text in _lines(ours):
                self._hear(text)

    def _bury(self) -> None:
        with self._lock:
            process, self._process, self._control = self._process, None, None
            # Whoever waits goes on: the next process is told everything.
            self._done = self._sequence
            self._lock.notify_all()
        if process is not None:
            if self._stopping:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(LAST_WORD_S)
            process.kill()
            process.wait()

    def _hear(self, text: bytes) -> None:
        report = read_report(text)
        match report:
            case Ready(confinement=confinement):
                self.confinement = confinement
                logger.info("gateway %s is ready, confined by %s", self.pid, ", ".join(confinement))
            case Done(sequence=sequence):
                with self._lock:
                    self._done = max(self._done, sequence)
                    self._lock.notify_all()
            case AddPins():
                guest = self._guests.get(report.guest)
                # Under a policy that was replaced meanwhile they mean nothing any more.
                if guest is not None and guest.sequence == report.told:
                    try:
                        self._add_pins(report, guest)
                    except HostError as error:
                        logger.warning("pins of %r: %s", report.guest, error)
                self._send(PinsStand(sequence=report.sequence))
            case Decided(decision=decision):
                self._on_decision(decision)


def _lines(control: socket.socket) -> Iterable[bytes]:
    """Lines until the other end closes; raises `ValueError` for one without an end."""
    rest = b""
    while data := control.recv(65536):
        *whole, rest = (rest + data).split(b"\n")
        yield from whole
        if len(rest) > MAX_REPORT_BYTES:
            raise ValueError("a report without an end")
