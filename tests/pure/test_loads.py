"""What each process loads before it does anything: no more than it needs, for it is waited for.

pydantic alone takes a tenth of a second, and a worker of the gateway holds whatever it has loaded
while it reads what guests wrote.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

#: Models of what owners write, servers, and what opens or remembers a whole host.
_OWNERS = {"pydantic", "typer", "fastapi", "uvicorn", "sqlite3", "asyncio", "http"}
_HOSTS = {"guestnet.host", "guestnet.store", "guestnet.client", "guestnet.daemon"}

#: A module that a process begins with, and what does not come with it.
ENTRIES = {
    "guestnet.kernel.rootless.agent": {
        *_OWNERS, *_HOSTS, "ssl", "guestnet.policy", "guestnet.ruleset.base", "guestnet.gateway",
    },
    # It is asked to open the gateway's doors.
    "guestnet.gateway.doorway": {*_OWNERS, *_HOSTS, "ssl", "guestnet.policy", "guestnet.dns"},
    "guestnet.gateway.worker": {
        *_OWNERS, *_HOSTS, "subprocess", "guestnet.plan", "guestnet.ruleset.base",
        "guestnet.gateway.supervisor", "guestnet.gateway.process", "guestnet.gateway.reports",
    },
    "guestnet.pump.loop": {*_OWNERS, *_HOSTS, "ssl", "subprocess", "guestnet.policy"},
    "guestnet.cli.launch": {*_OWNERS, *_HOSTS, "ssl", "guestnet.policy"},
    "guestnet.cli.app": {"pydantic", "http", "ssl", "sqlite3", *_HOSTS},
    "guestnet.cli.run": {"http", "ssl", "sqlite3", *_HOSTS},
    "guestnet.host": {
        "typer", "fastapi", "uvicorn", "asyncio", "http", "ssl", "guestnet.gateway.worker",
        "guestnet.kernel.tap.device", "guestnet.client", "guestnet.daemon",
    },
    "guestnet": {"guestnet.errors", "pydantic"},
}  # fmt: skip


def loaded(entry: str) -> set[str]:
    """All modules that a fresh Python has once it has imported one."""
    code = f"import {entry}, json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_process_loads_no_more_than_it_needs(entry: str) -> None:
    assert sorted(ENTRIES[entry] & loaded(entry)) == []


def test_a_module_that_comes_along_is_noticed() -> None:
    assert {"pydantic", "guestnet.model.value"} <= loaded("guestnet.model.network")
