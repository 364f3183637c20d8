"""Saves a guest to a checkpoint file: while it stands still (here), or live, as it was at one instant (live.py)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from memvm.checkpoint.basis import Basis, Known, Look, Parent, open_parent, refuse_bad_pages, require_same_guest
from memvm.checkpoint.carried import source_of
from memvm.checkpoint.file_bytes import OpenOutput
from memvm.checkpoint.file_writer import CheckpointWriter
from memvm.checkpoint.format import FileHeader
from memvm.checkpoint.incremental import IncrementalLiveSave
from memvm.checkpoint.job import InstantSave, Progress, Saved, copy_pages, load_deferred
from memvm.checkpoint.live import LiveSave
from memvm.checkpoint.sections import ActivePages
from memvm.checkpoint.staging import CHUNK_PAGES, Batch, Stager, batches
from memvm.errors import GuestStateError, UsageError
from memvm.machine.machine import Machine
from memvm.machine.state import GuestState
from memvm.memory.engine import GuestGone
from memvm.units import KIB, MIB, PAGE_SIZE

DEFAULT_LEVEL = 1
DEFAULT_BLOCK_SIZE = 2 * MIB
MIN_LEVEL, MAX_LEVEL = -100, 22
MIN_BLOCK, MAX_BLOCK = 64 * KIB, 64 * MIB


@dataclass(frozen=True)
class SaveOptions:
    """How to save."""

    live: bool = False
    """Let the guest run meanwhile; otherwise it stands still until the file is whole."""
    level: int = DEFAULT_LEVEL
    """Of zstd: -100 to 22; negative is faster."""
    block_size: int = DEFAULT_BLOCK_SIZE
    """Bytes of the staging buffer, so of one write."""
    parent: Path | None = None
    """Store only what changed since this checkpoint."""

    def check(self) -> None:
        """Raises UsageError for values out of bounds."""
        check_bounds(self.level, self.block_size)


def check_bounds(level: int, block_size: int) -> None:
    """Raises UsageError for what zstd or the file cannot have."""
    if not MIN_LEVEL <= level <= MAX_LEVEL:
        raise UsageError(f"compression level {level}: it must be {MIN_LEVEL} to {MAX_LEVEL}")
    if not MIN_BLOCK <= block_size <= MAX_BLOCK:
        raise UsageError(f"block size {block_size}: it must be 64 KiB to 64 MiB")


@dataclass(frozen=True)
class SaveReport:
    """What a save did. Sizes in bytes, times in seconds."""

    path: str
    bytes_raw: int
    """All pages that held memory."""
    bytes_file: int
    pages_data: int
    pages_zero: int
    pages_kept: int
    """Pages that were copied aside because the guest was about to write to them."""
    block_writes: int
    seconds: float
    frozen_seconds: float
    """How long the guest stood still."""
    parent: str = ""
    """The checkpoint that it was saved on top of, if any."""
    pages_inherited: int = 0
    """Pages that are as in the parent."""
    changes_known: str = ""
    """How it was known which: "noted" (writes were, since the parent), or "compared" (contents were)."""


def save(
    machine: Machine,
    path: Path,
    options: SaveOptions,
    progress: Progress,
    open_output: OpenOutput | None = None,
    parent: Parent | None = None,
) -> SaveReport:
    """Save a guest that runs or is paused; it goes on as before, whatever happens. `open_output` as CheckpointWriter.

    `parent` is that of the options, if the caller has opened it: it stays the caller's.

    Raises SaveError if the file cannot be written, GuestStateError if the guest ends or is being saved
    already, CheckpointError if the parent is missing or damaged, UsageError for impossible options, and what
    `progress` raises. An old file at `path` stays whole until the new one is.
    """
    options.check()
    began = time.monotonic()
    with only_save(machine), ExitStack() as opened:
        if source_of(machine) is None:
            load_deferred(machine, progress)  # from no file, such as a clone's template, whose chunks could be copied
        refuse_bad_pages(machine)
        if options.parent is not None and parent is None:
            parent = open_parent(options.parent, path)
            opened.enter_context(parent.chain)
        chain = None if parent is None else parent.chain
        if chain is not None:
            require_same_guest(machine, chain)
        writer = opened.enter_context(CheckpointWriter(path, new_header(machine, options.block_size), open_output))
        if parent is not None:
            writer.set_parent(parent.link)
        kind = _kind(options)
        basis = opened.enter_context(Basis(machine, chain, lambda: progress(0, 0), begins_anew=kind is LiveSave))
        stager = Stager(writer, options.level, spare=machine.placement.spare if options.live else None)
        saved = kind(machine, basis, writer, stager, progress).run()
        basis.saved(writer.header.checkpoint_id, saved.totals.commit_sha256)
        return _report(path, options, basis.known, saved, time.monotonic() - began)


@contextmanager
def only_save(machine: Machine) -> Iterator[None]:
    """While it is entered, no other save of this guest begins. Raises GuestStateError, also in place of GuestGone."""
    if not machine.saving.acquire(blocking=False):
        raise GuestStateError(f"guest {machine.options.name} is being saved already", hint="wait for that save")
    try:
        machine.guest.launched.saves += 1
        machine.guest.launched.measure()  # it may take its time, and the guest does not stand still yet
        yield
    except GuestGone:
        raise GuestStateError(f"guest {machine.options.name} ended while it was being saved") from None
    finally:
        machine.saving.release()


def new_header(machine: Machine, block_size: int) -> FileHeader:
    """The header of a new checkpoint of a guest."""
    source = source_of(machine)  # whose chunks may be copied
    return FileHeader(
        ram_base=machine.ram.base,
        ram_size=machine.ram.size,
        chunk_pages=CHUNK_PAGES if source is None else max(CHUNK_PAGES, source.header.chunk_pages),
        block_size=block_size,
        checkpoint_id=os.urandom(16),
    )


def _kind(options: SaveOptions) -> type[StoppedSave | LiveSave | IncrementalLiveSave]:
    if not options.live:
        return StoppedSave
    return LiveSave if options.parent is None else IncrementalLiveSave


def _report(path: Path, options: SaveOptions, known: Known, saved: Saved, seconds: float) -> SaveReport:
    return SaveReport(
        path=str(path),
        bytes_raw=saved.pages * PAGE_SIZE,
        bytes_file=saved.totals.file_size,
        pages_data=saved.totals.data_pages,
        pages_zero=saved.totals.zero_pages,
        pages_kept=saved.pages_kept,
        block_writes=saved.totals.block_writes,
        seconds=seconds,
        frozen_seconds=saved.frozen_seconds,
        parent="" if options.parent is None else str(options.parent),
        pages_inherited=saved.totals.inherited_pages,
        changes_known=str(known),
    )


class StoppedSave(InstantSave):
    """Saves all while the guest stands still."""

    def run(self) -> Saved:
        """Save; the guest goes on whatever happens. Raises SaveError, GuestGone, and what the progress raises."""
        return self.basis.at_instant(self._stopped)

    def _stopped(self, look: Look) -> Saved:
        """On the tracer's thread."""
        stopped = time.monotonic()
        look()
        ram = self.machine.ram
        state = GuestState.capture(self.machine)
        pages = self.basis.pages()
        total = pages.total
        cold = (Batch(partial(copy_pages, ram, runs)) for runs in batches(pages.stored))
        self.stager.stage(lambda: next(cold, None), lambda: self.advance(total))
        self.store_others(pages)
        if self.basis.parent is None:
            active = self.active_with_source(ActivePages(), pages)
        else:
            active = self.active_after(pages.stored)
        totals = self.writer.commit(state.to_json(), active)
        return Saved(total, totals, time.monotonic() - stopped)
