"""The API's operations: each asks `Host` and writes down what it says.

Endpoints are plain functions, which run in threads: `Host` blocks, and is thread-safe. They return
finished JSON, so that nothing validates a second time what `Host` made; `response_model` is there
for the OpenAPI document. A guest's id is any text, `..` and `/` included, so it is never part of a
path, which clients and proxies are free to rewrite.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, RootModel

from ..errors import ConfigError
from ..host import Host
from ..model import (
    Attachment,
    AttachRequest,
    Decision,
    Finding,
    NetworkInfo,
    NetworkSpec,
    Repairs,
    TransportInfo,
    Usage,
)
from ..policy import parse_policy, warnings
from ..vmm import format_named
from . import bodies
from .faults import RESPONSES

GuestQuery = Annotated[str, Query(alias="id", description="the guest's id, percent-encoded")]
GuestFilter = Annotated[str | None, Query(alias="id", description="only this guest's")]
#: How late a watcher may hear of a decision.
WATCH_POLL_S = 0.05
_SWITCH = {"on": True, "off": False, "true": True, "false": False}


def _one(value: BaseModel) -> Response:
    return Response(value.model_dump_json(), media_type="application/json")


def _many(values: Iterable[BaseModel]) -> Response:
    return _listed(value.model_dump_json() for value in values)


def _listed(texts: Iterable[str]) -> Response:
    return Response(f"[{','.join(texts)}]", media_type="application/json")


class Routes:
    """One daemon's operations."""

    def __init__(
        self, host: Host, about: bodies.About, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self._host = host
        self._about = about
        #: Whether the daemon is going down: streams end then, as nobody else ends them.
        self._stopping = stopping

    def router(self) -> APIRouter:
        """The operations with their paths."""
        router = APIRouter(prefix=f"/{bodies.API_VERSION}", responses=RESPONSES)

        def add(method: str, path: str, endpoint: Callable[..., Response], model: Any) -> None:
            router.add_api_route(
                path,
                endpoint,
                methods=[method],
                response_model=model,
                operation_id=endpoint.__name__,
                tags=[path.split("/")[1]],
            )

        add("GET", "/version", self.version, bodies.About)
        add("GET", "/networks", self.networks, list[NetworkInfo])
        add("POST", "/networks", self.create_network, NetworkInfo)
        # `path`: what is no network's name is answered as such, not as an unknown address.
        add("GET", "/networks/{name:path}", self.network, NetworkInfo)
        add("DELETE", "/networks/{name:path}", self.remove_network, bodies.Done)
        add("POST", "/network/policy", self.set_network_policy, NetworkInfo)
        add("GET", "/guests", self.attachments, list[Attachment])
        add("POST", "/guests", self.attach, Attachment)
        add("GET", "/guest", self.attachment, Attachment)
        add("DELETE", "/guest", self.detach, bodies.Detached)
        add("GET", "/guest/usage", self.usage, Usage)
        add("GET", "/guest/transport", self.transport, TransportInfo | None)
        add("GET", "/guest/format", self.words, bodies.Words)
        add("POST", "/guest/explain", self.explain, bodies.Explained)
        add("POST", "/guest/policy", self.set_policy, Attachment)
        add("GET", "/guest/suggestion", self.suggest_policy, bodies.PolicyText)
        add("GET", "/decisions", self.decisions, list[Decision])
        add("GET", "/decisions/stream", self.watch, str)
        add("POST", "/policy/check", self.check_policy, bodies.PolicyChecked)
        add("GET", "/counters", self.counters, dict[str, int])
        add("GET", "/doctor", self.doctor, list[Finding])
        add("POST", "/reconcile", self.reconcile, Repairs)
        add("POST", "/follow", self.follow, bodies.Done)
        return router

    def version(self) -> Response:
        """Which daemon this is."""
        return _one(self._about)

    # -- networks ----------------------------------------------------------------------------

    def networks(self) -> Response:
        """All networks, by name."""
        return _many(self._host.networks())

    def create_network(self, spec: NetworkSpec) -> Response:
        """Create a network; one that exists with the same settings is returned as it is."""
        return _one(self._host.create_network(spec))

    def network(self, name: str) -> Response:
        """One network, and what of its pools the host uses."""
        return _one(self._host.network(name))

    def remove_network(self, name: str) -> Response:
        """Remove a network that has no guests."""
        self._host.remove_network(name)
        return _one(bodies.Done())

    # -- guests ------------------------------------------------------------------------------

    def attachments(self, network: str | None = None) -> Response:
        """All attachments, or those of one network, by guest id."""
        return _many(self._host.attachments(network))

    def attach(self, request: AttachRequest) -> Response:
        """Attach a guest; one that is attached just so is returned as it is."""
        # Only what was asked for: an absent option is not the same as its default for every host.
        return _one(self._host.attach(**request.model_dump(exclude_unset=True)))

    def attachment(self, guest: GuestQuery) -> Response:
        """One guest's attachment."""
        return _one(self._host.attachment(guest))

    def detach(self, guest: GuestQuery, generation: int | None = None) -> Response:
        """Cut a guest off; with `generation`, only if that very attachment still stands."""
        return _one(bodies.Detached(detached=self._host.detach(guest, generation)))

    def usage(self, guest: GuestQuery) -> Response:
        """A guest's traffic counters."""
        return _one(self._host.usage(guest))

    def transport(self, guest: GuestQuery) -> Response:
        """How a guest's transport goes; null if its VMM opens the TAP."""
        return _one(RootModel[TransportInfo | None](self._host.transport(guest)))

    def words(
        self,
        guest: GuestQuery,
        format: str,
        option: Annotated[list[str] | None, Query(description="NAME or NAME=on|off")] = None,
    ) -> Response:
        """An attachment in a VMM's words."""
        chosen = format_named(format)
        options = dict(map(_switch, option or []))
        attachment = self._host.attachment(guest)
        return _one(
            bodies.Words(
                format=chosen.name,
                media_type=chosen.media_type,
                text=chosen.text(attachment, **options),
                data=chosen.data(attachment, **options),
            )
        )

    # -- asking ------------------------------------------------------------------------------

    def explain(self, flow: bodies.Flow) -> Response:
        """What would happen to a flow, and which rule decides."""
        verdict = self._host.explain(
            flow.guest, flow.protocol, flow.address, flow.port, flow.direction
        )
        return _one(bodies.Explained.of(verdict))

    def set_policy(self, request: bodies.GuestPolicy) -> Response:
        """Put another policy in the place of a guest's: at once, for established flows too."""
        return _one(self._host.set_policy(request.guest, request.policy))

    def set_network_policy(self, request: bodies.NetworkPolicy) -> Response:
        """Put another policy in the place of a network's, and of that of guests who have it."""
        return _one(self._host.set_network_policy(request.network, request.policy))

    def suggest_policy(self, guest: GuestQuery, suffixes: bool = False) -> Response:
        """The smallest policy that allows what a guest was seen to use."""
        return _one(bodies.PolicyText(policy=self._host.suggest_policy(guest, suffixes=suffixes)))

    def decisions(self, guest: GuestFilter = None) -> Response:
        """The last decisions, of all guests or of one, oldest first."""
        return _listed(each.text() for each in self._host.decisions(guest))

    def watch(self, guest: GuestFilter = None) -> Response:
        """Decisions as they are taken, as server-sent events, until the client has enough."""
        return StreamingResponse(self._events(guest), media_type="text/event-stream")

    async def _events(self, guest: str | None) -> AsyncIterator[str]:
        watch = self._host.watch(guest)
        try:
            yield ": watching\n\n"
            while not self._stopping():
                decision = watch.poll()
                if decision is None:
                    await asyncio.sleep(WATCH_POLL_S)
                else:
                    yield f"data: {decision.text(brief=True)}\n\n"
        finally:
            watch.close()

    def check_policy(self, request: bodies.PolicyText) -> Response:
        """A policy's canonical text, and remarks on rules that cannot do what they say."""
        policy = parse_policy(request.policy)
        remarks = tuple(
            bodies.RuleRemark(rule=each.rule, text=each.text, message=each.message)
            for each in warnings(policy)
        )
        return _one(bodies.PolicyChecked(policy=str(policy), remarks=remarks))

    def counters(self) -> Response:
        """Packets refused and dropped on this machine so far, by `family/reason`."""
        return _one(RootModel[dict[str, int]](self._host.counters()))

    def doctor(self) -> Response:
        """What keeps guests from working on this machine, each with its remedy."""
        return _many(self._host.doctor())

    def reconcile(self) -> Response:
        """Put right what differs between the kernel and the store; says what that was."""
        return _one(self._host.reconcile())

    def follow(self) -> Response:
        """Follow the host's routes and other tools' filters now."""
        self._host.follow()
        return _one(bodies.Done())


def _switch(text: str) -> tuple[str, bool]:
    name, given, value = text.partition("=")
    if given and value not in _SWITCH:
        raise ConfigError(name, value, "is on or off")
    return name, _SWITCH[value] if given else True
