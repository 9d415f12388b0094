"""The daemon's reading of what workers tell, as strict as if a stranger told it.

What is misshapen or too long ends the worker, not the daemon.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from .messages import MAX_REPORT_BYTES, Report

_REPORTS: TypeAdapter[Report] = TypeAdapter(Annotated[Report, Field(discriminator="kind")])


def read_report(text: bytes) -> Report:
    """A report; raises `ValueError` for anything that is none."""
    if len(text) > MAX_REPORT_BYTES:
        raise ValueError(f"a report of {len(text)} bytes")
    try:
        return _REPORTS.validate_json(text)
    except ValidationError as error:
        raise ValueError(f"no report: {error.errors()[0]['msg']}") from None
