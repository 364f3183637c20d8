"""A fault engine without a process: what a guest's accesses would meet, page by page, and a guest that makes them.

It is strict where the kernel is lenient: a page is placed only where it is absent, and only while absent pages are
faults.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from memvm.machine.paging import Paging
from memvm.memory.engine import FaultEngine, FaultHandler
from memvm.memory.pages import TRACE_ACCESS, WRITE_REASONS, PageRun
from memvm.memory.ram import GuestRam
from memvm.units import PAGE_SIZE

VCPU = 7
"""The thread that makes the guest's accesses."""


class Poisoned(Exception):
    """The guest touched a poisoned page."""


class FakeEngine(FaultEngine):
    """Sets of pages, and no kernel."""

    name = "fake"

    def __init__(
        self, ram: GuestRam, *, poisons: bool = True, guards_while_running: bool = True, grain: int = 1
    ) -> None:
        super().__init__(ram)
        self.poisons = poisons
        self.guards_while_running = guards_while_running
        self.grain = grain
        self.missing = False
        self.tracing = False
        self.guarded: set[int] = set()
        self.hidden: set[int] = set()
        self.poisoned: set[int] = set()
        self.standing_still = False
        self.mapped = self._mapped

    def _mapped(self, run: PageRun) -> Iterator[tuple[int, int]]:
        for page in range(run.first, run.end):
            if page not in self.hidden:
                yield page, page + 1

    def start(self, handler: FaultHandler, failed: Callable[[BaseException], None]) -> None:
        raise NotImplementedError("accesses are made by guest_read and guest_write")

    def defer(self) -> None:
        self.missing = True

    def defer_no_more(self) -> None:
        self.missing = False

    def place(self, first: int, data: bytes, reasons: int = 0) -> None:
        assert self.missing or self.tracing
        run = PageRun(first, len(data) // PAGE_SIZE)
        for page in range(run.first, run.end):
            self._appear(page)
        if reasons & TRACE_ACCESS and self.tracing:
            self.hidden.update(range(run.first, run.end))
        elif reasons & WRITE_REASONS:
            self.guarded.update(range(run.first, run.end))
        self.ram.copy_in(first, [data])

    def place_zeros(self, run: PageRun, reasons: int = 0) -> None:
        self.place(run.first, bytes(run.count * PAGE_SIZE), reasons)

    def _appear(self, page: int) -> None:
        assert self.ram.next_touched(page) != page, f"page {page} is there already"
        assert page not in self.poisoned
        self.guarded.discard(page)  # what the kernel places is not write-protected unless it is asked to
        self.hidden.discard(page)

    def poison(self, run: PageRun) -> None:
        assert not any(run.first <= first < run.end for first in [self.ram.next_touched(run.first)])
        if self.poisons:
            self.poisoned.update(range(run.first, run.end))

    def heal(self, run: PageRun) -> None:
        self.poisoned.difference_update(range(run.first, run.end))

    def begin_guarding(self) -> None:
        self.guard_users += 1

    def guard(self, run: PageRun) -> None:
        assert self.guards_while_running or self.standing_still
        assert self.guard_users or self.tracing
        self.guarded.update(range(run.first, run.end))

    def unguard(self, run: PageRun) -> None:
        if self.guards_while_running:
            self._lift(run)

    def _lift(self, run: PageRun) -> None:
        flags = self.ram.flags
        self.guarded -= {page for page in range(run.first, run.end) if not flags[page] & WRITE_REASONS}

    def end_guarding(self) -> None:
        self.guard_users -= 1
        self._lift(PageRun(0, self.ram.page_count))

    def begin_tracing(self) -> None:
        self.tracing = True

    def hide(self, runs: Sequence[PageRun]) -> None:
        assert self.tracing or self.guard_users
        for run in runs:
            self.hidden.update(range(run.first, run.end))

    def reveal(self, run: PageRun, *, guarded: bool) -> None:
        for page in range(run.first, run.end):
            self.hidden.discard(page)
            if guarded:
                self.guarded.add(page)
            elif self.guards_while_running:
                self.guarded.discard(page)

    def end_tracing(self) -> None:
        self.tracing = False
        self._lift(PageRun(0, self.ram.page_count))

    def stop(self) -> None:
        pass

    # The guest.

    def guest_read(self, page: int) -> bytes:
        """A read by the guest."""
        self._touch(page, 0)
        return os.pread(self.ram.fd, PAGE_SIZE, page * PAGE_SIZE)

    def guest_write(self, page: int, data: bytes) -> None:
        """A write by the guest."""
        self._touch(page, 1)
        while page in self.guarded:
            Paging(self.ram, self).write(page, VCPU)
            if not self.guards_while_running:
                assert not self.ram.flags[page] & WRITE_REASONS
                self.guarded.discard(page)
        os.pwrite(self.ram.fd, data, page * PAGE_SIZE)

    def _touch(self, page: int, write: int) -> None:
        paging = Paging(self.ram, self)
        if page in self.poisoned:
            raise Poisoned
        if (self.missing or self.tracing) and self.ram.next_touched(page) != page:
            paging.missing(page, write, VCPU)
            if page in self.poisoned:
                raise Poisoned
            assert self.ram.next_touched(page) == page, "the guest would wait for ever"
        if page in self.hidden and self.tracing:
            paging.minor(page, write, VCPU)
            assert page not in self.hidden, "the guest would wait for ever"
        self.hidden.discard(page)  # without traces the kernel reveals it
