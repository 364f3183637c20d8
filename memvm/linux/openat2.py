"""openat2(2): opening a path so that it cannot lead out of the directory that it starts in.

Facts that the callers rely on (openat2(2); tested in tests/linux/test_openat2.py):

- RESOLVE_BENEATH refuses (EXDEV) whatever would leave the directory: "..", absolute paths, links, mounts' own roots
  included. The kernel checks it while it walks, so that no race with a rename gets around it.
- RESOLVE_NO_SYMLINKS refuses (ELOOP) every symbolic link on the way, and so tells that there is one. A link at the
end is
  opened all the same with O_PATH | O_NOFOLLOW.
- RESOLVE_NO_MAGICLINKS refuses what /proc has for links, which lead anywhere. RESOLVE_NO_SYMLINKS implies it today,
  and the manual says not to rely on that.
"""

from __future__ import annotations

import ctypes
import os
import struct
from enum import IntFlag
from functools import cache

from memvm.linux.libc import libc

SYSCALL_OPENAT2 = 437  # arch/x86/entry/syscalls/syscall_64.tbl; since Linux 5.6


class Resolve(IntFlag):
    """RESOLVE_*: include/uapi/linux/openat2.h."""

    NO_MAGICLINKS = 0x02
    NO_SYMLINKS = 0x04
    BENEATH = 0x08


HOW = struct.Struct("=QQQ")  # struct open_how: flags, mode, resolve
_STRICT = Resolve.NO_MAGICLINKS | Resolve.NO_SYMLINKS | Resolve.BENEATH

_openat2 = libc["syscall"]  # a function object of its own, with types of its own
_openat2.restype = ctypes.c_long
_openat2.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)


@cache
def _how(flags: int, mode: int) -> bytes:
    return HOW.pack(flags | os.O_CLOEXEC, mode, _STRICT)


def open_beneath(directory: int, path: bytes, flags: int, mode: int = 0) -> int:
    """A descriptor for what `path` names beneath an open directory, without following any link; `.` is the directory.

    Raises OSError: ELOOP if there is a symbolic link in the path, EXDEV if it would lead out.
    """
    fd: int = _openat2(SYSCALL_OPENAT2, directory, path, _how(flags, mode), HOW.size)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd
