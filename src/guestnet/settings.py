"""Where an instance lives and what it starts with: options, environment, file, defaults.

Options override the environment, which overrides the file. Every error names what it is about as
its owner wrote it: `GUESTNET_RUN_DIR=''`, or `guestnet.toml: network.ci.mtu=70000`. This module
stays light, because every command of the command line begins with it: the models are imported when
there are networks to read.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from . import directories
from .errors import ConfigError

if TYPE_CHECKING:
    from .model import NetworkSpec

SOCKET_NAME = "guestnet.sock"
#: sun_path of sockaddr_un is 108 bytes with its terminating zero (linux/un.h).
SOCKET_PATH_MAX_BYTES = 107

#: Workers of the gateway that may be asked for: more than any machine's relay needs.
WORKERS_MOST = 16

#: Settings that are one value each, and the variable that overrides the file's.
VARIABLES: Mapping[str, str] = {
    "state_dir": "GUESTNET_STATE_DIR",
    "run_dir": "GUESTNET_RUN_DIR",
    "site": "GUESTNET_SITE",
    "socket_group": "GUESTNET_SOCKET_GROUP",
    "gateway_workers": "GUESTNET_GATEWAY_WORKERS",
    "rootless": "GUESTNET_ROOTLESS",
}
_SWITCH = {"on": True, "off": False}
CONFIG_VARIABLE = "GUESTNET_CONFIG"
_NETWORKS = "network"
#: The network that the variables of `NetworkSpec.from_env` are about.
_DEFAULT_NETWORK = "default"


@dataclass(frozen=True)
class Settings:
    """One instance's settings; `load` reads them, paths come out absolute."""

    #: What must survive a restart of the daemon: the leases.
    state_dir: Path
    #: Socket, pid and log; may go when the machine goes down.
    run_dir: Path
    #: Guests live in a private user and network namespace: the only way without root.
    rootless: bool = False
    #: The file that was read, if there was one.
    config: Path | None = None
    #: Network namespace (name or path) to work in; `None` is the daemon's own.
    site: str | None = None
    #: Group (name or number) whose members may use the socket; `None` is root alone.
    socket_group: str | None = None
    #: Processes that decide and relay by name; `None` is one for each processor, 8 at most.
    gateway_workers: int | None = None
    #: The file's `[network.NAME]` tables, as they were written.
    tables: Mapping[str, Any] = field(default_factory=dict, repr=False)
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def load(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        config: str | Path | None = None,
        **options: str | Path | None,
    ) -> Self:
        """Read the settings; `options` are the keys of `VARIABLES`.

        Raises `ConfigError`, also when a file that was asked for by name cannot be read.
        """
        environ = dict(os.environ if environ is None else environ)
        # The file's place depends on it, so it is no key of the file.
        rootless = _rootless(options.get("rootless"), environ)
        file = _config_file(config, environ, rootless)
        written = _read(file) if file is not None else {}
        found: dict[str, str] = {}
        for key, variable in VARIABLES.items():
            if key == "rootless":
                continue
            text = _chosen(key, options.get(key), variable, environ, written, file)
            if text is not None:
                found[key] = text
        return cls(
            state_dir=_absolute(found.get("state_dir") or directories.state_dir(rootless, environ)),
            run_dir=_absolute(found.get("run_dir") or directories.run_dir(rootless, environ)),
            rootless=rootless,
            config=file,
            site=found.get("site"),
            socket_group=found.get("socket_group"),
            gateway_workers=int(found["gateway_workers"]) if "gateway_workers" in found else None,
            tables=_tables(written, file),
            environ=environ,
        )

    @property
    def socket(self) -> Path:
        """The daemon's socket; `ConfigError` if its path is longer than the kernel takes."""
        path = self.run_dir / SOCKET_NAME
        size = len(os.fsencode(path))
        if size > SOCKET_PATH_MAX_BYTES:
            raise ConfigError(
                "run_dir",
                str(self.run_dir),
                f"a socket's path has at most {SOCKET_PATH_MAX_BYTES} bytes, {path} has {size}",
            )
        return path

    @property
    def client_socket(self) -> Path:
        """The socket of the daemon to ask: an ordinary user without one may have the machine's."""
        machine = directories.run_dir(False) / SOCKET_NAME
        if not self.rootless or self.run_dir != directories.run_dir(True, self.environ):
            return self.socket
        is_up = os.path.exists(self.socket)
        return machine if not is_up and os.access(machine, os.W_OK) else self.socket

    @cached_property
    def networks(self) -> tuple[NetworkSpec, ...]:
        """The networks of the file, checked; the daemon creates those that are missing."""
        return tuple(self._network(name, table) for name, table in self.tables.items())

    def _network(self, name: str, table: object) -> NetworkSpec:
        from .model import NetworkSpec

        where = f"{self.config.name if self.config else CONFIG_VARIABLE}: {_NETWORKS}.{name}"
        if not isinstance(table, dict):
            raise ConfigError(where, table, "is a table: [network.NAME]")
        if "name" in table:
            raise ConfigError(f"{where}.name", table["name"], "the table's own name is the name")
        try:
            data = {**_network_data(table), "name": name}
            if name == _DEFAULT_NETWORK:
                return NetworkSpec.from_env(self.environ, **data)
            return NetworkSpec(**data)
        except ConfigError as error:
            if error.key in self.environ:
                raise
            raise ConfigError(f"{where}.{error.key}", error.value, error.expected) from None


