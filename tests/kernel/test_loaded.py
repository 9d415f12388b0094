"""What the processes that stand between a guest and its owner have loaded, told by the kernel."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from guestnet.host import Host
from lab import processes
from lab.addresses import ALLOWED
from lab.user import User
from lab.waiting import eventually
from lab.world import World

pytestmark = pytest.mark.root

#: The part of pydantic that is no Python, so that the kernel knows of it.
PYDANTIC = "pydantic_core"


def has_pydantic(pid: int) -> bool:
    return PYDANTIC in Path(f"/proc/{pid}/maps").read_text()


def test_a_run_s_processes_meet_no_owner() -> None:
    with World() as world, User(world.site) as user:
        command = ["guestnet", "run", "--allow", ALLOWED.name, "--", "cat"]
        run = user.popen(command, stdin=subprocess.PIPE)
        try:

            def of(module: str) -> set[int]:
                return {p for p in user.processes() if f"-m {module} " in processes.command_line(p)}

            def alive() -> list[set[int]] | None:
                # What is confined has loaded all that it ever will (Seccomp: 2, proc(5)).
                gateway = {p for p in of("guestnet.gateway") if is_confined(p)}
                found = [of("guestnet.kernel.rootless.agent"), gateway, of("guestnet.cli.launch")]
                return found if all(found) else None

            for pid in set().union(*eventually(alive)):
                assert not has_pydantic(pid), processes.command_line(pid)
            assert has_pydantic(run.pid)  # it would be seen
        finally:
            processes.stop(run)


def is_confined(pid: int) -> bool:
    return "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text()


def test_a_pump_meets_no_owner(tmp_path: Path) -> None:
    with World() as world, Host.open(tmp_path / "state", site=world.site.path) as host:
        host.attach("vm", policy="allow@public", transport=f"stream:{tmp_path}/vm.sock")

        def pump() -> int | None:
            told = host.transport("vm")
            assert told is not None
            return told.pid if told.pid is not None and is_confined(told.pid) else None

        assert not has_pydantic(eventually(pump))
