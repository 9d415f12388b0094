"""The open TAP handed to another process, or used in this one."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest
from scapy.layers.l2 import ARP, Ether

from guestnet import FramePort, receive_tap
from guestnet.errors import BusyError, ConfigError, HostError
from transporting import Scene, answers_arp, arp, pings
from vmmpeer import Line

pytestmark = pytest.mark.root
pytest_plugins = ("transporting",)

# -- the TAP itself ----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "queues"), [("tap-fd", 1), ("tap-fd+vnet", 1), ("tap-fd", 3)])
def test_the_tap_is_handed_over(scene: Scene, kind: str, queues: int) -> None:
    attachment = scene.attach(kind=kind, queues=queues)
    path = scene.directory / "vm.sock"
    with receive_tap(path) as handed:
        facts = handed.facts
        assert (facts.tap, facts.mac, facts.mtu) == (attachment.tap, attachment.mac, 1500)
        assert (facts.queues, facts.vnet_hdr) == (queues, kind.endswith("+vnet"))
        assert facts.offload == (("csum", "tso4", "tso6") if facts.vnet_hdr else ())
        assert len(handed.fds) == queues
        assert not any(os.get_inheritable(fd) for fd in handed.fds)
        header = bytes(12) if facts.vnet_hdr else b""
        assert answers_arp(handed.fds, attachment, header)
        with pytest.raises(BusyError):
            receive_tap(path)
    with receive_tap(path) as handed:
        assert len(handed.fds) == queues
    scene.await_connections(2)


def test_a_command_becomes_the_vmm(scene: Scene) -> None:
    attachment = scene.attach(kind="tap-fd", queues=2)
    script = (
        "import os,sys; [os.fstat(int(n)) for n in sys.argv[1].split(':')]; print(*sys.argv[2:])"
    )
    command = [
        *(sys.executable, "-m", "guestnet.cli", "with-tap", f"{scene.directory}/vm.sock", "--"),
        *(sys.executable, "-c", script, "{fds}", "{mac}", "{mtu}", "{tap}"),
    ]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said.split() == [attachment.mac, "1500", attachment.tap]
    missing = subprocess.run([*command[:6], "/no/such"], check=False, capture_output=True)
    assert missing.returncode == 127


def test_nobody_to_hand_over(scene: Scene) -> None:
    with pytest.raises(HostError, match="connect"):
        receive_tap(scene.directory / "vm.sock")
    attachment = scene.attach(kind="tap-fd")
    scene.world.site.ip(f"link delete {attachment.tap}")
    with pytest.raises(HostError, match="there is no interface of this name"):
        receive_tap(scene.directory / "vm.sock")


# -- in this process ---------------------------------------------------------------------------


@pytest.mark.parametrize("vnet_hdr", [False, True])
def test_a_port_in_this_process(scene: Scene, vnet_hdr: bool) -> None:
    attachment = scene.host.attach("vm", policy="allow@public")

    async def talk() -> None:
        with scene.world.site.enter():
            port = FramePort.open(attachment, vnet_hdr=vnet_hdr)
        async with port:
            assert port.mtu == 1500
            asking = asyncio.ensure_future(ask(port))
            while True:
                frame = (await port.recv_with_header())[1] if vnet_hdr else await port.recv()
                if ARP in Ether(frame):
                    asking.cancel()
                    break

    async def ask(port: FramePort) -> None:
        """Again and again, as a TAP that was opened a moment ago drops what is sent to it."""
        while True:
            await port.send(arp(attachment))
            await asyncio.sleep(0.5)

    asyncio.run(asyncio.wait_for(talk(), 20))


@pytest.mark.parametrize("vnet_hdr", [False, True])
def test_a_port_that_is_lent(scene: Scene, vnet_hdr: bool) -> None:
    attachment = scene.host.attach("vm", policy="allow@public")
    with scene.world.site.enter():
        port = FramePort.open(attachment, vnet_hdr=vnet_hdr)
    with port:
        lent = port.lend()
        line = Line.of(lent)
        with line:
            assert pings(attachment, line, header=bytes(12) if vnet_hdr else b"")
            with pytest.raises(ConfigError, match="is lent already"):
                port.lend()
            port.close()
            assert line.hung_up()


def test_a_port_is_for_vms_that_open_their_tap(scene: Scene) -> None:
    with pytest.raises(ConfigError, match="transport"):
        FramePort.open(scene.attach())
