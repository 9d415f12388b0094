"""Waiting for frames in an event loop: nothing blocks, nothing is lost, nothing stays behind."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from scapy.layers.inet import UDP
from scapy.layers.l2 import ARP, Ether

from guestnet.errors import HostError
from guestnet.frames.virtio import VirtioNetHeader
from guestnet.kernel.tap import Tap
from tapguest import (
    GUEST_ARP,
    udp_to_guest,
    up,
)

pytest_plugins = ("tapns", "tapguest")
pytestmark = [pytest.mark.root, pytest.mark.usefixtures("tap_netns")]


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 10))


@pytest.mark.parametrize("blocking", [False, True])
def test_frames_are_awaited(blocking: bool) -> None:
    async def work() -> None:
        with Tap.open("gn0", blocking=blocking) as tap:
            up(tap)
            reading = asyncio.create_task(tap.recv_async())
            await asyncio.sleep(0.02)
            assert not reading.done()
            assert await tap.send_async(bytes(GUEST_ARP)) == 42
            assert Ether(await reading)[ARP].op == 2

    run(work)


def test_a_cancelled_wait_leaves_nothing_and_loses_no_frame(tap: Tap) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(3):
            reading = asyncio.create_task(tap.recv_async())
            await asyncio.sleep(0)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            assert loop.remove_reader(tap.fileno()) is False
        # Cancelled after the frame came and before the task ran again.
        reading = asyncio.create_task(tap.recv_async())
        await asyncio.sleep(0)
        udp_to_guest(10)
        loop.call_soon(reading.cancel)
        await asyncio.gather(reading, return_exceptions=True)
        assert reading.cancelled()
        assert tap.has_data()
        assert UDP in Ether(await tap.recv_async())

    run(work)


def test_several_readers_share_a_queue(tap: Tap) -> None:
    async def work() -> None:
        reading = [asyncio.create_task(tap.recv_async()) for _ in range(5)]
        await asyncio.sleep(0)
        reading[0].cancel()
        for size in range(4):
            udp_to_guest(size)
        sizes = [len(Ether(frame)[UDP].payload) for frame in await asyncio.gather(*reading[1:])]
        assert sorted(sizes) == [0, 1, 2, 3]
        assert asyncio.get_running_loop().remove_reader(tap.fileno()) is False

    run(work)


def test_closing_wakes_who_waits(tap: Tap) -> None:
    async def work() -> None:
        fd = tap.fileno()
        reading = asyncio.create_task(tap.recv_async())
        await asyncio.sleep(0)
        tap.close()
        with pytest.raises(HostError, match="this Tap is closed"):
            await reading
        assert asyncio.get_running_loop().remove_reader(fd) is False

    run(work)


def test_a_deleted_interface_wakes_who_waits(tap: Tap) -> None:
    async def work() -> None:
        reading = asyncio.create_task(tap.recv_async())
        await asyncio.sleep(0)
        await asyncio.to_thread(subprocess.run, ["ip", "link", "delete", "gn0"], check=True)
        with pytest.raises(HostError, match="deleted"):
            await reading

    run(work)


def test_headers_are_awaited(offloading: Tap) -> None:
    async def work() -> None:
        reading = asyncio.create_task(offloading.recv_with_header_async())
        await asyncio.sleep(0)
        await offloading.send_async(bytes(GUEST_ARP))
        header, frame = await reading
        assert header == VirtioNetHeader()
        assert ARP in Ether(frame)

    run(work)


def test_a_full_write_queue_is_waited_for(tap: Tap, monkeypatch: pytest.MonkeyPatch) -> None:
    real, refusals = os.writev, [1]

    def busy_once(fd: int, parts: Any) -> int:
        if refusals:
            refusals.pop()
            raise BlockingIOError(errno.EAGAIN, "later")
        return real(fd, parts)

    monkeypatch.setattr(os, "writev", busy_once)
    assert tap.send(bytes(GUEST_ARP)) == 0
    refusals.append(1)
    assert tap.send_many([bytes(GUEST_ARP)] * 2) == 0
    refusals.append(1)

    async def work() -> None:
        assert await tap.send_async(bytes(GUEST_ARP)) == 42
        assert asyncio.get_running_loop().remove_writer(tap.fileno()) is False

    run(work)
