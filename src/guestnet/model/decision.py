"""What was decided about a guest: a plain value, as the gateway makes them and has no pydantic."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, ClassVar, Literal

from .terms import check_guest_id, check_network_name

#: Characters, or addresses, of a field at most.
_LONGEST: Mapping[str, int] = {"name": 255, "rule": 1024, "reason": 2048, "answers": 64}


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One thing that was decided about a guest: a flow, a question, a refusal.

    A flow that the kernel forwards is told twice: when it begins and when it ended. Everything else
    is told once: a flow through the gateway when it ended, the rest when it was decided.
    """

    #: Seconds since the epoch, when it was decided; of an end, when that was.
    time: float
    guest: str
    network: str
    #: `dns` for a question to the gateway, `flow` for all else.
    kind: Literal["flow", "dns"]
    #: Who opened the flow: the guest (egress) or its peer (ingress).
    direction: Literal["egress", "ingress"] = "egress"
    #: `any` is one that policies have no word for (GRE, SCTP, …).
    protocol: Literal["tcp", "udp", "icmpv4", "icmpv6", "any"]
    #: The name asked for, spoken (SNI, Host) or pinned; empty when none is known.
    name: str = ""
    #: The other end; empty for a question.
    address: IPv4Address | IPv6Address | None = None
    #: The service's; 0 where the protocol has none.
    port: int
    verdict: Literal["allow", "deny"]
    #: Text of the deciding rule, or the default or limit that decided.
    rule: str
    #: Its position in the policy, from 0; `None` when no rule decided.
    rule_index: int | None = None
    reason: str = ""
    #: What a question was answered with, as far as it is addresses.
    answers: tuple[IPv4Address | IPv6Address, ...] = ()
    #: Bytes from the guest, and to it.
    bytes_up: int = 0
    bytes_down: int = 0
    #: Of a forwarded flow until the kernel forgot it, some time after its last packet.
    duration_s: float = 0.0
    #: Which of the two a forwarded flow's decision is; `None` of all else.
    event: Literal["begin", "end"] | None = None
    #: A forwarded flow's number, at both; others get it later. `None` of all else.
    flow: int | None = None
    #: Decisions like this one that were left out since the last that was told.
    omitted: int = 0

    #: For pydantic, where one is read: a key that is none of these is an error, and so is
    #: what JSON has no number for.
    __pydantic_config__: ClassVar[Mapping[str, object]] = {
        "extra": "forbid", "allow_inf_nan": False,
    }  # fmt: skip

    def __post_init__(self) -> None:
        """Raise `ValueError` for what does not fit."""
        check_guest_id(self.guest)
        check_network_name(self.network)
        if not 0 <= self.port <= 65535:
            raise ValueError("a port is a number from 0 to 65535")
        for key, most in _LONGEST.items():
            if len(getattr(self, key)) > most:
                raise ValueError(f"{key} is longer than {most}")

    def text(self, *, brief: bool = False) -> str:
        """As JSON; `brief` is without what is as by default."""
        fields: dict[str, Any] = vars(self)
        if brief:
            defaults = vars(type(self))
            fields = {k: v for k, v in fields.items() if v != defaults.get(k, MISSING)}
        return json.dumps(fields, default=str, ensure_ascii=False, separators=(",", ":"))
