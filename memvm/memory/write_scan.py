"""Which pages the guest wrote, without a fault that anybody answers: the kernel notes it, and is asked (Linux 6.7).

It takes a userfaultfd of the guest's with WP_ASYNC. That is a property of the whole descriptor, and memory can be
registered with one descriptor at a time, so a guest has a second one for this, and its memory is lent to it only while
the fault engine has no use for it. Registered for write protection alone, nobody ever waits on it: closing it, in any
order with anything else, only ends the noting.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from memvm.linux.pagemap import Pagemap
from memvm.linux.userfaultfd import Feature, RegisterMode, Userfaultfd
from memvm.memory.engine import GuestGone
from memvm.memory.pages import PageRun
from memvm.memory.ram import GuestRam
from memvm.units import PAGE_SIZE

WANTED = Feature.PAGEFAULT_FLAG_WP | Feature.WP_HUGETLBFS_SHMEM | Feature.WP_UNPOPULATED | Feature.WP_ASYNC


class WriteScan:
    """The kernel's notes of one guest's writes. Not for several threads at once.

    Methods raise GuestGone if the guest has ended, and OSError where the kernel refuses.
    """

    def __init__(self, ram: GuestRam, uffd: Userfaultfd, pid: int) -> None:
        """Takes the descriptor over, which is enabled with WANTED. Raises OSError where there is no PAGEMAP_SCAN."""
        self._base = ram.base
        self._uffd = uffd
        self._pagemap = Pagemap(pid)
        try:
            whole = PageRun(0, ram.page_count)
            self.register(whole)
            for _ in self.written(PageRun(0, 1)):
                pass
            self.unregister(whole)
        except BaseException:
            self._pagemap.close()
            raise

    def register(self, run: PageRun) -> None:
        """Begin to note writes. Until they are protected, pages count as written."""
        try:
            self._uffd.register(*self._span(run), RegisterMode.WP)
        except ProcessLookupError as error:
            raise GuestGone from error

    def unregister(self, run: PageRun) -> None:
        """Give pages back; what was not asked for yet is lost."""
        try:
            self._uffd.unregister(*self._span(run))
        except ProcessLookupError as error:
            raise GuestGone from error

    def protect(self, run: PageRun) -> None:
        """Note the next write to each of these pages."""
        while True:
            try:
                self._uffd.write_protect(*self._span(run))
                return
            except ProcessLookupError as error:
                raise GuestGone from error
            except OSError as error:
                if error.errno != errno.EAGAIN:  # EAGAIN: the guest's mappings are changing this moment
                    raise

    def written(self, run: PageRun) -> Iterator[PageRun]:
        """Pages that were written since they were protected, protected again; all of the result has to be read.

        Untouched pages may be among them, and so may touched ones that were not protected. Pages that were
        thrown away are not, and neither are those that only the manager wrote.
        """
        start, size = self._span(run)
        try:
            for first, last in self._pagemap.written(start, start + size):
                yield PageRun((first - self._base) // PAGE_SIZE, (last - first) // PAGE_SIZE)
        except ProcessLookupError as error:
            raise GuestGone from error

    def _span(self, run: PageRun) -> tuple[int, int]:
        return self._base + run.first * PAGE_SIZE, run.count * PAGE_SIZE

    def close(self) -> None:
        """Release the descriptors."""
        self._pagemap.close()
        os.close(self._uffd.fd)
