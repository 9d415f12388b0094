"""Whose fault it is, and what to do about it.

Every error that leaves guestnet is a `GuestnetError`. The three kinds answer the first question an
owner has: did I ask for something wrong (`ConfigError` and its children), is there something in the
way that will pass or that another process holds (`BusyError`), or did the machine refuse
(`HostError`)? Nothing half-done remains behind any of them.
"""

from __future__ import annotations

import errno as errno_names
import os


class GuestnetError(Exception):
    """The root of everything guestnet raises on purpose."""

    #: Exit status of the command line, and the `code` of the HTTP API's error body.
    exit_code = 1
    code = "error"

    def __reduce__(self) -> tuple[object, ...]:
        # As it is, whatever its class wants to be made of: errors go from process to process.
        return _as_it_was, (type(self), self.args, vars(self))


def _as_it_was(
    kind: type[GuestnetError], args: tuple[object, ...], fields: dict[str, object]
) -> GuestnetError:
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(fields)
    return error


class ConfigError(GuestnetError):
    """The caller's input is wrong: names the key, shows the value, says what would be right."""

    exit_code = 2
    code = "config"

    def __init__(self, key: str, value: object, expected: str) -> None:
        self.key = key
        self.value = value
        self.expected = expected
        shown = key if value is None else f"{key}={value!r}"
        super().__init__(f"{shown}: {expected}")


class PolicyError(ConfigError):
    """A policy text that cannot be read; `position` is the 0-based character where reading stopped.

    `hint` is the near word or the usual mistake, or empty.
    """

    code = "policy"

    def __init__(self, text: str, position: int, problem: str, hint: str = "") -> None:
        self.text = text
        self.position = position
        self.problem = problem
        self.hint = hint
        pointer = f"\n  {text}\n  {' ' * position}^"
        expected = problem + (f" ({hint})" if hint else "") + pointer
        super().__init__("policy", text, expected)

    def __str__(self) -> str:
        return f"policy: {self.expected}"


class ConflictError(ConfigError):
    """The request is well-formed but something else already stands in its place."""

    exit_code = 3
    code = "conflict"


class NotFoundError(ConfigError):
    """There is no network, guest or interface of that name."""

    exit_code = 4
    code = "not-found"


class PoolFullError(GuestnetError):
    """Every address of the network is leased; says how many there are."""

    exit_code = 5
    code = "pool-full"

    def __init__(self, network: str, pool: str, capacity: int, skipped: int = 0) -> None:
        self.network = network
        self.pool = pool
        self.capacity = capacity
        self.skipped = skipped
        overlap = f" ({skipped} more are skipped: the host uses them)" if skipped else ""
        super().__init__(
            f"network {network!r}: all {capacity} guest addresses of {pool} are in use{overlap}; "
            f"detach a guest or create a network with a larger pool"
        )


class BusyError(GuestnetError):
    """Another live process holds what was asked for; `holder` says which, where it can be known."""

    exit_code = 6
    code = "busy"

    def __init__(self, what: str, holder: str, remedy: str) -> None:
        self.what = what
        self.holder = holder
        self.remedy = remedy
        super().__init__(f"{what} is held by {holder}; {remedy}")


class HostError(GuestnetError):
    """The machine refused: `call` on `target` failed with `errno`.

    `errno` is 0 where the failure has no number of its own (a missing library, a refused ruleset).
    """

    exit_code = 7
    code = "host"

    def __init__(self, call: str, target: str, errno: int = 0, detail: str = "") -> None:
        self.call = call
        self.target = target
        self.errno = errno
        self.detail = detail
        name = errno_names.errorcode.get(errno, str(errno))
        reason = f": {name} ({os.strerror(errno)})" if errno else ""
        super().__init__(f"{call} {target}{reason}" + (f": {detail}" if detail else ""))

    @classmethod
    def from_os(cls, call: str, target: str, error: OSError, detail: str = "") -> HostError:
        """The same failure as an `OSError`, with the call and the object it was about."""
        return cls(call, target, error.errno or 0, detail)


class UnreachableError(HostError):
    """No daemon answers on the socket."""

    exit_code = 8
    code = "unreachable"
