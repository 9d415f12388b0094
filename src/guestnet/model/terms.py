"""Limits of single values and their checks, without any model: what every process may need."""

from __future__ import annotations

import re
from enum import StrEnum

#: IPv4's minimum (RFC 791) and the largest value the field of an interface takes.
MTU_MIN, MTU_MAX = 68, 65535
#: IPv6 does not run over links smaller than this (RFC 8200 section 5).
MTU_MIN_IPV6 = 1280
#: User and group ids as an ioctl takes them: a positive C int.
UID_MAX = 2**31 - 1
#: Descriptors in one message between processes (SCM_MAX_FD of net/scm.h).
TAP_FD_QUEUES_MAX = 253
#: A guest id is text for people and logs; nothing of it reaches a path, a shell or a device name.
GUEST_ID_MAX_BYTES = 255
#: IFNAMSIZ is 16 with the terminating zero (linux/if.h).
INTERFACE_NAME_MAX_BYTES = 15

_NETWORK_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
_INTERFACE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


class Topology(StrEnum):
    """How the guests of a network meet the host."""

    ROUTED = "routed"
    BRIDGE = "bridge"


def check_guest_id(value: str) -> str:
    """Return a guest's id unchanged, or raise `ValueError` saying what an id may be."""
    try:
        size = len(value.encode("utf-8"))
    except UnicodeEncodeError:
        raise ValueError("a guest id is valid UTF-8 text") from None
    if not 1 <= size <= GUEST_ID_MAX_BYTES:
        raise ValueError(f"a guest id is 1 to {GUEST_ID_MAX_BYTES} bytes of text, this has {size}")
    if "\0" in value:
        raise ValueError("a guest id has no NUL")
    return value


def check_network_name(value: str) -> str:
    """Return a network's name unchanged, or raise `ValueError` saying what one may be."""
    if not _NETWORK_NAME.fullmatch(value):
        raise ValueError(
            "a network's name is 1 to 32 lower-case letters, digits and '-', "
            "and begins and ends with a letter or digit"
        )
    return value


def check_interface_name(value: str) -> str:
    """Return an interface name the kernel takes, or raise `ValueError` (dev_valid_name())."""
    size = len(value.encode("utf-8", "surrogatepass"))
    if size > INTERFACE_NAME_MAX_BYTES:
        raise ValueError(
            f"an interface name has at most {INTERFACE_NAME_MAX_BYTES} bytes, this has {size}"
        )
    if not _INTERFACE_NAME.fullmatch(value) or value in (".", ".."):
        raise ValueError("an interface name is letters, digits, '_', '-' and '.'")
    return value


def check_mac(value: str) -> str:
    """Return a unicast MAC in lower case with colons, or raise `ValueError`."""
    text = value.lower().replace("-", ":")
    if not _MAC.fullmatch(text):
        raise ValueError("a MAC is six hex pairs, as 02:6d:73:00:00:02")
    if int(text[:2], 16) & 1:
        raise ValueError("the MAC of an interface is unicast: its first byte is even")
    if text == "00:00:00:00:00:00":
        raise ValueError("the MAC of an interface is not all zeros")
    return text
