"""Suspends a guest to a file: its memory is stored while it runs; it is stopped, the rest is stored, and it is ended.

Memory is stored in rounds (memory/precopy.py). In the first one, all that the guest does not write meanwhile: pages
that it reads ahead of those that it does not use. In the others, what it has written since the last: those that were
stored before are superseded in the file. The rounds end when what is left can be stored in a moment, when they no
longer help (the guest writes as fast as its memory is stored), or at a bound on time or data. The guest is not ended
before the file has its name; if anything fails it runs on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from memvm.checkpoint.accesses import AccessNotes
from memvm.checkpoint.basis import refuse_bad_pages
from memvm.checkpoint.file_bytes import OpenOutput
from memvm.checkpoint.file_writer import CheckpointWriter, FileTotals
from memvm.checkpoint.job import Progress, SaveJob, copy_pages, load_deferred
from memvm.checkpoint.save import DEFAULT_BLOCK_SIZE, DEFAULT_LEVEL, check_bounds, new_header, only_save
from memvm.checkpoint.staging import BATCH_PAGES, Batch, Stager, batches
from memvm.errors import UsageError
from memvm.faultpoints import FaultPoint, fire
from memvm.machine.config import ExitStatus
from memvm.machine.machine import Machine
from memvm.machine.state import GuestState
from memvm.memory.pages import PageRun, unflagged_runs
from memvm.memory.precopy import Precopy, Round
from memvm.units import PAGE_SIZE

Take = Callable[[list[PageRun], memoryview], list[tuple[PageRun, int]]]
_MOMENT = 0.02
"""Seconds in which what is left has to be stored, by the speed so far, for the guest to be stopped."""
_SHRINKS = 0.5
"""A round is worth what it costs the guest if it leaves less than this of what the one before it left: each page that
it writes again costs it a fault, and standing still harms nobody whom it is about to leave."""


@dataclass(frozen=True)
class SuspendOptions:
    """How to suspend."""

    level: int = DEFAULT_LEVEL
    """Of zstd: -100 to 22; negative is faster."""
    block_size: int = DEFAULT_BLOCK_SIZE
    """Bytes of the staging buffer, so of one write."""
    time: float = 30.0
    """Seconds after which the guest is stopped, whatever is left; 0 stops it at once."""
    data: int | None = None
    """Bytes of memory that are stored before it is; None is twice what it holds at the request."""

    def check(self) -> None:
        """Raises UsageError for values out of bounds."""
        check_bounds(self.level, self.block_size)
        if not 0 <= self.time <= 86400:
            raise UsageError(f"a suspend of {self.time:g} s", hint="a day at most")
        if self.data is not None and self.data < 0:
            raise UsageError(f"a suspend after {self.data} bytes")


@dataclass(frozen=True)
class SuspendReport:
    """What a suspend did. Sizes in bytes, times in seconds."""

    path: str
    bytes_raw: int
    """All pages that held memory in the end."""
    bytes_file: int
    bytes_again: int
    """Memory that was stored and then changed, so that it was stored again."""
    pages_data: int
    pages_zero: int
    pages_active: int
    """Pages that the guest was seen to use."""
    rounds: int
    """While it ran."""
    block_writes: int
    seconds: float
    frozen_seconds: float
    """How long the guest had stood still when the file was whole."""


def suspend(
    machine: Machine, path: Path, options: SuspendOptions, progress: Progress, open_output: OpenOutput | None = None
) -> SuspendReport:
    """Save a guest that runs or is paused, and end it; it runs on as before if that fails.

    `open_output` is as CheckpointWriter has it.

    Raises SaveError if the file cannot be written, GuestStateError if the guest ends or is being saved already,
    UsageError for impossible options, and what `progress` raises. An old file at `path` stays whole until the new one
    is.
    """
    options.check()
    began = time.monotonic()
    with only_save(machine), ExitStack() as opened:
        load_deferred(machine, progress)  # it is about to end
        refuse_bad_pages(machine)
        writer = opened.enter_context(CheckpointWriter(path, new_header(machine, options.block_size), open_output))
        stager = Stager(writer, options.level, spare=machine.placement.spare)
        saved = SuspendSave(machine, writer, stager, progress).run(options)
    return SuspendReport(
        path=str(path),
        bytes_raw=saved.pages * PAGE_SIZE,
        bytes_file=saved.totals.file_size,
        bytes_again=saved.again * PAGE_SIZE,
        pages_data=saved.totals.data_pages,
        pages_zero=saved.totals.zero_pages,
        pages_active=saved.active,
        rounds=saved.rounds,
        block_writes=saved.totals.block_writes,
        seconds=time.monotonic() - began,
        frozen_seconds=saved.frozen_seconds,
    )


class Suspended(NamedTuple):
    """What a suspend did, in pages."""

    pages: int
    again: int
    active: int
    rounds: int
    totals: FileTotals
    frozen_seconds: float


class SuspendSave(SaveJob):
    """One suspend, from the first trace to the guest's end."""

    def __init__(self, machine: Machine, writer: CheckpointWriter, stager: Stager, progress: Progress) -> None:
        super().__init__(machine, writer, stager, progress)
        self._again = 0
        self._rounds = 0
        self._until = 0.0
        self._most_pages = 0

    def run(self, options: SuspendOptions) -> Suspended:
        """Suspend; the guest runs on if anything is raised: SaveError, GuestGone, or what the progress raises."""
        ram = self.machine.ram
        traced = list(ram.touched())
        data = 2 * sum(run.count for run in traced) * PAGE_SIZE if options.data is None else options.data
        self._until = time.monotonic() + options.time
        self._most_pages = data // PAGE_SIZE
        with AccessNotes(self.machine.traces, traced) as notes:
            precopy = Precopy(ram, self.machine.engine, self.machine.lock, lambda run: notes.wrote([run]))
            try:
                precopy.begin()
                self._copy_while_running(precopy, notes)
                return self.machine.frozen(lambda: self._finish(precopy, notes, traced))
            finally:
                precopy.end()

    @property
    def _at_bound(self) -> bool:
        return time.monotonic() >= self._until or self.stager.pages_done >= self._most_pages

    def _copy_while_running(self, precopy: Precopy, notes: AccessNotes) -> None:
        began, before = time.monotonic(), float("inf")
        while not self._at_bound:
            todo = precopy.next_round()
            notes.look()
            fire(FaultPoint.SUSPEND_ROUND)
            self._supersede(todo)
            self._store(todo, notes, precopy.take, running=True)
            self._rounds += 1
            left = precopy.left()
            speed = self.stager.pages_done / (time.monotonic() - began)
            if left <= speed * _MOMENT or left >= before * _SHRINKS:
                return
            before = left

    def _finish(self, precopy: Precopy, notes: AccessNotes, traced: list[PageRun]) -> Suspended:
        """On the tracer's thread; the guest stands still, and then is ended."""
        stopped = time.monotonic()
        fire(FaultPoint.SUSPEND_STOPPED)
        machine, ram = self.machine, self.machine.ram
        state = GuestState.capture(machine)
        todo = precopy.last_round()
        there = list(ram.touched())
        notes.appeared(_without(there, traced, ram.page_count))
        self._supersede(todo)
        self.stager.spare = None
        self._store(todo, notes, partial(copy_pages, ram), running=False)
        notes.look()
        active = notes.pages()
        totals = self.writer.commit(state.to_json(), active)
        fire(FaultPoint.SUSPEND_SAVED)
        machine.end(ExitStatus(0, None, f"suspended to {self.writer.path}"))
        pages = sum(run.count for run in there)
        return Suspended(pages, self._again, len(active.pages), self._rounds, totals, time.monotonic() - stopped)

    def _store(self, todo: Round, notes: AccessNotes, take: Take, *, running: bool) -> None:
        """Store the pages of a round, those that the guest was seen to use first; while it runs, up to the bounds."""
        total = self.stager.pages_done + todo.page_count
        used, rest = notes.batches(todo.pages, BATCH_PAGES)
        active, cold = iter(used), batches(rest)

        def fetch() -> Batch | None:
            if running and self._at_bound:
                return None
            if runs := next(active, []) or (notes.fresh(BATCH_PAGES, BATCH_PAGES) if running else []):
                return Batch(partial(take, runs), active=True)
            if runs := next(cold, []):
                return Batch(partial(take, runs))
            return None

        self.stager.stage(fetch, lambda: self.advance(max(total, self.stager.pages_done)))

    def _supersede(self, todo: Round) -> None:
        for run in todo.outdated:
            self.writer.supersede(run)
            self._again += run.count


def _without(runs: list[PageRun], others: list[PageRun], page_count: int) -> Iterator[PageRun]:
    """The pages of `runs` that are not in `others`."""
    known = bytearray(page_count)
    for run in others:
        known[run.first : run.end] = b"\1" * run.count
    for run in runs:
        yield from unflagged_runs(known, run.first, run.count, 1)
