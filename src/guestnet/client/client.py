"""`Client` has the methods of `Host`, with the same arguments, results and exceptions.

The models are imported when a method first returns one, so that the command line starts without.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self
from urllib.parse import quote

from ..errors import NotFoundError
from ..settings import Settings
from .api import Api

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

    from .. import policy
    from ..model import (
        Attachment,
        Decision,
        Finding,
        NetworkInfo,
        NetworkSpec,
        Repairs,
        TransportInfo,
        Usage,
    )


class Guestnet(Protocol):
    """What an owner can do, whether in this process (`Host`) or by the daemon (`Client`)."""

    def create_network(self, spec: NetworkSpec | Mapping[str, Any]) -> NetworkInfo: ...
    def remove_network(self, name: str) -> None: ...
    def networks(self) -> list[NetworkInfo]: ...
    def network(self, name: str) -> NetworkInfo: ...
    def attach(self, guest: str, **options: Any) -> Attachment: ...
    def detach(self, guest: str, generation: int | None = None) -> bool: ...
    def attachments(self, network: str | None = None) -> list[Attachment]: ...
    def attachment(self, guest: str) -> Attachment: ...
    def usage(self, guest: str) -> Usage: ...
    def transport(self, guest: str) -> TransportInfo | None: ...
    def explain(
        self,
        guest: str,
        protocol: policy.Protocol | str,
        address: IPv4Address | IPv6Address | str,
        port: int | None = None,
        direction: policy.Direction | str = "egress",
    ) -> policy.Verdict: ...
    def set_policy(self, guest: str, policy: str) -> Attachment: ...
    def set_network_policy(self, name: str, policy: str | None) -> NetworkInfo: ...
    def decisions(self, guest: str | None = None) -> list[Decision]: ...
    def watch(self, guest: str | None = None) -> Iterator[Decision]: ...
    def suggest_policy(self, guest: str, *, suffixes: bool = False) -> str: ...
    def counters(self) -> dict[str, int]: ...
    def reconcile(self) -> Repairs: ...
    def follow(self) -> None: ...
    def doctor(self) -> list[Finding]: ...
    def close(self) -> None: ...


def connect(run_dir: str | Path | None = None) -> Client:
    """A client of the daemon whose socket is in `run_dir`; by default, where `Settings` says.

    Raises `UnreachableError`, with what to do, when no daemon listens there.
    """
    client = Client(Settings.load(run_dir=run_dir).client_socket)
    try:
        client.api.open()
    except BaseException:
        client.close()
        raise
    return client


class Client:
    """`Host`'s interface, by way of the daemon that listens on the socket `path`. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self.api = Api(path)

    def close(self) -> None:
        """Close the connections. The daemon and its guests go on."""
        self.api.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- networks ----------------------------------------------------------------------------

    def create_network(self, spec: NetworkSpec | Mapping[str, Any]) -> NetworkInfo:
        """Create a network; one that exists with the same settings is returned as it is."""
        from ..model import NetworkInfo, NetworkSpec

        wanted = spec if isinstance(spec, NetworkSpec) else NetworkSpec.read(dict(spec))
        body = wanted.model_dump_json(exclude_unset=True).encode()
        return NetworkInfo.read(json.loads(self.api.request("POST", "/v1/networks", body=body)))

    def remove_network(self, name: str) -> None:
        """Remove a network without guests."""
        self.api.delete(network_path(name))

    def networks(self) -> list[NetworkInfo]:
        """All networks, by name."""
        from ..model import NetworkInfo

        return [NetworkInfo.read(each) for each in self.api.get("/v1/networks")]

    def network(self, name: str) -> NetworkInfo:
        """One network, or `NotFoundError`."""
        from ..model import NetworkInfo

        return NetworkInfo.read(self.api.get(network_path(name)))

    # -- guests ------------------------------------------------------------------------------

    def attach(self, guest: str, **options: Any) -> Attachment:
        """Give a guest its network; `options` are the fields of `AttachRequest`."""
        from ..model import Attachment, AttachRequest

        request = AttachRequest(guest=guest, **options)
        document = request.model_dump(mode="json", exclude_none=True)
        if request.netns is not None:
            document["netns"] = absolute_netns(request.netns)
        return Attachment.read(self.api.post("/v1/guests", document))

    def detach(self, guest: str, generation: int | None = None) -> bool:
        """Cut a guest off; True if it was attached (as that generation, if one is given)."""
        from ..model import AttachRequest

        AttachRequest(guest=guest)
        answer = self.api.delete("/v1/guest", {"id": guest, "generation": generation})
        return bool(answer["detached"])

    def attachments(self, network: str | None = None) -> list[Attachment]:
        """All attachments, or those of one network, by guest id."""
        from ..model import Attachment

        found = self.api.get("/v1/guests", {"network": network})
        return [Attachment.read(each) for each in found]

    def attachment(self, guest: str) -> Attachment:
        """One guest's attachment, or `NotFoundError`."""
        from ..model import Attachment

        return Attachment.read(self.api.get("/v1/guest", {"id": guest}))

    def usage(self, guest: str) -> Usage:
        """A guest's traffic counters."""
        from ..model import Usage

        return Usage.read(self.api.get("/v1/guest/usage", {"id": guest}))

    def transport(self, guest: str) -> TransportInfo | None:
        """How a guest's transport goes, or None if its VMM opens the TAP."""
        from ..model import TransportInfo

        found = self.api.get("/v1/guest/transport", {"id": guest})
        return TransportInfo.read(found) if found is not None else None

    # -- asking ------------------------------------------------------------------------------

    def explain(
        self,
        guest: str,
        protocol: policy.Protocol | str,
        address: IPv4Address | IPv6Address | str,
        port: int | None = None,
        direction: policy.Direction | str = "egress",
    ) -> policy.Verdict:
        """What would happen to a flow between a guest and an address, and which rule decides."""
        from ..policy import Action, Group, Verdict

        flow = {
            "guest": guest,
            "protocol": str(protocol),
            "address": str(address),
            "port": port,
            "direction": str(direction),
        }
        said = self.api.post("/v1/guest/explain", flow)
        group = Group(said["group"]) if said["group"] is not None else None
        return Verdict(Action(said["action"]), said["rule"], said["text"], group, said["reason"])

    def set_policy(self, guest: str, policy: str) -> Attachment:
        """Put another policy in the place of a guest's: at once, for established flows too."""
        from ..model import Attachment

        body = {"guest": guest, "policy": policy}
        return Attachment.read(self.api.post("/v1/guest/policy", body))

    def set_network_policy(self, name: str, policy: str | None) -> NetworkInfo:
        """Put another policy in the place of a network's, for those of its guests who have it."""
        from ..model import NetworkInfo

        body = {"network": name, "policy": policy}
        return NetworkInfo.read(self.api.post("/v1/network/policy", body))

    def suggest_policy(self, guest: str, *, suffixes: bool = False) -> str:
        """The smallest policy that allows what a guest was seen to use."""
        query = {"id": guest, "suffixes": str(suffixes).lower()}
        return str(self.api.get("/v1/guest/suggestion", query)["policy"])

    def decisions(self, guest: str | None = None) -> list[Decision]:
        """The last decisions, oldest first."""
        from ..model import read_decision

        found = self.api.get("/v1/decisions", {"id": guest})
        return [read_decision(each) for each in found]

    def watch(self, guest: str | None = None) -> Iterator[Decision]:
        """Decisions as they are taken, until the daemon goes down or the iterator is closed."""
        from ..model import read_decision

        for text in self.api.stream("/v1/decisions/stream", {"id": guest}):
            yield read_decision(json.loads(text))

    def counters(self) -> dict[str, int]:
        """Packets refused and dropped on this machine so far, by `family/reason`."""
        return {str(key): int(value) for key, value in self.api.get("/v1/counters").items()}

    def reconcile(self) -> Repairs:
        """Compare the kernel with the store and put right what differs; says what that was."""
        from ..model import Repairs

        return Repairs.read(self.api.post("/v1/reconcile"))

    def follow(self) -> None:
        """Follow what changes outside now, rather than at the daemon's next look."""
        self.api.post("/v1/follow")

    def doctor(self) -> list[Finding]:
        """Look for what keeps guests from working on this machine."""
        from ..model import Finding

        return [Finding.read(each) for each in self.api.get("/v1/doctor")]


def network_path(name: str) -> str:
    """Where a network is in the API."""
    try:
        return f"/v1/networks/{quote(name, safe='')}"
    except UnicodeEncodeError:
        raise NotFoundError("network", name, "there is no such network") from None


def absolute_netns(netns: str) -> str:
    """A namespace's path as the daemon, which works in another directory, must hear it."""
    return os.path.abspath(netns) if "/" in netns else netns