def _network_data(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table in `NetworkSpec`'s terms: TOML has no null, and a policy may be a table."""
    from .policy import parse_policy

    data = dict(table)
    for family in ("ipv4", "ipv6"):
        if data.get(family) == "none":
            data[family] = None
    if "policy" in data:
        # Text stays as its owner wrote it, comments and all; reading it here finds its errors.
        policy = parse_policy(data["policy"])
        if not isinstance(data["policy"], str):
            data["policy"] = str(policy)
    return data


def _rootless(option: str | Path | None, environ: Mapping[str, str]) -> bool:
    """Whether there is to be no root: an ordinary user has no choice but may say so."""
    for key, text in (
        ("rootless", option),
        (VARIABLES["rootless"], environ.get("GUESTNET_ROOTLESS")),
    ):
        if text is not None:
            if _text(key, str(text)) not in _SWITCH:
                raise ConfigError(key, str(text), "is on or off")
            return _SWITCH[str(text)]
    return os.geteuid() != 0


def _config_file(
    option: str | Path | None, environ: Mapping[str, str], rootless: bool
) -> Path | None:
    """The file to read; the default one need not exist, one that was named must."""
    if option is not None:
        return _absolute(_text("config", str(option)))
    if CONFIG_VARIABLE in environ:
        return _absolute(_text(CONFIG_VARIABLE, environ[CONFIG_VARIABLE]))
    default = directories.config_file(rootless, environ)
    # Not Path.exists, which takes a directory that is closed to us for a failure.
    return default if os.path.exists(default) else None


def _read(file: Path) -> dict[str, Any]:
    import tomllib

    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("config", str(file), error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        raise ConfigError("config", str(file), f"is not UTF-8 at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("config", str(file), f"is not TOML: {error}") from None
    known = [*(key for key in VARIABLES if key != "rootless"), _NETWORKS]
    for key, value in data.items():
        if key not in known:
            raise ConfigError(f"{file.name}: {key}", value, f"no such key{_near(key, known)}")
    return data


def _near(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"


def _chosen(
    key: str,
    option: str | Path | None,
    variable: str,
    environ: Mapping[str, str],
    written: Mapping[str, Any],
    file: Path | None,
) -> str | None:
    if option is not None:
        return _value(key, key, str(option))
    if variable in environ:
        return _value(key, variable, environ[variable])
    if key in written:
        return _value(key, f"{file.name if file else 'config'}: {key}", written[key])
    return None


def _value(key: str, where: str, value: object) -> str:
    """A setting's text, checked; `where` is what its owner calls it."""
    if key != "gateway_workers":
        return _text(where, value)
    text = str(value) if type(value) is int else _text(where, value)
    if not (
        text.isascii() and text.isdigit() and len(text) <= 2 and 1 <= int(text) <= WORKERS_MOST
    ):
        raise ConfigError(where, value, f"is a number from 1 to {WORKERS_MOST}")
    return text


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(key, value, "is text")
    if not value.strip():
        raise ConfigError(key, value, "is set but empty; unset it")
    if "\0" in value:
        raise ConfigError(key, value, "has a NUL")
    return value


def _tables(written: Mapping[str, Any], file: Path | None) -> Mapping[str, Any]:
    tables = written.get(_NETWORKS, {})
    if not isinstance(tables, dict):
        where = f"{file.name if file else 'config'}: {_NETWORKS}"
        raise ConfigError(where, tables, "networks are tables: [network.NAME]")
    return tables


def _absolute(path: str | Path) -> Path:
    return Path(path).expanduser().absolute()
