"""Servers in a namespace, as a test holds them: started, asked what arrived, and ended."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from . import processes
from .addresses import REBINDING, RESOLVER, SERVERS, WORKSHOPS, Server
from .certificates import Certificates
from .netns import Namespace
from .servers import Arrival

#: Seconds for an interpreter to start and some 70 sockets to open, on a loaded machine.
START_TIMEOUT_S = 20.0
#: What the lab's resolver knows.
ZONE = {
    name: server.addresses for server in (*SERVERS, *WORKSHOPS) for name in server.names
} | REBINDING


class Servers:
    """A process in `namespace` that plays `servers`, whose addresses must be there already.

    Without certificates there is no HTTPS. Names are those of the whole lab, whoever is asked.
    """

    def __init__(
        self,
        namespace: Namespace,
        servers: Sequence[Server] = SERVERS,
        certificates: Certificates | None = None,
    ) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="gnlab-")
        self._log = Path(self._directory.name, "arrivals.jsonl")
        self._log.touch()
        self._errors = Path(self._directory.name, "stderr")
        try:
            self._process = self._start(namespace, servers, certificates)
            self._wait_ready()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process and forget what arrived; harmless when repeated."""
        if hasattr(self, "_process"):
            processes.stop(self._process)
        self._directory.cleanup()

    def arrivals(
        self, server: Server | None = None, *, kind: str | None = None, port: int | None = None
    ) -> list[Arrival]:
        """What reached the servers so far, in order: of one server, kind or port if asked."""
        lines = self._log.read_text().splitlines()
        return [
            arrival
            for arrival in (Arrival(**json.loads(line)) for line in lines)
            if (server is None or arrival.server == server.label)
            and (kind is None or arrival.kind == kind)
            and (port is None or arrival.port == port)
        ]

    def forget(self) -> None:
        """Empty the log; the process appends, so the next arrival is its first line."""
        self._log.write_text("")

    def _start(
        self,
        namespace: Namespace,
        servers: Sequence[Server],
        certificates: Certificates | None,
    ) -> subprocess.Popen[bytes]:
        config = {
            "log": str(self._log),
            "zone": {name: [str(a) for a in addresses] for name, addresses in ZONE.items()},
            "servers": [
                {
                    "label": server.label,
                    "addresses": [str(address) for address in server.addresses],
                    "certificate": str(certificates.leaf(server.label)) if certificates else "",
                    "resolver": server.label == RESOLVER.label,
                }
                for server in servers
            ],
        }
        with self._errors.open("wb") as errors:
            return namespace.popen(
                [sys.executable, "-m", "lab.servers", json.dumps(config)],
                cwd=Path(__file__).parents[1],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )

    def _wait_ready(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        readable, _, _ = select.select([stdout], [], [], deadline - time.monotonic())
        if not readable or stdout.readline() != b"ready\n":
            raise RuntimeError(f"the lab's servers did not start: {self._errors.read_text()}")
