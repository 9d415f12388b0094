"""Errors as the API says them: the mirror of `client.error_from`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from ..errors import (
    BusyError,
    ConfigError,
    ConflictError,
    GuestnetError,
    HostError,
    NotFoundError,
    PoolFullError,
)
from .bodies import Fault

logger = logging.getLogger(__name__)

#: By the nearest class; RFC 9110 section 15, RFC 4918 section 11 (422, 423, 507).
STATUS: Mapping[type[GuestnetError], int] = {
    NotFoundError: 404,
    ConflictError: 409,
    ConfigError: 422,
    BusyError: 423,
    PoolFullError: 507,
    GuestnetError: 500,
}

#: For the OpenAPI document: every operation may answer so.
RESPONSES: dict[int | str, dict[str, Any]] = {
    404: {"model": Fault, "description": "No such network or guest"},
    409: {"model": Fault, "description": "Something else stands in its place"},
    422: {"model": Fault, "description": "The request is wrong; `key` says where"},
    500: {"model": Fault, "description": "The machine refused"},
    507: {"model": Fault, "description": "Every address of the network is in use"},
}


def fault(error: GuestnetError) -> dict[str, Any]:
    """An error as a JSON-able document: `code`, `message`, and the error's attributes."""
    document = {"code": error.code, "message": str(error), **vars(error)}
    # What the values of `ConfigError` may be is up to its raiser: networks, paths, tuples …
    safe: dict[str, Any] = json.loads(json.dumps(document, default=str, skipkeys=True))
    return safe


def status(error: GuestnetError) -> int:
    """The HTTP status that fits."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def answer(error: GuestnetError, code: int | None = None) -> Response:
    """The response that tells an error."""
    return Response(
        json.dumps(fault(error)), status_code=code or status(error), media_type="application/json"
    )


def install(app: FastAPI) -> None:
    """Let every error of `app`, foreign ones too, be told in this way."""
    app.add_exception_handler(GuestnetError, _own)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _bug)


async def _own(_request: Request, error: Exception) -> Response:
    assert isinstance(error, GuestnetError)
    if isinstance(error, HostError):
        logger.error("%s", error)
    return answer(error)


async def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    # The first part says where: body, query or path.
    key = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    expected = "is required" if first["type"] == "missing" else first["msg"]
    return answer(ConfigError(key, first.get("input"), expected))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return answer(NotFoundError("request", what, "there is no such thing in this API"))
    return answer(ConfigError("request", what, str(error.detail)), error.status_code)


async def _bug(request: Request, error: Exception) -> Response:
    # Starlette raises it again behind this answer, so that the server logs it with its trace.
    what = f"{request.method} {request.url.path}"
    reason = f"{type(error).__name__}: {error}; see the daemon's log"
    return answer(HostError(what, "failed", 0, reason))
