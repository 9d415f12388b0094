"""`RootlessSite`: a `Site` whose work an agent does."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, KeysView
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from ..conntrack import Conntrack
from ..counts import Counts
from ..foreign import ForeignFilters
from ..outlook import Outlook
from ..pins import PinSets
from ..site import NamespaceSite
from ..sysctl import Sysctls
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


class _Part:
    """Stands for a part of the agent's site, as which it is cast: its methods are done there."""

    def __init__(self, agent: Agent, name: str) -> None:
        self._agent = agent
        self._name = name

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return self._agent.ask(f"{self._name}.{method}", *map(_sendable, args), **kwargs)

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
        self.pins = cast(PinSets, _Part(self.agent, "pins"))
        self.counts = cast(Counts, _Part(self.agent, "counts"))
        self.conntrack = cast(Conntrack, _Part(self.agent, "conntrack"))
        self.sysctls = cast(Sysctls, _Part(self.agent, "sysctls"))
        self.foreign = cast(ForeignFilters, _Part(self.agent, "foreign"))
        try:
            self.agent.await_ready()
            self.outlook = Outlook()
        except BaseException:
            self.agent.close()
            raise

    def close(self) -> None:
        """End the agent, and with it everything inside; a second call does nothing."""
        self.agent.close()
        self.outlook.close()

    def watch(self, lost: Callable[[str], None]) -> None:
        """Call `lost` with the reason, from another thread, should the agent end unasked."""
        self.agent.watch(lost)

    @property
    def namespace(self) -> str:
        """The network namespace's path."""
        return f"/proc/{self.agent.pid}/ns/net"

    perform = _remote(NamespaceSite.perform)
    delete_retired = _remote(NamespaceSite.delete_retired)
    remove_tables = _remote(NamespaceSite.remove_tables)
    steer = _remote(NamespaceSite.steer)
    observe = _remote(NamespaceSite.observe)
    chains = _remote(NamespaceSite.chains)
    device = _remote(NamespaceSite.device)
    new_namespace = _remote(NamespaceSite.new_namespace)
    drop_namespace = _remote(NamespaceSite.drop_namespace)
    is_ours = staticmethod(NamespaceSite.is_ours)

    def within(self, work: Callable[[], R]) -> R:
        """Do something in the site's namespace; sockets in what it returns come along."""
        answer: R = self.agent.ask("within", work)
        return answer


def _sendable(value: Any) -> Any:
    """What can be pickled: a generator is gone through here."""
    return tuple(value) if isinstance(value, (Iterator, KeysView)) else value
