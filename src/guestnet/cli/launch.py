"""The process between `guestnet run` and its command: `python -m guestnet.cli.launch FD`.

    run ── launch ── init ── command

`launch` reads what to do from a pipe, as it is started before that is known (`launcher`); if the
pipe ends without a word, so does it. It enters the site and starts `init`, the first process of a
pid namespace: when it ends, for whatever reason, the kernel ends all that the command left behind.
Each ends with the one before it.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import struct
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from ..errors import GuestnetError, HostError
from ..kernel.netns import CLONE_NEWPID, unshare
from ..kernel.process import die_with_parent
from .inside import enter, leave_rights, mount_proc
from .waiting import block, reaped, unblock, wait_for

#: What a shell says of a command that it cannot run, and of one that it cannot find.
EXIT_NOT_RUNNABLE, EXIT_NOT_FOUND = 126, 127
#: linux/if_tun.h
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x400454CA, 0x2, 0x1000, 0x4000
_TUN = "/dev/net/tun"


def main() -> None:
    """Enter, start the init process, and wait for it."""
    die_with_parent()
    block()
    with open(int(sys.argv[1]), encoding="utf-8") as told:
        text = told.read()
    if not text:
        os._exit(0)
    spec: dict[str, Any] = json.loads(text)
    user = os.getuid(), os.getgid()
    argv: list[str] = spec["argv"]
    try:
        for remark in enter(spec["netns"], spec["attachment"]):
            _note(remark)
        if spec["tap"] is not None:
            number = str(_open_tap(spec["tap"]))
            argv = [part.replace("{fd}", number) for part in argv]
        unshare(CLONE_NEWPID)
        alive, mine = os.pipe()
        init = _fork()
    except OSError as error:
        _note(str(HostError.from_os("enter", spec["netns"], error)))
        sys.exit(HostError.exit_code)
    except GuestnetError as error:
        _note(str(error))
        sys.exit(error.exit_code)
    if not init:
        os.close(mine)
        _init(alive, argv, user)
    os._exit(wait_for(init, lambda: reaped(init)))


def _init(parent: int, argv: Sequence[str], user: tuple[int, int]) -> NoReturn:
    """Be the first process of the pid namespace, and whoever is orphaned there is its child."""
    die_with_parent()
    # Its parent has no number here, so whether that ended in between shows in this pipe alone.
    if select.select([parent], [], [], 0)[0]:
        os._exit(1)
    mount_proc()
    try:
        command = _fork()
    except HostError as error:
        _note(str(error))
        os._exit(error.exit_code)
    if not command:
        _become(argv, user)
    os._exit(wait_for(command, lambda: reaped(command)))


def _fork() -> int:
    try:
        return os.fork()
    except OSError as error:
        raise HostError.from_os("fork", "the command", error) from None


def _become(argv: Sequence[str], user: tuple[int, int]) -> NoReturn:
    try:
        leave_rights(*user)
        unblock()
        os.execvp(argv[0], list(argv))
    except GuestnetError as error:
        _note(str(error))
        os._exit(error.exit_code)
    except OSError as error:
        _note(f"{argv[0]!r}: {error.strerror}")
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        os._exit(EXIT_NOT_FOUND if missing else EXIT_NOT_RUNNABLE)


def _open_tap(name: str) -> int:
    """A descriptor of a TAP in this namespace, for the command to inherit."""
    try:
        fd = os.open(_TUN, os.O_RDWR)
        request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        fcntl.ioctl(fd, _TUNSETIFF, request)
    except OSError as error:
        raise HostError.from_os("TUNSETIFF", name, error) from None
    os.set_inheritable(fd, True)
    return fd


def _note(text: str) -> None:
    print(f"guestnet: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
