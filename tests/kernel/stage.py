"""A stage for guests by name: the world, a host in its site, a lying resolver, and guests that
tell what they saw, what was decided about them and what arrived of them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import dns.edns
import dns.message
import dns.rcode
import pytest

from guestnet.host import Host
from guestnet.model import Attachment, Decision
from lab.caller import Caller
from lab.liar import Liar
from lab.netns import Lent, Namespace
from lab.servers import Arrival
from lab.waiting import PATIENCE_S, eventually
from lab.world import World

Address = IPv4Address | IPv6Address

#: Far below the time that a client may take to say whom it means (3 s), far above what it takes.
AT_ONCE_S = 2.5


class Guest(Caller):
    """A guest of the stage: what it does, what was decided about it, what arrived of it."""

    def __init__(self, stage: Stage, attachment: Attachment, namespace: Any) -> None:
        super().__init__(namespace, str(stage.world.certificates.authority))
        self.attachment = attachment
        self._stage = stage
        self._began = time.monotonic()

    @property
    def id(self) -> str:
        return self.attachment.guest

    def own(self, version: int) -> Address:
        """Its address of a family."""
        (found,) = (each for each in self.attachment.addresses if each.version == version)
        return found

    def decisions(self, **wanted: Any) -> list[Decision]:
        """Decisions about it with these fields, so far."""
        return [
            decision
            for decision in self._stage.host.decisions(self.id)
            if all(getattr(decision, key) == value for key, value in wanted.items())
        ]

    def told(self, number: int, **wanted: Any) -> list[Decision]:
        """Decisions with these fields, as soon as there are so many."""
        return eventually(
            lambda: found if len(found := self.decisions(**wanted)) >= number else None
        )

    def decided(self, **wanted: Any) -> Decision:
        """The last decision with these fields, as soon as there is one."""
        return eventually(lambda: self.decisions(**wanted))[-1]

    def decided_once(self, **wanted: Any) -> Decision:
        """The one decision with these fields, as soon as there is one."""
        found = eventually(lambda: self.decisions(**wanted))
        assert len(found) == 1, found
        return found[0]

    def arrivals(self, **wanted: Any) -> list[Arrival]:
        """What reached the internet's servers since it was attached."""
        return [a for a in self._stage.world.arrivals(**wanted) if a.at_s >= self._began]

    @property
    def said_outside(self) -> list[Arrival]:
        """The same without connections on which nothing was said (`knocking`)."""
        return [a for a in self.arrivals() if a.kind not in ("tcp", "dns")]

    def curl(self, *arguments: str) -> dict[str, Any]:
        """Run curl, whose names the C library resolves; returns the lab server's JSON."""
        argv = ["curl", "-sS", "-m", str(PATIENCE_S), "--cacert", str(self.authority), *arguments]
        return dict(json.loads(self.namespace.run(argv).stdout))


class Stage:
    """World, host and lying resolver."""

    def __init__(
        self, world: World, host: Host, liar: Liar | None = None, *, rootless: bool = False
    ) -> None:
        self.world, self.host, self._liar = world, host, liar
        self.rootless = rootless
        self._numbers = itertools.count()

    @property
    def liar(self) -> Liar:
        """The lying resolver of a stage that has one."""
        assert self._liar is not None
        return self._liar

    @contextlib.contextmanager
    def guest(self, policy: str, network: str = "plain", **options: Any) -> Iterator[Guest]:
        """Attach one, with further options of an attachment; cut off at the end."""
        id = f"vm-{next(self._numbers)}"
        options |= {"network": network, "policy": policy}
        asked = ["1.1.1.1", "2606:4700:4700::1111"]
        namespace: Namespace
        if self.rootless:
            attached = self.host.attach(id, netns="new", **options)
            namespace = Lent(Path(attached.netns or ""), id, nameservers=asked)
        else:
            namespace = self.world.add_guest(id, nameservers=asked)
            attached = self.host.attach(id, netns=namespace.path, **options)
        try:
            yield Guest(self, attached, namespace)
        finally:
            self.host.detach(id)
            namespace.delete()


GuestOf = Callable[..., Guest]


@contextlib.contextmanager
def open_host(world: World, state: Path, *, rootless: bool = False) -> Iterator[Host]:
    """guestnet on the world's site: in it as root, or beside it as anybody who is there."""
    if rootless:
        with world.site.enter(), Host.open(state, rootless=True) as host:
            yield host
    else:
        with Host.open(state, site=world.site.path) as host:
            yield host


@contextlib.contextmanager
def refused() -> Iterator[None]:
    """The connection is refused or reset, not merely closed and not silent."""
    with pytest.raises((ConnectionResetError, ConnectionRefusedError, BrokenPipeError)):
        yield


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    print(f"took {took * 1000:.1f} ms")
    assert took < AT_ONCE_S


def of(server: Any, version: int) -> Address:
    """A server's address of a family."""
    found: Address = server.ipv4 if version == 4 else server.ipv6
    return found


def in_family(server: Any, address: Address) -> Address:
    """A server's address of the same family as another address."""
    return of(server, address.version)


def explanation(
    response: dns.message.Message, code: dns.edns.EDECode = dns.edns.EDECode.NETWORK_ERROR
) -> str:
    """The text of an answer's one extended error (RFC 8914), which is of this kind."""
    (error,) = (option for option in response.options if isinstance(option, dns.edns.EDEOption))
    assert error.code == code
    return error.text or ""


def explained(response: dns.message.Message) -> str:
    """Why an answer was blocked."""
    return explanation(response, dns.edns.EDECode.BLOCKED)


def assert_no_such_name(response: dns.message.Message) -> None:
    assert response.rcode() == dns.rcode.NXDOMAIN
    assert response.answer == []
    assert explained(response)
