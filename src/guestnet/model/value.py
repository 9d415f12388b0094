"""`Value`: what models have in common, and the types of fields that several of them have."""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)

from ..errors import ConfigError
from .decision import Decision
from .terms import (
    MTU_MAX,
    MTU_MIN,
    check_guest_id,
    check_interface_name,
    check_mac,
    check_network_name,
)

#: A part of a key's path: a field's name, or a position in a list.
_KEY = re.compile(r"[a-z0-9_]+")

GuestId = Annotated[str, Field(strict=True), AfterValidator(check_guest_id)]
NetworkName = Annotated[str, AfterValidator(check_network_name)]
InterfaceName = Annotated[str, AfterValidator(check_interface_name)]
Mac = Annotated[str, AfterValidator(check_mac)]
Mtu = Annotated[int, Field(ge=MTU_MIN, le=MTU_MAX)]


class Value(BaseModel):
    """A frozen model whose construction raises `ConfigError` rather than pydantic's own error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise config_error(error) from None

    @classmethod
    def read(cls, data: object, *, key: str = "") -> Self:
        """Build from parsed JSON or TOML; an error's key is prefixed with `key`."""
        try:
            return cls.model_validate(data)
        except ConfigError as error:
            raise ConfigError(_join(key, error.key), error.value, error.expected) from None
        except ValidationError as error:
            raise config_error(error, key) from None


def read_decision(data: object) -> Decision:
    """Build a decision from parsed JSON, as `Value.read` does a model."""
    try:
        return _decisions().validate_python(data)
    except ValidationError as error:
        raise config_error(error) from None


@cache
def _decisions() -> TypeAdapter[Decision]:
    return TypeAdapter(Decision)


def config_error(error: ValidationError, prefix: str = "") -> ConfigError:
    """The first of pydantic's findings in guestnet's words: key, value, what would be right."""
    first = error.errors(include_url=False)[0]
    # Where a key takes several types, pydantic adds the one that it tried; that is no key.
    parts = [str(part) for part in first["loc"] if _KEY.fullmatch(str(part))]
    key = _join(prefix, ".".join(parts))
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if first["type"] == "extra_forbidden":
        message = "no such key"
    elif first["type"] == "missing":
        return ConfigError(key, None, "is required")
    return ConfigError(key or "value", first["input"], message)


def _join(prefix: str, key: str) -> str:
    return ".".join(part for part in (prefix, key) if part)
