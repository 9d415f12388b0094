"""A transport's text, and what an attachment says of one."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from attachments import attachment
from guestnet.errors import ConfigError
from guestnet.frames.transport import Kind, Transport
from guestnet.model import Attachment, AttachRequest
from guestnet.plan import guest_device
from guestnet.pump.reports import read_report
from guestnet.vmm import render


def given(transport: str, **changes: Any) -> Attachment:
    return attachment(transport=transport, **changes)


@pytest.mark.parametrize(
    ("text", "transport"),
    [
        ("stream:/run/a.sock", Transport(Kind.STREAM, "/run/a.sock")),
        ("stream-client:/a", Transport(Kind.STREAM_CLIENT, "/a")),
        ("dgram+vnet:/run/a,b:c", Transport(Kind.DGRAM, "/run/a,b:c", vnet_hdr=True)),
        ("tap-fd:/run/ü", Transport(Kind.TAP_FD, "/run/ü")),
    ],
)
def test_reads_and_writes(text: str, transport: Transport) -> None:
    assert Transport.parse(text) == transport
    assert str(transport) == text


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("", "is KIND:PATH"),
        ("stream", "is KIND:PATH"),
        ("stream:", "is KIND:PATH"),
        ("qemu-stream:/a", "did you mean 'stream'"),
        ("strem:/a", "did you mean 'stream'"),
        ("unixgram:/a", "did you mean 'dgram'"),
        ("tap:/a", "did you mean 'tap-fd'"),
        ("carrier-pigeon:/a", "transports: stream, stream-client, dgram, tap-fd"),
        ("stream+vnt:/a", "transports: "),
        ("stream:a.sock", "the path is absolute, as /run/a.sock"),
        ("stream:/run/", "names a file"),
        ("stream:/run/../etc/a", "names a file"),
        ("stream:/run//a", "names a file"),
        ("stream:/a\nb", "cannot be printed"),
        ("stream:/a\0b", "cannot be printed"),
        ("stream:/\udcff", "UTF-8"),
        ("stream:/" + "x" * 107, "at most 107 bytes, this has 108"),
        ("dgram:/" + "x" * 103, "at most 103 bytes, this has 104"),
    ],
)
def test_says_what_would_be_right(text: str, right: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(right)) as caught:
        AttachRequest(guest="vm", transport=text)
    assert caught.value.key == "transport"


def test_a_request_keeps_the_canonical_text() -> None:
    assert AttachRequest(guest="vm", transport="tap-fd:/run/a", queues=4).transport == (
        "tap-fd:/run/a"
    )


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"transport": "stream:/a", "queues": 2}, "queues"),
        ({"transport": "tap-fd:/a", "queues": 254}, "queues"),
        ({"transport": "stream:/a", "netns": "box"}, "transport"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AttachRequest(guest="vm", **options)
    assert caught.value.key == key


def test_the_owner_gets_the_socket_and_not_the_tap() -> None:
    from guestnet.address.derive import placement
    from guestnet.model import NetworkSpec

    spec = NetworkSpec()
    place = placement(spec, 0, 1, "vm-1")
    for transport, owner in ((None, 1000), ("stream:/a", None), ("tap-fd:/a", None)):
        made = attachment(owner=1000, group=100, transport=transport)
        assert guest_device(spec, place, made).owner == owner


# -- in VMMs' words --------------------------------------------------------------------------


def netdev(transport: str, *, queues: int = 1, **options: bool) -> str:
    data = render(given(transport, queues=queues), "qemu", **options).data
    assert isinstance(data, list)
    return str(data[1])


def test_qemu() -> None:
    assert netdev("stream:/run/a,b") == (
        "stream,id=net-eth0,server=off,addr.type=unix,addr.path=/run/a,,b"
    )
    assert netdev("stream:/a", reconnect=True).endswith(",reconnect-ms=1000")
    assert netdev("stream-client:/a") == (
        "stream,id=net-eth0,server=on,addr.type=unix,addr.path=/a"
    )
    assert netdev("dgram:/a") == (
        "dgram,id=net-eth0,local.type=unix,local.path=/a.vmm,remote.type=unix,remote.path=/a"
    )
    assert netdev("tap-fd+vnet:/a") == "tap,id=net-eth0,fd={fd}"
    assert netdev("tap-fd:/a", queues=2, vhost=True) == "tap,id=net-eth0,fds={fds},vhost=on"
    # Unquoted, as it goes behind `with-tap` by `$(guestnet show …)`.
    assert render(given("tap-fd:/a"), "qemu").text.startswith("-netdev tap,id=net-eth0,fd={fd} ")
    assert "'" in render(given("stream:/a b"), "qemu").text


@pytest.mark.parametrize(
    ("transport", "options", "key"),
    [
        ("stream+vnet:/a", {}, "transport"),
        ("dgram+vnet:/a", {}, "transport"),
        ("dgram:/a", {"reconnect": True}, "reconnect"),
        ("stream:/a", {"vhost": True}, "vhost"),
    ],
)
def test_what_qemu_does_not_speak(transport: str, options: dict[str, bool], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        render(given(transport), "qemu", **options)
    assert caught.value.key == key


def test_libkrun() -> None:
    assert render(given("stream:/run/a"), "libkrun").data == {
        "path": "/run/a",
        "fd": -1,
        "mac": [2, 0x6D, 0x73, 0, 1, 2],
        "features": 0,
        "flags": 0,
    }
    text = render(given('dgram+vnet:/run/"ü'), "libkrun").text
    assert text.splitlines()[1] == (
        r'krun_add_net_unixgram(ctx_id, "/run/\"\303\274", -1, mac, 0x1983, 0);'
    )
    with pytest.raises(ConfigError, match="libkrun speaks stream and dgram"):
        render(given("tap-fd:/a"), "libkrun")


def test_env() -> None:
    data = render(given("dgram+vnet:/run/a b"), "env").data
    assert isinstance(data, dict)
    assert data["GUESTNET_TRANSPORT"] == "kind=dgram,vnet_hdr=on,path=/run/a b"
    assert "GUESTNET_TRANSPORT='kind=" in render(given("dgram:/run/a b"), "env").text


@pytest.mark.parametrize("format", ["firecracker", "cloud-hypervisor", "firecracker-snapshot"])
def test_vmms_that_open_the_tap_cannot(format: str) -> None:
    with pytest.raises(ConfigError, match="without a transport"):
        render(given("stream:/a"), format)


# -- what a pump tells -----------------------------------------------------------------------

REPORT = {"kind": "closed", "connections": 1, "malformed": 0, "refused": 0, "reason": "x"}


def test_a_report() -> None:
    assert read_report(json.dumps(REPORT).encode()).reason == "x"


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "shout"},
        {"connections": -1},
        {"connections": 2**63},
        {"malformed": "many"},
        {"reason": "x" * 513},
        {"peer": None},
        {"confinement": ["x"] * 9},
        {"extra": 1},
    ],
)
def test_a_report_that_is_none(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no report"):
        read_report(json.dumps({**REPORT, **change}).encode())
