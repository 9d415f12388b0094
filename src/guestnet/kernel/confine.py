"""Giving up everything that reading guests' bytes does not need.

Called once by the gateway and by each pump, after all modules are loaded and all sockets are there.
Each step that the kernel does not offer is left out and told, so that `doctor` can say how far a
process is confined.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import socket
import struct
from collections.abc import Iterable

from .process import die_with_parent

_libc = ctypes.CDLL(None, use_errno=True)

#: linux/prctl.h
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 4, 22, 38
_PR_SET_KEEPCAPS = 8
#: linux/capability.h
_CAPABILITY_VERSION = 0x20080522
_CAP_DAC_OVERRIDE = 1
#: linux/sched.h
_CLONE_NEWUSER = 0x10000000
_SECCOMP_MODE_FILTER = 2
#: asm-generic/unistd.h: the same numbers on every architecture.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
#: Filesystem rights by landlock's ABI version (linux/landlock.h): all of them are taken away.
_LANDLOCK_FS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
#: Descriptors: two for each flow, two more while its bytes are in a pipe, one for each question.
MAX_FILES = 65536

#: What a relay never calls: (x86_64, aarch64) numbers. A filter that allowed only what it does call
#: would break with the next interpreter or C library.
_FORBIDDEN = {
    "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117), "fork": (57, None),
    "vfork": (58, None), "clone": (56, 220), "clone3": (435, 435), "mount": (165, 40),
    "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "setns": (308, 268),
    "unshare": (272, 97), "bpf": (321, 280),
    "kexec_load": (246, 104), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "perf_event_open": (298, 241), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "open_by_handle_at": (304, 265), "kcmp": (312, 272), "reboot": (169, 142), "swapon": (167, 224),
    "acct": (163, 89), "move_mount": (429, 429), "open_tree": (428, 428), "fsopen": (430, 430),
    "pidfd_getfd": (438, 438), "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
}  # fmt: skip
#: Sockets of these families only: those of others on this machine (AF_UNIX) take orders, and where
#: the gateway has no user of its own they would take its user's.
_SOCKET = (41, 198)
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
#: The numbers of x86_64's other calling convention (asm/unistd.h), which would pass the filter.
_X32 = 0x40000000
#: What beside that a process does not call that is handed all its descriptors.
#: ioctl too: the descriptor of a TAP is enough to give the TAP away.
_FORBIDDEN_TO_PUMPS = {
    "socket": _SOCKET, "socketpair": (53, 199), "bind": (49, 200), "listen": (50, 201),
    "connect": (42, 203), "ioctl": (16, 29),
}  # fmt: skip
_AUDIT_ARCH = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


def confine(
    uid: int, gid: int, *, pump: bool = False, answers_any: bool = False
) -> tuple[str, ...]:
    """Give up rights, one kind after the other; returns the names of those given up.

    A `pump` makes no sockets and no ioctls. One that `answers_any` keeps a single
    capability: no file's mode keeps it from sending to a datagram socket.
    """
    done = []
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, most_files()),
    ):
        resource.setrlimit(limit, (value, value))
    done.append("limits")
    if os.geteuid() == 0:
        kept = 1 << _CAP_DAC_OVERRIDE if answers_any else 0
        is_apart = _become(uid, gid, keep=bool(kept))
        _keep_capabilities(kept)
        done.append("user" if is_apart else "capabilities")
    else:
        kept, is_apart = 0, False
    if not (is_apart or kept) and _leave_user_namespace():
        done.append("user-namespace")
    # No children, no threads; the machine's root is not held by it, but by what is forbidden below.
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    done.append("no-new-privileges")
    # The change of user has reset what was asked for at the start.
    die_with_parent()
    if _landlock():
        done.append("landlock")
    forbidden = {**_FORBIDDEN, **(_FORBIDDEN_TO_PUMPS if pump else {})}
    if _seccomp(forbidden.values()):
        done.append("seccomp")
    return tuple(done)


def most_files() -> int:
    """Descriptors that a confined process may have: whoever started it may have set it less."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)


def _leave_user_namespace() -> bool:
    """Enter a user namespace of its own, without any capability there.

    A user has every capability in the namespaces that are the user's, where it stands outside of
    them (user_namespaces(7)): the site's, whose sockets are handed over for what they can do alone.
    """
    if _libc.unshare(_CLONE_NEWUSER) != 0:
        return False  # the machine allows no more of them
    _keep_capabilities(0)
    return True


def _become(uid: int, gid: int, *, keep: bool) -> bool:
    """Be another user, who has no capabilities unless we are to `keep` ours; False: there is none.

    So it is where root is the only user: in a container of an ordinary user's, say, or in one that
    was left no right to change it.
    """
    try:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        _libc.prctl(_PR_SET_KEEPCAPS, int(keep), 0, 0, 0)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EINVAL):
            raise
        return False
    return True


def _keep_capabilities(bits: int) -> None:
    """Have these of the first 32 capabilities, which we have now, and no other (capset(2))."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0))
    # Effective, permitted and inheritable, of capabilities 0 to 31 and of 32 to 63.
    sets = ctypes.create_string_buffer(struct.pack("=6I", bits, bits, 0, 0, 0, 0))
    if _libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _landlock() -> bool:
    """Take away the whole filesystem: no file can be opened, made or run from here on."""
    version = _libc.syscall(
        _LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_CREATE_RULESET_VERSION
    )
    if version < 1:
        return False
    bits = _LANDLOCK_FS[min(version, max(_LANDLOCK_FS))]
    rules = ctypes.create_string_buffer(struct.pack("=Q", (1 << bits) - 1))
    fd = _libc.syscall(_LANDLOCK_CREATE_RULESET, rules, ctypes.c_size_t(8), 0)
    if fd < 0:
        return False
    try:
        return bool(_libc.syscall(_LANDLOCK_RESTRICT_SELF, fd, 0) == 0)
    finally:
        os.close(fd)


def _seccomp(forbidden: Iterable[tuple[int, int | None]]) -> bool:
    """Refuse (EPERM) system calls by their numbers on each architecture.

    And sockets but the internet's.
    """
    arch = _AUDIT_ARCH.get(platform.machine())
    if arch is None:
        return False
    column, audit = arch
    numbers = [n[column] for n in forbidden if n[column] is not None]
    # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_RET|K; offsets in struct seccomp_data.
    load, equal, above, answer = 0x20, 0x15, 0x35, 0x06
    first_argument = 16
    allow, kill, refuse = 0x7FFF0000, 0x80000000, 0x00050000 | 1
    program = [(load, 0, 0, 4), (equal, 1, 0, audit), (answer, 0, 0, kill), (load, 0, 0, 0)]
    last = len(numbers) + 5  # jumps count from the next instruction
    for index, number in enumerate(numbers):
        program.append((equal, last - index, 0, number or 0))
    program += [
        (above, 5, 0, _X32),
        (equal, 0, 3, _SOCKET[column]),
        (load, 0, 0, first_argument),
        (equal, 1, 0, _FAMILIES[0]),
        (equal, 0, 1, _FAMILIES[1]),
        (answer, 0, 0, allow),
        (answer, 0, 0, refuse),
    ]
    code = b"".join(struct.pack("=HBBI", *step) for step in program)
    held = ctypes.create_string_buffer(code)
    header = struct.pack("@HP", len(program), ctypes.addressof(held))
    filters = ctypes.create_string_buffer(header)
    return bool(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, filters, 0, 0) == 0)
