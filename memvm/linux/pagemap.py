"""PAGEMAP_SCAN (ioctl of /proc/PID/pagemap): which pages of a process were written, or are mapped; also of another one.

Facts that the callers rely on (tested in tests/linux/test_pagemap.py):

- A look, and the start of the next one, are one step, atomic for each page: PM_SCAN_WP_MATCHING protects what is
  reported.
- It needs a range that is registered with a userfaultfd of Feature.WP_ASYNC; anything else gives EPERM (with
  PM_SCAN_CHECK_WPASYNC).
- No privilege is needed for a process of the same user that may be dumped.
- Where a page table exists, an empty entry counts as written, unless it is marked as protected. So a written page whose
  entry is dropped (MADV_DONTNEED, swapping) is still reported. Where no table exists nothing is.
- A page that is punched out of the memory file keeps its protection and is *not* reported.
- Writes that do not go through the mapping (pwrite, another mapping) are not reported.
- A page is *present* when it has a page-table entry. Where entries were dropped (MADV_DONTNEED), the next access of any
  kind makes one, of that page alone if the memory is registered for write protection; otherwise the kernel maps up to
  16 pages around it (fault-around). The mark of a page that is protected and has no entry is not one.
- Looking at what is present changes nothing, and needs no registration.
- When the last match fills the buffer, the walk is said to have ended before it: there the next call would begin again.
- ESRCH: the process has gone.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from enum import IntFlag
from fcntl import ioctl

from memvm.linux.ioctl import io_read_write

# include/uapi/linux/fs.h, since Linux 6.7
PAGEMAP_SCAN = io_read_write(ord("f"), 16, 96)
REGION = struct.Struct("=3Q")
"""struct page_region: start, end, categories."""
ARGUMENT = struct.Struct("=12Q")
"""struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted,
category_mask, category_anyof_mask, return_mask."""
_WALK_END = 4
_REGIONS = 1024


class ScanFlag(IntFlag):
    """PM_SCAN_*: what a scan does besides looking."""

    WP_MATCHING = 1 << 0
    CHECK_WPASYNC = 1 << 1


class Category(IntFlag):
    """PAGE_IS_*: what a page is asked about; those that memvm needs."""

    WRITTEN = 1 << 1
    PRESENT = 1 << 3


_FLAGS = ScanFlag.WP_MATCHING | ScanFlag.CHECK_WPASYNC


class Pagemap:
    """The page map of one process. Not for several threads at once."""

    def __init__(self, pid: int) -> None:
        """Raises OSError if the process has gone, or is not ours to look at."""
        self.fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        self._regions = ctypes.create_string_buffer(REGION.size * _REGIONS)
        self._address = ctypes.addressof(self._regions)

    def close(self) -> None:
        """Release the descriptor."""
        os.close(self.fd)

    def written(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The address ranges [first, last) that were written since they were protected, ascending; protects them again.

        Each part is protected as it is found, so all of the result has to be read. Raises ProcessLookupError
        if the process has gone, and OSError: EPERM as above, ENOTTY and EINVAL from kernels before 6.7.
        """
        # One and the same category asked for and returned, and no other, is the way through the kernel that never
        # misses a write whose page-table entry is gone.
        return self._scan(start, end, _FLAGS, Category.WRITTEN)

    def present(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The address ranges [first, last) that have page-table entries, ascending.

        Raises ProcessLookupError and OSError as `written` does, but for EPERM.
        """
        return self._scan(start, end, 0, Category.PRESENT)

    def _scan(self, start: int, end: int, flags: int, category: int) -> Iterator[tuple[int, int]]:
        while start < end:
            request = bytearray(
                ARGUMENT.pack(
                    *(ARGUMENT.size, flags, start, end, 0, self._address, _REGIONS, 0),
                    *(0, category, 0, category),
                )
            )
            count = ioctl(self.fd, PAGEMAP_SCAN, request)
            start = ARGUMENT.unpack(request)[_WALK_END]
            # Copied before anything else is asked: the buffer is used again.
            regions = memoryview(self._regions)[: count * REGION.size]
            found = [(first, last) for first, last, _category in REGION.iter_unpack(regions)]
            if found:
                start = max(start, found[-1][1])
            yield from found
