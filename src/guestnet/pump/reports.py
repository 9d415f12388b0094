"""What a pump tells the daemon: one JSON object a line, read as strictly as a stranger's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

#: Bytes of one line: a path and a reason.
MAX_REPORT_BYTES = 4096

_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Text = Annotated[str, Field(max_length=512)]


class Report(BaseModel):
    """One line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["ready", "connected", "closed", "counts"]
    connections: _Count
    malformed: _Count
    refused: _Count
    #: Of `ready`: how far the pump is confined.
    confinement: Annotated[tuple[_Text, ...], Field(max_length=8)] = ()
    #: Of `connected`: the VMM's own socket, if it has a name.
    peer: _Text = ""
    #: Of `closed`: empty if the VMM hung up in order.
    reason: _Text = ""


def read_report(text: bytes) -> Report:
    """Read a line; raises `ValueError` for anything that is none."""
    try:
        return Report.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(f"no report: {error.errors()[0]['msg']}") from None
