"""Where an instance keeps its things unless it is told otherwise: the machine's, or a user's own.

A user's are those of the XDG Base Directory Specification, whose variables count only if they are
absolute paths. All raise `ConfigError` where nothing tells the user's home.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from .errors import ConfigError

_NAME = "guestnet"


def state_dir(rootless: bool, environ: Mapping[str, str] = os.environ) -> Path:
    """Leases and decisions."""
    if not rootless:
        return Path("/var/lib") / _NAME
    return _xdg("XDG_STATE_HOME", ".local/state", environ) / _NAME


def run_dir(rootless: bool, environ: Mapping[str, str] = os.environ) -> Path:
    """Socket, pid and log."""
    if not rootless:
        return Path("/run") / _NAME
    session = session_dir(environ)
    return session / _NAME if session is not None else state_dir(rootless, environ) / "run"


def session_dir(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Where a user's sockets go that end with their session.

    Without one of systemd's there is none: a service, a container, su.
    """
    given = environ.get("XDG_RUNTIME_DIR", "")
    if given.startswith("/"):
        return Path(given)
    usual = Path("/run/user") / str(os.geteuid())
    return usual if os.access(usual, os.W_OK) else None


def config_file(rootless: bool, environ: Mapping[str, str] = os.environ) -> Path:
    """The settings file; it need not exist."""
    parent = _xdg("XDG_CONFIG_HOME", ".config", environ) if rootless else Path("/etc")
    return parent / _NAME / "guestnet.toml"


def _xdg(variable: str, default: str, environ: Mapping[str, str]) -> Path:
    given = environ.get(variable, "")
    if given.startswith("/"):
        return Path(given)
    if "HOME" in environ:
        return Path(environ["HOME"]) / default
    try:
        return Path.home() / default
    except RuntimeError:
        right = f"is not set, and this user has no entry in /etc/passwd; set it, or {variable}"
        raise ConfigError("HOME", None, right) from None
