"""What the API says and hears beyond the models of `guestnet.model`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from ..model import GuestId, NetworkName, Value
from ..policy import MAX_TEXT, Verdict

#: The version in every path; a change that breaks clients gets the next.
API_VERSION = "v1"


class About(Value):
    """Which daemon this is."""

    version: str
    api: Literal["v1"] = "v1"
    pid: int
    state_dir: str
    run_dir: str
    #: The namespace it was told to work in; null is the one it was started in.
    site: str | None
    #: Whether guests live in a private namespace of its own.
    rootless: bool


class Fault(BaseModel):
    """An error: its kind, its text for people, and the error's own fields beside them."""

    model_config = ConfigDict(extra="allow")

    #: config, policy, conflict, not-found, pool-full, busy, host or error.
    code: str
    message: str
    #: What was wrong (`config`, `policy`, `conflict`, `not-found`).
    key: str | None = None
    value: Any = None
    expected: str | None = None


class Detached(Value):
    """Whether there was something to detach; if not, that is no error."""

    detached: bool


class Flow(Value):
    """A flow to explain: `address` is the other end, `port` the service's."""

    guest: GuestId
    protocol: str
    address: str
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    direction: str = "egress"


class Explained(Value):
    """A verdict on a flow, with the rule that decided."""

    allowed: bool
    action: str
    rule: int | None
    text: str
    group: str | None
    reason: str

    @classmethod
    def of(cls, verdict: Verdict) -> Self:
        """The same in JSON's terms."""
        return cls(
            allowed=verdict.allowed,
            action=verdict.action.value,
            rule=verdict.rule,
            text=verdict.text,
            group=verdict.group.value if verdict.group is not None else None,
            reason=verdict.reason,
        )


class PolicyText(Value):
    """A policy to check."""

    policy: Annotated[str, Field(max_length=MAX_TEXT)]


class GuestPolicy(Value):
    """Another policy for a guest."""

    guest: GuestId
    policy: Annotated[str, Field(max_length=MAX_TEXT)]


class NetworkPolicy(Value):
    """Another policy for a network, and for its guests that have none of their own."""

    network: NetworkName
    #: `None` is sealed.
    policy: Annotated[str, Field(max_length=MAX_TEXT)] | None


class RuleRemark(Value):
    """Something about one rule that its owner should know; rules count from 0."""

    rule: int
    text: str
    message: str


class PolicyChecked(Value):
    """A policy in its canonical text."""

    policy: str
    remarks: tuple[RuleRemark, ...]


class Words(Value):
    """An attachment in one VMM's words: as text to paste and as data for programs."""

    format: str
    media_type: str
    text: str
    data: Any


class Done(Value):
    """There is nothing more to say."""

    done: Literal[True] = True
