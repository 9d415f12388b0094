"""The API as an ASGI application."""

from __future__ import annotations

from fastapi import FastAPI

from ..host import Host
from . import faults
from .bodies import API_VERSION, About
from .limits import Limits
from .routes import Routes


def create_app(host: Host, about: About) -> FastAPI:
    """The API of an open `Host`. Closing the host is up to the caller."""
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
    app.include_router(Routes(host, about).router())
    faults.install(app)
    app.add_middleware(Limits)
    return app
