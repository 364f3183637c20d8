"""Deferred pages: contents that are loaded only when somebody, the manager included, first touches them.

A *page source* has the contents, in chunks of several pages. Four parties load from it: the guest by touching a page
(`fault`), the manager through the accessor (`bring`), the background loader (`deliver`), and nobody for pages that
are thrown away first (`forget`). Reading and decompressing happen outside the lock; what is placed is decided
inside, by the flags, so that each page is placed once and never after it was discarded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from memvm.errors import BadPage
from memvm.memory.engine import FaultEngine
from memvm.memory.pages import (
    BAD,
    DEFERRED,
    TRACE_ACCESS,
    WRITE_REASONS,
    PageRun,
    clear_flag,
    count_flag,
    equal_runs,
    flagged_runs,
    set_flag,
)
from memvm.memory.ram import GuestRam
from memvm.memory.zeros import give_zeros
from memvm.units import PAGE_SIZE

_BRING_STEP = 1024
_COUNT_STEP = 1 << 18
"""Pages whose flags are looked through at once: in short steps where each step is one chunk, otherwise in steps
after which other threads may have the interpreter."""


class Chunk(NamedTuple):
    """Contents of some pages: the runs, and their bytes one after the other."""

    runs: list[PageRun]
    data: bytes


class PageSource(Protocol):
    """Where the contents of deferred pages come from."""

    def chunk_of(self, page: int) -> int:
        """The number of the chunk that has this page."""

    def runs_of(self, chunk: int) -> list[PageRun]:
        """The pages that a chunk has."""

    def load(self, chunk: int) -> Chunk:
        """Read, check and decompress one chunk. Raises BadPage, naming the first of its pages."""


class DeferredPages:
    """The deferred pages of one guest, and the one way in which each is loaded."""

    def __init__(self, ram: GuestRam, engine: FaultEngine, source: PageSource) -> None:
        self.ram = ram
        self._engine = engine
        self.source = self._source = source
        self._flags, self._lock, self._place = ram.flags, ram.lock, engine.place  # looked up at every fault
        self.report_bad: Callable[[BadPage], None] = lambda error: None
        """Told once for each chunk that cannot be loaded."""
        self.instead: Callable[[int], int] | None = None
        """Does what `demand_page` does, and more, for each deferred page that the guest waits for."""

    @property
    def remaining(self) -> int:
        """Pages that are still deferred."""
        flags = self._flags
        return sum(count_flag(flags, DEFERRED, start, _COUNT_STEP) for start in range(0, len(flags), _COUNT_STEP))

    def begin(self, runs: Iterable[PageRun], there: Iterable[PageRun] = ()) -> None:
        """Mark pages deferred, but those that are `there`, and put this object behind guest RAM.

        Before the guest runs.
        """
        for run in runs:
            set_flag(self.ram.flags, run.first, run.count, DEFERRED)
        for run in there:
            clear_flag(self.ram.flags, run.first, run.count, DEFERRED)
        self.ram.loader = self
        self._engine.defer()

    def fault(self, page: int) -> None:
        """The guest waits for this page: load its chunk, or give zeros if it is not deferred."""
        flags = self._flags[page]
        if flags & DEFERRED and (self.instead or self.demand_page)(page):
            return
        if self._flags[page] & BAD:
            if not self._engine.poisons:
                raise BadPage(page, f"page {page} of guest RAM could not be verified, and the guest needs it")
        elif not flags & DEFERRED:
            give_zeros(self.ram, self._engine, page)

    def bring(self, first: int, count: int) -> None:
        """Load every deferred page of a range, for the manager; those that cannot be loaded are bad then."""
        end = first + count
        for start in range(first, end, _BRING_STEP):
            step = min(_BRING_STEP, end - start)
            while run := next(flagged_runs(self.ram.flags, start, step, DEFERRED), None):
                self.demand(self._source.chunk_of(run.first))

    def demand_page(self, page: int) -> int:
        """Load the chunk of a deferred page now, or spoil it; returns how many pages were placed."""
        return self.demand(self._source.chunk_of(page))

    def demand_alone(self, page: int) -> int:
        """Load a deferred page now, and no other of its chunk; or spoil that. Returns how many pages were placed."""
        chunk = self._loaded(self._source.chunk_of(page))
        if chunk is None:
            return 0
        before = 0
        for run in chunk.runs:
            if run.first <= page < run.end:
                start = (before + page - run.first) * PAGE_SIZE
                return self.deliver(Chunk([PageRun(page, 1)], chunk.data[start : start + PAGE_SIZE]))
            before += run.count
        raise BadPage(page, f"page {page} of guest RAM is not in the chunk that should have it")

    def demand(self, number: int) -> int:
        """Load one chunk now, or spoil it; returns how many pages were placed."""
        chunk = self._loaded(number)
        return 0 if chunk is None else self.deliver(chunk)

    def _loaded(self, number: int) -> Chunk | None:
        """One chunk; None if it cannot be loaded, and is spoiled now."""
        try:
            return self._source.load(number)
        except BadPage as error:
            self.spoil(number, error)
            return None

    def deliver(self, chunk: Chunk) -> int:
        """Place those pages of a chunk that are still deferred; returns how many."""
        runs, data = chunk
        flags, lock = self._flags, self._lock
        lock.acquire()  # `with` costs twice as much, and this is the path of every fault
        try:
            if len(runs) == 1:
                first, count = runs[0]
                if flags.count(DEFERRED, first, first + count) == count:
                    # The common case, made fast: one run, all deferred, and nothing else known of it.
                    self._place(first, data)
                    flags[first : first + count] = bytes(count)
                    return count
            return self._place_deferred(runs, data)
        finally:
            lock.release()

    def _place_deferred(self, runs: list[PageRun], data: bytes) -> int:
        placed = skip = 0
        for run in runs:
            for deferred in flagged_runs(self._flags, run.first, run.count, DEFERRED):
                for part, flags in list(equal_runs(self._flags, *deferred)):
                    start = skip + (part.first - run.first) * PAGE_SIZE
                    piece = data[start : start + part.count * PAGE_SIZE]
                    if reasons := flags & (TRACE_ACCESS | WRITE_REASONS):
                        self._place(part.first, piece, reasons)
                    else:
                        self._place(part.first, piece)
                placed += deferred.count
            clear_flag(self._flags, run.first, run.count, DEFERRED)
            skip += run.count * PAGE_SIZE
        return placed

    def spoil(self, number: int, error: BadPage) -> None:
        """A chunk cannot be loaded: its pages become errors for whoever touches them."""
        spoiled = 0
        with self.ram.lock:
            for run in self._source.runs_of(number):
                for part in list(flagged_runs(self.ram.flags, run.first, run.count, DEFERRED)):
                    set_flag(self.ram.flags, part.first, part.count, BAD)
                    clear_flag(self.ram.flags, part.first, part.count, DEFERRED)
                    self._engine.poison(part)
                    spoiled += part.count
        if spoiled:
            self.report_bad(error)

    def forget(self, first: int, count: int) -> None:
        """The pages are being thrown away (the RAM's lock is held): zeros from now on, good or bad."""
        clear_flag(self.ram.flags, first, count, DEFERRED)
        for run in list(flagged_runs(self.ram.flags, first, count, BAD)):
            self._engine.heal(run)
        clear_flag(self.ram.flags, first, count, BAD)

    def finish(self) -> None:
        """Load what is left. Absent pages are zero by themselves again, unless bad ones must stay absent."""
        self.bring(0, self.ram.page_count)
        if self._engine.poisons or not count_flag(self.ram.flags, BAD):
            self._engine.defer_no_more()
