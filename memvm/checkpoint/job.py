"""What every kind of save has in common: a machine, a file, a way from pages to it, and who is told how far it is.

The kinds are StoppedSave (save.py), LiveSave (live.py) and SuspendSave (suspend.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from memvm.checkpoint.active import active_pages
from memvm.checkpoint.basis import Basis, Pages
from memvm.checkpoint.carried import CarriedPages, source_of
from memvm.checkpoint.file_writer import CheckpointWriter, FileTotals
from memvm.checkpoint.sections import WRITTEN, ActiveNotes, ActivePages
from memvm.checkpoint.staging import Stager
from memvm.machine.machine import Machine
from memvm.memory.deferred import DeferredPages
from memvm.memory.engine import GuestGone
from memvm.memory.pages import PageRun
from memvm.memory.ram import GuestRam
from memvm.units import PAGE_SIZE

_LOAD_PAGES = 4096
"""Pages that are loaded between two looks at whether the save is still wanted."""

Progress = Callable[[int, int], None]
"""Told bytes done and bytes in all; may raise to give the save up."""


class Saved(NamedTuple):
    """What a save did."""

    pages: int
    """All pages that held memory."""
    totals: FileTotals
    frozen_seconds: float
    """How long the guest stood still."""
    pages_kept: int = 0
    """Pages that were copied aside because the guest was about to write to them."""


class SaveJob:
    """One save under way."""

    def __init__(self, machine: Machine, writer: CheckpointWriter, stager: Stager, progress: Progress) -> None:
        self.machine = machine
        self.writer = writer
        self.stager = stager
        self._progress = progress

    def advance(self, total: int) -> None:
        """Say how far the save is, of `total` pages. Raises if it is not wanted any more, or the guest is ending.

        A guest that is killed while it stands still for a save cannot be buried before the save is over.
        """
        if self.machine.is_ending:
            raise GuestGone
        self._progress(self.stager.pages_done * PAGE_SIZE, total * PAGE_SIZE)


class InstantSave(SaveJob):
    """A save of what a guest is at one instant, of all of it or on top of a parent."""

    def __init__(
        self, machine: Machine, basis: Basis, writer: CheckpointWriter, stager: Stager, progress: Progress
    ) -> None:
        super().__init__(machine, writer, stager, progress)
        self.basis = basis

    def store_others(self, pages: Pages) -> None:
        """Put into the file what is not in memory: deferred pages, and what is as in the parent."""
        source = source_of(self.machine)
        if pages.carried:
            assert source is not None, "pages that are deferred from elsewhere are loaded before a save"
            CarriedPages(source, self.writer, self.stager, pages.carried).carry(lambda: self.advance(pages.total))
        for run in pages.inherited:
            self.writer.add_inherited(run)

    def active_after(self, runs: Iterable[PageRun]) -> ActivePages:
        """An active list of pages that were written, and what is active in the parent."""
        notes = ActiveNotes()
        notes.note_runs(runs, WRITTEN)
        assert self.basis.parent is not None
        _append(notes, active_pages(self.basis.parent))
        return notes.pages()

    def active_with_source(self, active: ActivePages, pages: Pages) -> ActivePages:
        """An active list, and behind it what is active in the file that deferred pages come from, if there are any."""
        source = source_of(self.machine)
        if not pages.carried or source is None:
            return active
        notes = ActiveNotes()
        _append(notes, active)
        _append(notes, active_pages(source))
        return notes.pages()


def _append(notes: ActiveNotes, active: ActivePages) -> None:
    for page, kind in zip(active.pages, active.kinds, strict=True):
        notes.note(page, kind)


def load_deferred(machine: Machine, progress: Progress) -> None:
    """Load what a guest that is still being restored has not got; it runs on meanwhile."""
    loader = machine.ram.loader
    if isinstance(loader, DeferredPages):
        for first in range(0, machine.ram.page_count, _LOAD_PAGES):
            loader.bring(first, min(_LOAD_PAGES, machine.ram.page_count - first))
            progress(0, machine.ram.touched_bytes())


def copy_pages(ram: GuestRam, batch: list[PageRun], buffer: memoryview) -> list[tuple[PageRun, int]]:
    """Fill a buffer with pages as they are now; returns them with their offsets there."""
    offset, parts = 0, []
    for run in batch:
        size = run.count * PAGE_SIZE
        ram.copy_out(run.first, buffer[offset : offset + size])
        parts.append((run, offset))
        offset += size
    return parts
