"""Guest RAM at one instant, read while the guest goes on.

A snapshot has three phases. *Preparing*, while the guest runs: what holds memory is write-guarded slice by slice, and
pages that are changed meanwhile are let go of and noted. At the *instant* the guest stands still for as long as it
takes to guard what was noted. *Taking*: the guest runs again, and pages are copied in any order. Who is about to
change a page that was not taken yet (the guest, by a write fault; the manager, by the accessor; a munmap) first
has it *kept*: copied aside. So each page is taken once, as it was at the instant.

Kept pages lie in slabs of memory that is made, and touched, while preparing; it is bounded. When all slabs are full,
whoever wants to write waits until the taker has drained one.

A write fault costs more than the copy of a page, and pages are mostly written in runs. So a fault has its neighbours
kept too: 16 pages, and more with each fault that comes right behind the last one. Each page is copied once anyway.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from contextlib import suppress
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
from memvm.units import MIB, PAGE_SIZE

MOST_ROOM = 40 * MIB
SLAB_PAGES = 256
_SLAB = SLAB_PAGES * PAGE_SIZE
_LEAST_AROUND, _MOST_AROUND = 16, 256
_SLICE_PAGES = 4096
_GAP_PAGES = 512
"""Untouched gaps smaller than this are guarded along with what lies around them: the mapping has page tables there."""


class Slab(NamedTuple):
    """A piece of memory with kept pages in it: runs, with their offsets, in the order in which they were kept."""

    memory: memoryview
    parts: list[tuple[PageRun, int]]

    @property
    def used(self) -> int:
        """Bytes that have pages in them."""
        if not self.parts:
            return 0
        run, offset = self.parts[-1]
        return offset + run.count * PAGE_SIZE


class Snapshot:
    """One instant of one guest's RAM."""

    def __init__(self, ram: GuestRam, engine: FaultEngine) -> None:
        self._ram = ram
        self._engine = engine
        self._changed = threading.Condition(ram.lock)
        self._noted: bytearray | None = bytearray(ram.page_count)
        """Before the instant, a byte a page: 1 for guarded ones that were let go of."""
        self._found: list[PageRun] = []
        self._pool: mmap.mmap | None = None
        self._free: list[memoryview] = []
        self._filling: Slab | None = None
        self._full: list[Slab] = []
        self._next_fault = PageRun(0, _LEAST_AROUND)
        self._guarding = False
        self._over = False

    def prepare(self, runs: list[PageRun] | None = None) -> None:
        """Guard what holds memory, or of that only some pages, as far as this can be done while the guest runs."""
        room = min(MOST_ROOM, max(_LEAST_AROUND * PAGE_SIZE, self._ram.size // 8)) // _SLAB * _SLAB or _SLAB
        self._pool = mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with memoryview(self._pool) as whole:
            self._free = [whole[start : start + _SLAB] for start in range(0, room, _SLAB)]
        for slab in self._free:
            self._ram.copy_out(0, slab[: self._ram.size])  # touches it now, so that keeping a page later is only a copy
        self._engine.begin_guarding()  # first: until then some of guest RAM may be somebody else's
        self._guarding = True
        self._ram.keeper = self
        self._found = list(self._ram.touched()) if runs is None else runs
        for run in self._found:
            with self._ram.lock:
                set_flag(self._ram.flags, run.first, run.count, GUARDED)
        if self._engine.guards_while_running:
            for run in merged_runs(self._found, _GAP_PAGES):
                for first in range(run.first, run.end, _SLICE_PAGES):
                    self._engine.guard(PageRun(first, min(_SLICE_PAGES, run.end - first)))

    def instant(self) -> list[PageRun]:
        """Make this moment the snapshot's; the guest must stand still. Returns the pages to take, ascending."""
        with self._ram.lock:
            assert self._noted is not None
            noted = list(flagged_runs(self._noted, 0, self._ram.page_count, 1))
            self._noted = None
            if self._engine.guards_while_running:
                # What was touched since the first look is also found in the small gaps that are guarded along:
                # neither the manager's writes nor those that came before the guard are noted there.
                gaps = _gaps(self._found, self._ram.page_count)
                late = noted + [run for gap in gaps for run in self._ram.touched(*gap)]
                guarded = late
            else:
                late = list(self._ram.touched())
                guarded = merged_runs(late, _GAP_PAGES)
            for run in late:
                set_flag(self._ram.flags, run.first, run.count, GUARDED)
        for run in guarded:
            self._engine.guard(run)
        return united_runs([*self._found, *late])

    def instant_of(self, pages: list[PageRun]) -> None:
        """Make this moment that of a snapshot of these pages, ascending, and of no others."""
        flags = self._ram.flags
        with self._ram.lock:
            self._noted = None
            late = [part for run in pages for part in unflagged_runs(flags, run.first, run.count, GUARDED)]
            clear_flag(flags, 0, self._ram.page_count, GUARDED)  # thrown away since, or no more to be taken
            for run in pages:
                set_flag(flags, run.first, run.count, GUARDED)
        for run in late if self._engine.guards_while_running else merged_runs(pages, _GAP_PAGES):
            self._engine.guard(run)

    def take(self, runs: list[PageRun], buffer: memoryview) -> list[tuple[PageRun, int]]:
        """Copy pages into a buffer, one run after the other.

        Returns those that are as at the instant, with their offsets in the buffer; the others were kept.
        """
        offset, taken = 0, []
        for run in runs:
            size = run.count * PAGE_SIZE
            self._ram.copy_out(run.first, buffer[offset : offset + size])
            offset += size
        offset = 0
        with self._ram.lock:
            # What is still guarded now has not changed before it was copied above.
            near: list[PageRun] = []
            for run in runs:
                guarded = flagged_runs(self._ram.flags, run.first, run.count, GUARDED)
                taken += [(part, offset + (part.first - run.first) * PAGE_SIZE) for part in guarded]
                clear_flag(self._ram.flags, run.first, run.count, GUARDED)
                offset += run.count * PAGE_SIZE
                if near and 0 <= run.first - near[-1].end < _GAP_PAGES:
                    near[-1] = PageRun(near[-1].first, run.end - near[-1].first)
                else:
                    near.append(run)
            self._changed.notify_all()  # who waits for room for these needs none any more
            for run in near:
                self._engine.unguard(run)
        return taken

    def keep(self, first: int, count: int) -> None:
        """Somebody is about to change these pages: copy aside those that were not taken yet."""
        flags = self._ram.flags
        with self._ram.lock:
            if self._noted is not None:
                for run in flagged_runs(flags, first, count, GUARDED):
                    self._noted[run.first : run.end] = b"\1" * run.count
                clear_flag(flags, first, count, GUARDED)
                return
            for start in range(first, first + count, SLAB_PAGES):
                self._keep(start, min(SLAB_PAGES, first + count - start))

    def _keep(self, first: int, count: int) -> None:
        """Keep the guarded ones of at most SLAB_PAGES pages; the lock is held, but let go of while waiting."""
        flags = self._ram.flags
        while not self._over and (needed := count_flag(flags, GUARDED, first, count)):
            slab = self._slab_with_room(needed * PAGE_SIZE)
            if slab is None:
                self._changed.wait()  # anything may have happened meanwhile: look again
                continue
            offset = slab.used
            for run in flagged_runs(flags, first, count, GUARDED):
                size = run.count * PAGE_SIZE
                self._ram.copy_out(run.first, slab.memory[offset : offset + size])
                slab.parts.append((run, offset))
                offset += size
            break
        clear_flag(flags, first, count, GUARDED)

    def _slab_with_room(self, size: int) -> Slab | None:
        if self._filling is not None and self._filling.used + size > _SLAB:
            self._full.append(self._filling)
            self._filling = None
        if self._filling is None and self._free:
            self._filling = Slab(self._free.pop(), [])
        return self._filling

    def around(self, page: int) -> PageRun:
        """The pages to keep together with one that the guest is about to write."""
        least = max(_LEAST_AROUND, self._engine.grain)
        expected = self._next_fault
        count = min(2 * expected.count, _MOST_AROUND) if expected.first <= page < expected.end else least
        first = page & -least
        run = PageRun(first, min(max(count, least), self._ram.page_count - first))
        self._next_fault = PageRun(run.end, run.count)
        return run

    def next_full(self) -> Slab | None:
        """A slab that is full of kept pages, the oldest first; None if there is none. To be given to `release`."""
        with self._ram.lock:
            return self._full.pop(0) if self._full else None

    def drain(self) -> list[Slab]:
        """The slabs with pages kept since the last call; each is to be given to `release` once it is read."""
        with self._ram.lock:
            slabs, self._full = self._full, []
            if self._filling is not None:
                slabs.append(self._filling)
                self._filling = None
        return slabs

    def release(self, slab: Slab) -> None:
        """A slab has been read: its memory is free again."""
        with self._ram.lock:
            self._free.append(slab.memory)
            self._changed.notify_all()

    def end(self) -> None:
        """Let go of everything, taken or not. Idempotent; the guest may have ended."""
        with self._ram.lock:
            if self._over:
                return
            self._over = True
            self._changed.notify_all()
            clear_flag(self._ram.flags, 0, self._ram.page_count, GUARDED)
            self._free, self._full, self._filling, self._pool = [], [], None, None  # the last view unmaps the pool
        if self._guarding:
            with suppress(GuestGone):  # its mappings went with it
                self._engine.end_guarding()
        self._ram.keeper = None


def _gaps(runs: list[PageRun], page_count: int) -> Iterator[PageRun]:
    """What lies between ascending runs."""
    end = 0
    for run in runs:
        if run.first > end:
            yield PageRun(end, run.first - end)
        end = run.end
    if end < page_count:
        yield PageRun(end, page_count - end)
