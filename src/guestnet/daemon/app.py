"""The API as an ASGI application."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI

from ..host import Host
from . import faults
from .bodies import API_VERSION, About
from .limits import Limits
from .routes import Routes


def create_app(host: Host, about: About, stopping: Callable[[], bool] = lambda: False) -> FastAPI:
    """The API of an open `Host`. Closing the host is up to the caller.

    `stopping` says that the daemon is going down, for what would otherwise go on for ever.
    """
    app = FastAPI(
        title="guestnet",
        version=about.version,
        summary="Networks for microVM guests that nobody trusts.",
        openapi_url=f"/{API_VERSION}/openapi.json",
        # Their pages load scripts from elsewhere; the document above is what tools read.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(Routes(host, about, stopping).router())
    faults.install(app)
    app.add_middleware(Limits)
    return app
