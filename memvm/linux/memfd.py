"""Memory files: the backing of guest RAM (memfd_create(2), fcntl(2) seals, fallocate(2))."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator, Sequence

from memvm.linux.libc import check, libc

# include/uapi/linux/fcntl.h
F_ADD_SEALS = 1033
F_SEAL_SEAL = 0x0001
F_SEAL_SHRINK = 0x0002
F_SEAL_GROW = 0x0004
F_SEAL_WRITE = 0x0008
F_SEAL_FUTURE_WRITE = 0x0010
# include/uapi/linux/falloc.h
FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
# include/uapi/linux/memfd.h; since Linux 6.3, and refused with EINVAL before
MFD_EXEC = 0x0010

_MOST_PIECES = os.sysconf("SC_IOV_MAX")

libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def create_memory(name: str, size: int) -> int:
    """A descriptor of a new memory file of `size` zero bytes that can neither shrink nor grow."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW)
    except BaseException:
        os.close(fd)
        raise
    return fd


def forbid_changes(fd: int) -> None:
    """Nobody can change the contents of a memory file any more. Raises OSError while it is mapped for writing."""
    fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SEAL)


def forbid_new_writers(fd: int) -> None:
    """Nobody can write to a memory file any more but through the mappings that there are."""
    fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE)


def write_all(fd: int, offset: int, pieces: Sequence[bytes | memoryview]) -> None:
    """Write pieces one behind the other; cheaper than storing through a mapping, which faults at each new page."""
    if len(pieces) == 1 and os.pwrite(fd, pieces[0], offset) == len(pieces[0]):
        return
    left = list(pieces)
    while left:
        done = os.pwritev(fd, left[:_MOST_PIECES], offset)
        offset += done
        while left and done >= len(left[0]):
            done -= len(left.pop(0))
        if done:
            left[0] = memoryview(left[0])[done:]


def create_executable(name: str, image: bytes) -> int:
    """A descriptor of a memory file that holds `image` and may be executed."""
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | MFD_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.pwrite(fd, image, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def preallocate(fd: int, offset: int, size: int) -> None:
    """Give a range memory where it has none. Raises OSError.

    The contents are made at the first touch. Until then the range is a hole as before to whoever reads the file or asks
    for data (mm/filemap.c, folio_seek_hole_data: what is not up to date is none), and counts in st_blocks only.
    """
    check(libc.fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, size), "fallocate")


def punch_hole(fd: int, offset: int, size: int) -> None:
    """Free the memory of a range; it reads as zeros afterwards, in every mapping."""
    check(libc.fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, size), "fallocate")


def data_extents(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The ranges [first, last) between `start` and `end` that hold memory; the rest was never touched."""
    while start < end:
        try:
            first = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data up to the end
                return
            raise
        if first >= end:
            return
        last = min(os.lseek(fd, first, os.SEEK_HOLE), end)
        yield first, last
        start = last
