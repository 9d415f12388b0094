"""`RootlessSite`: a `Site` whose work an agent does."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, KeysView
from typing import Any, Concatenate, ParamSpec, TypeVar

from ..outlook import Address as _Address
from ..outlook import Outlook, Surroundings, Way
from ..site import NamespaceSite
from .process import Agent

P = ParamSpec("P")
R = TypeVar("R")


def _remote(
    method: Callable[Concatenate[NamespaceSite, P], R],
) -> Callable[Concatenate[RootlessSite, P], R]:
    """The same method, done by the agent."""
    name = method.__name__

    def call(site: RootlessSite, /, *args: P.args, **kwargs: P.kwargs) -> R:
        answer: R = site.agent.ask(name, *map(_sendable, args), **kwargs)
        return answer

    call.__name__, call.__doc__ = name, method.__doc__
    return call


class RootlessSite:
    """`Site` in a private user and network namespace; both end with it.

    What is inside is asked of the agent. What is around guests (the ways out, the host's own
    addresses) is seen from the owner's namespace: that is where relayed flows leave from.
    """

    #: Nothing in the namespace leads outside.
    relays_all = True
    #: The namespace is not the one that flows leave from: it has none of the host's addresses.
    is_apart = True
    #: The gateway stays where its owner is.
    netns_fd: int | None = None

    def __init__(self, agent: Agent | None = None) -> None:
        self.life = f"rootless {uuid.uuid4().hex}"
        self.agent = agent or Agent()
        try:
            self.agent.await_ready()
            self._outlook = Outlook()
        except BaseException:
            self.agent.close()
            raise

    def close(self) -> None:
        """End the agent, and with it everything inside; a second call does nothing."""
        self.agent.close()
        self._outlook.close()

    def watch(self, lost: Callable[[str], None]) -> None:
        """Call `lost` with the reason, from another thread, should the agent end unasked."""
        self.agent.watch(lost)

    @property
    def namespace(self) -> str:
        """The network namespace's path."""
        return f"/proc/{self.agent.pid}/ns/net"

    # -- inside --------------------------------------------------------------------------------

    perform = _remote(NamespaceSite.perform)
    delete_retired = _remote(NamespaceSite.delete_retired)
    pin = _remote(NamespaceSite.pin)
    unpin = _remote(NamespaceSite.unpin)
    pinned = _remote(NamespaceSite.pinned)
    seen = _remote(NamespaceSite.seen)
    flows_of = _remote(NamespaceSite.flows_of)
    forget_flows = _remote(NamespaceSite.forget_flows)
    delete_flows = _remote(NamespaceSite.delete_flows)
    forget_counts = _remote(NamespaceSite.forget_counts)
    remove_tables = _remote(NamespaceSite.remove_tables)
    steer = _remote(NamespaceSite.steer)
    set_sysctls = _remote(NamespaceSite.set_sysctls)
    restore_sysctls = _remote(NamespaceSite.restore_sysctls)
    forwarding_changes = _remote(NamespaceSite.forwarding_changes)
    accounting_changes = _remote(NamespaceSite.accounting_changes)
    sysctl = _remote(NamespaceSite.sysctl)
    observe = _remote(NamespaceSite.observe)
    chains = _remote(NamespaceSite.chains)
    device = _remote(NamespaceSite.device)
    refused = _remote(NamespaceSite.refused)
    left_out = _remote(NamespaceSite.left_out)
    left_out_so_far = _remote(NamespaceSite.left_out_so_far)
    counters = _remote(NamespaceSite.counters)
    foreign_filters = _remote(NamespaceSite.foreign_filters)
    accept_in_foreign_filters = _remote(NamespaceSite.accept_in_foreign_filters)
    new_namespace = _remote(NamespaceSite.new_namespace)
    drop_namespace = _remote(NamespaceSite.drop_namespace)
    is_ours = staticmethod(NamespaceSite.is_ours)

    def within(self, work: Callable[[], R]) -> R:
        """Do something in the site's namespace; sockets in what it returns come along."""
        answer: R = self.agent.ask("within", work)
        return answer

    # -- around --------------------------------------------------------------------------------

    def egress(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Interfaces by which flows leave: those named, or where public addresses are routed."""
        return self._outlook.egress(wanted)

    def mtu(self, name: str) -> int | None:
        """The MTU of one of the host's devices in bytes, or None if there is no such device."""
        return self._outlook.mtu(name)

    def way_to(self, address: _Address) -> Way | None:
        """How the host routes an address."""
        return self._outlook.way_to(address)

    def surroundings(self) -> Surroundings:
        """The host's own addresses and routes."""
        return self._outlook.surroundings()


def _sendable(value: Any) -> Any:
    """What can be pickled: a generator is gone through here."""
    return tuple(value) if isinstance(value, (Iterator, KeysView)) else value
