"""What may forbid an ordinary user a network of their own, and what to do about each thing."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ...errors import HostError

_SYS = Path("/proc/sys")
_TUN = Path("/dev/net/tun")
#: Documentation/networking/tuntap.rst
_TUN_DEVICE = os.makedev(10, 200)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Something in the way: what was seen, and the remedy."""

    detail: str
    remedy: str


def user_namespaces() -> list[Obstacle]:
    """Settings that forbid user namespaces, as far as the machine tells."""
    found = []
    if _number("user/max_user_namespaces") == 0:
        remedy = "as root: sysctl -w user.max_user_namespaces=15000"
        found.append(Obstacle("user.max_user_namespaces is 0", remedy))
    if _number("kernel/unprivileged_userns_clone") == 0:
        remedy = "as root: sysctl -w kernel.unprivileged_userns_clone=1"
        found.append(Obstacle("kernel.unprivileged_userns_clone is 0", remedy))
    key = "kernel/apparmor_restrict_unprivileged_userns"
    if os.geteuid() != 0 and _number(key) == 1:
        remedy = (
            "as root: give this Python an AppArmor profile with `userns,`, or "
            f"sysctl -w {key.replace('/', '.')}=0"
        )
        found.append(Obstacle(f"AppArmor gives them no rights ({key} is 1)", remedy))
    return found


def tun() -> list[Obstacle]:
    """Why TAPs cannot be made. Guests that are namespaces need none."""
    try:
        fd = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
        try:
            seen = os.fstat(fd)
        finally:
            os.close(fd)
    except FileNotFoundError:
        return [Obstacle(f"there is no {_TUN}", "as root: modprobe tun")]
    except PermissionError:
        remedy = (
            f"as root: chmod 0666 {_TUN}, as most distributions have it (opening it gives no "
            f"rights over any network), or setfacl -m u:{os.geteuid()}:rw {_TUN}"
        )
        return [Obstacle(f"{_TUN} is not open to this user", remedy)]
    except OSError as error:
        return [Obstacle(f"{_TUN}: {error.strerror}", "allow the device in this container")]
    if not stat.S_ISCHR(seen.st_mode) or seen.st_rdev != _TUN_DEVICE:
        remedy = f"as root: rm {_TUN}; mknod -m 0666 {_TUN} c 10 200"
        return [Obstacle(f"{_TUN} is not the device", remedy)]
    return []


def ping() -> list[Obstacle]:
    """Why echo requests cannot be relayed."""
    text = _text("net/ipv4/ping_group_range")
    if text is None:
        return []
    low, high = map(int, text.split())
    if any(low <= group <= high for group in {os.getegid(), *os.getgroups()}):
        return []
    detail = f"net.ipv4.ping_group_range is {low} {high}, without a group of this user"
    return [Obstacle(detail, 'as root: sysctl -w net.ipv4.ping_group_range="0 2147483647"')]


def settings() -> list[Obstacle]:
    """Why guests cannot reach each other, though all else that their policies allow."""
    if not os.statvfs(_SYS).f_flag & os.ST_RDONLY:
        return []
    remedy = "make it writable in this container (docker: --security-opt systempaths=unconfined)"
    return [Obstacle(f"{_SYS} is read-only: guests do not reach each other", remedy)]


def hint(error: HostError) -> str:
    """What to do about a start that failed, or empty."""
    known = user_namespaces()
    if known:
        return "; ".join(f"{each.detail}; {each.remedy}" for each in known)
    if error.call == "unshare":
        return (
            "user namespaces are forbidden here (a container's seccomp filter, say): allow "
            "unshare and clone with CLONE_NEWUSER (docker: --security-opt seccomp=...), or be root"
        )
    return ""


def _text(key: str) -> str | None:
    try:
        return (_SYS / key).read_text().strip()
    except OSError:
        return None


def _number(key: str) -> int | None:
    text = _text(key)
    return int(text) if text is not None and text.isdecimal() else None
