"""Cloud Hypervisor: `NetConfig` for its API and the same as `--net` argument.

Source: vmm/src/api/openapi/cloud-hypervisor.yaml of Cloud Hypervisor.
"""

from __future__ import annotations

import shlex
from typing import TypedDict

from ..model import Attachment
from .interface import tap_name


class NetConfig(TypedDict):
    """Body of `PUT /vm.add-net`, or one of `net` in a `VmConfig`."""

    tap: str
    mac: str
    mtu: int
    #: Virtqueues, not pairs: 2 for a TAP with one queue.
    num_queues: int


def net_config(attachment: Attachment) -> NetConfig:
    """The interface. Cloud Hypervisor refuses fewer than 2 queues, and pairs unlike the TAP's."""
    return NetConfig(
        tap=tap_name(attachment, "Cloud Hypervisor"),
        mac=attachment.mac,
        mtu=attachment.mtu,
        num_queues=2 * attachment.queues,
    )


def net_argument(attachment: Attachment) -> str:
    """The same on the command line: `--net tap=…,mac=…,mtu=…,num_queues=…`, quoted for a shell."""
    value = ",".join(f"{key}={item}" for key, item in net_config(attachment).items())
    return shlex.join(["--net", value])
