"""Every step of opening a TAP can fail, and then nothing has happened."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

import pytest

from guestnet.errors import HostError
from guestnet.kernel.tap import Tap
from tapns import Faults, link, make_persistent, names

pytest_plugins = ("tapns",)
pytestmark = [pytest.mark.root, pytest.mark.usefixtures("tap_netns")]

MAC = "02:6d:73:00:00:01"
UID, GID = 61_234, 61_235

EVERYTHING: dict[str, Any] = {
    "mac": MAC,
    "mtu": 1400,
    "queues": 3,
    "persistent": True,
    "owner": UID,
    "group": GID,
}


def fail_each_step(faults: Faults, **keywords: Any) -> Iterator[str]:
    """Let the first, second, … request of `Tap.open` fail; yield what failed, after the failure."""
    nth = 0
    while True:
        nth += 1
        faults.arm(nth, errno.ENOMEM)
        before = os.listdir("/proc/self/fd")
        try:
            tap = Tap.open("gn0", **keywords)
        except HostError as error:
            faults.disarm()
            if error.errno != errno.ENOMEM:
                raise
            assert os.listdir("/proc/self/fd") == before
            yield faults.failed
        else:
            tap.close()
            faults.disarm()
            if not faults.failed:
                return
            assert faults.failed == "TUNSETOFFLOAD"
            Tap.delete("gn0")


@pytest.mark.parametrize("vnet_hdr", [False, True])
def test_a_failing_step_of_creation_leaves_nothing(faults: Faults, vnet_hdr: bool) -> None:
    failed = []
    for step in fail_each_step(faults, vnet_hdr=vnet_hdr, **EVERYTHING):
        assert names() == {"lo"}
        failed.append(step)
    assert failed.count("open") == failed.count("TUNSETIFF") == 3
    assert {"TUNSETPERSIST", "TUNSETOWNER", "TUNSETGROUP", "SIOCSIFMTU", "SIOCSIFHWADDR"} <= set(
        failed
    )
    assert failed[-1] == "SIOCGIFMTU"  # after TUNSETPERSIST


def test_a_failing_step_of_attaching_restores_everything(faults: Faults) -> None:
    make_persistent("gn0", mac="02:00:00:00:00:99", mtu=1280, queues=3, owner=1, group=2)
    before = link("gn0")
    failed = []
    for step in fail_each_step(faults, **EVERYTHING):
        assert link("gn0") == before
        failed.append(step)
    assert {"TUNSETPERSIST", "TUNSETOWNER", "TUNSETGROUP", "SIOCSIFMTU", "SIOCSIFHWADDR"} <= set(
        failed
    )
