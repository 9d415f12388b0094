"""The formats against what decides them: the VMMs' API specs, QEMU itself, our own manual."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from guestnet.model import Attachment
from guestnet.vmm import FORMATS, render

ROOT = Path(__file__).resolve().parents[2]
SPECS = Path(os.environ.get("GUESTNET_SPECS", ROOT.parent / "shared" / "specs"))
MANUAL = (ROOT / "docs" / "vmm.md").read_text()
#: `<!-- label -->`, then a fenced block.
BLOCK = re.compile(r"<!-- ([a-z0-9: -]+) -->\n```[a-z]+\n(.*?)```", re.DOTALL)
BLOCKS = BLOCK.findall(MANUAL)
EXAMPLE = Attachment.read(json.loads(dict(BLOCKS)["attachment"]))

DUAL = EXAMPLE
IPV4_ONLY = EXAMPLE.model_copy(update={"ipv6": None, "gateway_ipv6": None})
IPV6_ONLY = EXAMPLE.model_copy(update={"ipv4": None, "gateway_ipv4": None})
MULTI_QUEUE = EXAMPLE.model_copy(update={"queues": 4})
ODD_NAME = EXAMPLE.model_copy(update={"guest_interface": "-lan.0", "mtu": 65535})
FAMILIES = [DUAL, IPV4_ONLY, IPV6_ONLY, ODD_NAME]


def closed(schema: Any) -> Any:
    """The same schema with every object's unknown keys refused, as the VMMs do."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        result.setdefault("additionalProperties", False)
    return result


def check(value: object, spec: str, pointer: str) -> None:
    """Validate against a part of a spec (Swagger 2 or OpenAPI 3, whose schemas are JSON schema)."""
    path = SPECS / spec
    if not path.exists():
        pytest.skip(f"no {path}; set GUESTNET_SPECS to a directory that has {spec}")
    document = closed(yaml.safe_load(path.read_text()))
    jsonschema.Draft7Validator({"$ref": pointer, **document}).validate(value)


def check_interface(value: object) -> None:
    check(value, "firecracker.yaml", "#/definitions/NetworkInterface")


def check_net(value: object) -> None:
    check(value, "cloud-hypervisor.yaml", "#/components/schemas/NetConfig")


@pytest.mark.parametrize("guest", FAMILIES)
def test_firecracker_body_is_valid(guest: Attachment) -> None:
    check_interface(render(guest, "firecracker").data)
    check_interface(json.loads(render(guest, "firecracker", mtu=False).text))


@pytest.mark.parametrize("guest", FAMILIES)
def test_firecracker_snapshot_overrides_are_valid(guest: Attachment) -> None:
    overrides = render(guest, "firecracker-snapshot").data
    body = {"snapshot_path": "vm.snap", "network_overrides": overrides}
    check(body, "firecracker.yaml", "#/definitions/SnapshotLoadParams")


def test_snapshot_override_names_the_interface_that_was_put() -> None:
    (override,) = json.loads(render(ODD_NAME, "firecracker-snapshot").text)
    assert override["iface_id"] == json.loads(render(ODD_NAME, "firecracker").text)["iface_id"]


@pytest.mark.parametrize("guest", [*FAMILIES, MULTI_QUEUE])
def test_cloud_hypervisor_body_is_valid(guest: Attachment) -> None:
    config = render(guest, "cloud-hypervisor").data
    check_net(config)
    check([config], "cloud-hypervisor.yaml", "#/components/schemas/VmConfig/properties/net")


def test_the_checks_refuse_what_the_vmms_refuse() -> None:
    body = json.loads(render(EXAMPLE, "firecracker").text)
    for wrong in ({**body, "queues": 1}, {**body, "mtu": 67}, {"iface_id": "eth0"}):
        with pytest.raises(jsonschema.ValidationError):
            check_interface(wrong)
    with pytest.raises(jsonschema.ValidationError):
        check_net({"tap": "gn0", "queues": 2})


def qemu(machine: str, guest: Attachment, **options: bool) -> str:
    """What QEMU's monitor shows of the interface, run on a TAP in a private network namespace."""
    binary, unshare = shutil.which("qemu-system-x86_64"), shutil.which("unshare")
    if binary is None or unshare is None:
        pytest.skip("needs qemu-system-x86_64 and unshare")
    private = [unshare, "--user", "--map-root-user", "--net"]
    try:
        # QEMU creates the TAP, as one that guestnet made is not there; it goes with the namespace.
        subprocess.run([*private, "test", "-w", "/dev/net/tun"], check=True, capture_output=True)
    except subprocess.CalledProcessError:
        pytest.skip("needs user namespaces and /dev/net/tun")
    data = render(guest, "qemu", **options).data
    assert isinstance(data, list)
    idle = ["-M", machine, "-S", "-nodefaults", "-display", "none", "-monitor", "stdio"]
    done = subprocess.run(
        [*private, binary, *idle, *data],
        input="info network\ninfo qtree\nquit\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("machine", "mmio", "model"),
    [("q35", False, "virtio-net-pci"), ("microvm", True, "virtio-net-device")],
)
@pytest.mark.parametrize("guest", [DUAL, MULTI_QUEUE, ODD_NAME])
def test_qemu_takes_the_arguments(machine: str, mmio: bool, model: str, guest: Attachment) -> None:
    shown = qemu(machine, guest, mmio=mmio)
    assert f"type=nic,model={model},macaddr={guest.mac}" in shown
    assert shown.count(f"type=tap,ifname={guest.tap},") == guest.queues
    assert f"host_mtu = {guest.mtu} " in shown
    assert f"mq = {'true' if guest.queues > 1 else 'false'}" in shown


@pytest.mark.parametrize(("label", "block"), [b for b in BLOCKS if b[0] != "attachment"])
def test_manual_shows_what_is_rendered(label: str, block: str) -> None:
    form, _, request = label.partition(": ")
    name, *options = request.split()
    said = render(EXAMPLE, name, **dict.fromkeys(options, True))
    expected = said.text if form == "render" else json.dumps(said.data, indent=2)
    assert block == expected + "\n"


def test_manual_shows_every_format() -> None:
    shown = {label.removeprefix("render: ") for label, _ in BLOCKS if label.startswith("render: ")}
    assert set(FORMATS) <= shown
    for name, entry in FORMATS.items():
        row = re.search(rf"^\| `{name}` \|.*\|([^|\n]*)\|$", MANUAL, re.MULTILINE)
        assert row is not None, name
        assert re.findall(r"`(\w+)`", row[1]) == list(entry.options)
