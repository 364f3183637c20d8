"""mlock(2): pages of a mapping that stay in memory, and are not written to swap.

Facts that the callers rely on:

- The pages are made present, also those of a hole in a memory file, and stay locked in the file's memory for whoever
  else has it mapped.
- Locks do not nest: one munlock undoes any number of mlocks. fork(2) does not hand them on.
- An ordinary user may lock RLIMIT_MEMLOCK bytes in a process: 8 MiB by default since Linux 5.16, 64 KiB before.
"""

from __future__ import annotations

import ctypes
import mmap

from memvm.linux.libc import check, libc

for _call in (libc.mlock, libc.munlock):
    _call.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def lock_pages(memory: mmap.mmap, offset: int, size: int) -> None:
    """Lock the pages in which some bytes of a mapping are. Raises OSError if that is not allowed."""
    check(libc.mlock(address_of(memory) + offset, size), "mlock")


def unlock_pages(memory: mmap.mmap, offset: int, size: int) -> None:
    """The pages in which these bytes are may be written to swap again."""
    check(libc.munlock(address_of(memory) + offset, size), "munlock")


def address_of(memory: mmap.mmap) -> int:
    """Where a mapping that can be written begins."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
