"""Values of options, in the API's terms."""

from __future__ import annotations

import grp
import pwd
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import ConfigError


def several(values: Sequence[str] | None) -> list[str] | None:
    """Values of an option that may be repeated, or hold several with commas."""
    if values is None:
        return None
    return [part.strip() for value in values for part in value.split(",")]


def records(values: Sequence[str] | None) -> dict[str, list[str]] | None:
    """Records given as NAME=VALUE, those of one name together; the values are checked later."""
    if values is None:
        return None
    found: dict[str, list[str]] = {}
    for text in values:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise ConfigError("record", text, "is written NAME=ADDRESS or NAME=OTHER-NAME")
        found.setdefault(name, []).append(value)
    return found


def to_run(command: Sequence[str]) -> list[str]:
    """A command that follows our own options, with or without `--` between."""
    argv = list(command[1:] if command[:1] == ["--"] else command)
    if not argv or not argv[0]:
        raise ConfigError("command", " ".join(command), "name a command to run")
    return argv


def policy_text(text: str | None, file: str | None) -> str | None:
    """A policy given as text or as a file (`-` is stdin)."""
    if file is None:
        return text
    if text is not None:
        raise ConfigError("policy_file", file, "give the policy as text or as a file, not both")
    return _read("policy_file", file)


def policy_given(given: str) -> str:
    """A policy given as text or as a file, whichever it is; what no policy looks like is a file."""
    is_file = any(c in given for c in "./") and not any(c in given for c in "@=,# \n")
    with suppress(OSError):  # no path: a text as long as it likes
        is_file = is_file or Path(given).is_file()
    return _read("policy", given) if is_file else given


def _read(key: str, file: str) -> str:
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return data.decode()
    except OSError as error:
        raise ConfigError(key, file, error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(key, file, f"is not UTF-8 at byte {error.start}") from None


def user_id(name: str | None) -> int | None:
    """A user's number, given as number or name."""
    if name is None or name.isdecimal():
        return int(name) if name else None
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ConfigError("owner", name, "there is no such user") from None


def group_id(name: str | None) -> int | None:
    """A group's number, given as number or name."""
    if name is None or name.isdecimal():
        return int(name) if name else None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError("group", name, "there is no such group") from None


def absolute_transport(text: str) -> str:
    """A transport whose path is absolute: the daemon works in another directory."""
    kind, colon, path = text.partition(":")
    return f"{kind}:{Path(path).absolute()}" if colon and path else text


def destination(address: str, port: str | None) -> tuple[str, int | None]:
    """`ADDRESS`, `ADDRESS:PORT`, `[IPV6]:PORT`, or both apart. The address is checked later."""
    if address.startswith("["):
        inner, _, rest = address[1:].partition("]")
        if rest and (port is not None or not rest.startswith(":")):
            raise ConfigError("address", address, "is written [IPV6]:PORT")
        return inner, _port(rest[1:] if rest else port)
    if address.count(":") == 1:
        if port is not None:
            raise ConfigError("address", address, "has a port already")
        address, _, port = address.partition(":")
    return address, _port(port)


def _port(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 65535):
        raise ConfigError("port", text, "is a number from 1 to 65535")
    return int(text)
