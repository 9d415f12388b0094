"""Entry of a pump: `python -m guestnet.pump SETUP`, started by the supervisor."""

from __future__ import annotations

import json
import logging
import signal
import socket
import sys

from ..frames.framing import FrameRules
from ..frames.transport import Kind
from ..kernel.confine import confine
from ..kernel.process import die_with_parent, hear_signals
from .loop import DgramLoop, Loop, StreamLoop
from .wire import Counts, Wire


def main() -> None:
    """Take over what was handed over, give up rights, and carry frames."""
    die_with_parent()
    hear_signals()
    # The daemon ends it; a Ctrl-C in its terminal is the daemon's to hear.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="guestnet-pump: %(message)s")
    setup = json.loads(sys.argv[1])
    wire = Wire(setup["tap"], FrameRules(setup["mtu"], vnet_hdr=setup["vnet_hdr"]), Counts())
    control = socket.socket(fileno=setup["control"])
    bound = socket.socket(fileno=setup["socket"]) if setup["socket"] is not None else None
    loop: Loop
    if bound is not None and setup["transport"] == Kind.DGRAM:
        loop = DgramLoop(control, wire, bound)
    else:
        loop = StreamLoop(control, wire, bound)
    confinement = confine(setup["uid"], setup["gid"], pump=True, answers_any=setup["answers_any"])
    loop.reporter.tell("ready", confinement=confinement)
    loop.run()


main()
