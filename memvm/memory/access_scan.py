"""Which pages the guest accessed, without a fault that anybody answers: the kernel maps them, and is asked (Linux 6.7).

Who drops a page's page-table entry, and finds one there later, knows that the page was accessed in between. The access
costs the guest the kernel's own page fault, a microsecond, where a fault that the manager answers costs ten or twenty.
In exchange nobody is told at once, nor which access it was, nor in which order pages were accessed between two looks.

The memory has to be registered for write protection, or the kernel maps neighbours along, and not for minor faults.
"""

from __future__ import annotations

from collections.abc import Iterator

from memvm.linux.pagemap import Pagemap
from memvm.memory.engine import GuestGone
from memvm.memory.pages import PageRun
from memvm.memory.ram import GuestRam
from memvm.units import PAGE_SIZE


class AccessScan:
    """The page-table entries of one guest. Not for several threads at once."""

    def __init__(self, ram: GuestRam, pid: int) -> None:
        """Raises OSError where there is no PAGEMAP_SCAN."""
        self._base = ram.base
        self._pagemap = Pagemap(pid)
        try:
            for _ in self._pagemap.present(ram.base, ram.base + PAGE_SIZE):
                pass
        except BaseException:
            self._pagemap.close()
            raise

    def mapped(self, run: PageRun) -> Iterator[tuple[int, int]]:
        """The pages of a run that have entries, as ascending ranges [first, end). Raises GuestGone."""
        base = self._base
        start = base + run.first * PAGE_SIZE
        try:
            for first, last in self._pagemap.present(start, start + run.count * PAGE_SIZE):
                yield (first - base) // PAGE_SIZE, (last - base) // PAGE_SIZE
        except ProcessLookupError as error:
            raise GuestGone from error

    def close(self) -> None:
        """Release the descriptor."""
        self._pagemap.close()
