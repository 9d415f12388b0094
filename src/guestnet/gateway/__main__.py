"""Entry of a worker: `python -m guestnet.gateway SETUP`, which the daemon starts (`process`)."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import socket
import sys

from ..kernel.netns import CLONE_NEWNET, setns
from ..kernel.process import die_with_parent, hear_signals
from .doorway import Doorway
from .worker import Worker

#: Objects that may be new until they are looked through for cycles. Nothing here is made of cycles,
#: and at Python's 700 a twentieth of a question's time went into looking.
YOUNG_OBJECTS = 10_000


def main() -> None:
    """Take over what was handed over, and work."""
    die_with_parent()
    hear_signals()
    # The daemon ends it; a Ctrl-C in its terminal is the daemon's to hear.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="guestnet-gateway: %(message)s")
    setup = json.loads(sys.argv[1])
    if setup["netns"] is not None:
        setns(setup["netns"], CLONE_NEWNET, "the site")
        os.close(setup["netns"])
    doorway = Doorway.adopt(setup["doors"])
    gc.freeze()  # what was loaded stays, and is not looked through again
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)
    control = socket.socket(fileno=setup["control"])
    inbox = None if setup["inbox"] is None else socket.socket(fileno=setup["inbox"])
    writers = {number: socket.socket(fileno=fd) for number, fd in setup["siblings"]}
    worker = Worker(control, doorway, setup["workers"], inbox, writers)
    worker.run(setup["uid"], setup["gid"])


main()
