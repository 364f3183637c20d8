"""Saves what changed since a parent was saved, while the guest runs.

Mostly that is little. Then it is copied aside while the guest runs, and what it wrote meanwhile again, until little is
left: for that alone the guest stands still. Nothing is guarded, so that it runs without faults before and after.
If it is more than there is room for, it is saved as a whole guest would be (live.py), from a snapshot that has nothing
but the changed pages. Either way the others are inherited.

The active list has the pages that changed, and then those that the parent's list has.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator
from functools import partial

from memvm.checkpoint.basis import Held, Look, Pages
from memvm.checkpoint.job import InstantSave, Saved
from memvm.checkpoint.live import take_over
from memvm.checkpoint.staging import Batch, batches
from memvm.machine.state import GuestState
from memvm.memory.pages import PageRun, common, pages_in, united_runs, without
from memvm.memory.ram import GuestRam
from memvm.memory.snapshot import Slab, Snapshot
from memvm.units import MIB, PAGE_SIZE

ROOM = 32 * MIB
"""Of what is copied aside."""
_FEW = 512
"""Pages to be copied while the guest stands still: a millisecond or two."""
_ROUNDS = 4


class IncrementalLiveSave(InstantSave):
    """One live save on top of a parent."""

    def run(self) -> Saved:
        """Save; the guest runs on whatever happens. Raises SaveError, GuestGone, and what the progress raises."""
        aside = Aside(self.machine.ram)
        try:
            if self._copy_aside(aside):
                saved = self._from_aside(aside)
                if saved is not None:
                    return saved
        finally:
            aside.close()
        return self._from_snapshot()

    def _copy_aside(self, aside: Aside) -> bool:
        """Copy what has changed so far; False if that is too much."""
        aside.held = self.basis.held()
        changed = self.basis.pages(aside.held).stored
        for _ in range(_ROUNDS):
            if not aside.copy(changed):
                return False
            self.advance(0)
            changed = self._news(aside, self.basis.look())
            if pages_in(changed) <= _FEW:
                break
        return aside.copy(changed)

    def _news(self, aside: Aside, told: list[PageRun]) -> list[PageRun]:
        """Pages whose copies are old or missing: what was told of, and what holds memory only since the last time.

        The latter need not be told of, if it was only read.
        """
        aside.forget(told)
        before, aside.held = aside.held.touched, self.basis.held()
        touched = aside.held.touched
        return united_runs([*common(told, touched), *without(touched, before)])

    def _from_aside(self, aside: Aside) -> Saved | None:
        frozen, state = self.basis.at_instant(partial(self._instant, aside))
        if state is None:
            return None
        pages = self.basis.pages(aside.held)
        total = pages.total
        work = (Batch(partial(aside.fill, runs), active=True) for runs in batches(pages.stored))
        self.stager.stage(lambda: next(work, None), lambda: self.advance(total))
        self.store_others(pages)
        totals = self.writer.commit(state.to_json(), self.active_after(pages.stored))
        return Saved(total, totals, frozen, pages_in(pages.stored))

    def _instant(self, aside: Aside, look: Look) -> tuple[float, GuestState | None]:
        stopped = time.monotonic()
        changed = self._news(aside, look())
        state = GuestState.capture(self.machine) if aside.copy(changed) else None
        return time.monotonic() - stopped, state

    def _from_snapshot(self) -> Saved:
        snapshot = Snapshot(self.machine.ram, self.machine.engine)
        kept = 0

        def batch_of(slab: Slab | None) -> Batch | None:
            nonlocal kept
            if slab is None:
                return None
            kept += pages_in(run for run, _ in slab.parts)
            return Batch(partial(take_over, snapshot, slab), active=True)

        try:
            snapshot.prepare(self.basis.pages().stored)
            frozen, pages, state = self.basis.at_instant(partial(self._snapshot_instant, snapshot))
            total = pages.total
            rest = batches(pages.stored)

            def fetch() -> Batch | None:
                if batch := batch_of(snapshot.next_full()):
                    return batch
                runs = next(rest, None)
                return Batch(partial(snapshot.take, runs), active=True) if runs else None

            self.stager.stage(fetch, lambda: self.advance(total))
            slabs: Iterator[Slab] = iter(snapshot.drain())
            self.stager.stage(lambda: batch_of(next(slabs, None)), lambda: self.advance(total))
        finally:
            snapshot.end()
        self.store_others(pages)
        totals = self.writer.commit(state.to_json(), self.active_after(pages.stored))
        return Saved(total, totals, frozen, kept)

    def _snapshot_instant(self, snapshot: Snapshot, look: Look) -> tuple[float, Pages, GuestState]:
        stopped = time.monotonic()
        look()
        pages = self.basis.pages()
        snapshot.instant_of(pages.stored)
        state = GuestState.capture(self.machine)
        return time.monotonic() - stopped, pages, state


class Aside:
    """Copies of some pages, in memory that is bounded and was touched before."""

    def __init__(self, ram: GuestRam) -> None:
        self._ram = ram
        self._memory = mmap.mmap(-1, ROOM, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._view = memoryview(self._memory)
        self._places: dict[int, int] = {}
        """Where each page is, in pages."""
        self._valid = bytearray(ram.page_count)
        """1 for pages whose copy counts."""
        self.held = Held([], [])
        """The pages that the guest had when it was copied last."""

    def copy(self, runs: list[PageRun]) -> bool:
        """Copy pages, again if need be; False if there is no room."""
        for run in runs:
            if run.count > ROOM // PAGE_SIZE:
                return False
            fresh = [page for page in range(run.first, run.end) if page not in self._places]
            if len(self._places) + len(fresh) > ROOM // PAGE_SIZE:
                return False
            self._places.update(zip(fresh, range(len(self._places), len(self._places) + len(fresh)), strict=True))
            self._copy(run, at_once=len(fresh) == run.count)
            self._valid[run.first : run.end] = b"\1" * run.count
        return True

    def _copy(self, run: PageRun, *, at_once: bool) -> None:
        step = run.count if at_once else 1
        for first in range(run.first, run.end, step):
            start = self._places[first] * PAGE_SIZE
            self._ram.copy_out(first, self._view[start : start + step * PAGE_SIZE])

    def forget(self, runs: list[PageRun]) -> None:
        """The copies of these pages do not count any more."""
        for run in runs:
            self._valid[run.first : run.end] = bytes(run.count)

    def fill(self, runs: list[PageRun], buffer: memoryview) -> list[tuple[PageRun, int]]:
        """Put copies into a buffer, one run after the other; returns them with their offsets there."""
        offset, parts = 0, []
        for run in runs:
            parts.append((run, offset))
            assert self._valid.count(1, run.first, run.end) == run.count, "what is stored was copied as it is"
            for page in range(run.first, run.end):
                start = self._places[page] * PAGE_SIZE
                buffer[offset : offset + PAGE_SIZE] = self._view[start : start + PAGE_SIZE]
                offset += PAGE_SIZE
        return parts

    def close(self) -> None:
        """Give the memory back."""
        self._view.release()
        self._memory.close()
