"""What each format says of an attachment; the golden texts of the plain one are in docs/vmm.md."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from attachments import attachment
from guestnet.errors import ConfigError
from guestnet.model import check_guest_id, check_interface_name
from guestnet.vmm import FORMATS, format_named, render

TAP_FORMATS = ("firecracker", "firecracker-snapshot", "cloud-hypervisor", "qemu", "libkrun")


def _acceptable(check: Any) -> Any:
    def accepts(text: str) -> bool:
        try:
            check(text)
        except ValueError:
            return False
        return True

    return accepts


guest_ids = st.text(min_size=1).filter(_acceptable(check_guest_id))
#: Names that YAML, C or a shell might take for something else are tried first.
interface_names = st.sampled_from(["on", "no", "null", "1e3", "0x10", "-rf", "12", "_", "a.1"]) | (
    st.from_regex(r"[A-Za-z0-9_.-]{1,15}", fullmatch=True).filter(_acceptable(check_interface_name))
)


def test_qemu_multi_queue() -> None:
    assert render(attachment(queues=4), "qemu", vhost=True).data == [
        "-netdev",
        "tap,id=net-eth0,ifname=gn1,script=no,downscript=no,queues=4,vhost=on",
        "-device",
        "virtio-net-pci,netdev=net-eth0,mac=02:6d:73:00:01:02,host_mtu=1420,mq=on,vectors=10",
    ]


def test_qemu_multi_queue_without_pci_has_no_vectors() -> None:
    device = render(attachment(queues=2), "qemu", mmio=True).text.split()[-1]
    assert device == ("virtio-net-device,netdev=net-eth0,mac=02:6d:73:00:01:02,host_mtu=1420,mq=on")


@pytest.mark.parametrize(("queues", "virtqueues"), [(1, 2), (4, 8)])
def test_cloud_hypervisor_counts_virtqueues(queues: int, virtqueues: int) -> None:
    said = render(attachment(queues=queues), "cloud-hypervisor")
    assert said.text == f"--net tap=gn1,mac=02:6d:73:00:01:02,mtu=1420,num_queues={virtqueues}"


@pytest.mark.parametrize("name", ["firecracker", "firecracker-snapshot", "libkrun"])
def test_single_queue_vmm_refuses_multi_queue_tap(name: str) -> None:
    with pytest.raises(ConfigError, match="queues=1") as caught:
        render(attachment(queues=2), name)
    assert (caught.value.key, caught.value.value) == ("queues", 2)


def test_firecracker_without_mtu_for_older_releases() -> None:
    assert render(attachment(), "firecracker", mtu=False).data == {
        "iface_id": "eth0",
        "host_dev_name": "gn1",
        "guest_mac": "02:6d:73:00:01:02",
    }


@pytest.mark.parametrize("name", TAP_FORMATS)
def test_namespace_guest_has_no_tap(name: str) -> None:
    with pytest.raises(ConfigError, match="namespace guest has a veth and no TAP"):
        render(attachment(netns="job-7"), name)


@pytest.mark.parametrize("name", ["env", "cloud-init", "kernel-args"])
def test_namespace_guest_is_told_the_same(name: str) -> None:
    assert render(attachment(netns="job-7"), name) == render(attachment(), name)


@pytest.mark.parametrize(("typo", "near"), [("qemuu", "'qemu'"), ("Cloud-Init", "'cloud-init'")])
def test_unknown_format_names_the_near_one_and_all(typo: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {near}") as caught:
        format_named(typo)
    assert all(name in str(caught.value) for name in FORMATS)


def test_far_format_has_no_hint() -> None:
    with pytest.raises(ConfigError) as caught:
        format_named("zzz")
    assert "did you mean" not in str(caught.value)


def test_unknown_or_ill_typed_option_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'vhost'\? options of qemu: mmio, vhost"):
        render(attachment(), "qemu", vhosts=True)
    with pytest.raises(ConfigError, match="options of env: none"):
        render(attachment(), "env", dns=True)
    with pytest.raises(ConfigError, match="true or false"):
        render(attachment(), "qemu", vhost="off")  # type: ignore[arg-type]


@given(guest_ids)
def test_no_output_depends_on_the_guest_id(guest: str) -> None:
    for name in FORMATS:
        assert render(attachment(guest=guest), name) == render(attachment(), name)


@given(interface_names, interface_names)
def test_any_interface_name_survives_every_syntax(tap: str, inside: str) -> None:
    guest = attachment(tap=tap, guest_interface=inside)
    for name in FORMATS:
        said = render(guest, name)
        assert json.loads(json.dumps(said.data)) == said.data
    assert shlex.split(render(guest, "qemu").text) == render(guest, "qemu").data
    assert render(guest, "qemu").text.split() == render(guest, "qemu").data
    assert yaml.safe_load(render(guest, "cloud-init").text) == render(guest, "cloud-init").data
    (body,) = json.loads(render(guest, "firecracker-snapshot").text)
    assert re.fullmatch(r"\w+", body["iface_id"], re.ASCII)
    assert body["host_dev_name"] == tap


@given(interface_names)
def test_env_lines_are_what_a_shell_reads(inside: str) -> None:
    said = render(attachment(guest_interface=inside), "env")
    words = shlex.split(said.text)
    assert dict(word.split("=", 1) for word in words) == said.data
    assert words == said.text.splitlines(), "no line needs quoting"
