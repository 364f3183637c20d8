"""The C library, for the few calls that Python has no function for.

Everything goes through `syscall`-shaped wrappers that raise OSError, so that no caller ever looks at errno.
"""

from __future__ import annotations

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.getauxval.argtypes, libc.getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong


def check(result: int, what: str) -> int:
    """The result of a C call, or the OSError that errno names when it is -1."""
    if result == -1:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{what}: {os.strerror(errno)}")
    return result


def syscall(number: int, *arguments: int) -> int:
    """Make one system call in this process. Raises OSError."""
    values = [ctypes.c_long(argument) for argument in arguments]
    return check(libc.syscall(ctypes.c_long(number), *values), f"system call {number}")


def auxiliary_value(number: int) -> int:
    """What the kernel told this process under a number of its auxiliary vector; 0 if nothing (getauxval(3)).

    /proc/self/auxv has the same, but not for a process that lets nobody look into it.
    """
    return int(libc.getauxval(number))


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h


def use_one_heap() -> None:
    """Let all threads that are started from now on share malloc's main heap: each gets one of its own by default.

    Whoever allocates under the interpreter lock, as Python does, gains nothing from more; they cost memory.
    """
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def keep_freed_memory(size: int) -> None:
    """Let malloc keep freed memory, up to `size` bytes in each of its heaps, and take blocks of up to that size there.

    By default it gives back what is above 128 KiB, and whoever works through data in such pieces has each of them made,
    zeroed and given back by the kernel. See mallopt(3); a C library without it does as it likes.
    """
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, size)
        mallopt(_M_TRIM_THRESHOLD, size)


class _MallocState(ctypes.Structure):
    """struct mallinfo2 (mallinfo(3))."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks")
    ] + [("keepcost", ctypes.c_size_t)]


_LARGEST_PIECE, _SMALLEST_PIECE = 1 << 16, 24
_FINELY = 1024
"""Bytes; below this, all sizes of malloc's are tried."""
_MOST_PIECES = 1 << 13
"""Each costs a look at all free pieces: a heap with more than these is left as it is."""


def use_up_free_memory() -> None:
    """Allocate the pieces that were freed on malloc's main heap, for good: what is wanted later comes from its end.

    For a process that is about to be forked: the pages with such pieces go on being shared. A C library without
    mallinfo2 (glibc has it since 2.33) is left as it is.
    """
    if not hasattr(libc, "mallinfo2"):
        return
    libc.mallinfo2.restype = _MallocState
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes, libc.free.restype = [ctypes.c_void_p], None
    size = _LARGEST_PIECE
    for _ in range(_MOST_PIECES):
        left = libc.mallinfo2().keepcost
        piece = libc.malloc(size)
        if libc.mallinfo2().keepcost == left:
            continue
        libc.free(piece)  # no free piece is so large: this one is from the end
        size = size * 7 // 8 if size > _FINELY else size - 16
        if size < _SMALLEST_PIECE:
            break
