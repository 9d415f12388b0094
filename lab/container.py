"""A container's system calls: `python -m lab.container ERRNO COMMAND…`.

The command runs under a seccomp filter that refuses what Docker's default profile refuses without
CAP_SYS_ADMIN (moby's profiles/seccomp/default.json): namespaces and mounts by ERRNO, clone3 by
ENOSYS, so that the C library takes clone.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

_ARGUMENTS = 16  # offsets in struct seccomp_data: the number is at 0, the first argument here
_NAMESPACES = 0x7E020000  # of clone's flags
_CALLS = {
    "x86_64": {"clone": 56, "clone3": 435, "unshare": 272, "setns": 308, "mount": 165},
    "aarch64": {"clone": 220, "clone3": 435, "unshare": 97, "setns": 268, "mount": 40},
}
# linux/bpf_common.h: BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JSET|K, BPF_RET|K
_LOAD, _EQUAL, _ANY, _ANSWER = 0x20, 0x15, 0x45, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
# linux/prctl.h
_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2


def confine(number: int) -> None:
    """Put this process and what it starts under the filter."""
    calls = dict(_CALLS[platform.machine()])
    clone, clone3 = calls.pop("clone"), calls.pop("clone3")
    program = [
        (_LOAD, 0, 0, 0),
        (_EQUAL, 0, 1, clone3),
        (_ANSWER, 0, 0, _REFUSE | errno.ENOSYS),
        (_EQUAL, 0, 3, clone),
        (_LOAD, 0, 0, _ARGUMENTS),
        (_ANY, 0, 1, _NAMESPACES),
        (_ANSWER, 0, 0, _REFUSE | number),
    ]
    for call in calls.values():
        # What was loaded for clone is no number of a call of these.
        program += [(_EQUAL, 0, 1, call), (_ANSWER, 0, 0, _REFUSE | number)]
    program.append((_ANSWER, 0, 0, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    header = struct.pack("@HP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_NO_NEW_PRIVS, 1), (_SET_SECCOMP, _FILTER, header)):
        if libc.prctl(*arguments, *(0,) * (5 - len(arguments))) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    confine(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
