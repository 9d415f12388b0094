"""Names as rules mean them: the name that a flow goes by, and services that resolve names."""

from __future__ import annotations

from dataclasses import dataclass

from ..naming import MAX_NAME, canonical_name, is_below

__all__ = ["MAX_NAME", "NAME_SERVICES", "FlowName", "canonical_name", "is_below"]

#: Ports of services that resolve names beside the gateway: NetBIOS, DNS over TLS and QUIC,
#: multicast DNS, LLMNR. Guests whose policy has rules by name have none of them; port 53 is the
#: gateway's.
NAME_SERVICES = (137, 138, 784, 853, 5353, 5355, 8853)


@dataclass(frozen=True, slots=True)
class FlowName:
    """The name that a flow goes by, as its first bytes or the DNS said it.

    Raises `ConfigError` if it is no name.
    """

    name: str
    """Canonical, whatever spelling was given."""
    verified: bool
    """Whether the flow's address is one that this name really has."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", canonical_name(self.name))
