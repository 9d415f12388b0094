"""Errors: whose fault it is, and what to do about it, in every one of them."""

from __future__ import annotations

import errno
import inspect

import pytest

from guestnet import errors
from guestnet.errors import (
    BusyError,
    ConfigError,
    ConflictError,
    GuestnetError,
    HostError,
    NotFoundError,
    PolicyError,
    PoolFullError,
    UnreachableError,
)

KINDS = [
    kind
    for _name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, GuestnetError)
]


def test_each_kind_has_an_exit_code_and_a_word_of_its_own() -> None:
    # A policy that cannot be read is wrong input like any other; the word tells them apart.
    codes = {kind.__name__: kind.exit_code for kind in KINDS}
    assert codes.pop("PolicyError") == codes["ConfigError"] == 2
    assert sorted(codes.values()) == list(range(1, len(codes) + 1))
    assert len({kind.code for kind in KINDS}) == len(KINDS)


def test_input_that_is_wrong_names_key_value_and_what_is_right() -> None:
    error = ConfigError("mtu", 12, "is 68 to 65535")
    assert str(error) == "mtu=12: is 68 to 65535"
    assert (error.key, error.value, error.expected) == ("mtu", 12, "is 68 to 65535")


def test_a_policy_error_points_at_the_character() -> None:
    error = PolicyError("allow@pubic", 6, "unknown target 'pubic'", "did you mean 'public'?")
    assert str(error) == (
        "policy: unknown target 'pubic' (did you mean 'public'?)\n  allow@pubic\n        ^"
    )
    assert (error.position, error.key) == (6, "policy")


@pytest.mark.parametrize("kind", [ConflictError, NotFoundError, PolicyError])
def test_children_of_config_error_are_caught_as_the_callers_fault(
    kind: type[GuestnetError],
) -> None:
    assert issubclass(kind, ConfigError)


def test_a_full_pool_says_how_many_it_holds_and_how_many_the_host_keeps() -> None:
    assert str(PoolFullError("lan", "10.0.0.0/29", 5)) == (
        "network 'lan': all 5 guest addresses of 10.0.0.0/29 are in use; "
        "detach a guest or create a network with a larger pool"
    )
    assert "(2 more are skipped: the host uses them)" in str(
        PoolFullError("lan", "10.0.0.0/29", 3, 2)
    )


def test_what_is_missing_has_no_value() -> None:
    assert str(ConfigError("port", None, "a tcp flow has one")) == "port: a tcp flow has one"


def test_a_busy_thing_says_who_has_it() -> None:
    error = BusyError("/run/x", "pid 7 (guestnet)", "stop it first")
    assert str(error) == "/run/x is held by pid 7 (guestnet); stop it first"


@pytest.mark.parametrize(
    ("number", "detail", "text"),
    [
        (errno.EPERM, "", "RTM_NEWLINK gn1: EPERM (Operation not permitted)"),
        (errno.EINVAL, "Unknown link", "RTM_NEWLINK gn1: EINVAL (Invalid argument): Unknown link"),
        (0, "syntax error", "RTM_NEWLINK gn1: syntax error"),
        (0, "", "RTM_NEWLINK gn1"),
        (99999, "", "RTM_NEWLINK gn1: 99999 (Unknown error 99999)"),
    ],
)
def test_the_machines_refusal_says_call_target_and_errno(
    number: int, detail: str, text: str
) -> None:
    assert str(HostError("RTM_NEWLINK", "gn1", number, detail)) == text


def test_an_os_error_keeps_its_number() -> None:
    error = HostError.from_os("open", "/dev/net/tun", OSError(errno.ENOENT, "x"), "modprobe tun")
    assert (error.errno, error.call, error.target) == (errno.ENOENT, "open", "/dev/net/tun")
    assert str(error).endswith("ENOENT (No such file or directory): modprobe tun")
    assert HostError.from_os("recv", "x", OSError("no number")).errno == 0


def test_an_absent_daemon_is_the_machines_state() -> None:
    assert issubclass(UnreachableError, HostError)
