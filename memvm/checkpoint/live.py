"""Saves a guest live: the file has its state at one instant, and it runs on meanwhile.

The order of events: trace all that holds memory, then write-guard it, slice by slice, while the guest runs; stop it;
guard what it wrote meanwhile, note its registers and state; let it go on; copy and compress its pages, those first
that it is about to write, then those that it reads; end the traces; write index, active list, state and commit record.
The guest is frozen only between stop and go.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from memvm.checkpoint.accesses import AccessNotes
from memvm.checkpoint.basis import Pages
from memvm.checkpoint.job import InstantSave, Saved
from memvm.checkpoint.staging import BATCH_PAGES, Batch, batches
from memvm.faultpoints import FaultPoint, fire
from memvm.machine.state import GuestState
from memvm.memory.pages import PageRun
from memvm.memory.snapshot import Slab, Snapshot


class LiveSave(InstantSave):
    """One live save, from the first trace to the commit record."""

    _frozen = 0.0
    _kept = 0

    def run(self) -> Saved:
        """Save; the guest runs on whatever happens. Raises SaveError, GuestGone, and what the progress raises."""
        ram = self.machine.ram
        snapshot = Snapshot(ram, self.machine.engine)
        with AccessNotes(self.machine.traces, ram.touched()) as notes:
            fire(FaultPoint.SAVE_TRACED)
            try:
                snapshot.prepare()
                notes.look()
                pages, state = self.machine.frozen(lambda: self._instant(snapshot))
                total = pages.total
                cold = batches(pages.stored)
                self.stager.stage(lambda: self._next(snapshot, notes, cold), lambda: self.advance(total))
                slabs = iter(snapshot.drain())  # all is taken now, so nothing more will be kept
                self.stager.stage(
                    lambda: self._kept_batch(snapshot, notes, next(slabs, None)), lambda: self.advance(total)
                )
            finally:
                snapshot.end()
        self.store_others(pages)
        totals = self.writer.commit(state.to_json(), self.active_with_source(notes.pages(), pages))
        return Saved(total, totals, self._frozen, self._kept)

    def _instant(self, snapshot: Snapshot) -> tuple[Pages, GuestState]:
        stopped = time.monotonic()
        with self.machine.ram.lock:
            touched = snapshot.instant()
            self.basis.begin(touched)
            pages = self.basis.pages(self.basis.held(touched))
        state = GuestState.capture(self.machine)
        self._frozen = time.monotonic() - stopped
        return pages, state

    def _next(self, snapshot: Snapshot, notes: AccessNotes, cold: Iterator[list[PageRun]]) -> Batch | None:
        """Pages that were about to be written go ahead, then those that were read, then the others."""
        if kept := self._kept_batch(snapshot, notes, snapshot.next_full()):
            return kept
        if runs := notes.fresh(BATCH_PAGES, BATCH_PAGES):
            return Batch(partial(snapshot.take, runs), active=True)
        if runs := next(cold, []):
            return Batch(partial(snapshot.take, runs))
        return None

    def _kept_batch(self, snapshot: Snapshot, notes: AccessNotes, slab: Slab | None) -> Batch | None:
        if slab is None:
            return None
        notes.wrote(run for run, _ in slab.parts)
        self._kept += sum(run.count for run, _ in slab.parts)
        return Batch(partial(take_over, snapshot, slab), active=True)


def take_over(snapshot: Snapshot, slab: Slab, buffer: memoryview) -> list[tuple[PageRun, int]]:
    """Fill a buffer with pages that were copied aside."""
    used = slab.used
    buffer[:used] = slab.memory[:used]
    snapshot.release(slab)
    return slab.parts
