"""Guest RAM copied while the guest goes on changing it: what has not changed since need not be copied again.

A precopy goes in rounds. At the beginning of each, what holds memory and is not guarded is write-guarded; the pages to
copy in this round are those whose copy is missing or old. They are copied in any order, by many threads. Who is about
to change a guarded page (the guest, by a write fault; the manager, by the accessor; a munmap) has its guard lifted, and
nothing is copied aside: if it was copied, that copy is old; if it was not, it is left for the next round, when it may
have become quiet. What is guarded at the end is as it was copied, and the rest is copied while the guest stands still.

A guard has to be there before its page is copied, and the flags have to be set when no call is half done: a call that
looked at the flags before, and writes after, would go unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from typing import NamedTuple

from memvm.memory.engine import FaultEngine, GuestGone
from memvm.memory.pages import (
    GUARDED,
    PageRun,
    clear_flag,
    count_flag,
    flagged_runs,
    merged_runs,
    set_flag,
    unflagged_runs,
    united_runs,
)
from memvm.memory.ram import GuestRam
from memvm.units import PAGE_SIZE

_AROUND, _MOST_AROUND = 16, 256
_SLICE_PAGES = 4096
_COPIED = 1
_GAP_PAGES = 16
"""Guarded pages that are guarded once more, so that the kernel need not be asked for each few pages."""


class Round(NamedTuple):
    """What is to be done at the beginning of a round."""

    pages: list[PageRun]
    """To be copied, ascending."""
    outdated: list[PageRun]
    """Copies that count no more; some of these pages hold no memory now."""

    @property
    def page_count(self) -> int:
        """How many pages are to be copied."""
        return sum(run.count for run in self.pages)


class Precopy:
    """One guest's RAM while it is copied."""

    def __init__(
        self,
        ram: GuestRam,
        engine: FaultEngine,
        between_calls: AbstractContextManager[object],
        wrote: Callable[[PageRun], None],
    ) -> None:
        """`between_calls` is held where no call may be half done; `wrote` hears of pages whose guards were lifted.

        `wrote` is called with the RAM's lock held.
        """
        self._ram = ram
        self._engine = engine
        self._between_calls = between_calls
        self._wrote = wrote
        self._copied = bytearray(ram.page_count)
        """By page, 1 if it was copied; the copy is good as long as the page is guarded."""
        self._next_fault = PageRun(0, 1)
        self._guarding = False

    def begin(self) -> None:
        """Have changes noted from now on. Raises GuestGone."""
        self._engine.begin_guarding()
        self._guarding = True
        self._ram.keeper = self

    def next_round(self) -> Round:
        """Guard what is not guarded; the guest runs. Every copy made so far must be where it belongs.

        Raises GuestGone.
        """
        pages, outdated, unguarded = list[PageRun](), list[PageRun](), list[PageRun]()
        touched = _Touched(self._ram)
        for part in self._slices():
            with self._between_calls, self._ram.lock:
                missing = self._look(part, touched, outdated)
                for run in missing:
                    unguarded += unflagged_runs(self._ram.flags, run.first, run.count, GUARDED)
                    set_flag(self._ram.flags, run.first, run.count, GUARDED)
                pages += missing
        for run in merged_runs(unguarded, _GAP_PAGES):
            for first in range(run.first, run.end, _SLICE_PAGES):
                self._engine.guard(PageRun(first, min(_SLICE_PAGES, run.end - first)))
        return Round(united_runs(pages), united_runs(outdated))

    def last_round(self) -> Round:
        """What is left; the guest stands still, and no call is half done. To be copied without `take`."""
        pages, outdated = list[PageRun](), list[PageRun]()
        touched = _Touched(self._ram)
        for part in self._slices():
            with self._ram.lock:
                pages += self._look(part, touched, outdated)
        return Round(united_runs(pages), united_runs(outdated))

    def _slices(self) -> Iterator[PageRun]:
        for first in range(0, self._ram.page_count, _SLICE_PAGES):
            yield PageRun(first, min(_SLICE_PAGES, self._ram.page_count - first))

    def _look(self, part: PageRun, touched: _Touched, outdated: list[PageRun]) -> list[PageRun]:
        """Forget copies that are old, and add them to `outdated`; the pages that have none. The lock is held."""
        for changed in unflagged_runs(self._ram.flags, part.first, part.count, GUARDED):
            outdated += flagged_runs(self._copied, changed.first, changed.count, _COPIED)
            self._copied[changed.first : changed.end] = bytes(changed.count)
        return [
            run
            for there in touched.among(part)
            for run in unflagged_runs(self._copied, there.first, there.count, _COPIED)
        ]

    def left(self) -> int:
        """How many pages have no good copy at this moment."""
        left = 0
        for there in self._ram.touched():
            good = (
                count_flag(self._copied, _COPIED, run.first, run.count)
                for run in flagged_runs(self._ram.flags, there.first, there.count, GUARDED)
            )
            left += there.count - sum(good)
        return left

    def take(self, runs: list[PageRun], buffer: memoryview) -> list[tuple[PageRun, int]]:
        """Copy those pages into a buffer that are guarded, and were not copied in this round by somebody else.

        Returns those that have not changed meanwhile, with their offsets. They count as copied from now on.
        """
        flags, copied = self._ram.flags, self._copied
        claimed: list[PageRun] = []
        with self._ram.lock:
            for run in runs:
                for guarded in flagged_runs(flags, run.first, run.count, GUARDED):
                    claimed += unflagged_runs(copied, guarded.first, guarded.count, _COPIED)
                    copied[guarded.first : guarded.end] = bytes((_COPIED,)) * guarded.count
        offset = 0
        for run in claimed:
            self._ram.copy_out(run.first, buffer[offset : offset + run.count * PAGE_SIZE])
            offset += run.count * PAGE_SIZE
        offset, taken = 0, []
        with self._ram.lock:
            for run in claimed:
                good = list(flagged_runs(flags, run.first, run.count, GUARDED))
                if good != [run]:
                    copied[run.first : run.end] = bytes(run.count)
                    for part in good:
                        copied[part.first : part.end] = bytes((_COPIED,)) * part.count
                taken += [(part, offset + (part.first - run.first) * PAGE_SIZE) for part in good]
                offset += run.count * PAGE_SIZE
        return taken

    def keep(self, first: int, count: int) -> None:
        """Somebody is about to change these pages: no copy of them is good any more."""
        flags = self._ram.flags
        with self._ram.lock:
            for run in flagged_runs(flags, first, count, GUARDED):
                self._wrote(run)
            clear_flag(flags, first, count, GUARDED)

    def around(self, page: int) -> PageRun:
        """The pages to let go of together with one that the guest is about to write."""
        # One that was copied takes along only those that are likely to be written next: each has to be copied again.
        least = max(1 if self._copied[page] else _AROUND, self._engine.grain)
        expected = self._next_fault
        count = min(2 * expected.count, _MOST_AROUND) if expected.first <= page < expected.end else least
        first = page & -least
        run = PageRun(first, min(max(count, least), self._ram.page_count - first))
        self._next_fault = PageRun(run.end, run.count)
        return run

    def end(self) -> None:
        """Let go of everything. Idempotent; the guest may have ended."""
        if not self._guarding:
            return
        self._guarding = False
        with self._ram.lock:
            clear_flag(self._ram.flags, 0, self._ram.page_count, GUARDED)
        with suppress(GuestGone):  # its mappings went with it
            self._engine.end_guarding()
        self._ram.keeper = None


class _Touched:
    """The pages that hold memory, asked for at once.

    To find the end of data the kernel looks at all of it, also beyond the slice that it is asked about: for a gigabyte
    that is ten milliseconds, and slice by slice it would be three hundred. Pages that were touched since are not among
    them, and are found in the next round.
    """

    def __init__(self, ram: GuestRam) -> None:
        self._ram = ram
        self._touched = bytearray(ram.page_count)
        self._discards = ram.discards  # first: a page may be thrown away meanwhile
        self._note(0)

    def _note(self, first: int) -> None:
        self._touched[first:] = bytes(len(self._touched) - first)
        for run in self._ram.touched(first, self._ram.page_count - first):
            self._touched[run.first : run.end] = b"\1" * run.count

    def among(self, part: PageRun) -> Iterator[PageRun]:
        """Those among some pages, which come no sooner than those of the call before. The RAM's lock is held."""
        if self._ram.discards != self._discards:
            self._discards = self._ram.discards
            self._note(part.first)
        return flagged_runs(self._touched, part.first, part.count, 1)
