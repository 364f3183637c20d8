"""How a guest's page faults are answered: which engine it gets, and what is decided when it faults."""

from __future__ import annotations

import os
from collections.abc import Callable

from memvm.errors import HostError
from memvm.linux.userfaultfd import Feature, Userfaultfd
from memvm.machine.config import EngineChoice
from memvm.machine.tracer import Tracer
from memvm.memory.access_scan import AccessScan
from memvm.memory.engine import FaultEngine
from memvm.memory.mprotect_engine import MprotectEngine, Protect
from memvm.memory.pages import BAD, DEFERRED, TRACE_ACCESS, TRACED, WRITE_REASONS, PageRun, united_runs
from memvm.memory.ram import GuestRam
from memvm.memory.traces import Heard
from memvm.memory.uffd_engine import REQUIRED, UserfaultfdEngine
from memvm.memory.write_scan import WANTED, WriteScan
from memvm.memory.zeros import give_zeros

_LEAST_REVEALED = 16
"""Pages that are revealed at once where they were hidden and are traced no more."""
_REVEALED = bytes(value for value in range(256) if not value & (TRACE_ACCESS | DEFERRED | BAD))
_GUARDED = bytes(value for value in _REVEALED if value & WRITE_REASONS)
_FREE = bytes(value for value in _REVEALED if not value & WRITE_REASONS)


def make_engine(
    choice: EngineChoice, ram: GuestRam, tracer: Tracer, protect: Protect, settle: Callable[[], None]
) -> FaultEngine:
    """The engine of a process that is being made; on the tracer's thread.

    `protect` sets rights in the guest's mappings, `settle` brings a thread to the guest's CPU. Raises HostError if
    userfaultfd was asked for and cannot be had.
    """
    if choice is not EngineChoice.MPROTECT:
        try:
            engine = _userfaultfd_engine(ram, tracer)
            engine.settle = settle
            return engine
        except OSError as error:
            if choice is EngineChoice.USERFAULTFD:
                raise HostError(
                    f"userfaultfd cannot be used here: {error.strerror}",
                    hint="leave --engine away, or use --engine mprotect; 'memvm doctor' says more",
                ) from error
    return MprotectEngine(ram, protect, tracer.call)


def _userfaultfd_engine(ram: GuestRam, tracer: Tracer) -> UserfaultfdEngine:
    uffd = Userfaultfd(tracer.stub.open_userfaultfd(ram))
    try:
        try:
            uffd.enable(REQUIRED | Feature.POISON)
            can_poison = True
        except OSError:
            uffd.enable(REQUIRED)
            can_poison = False
    except BaseException:
        os.close(uffd.fd)
        raise
    return UserfaultfdEngine(ram, uffd, can_poison=can_poison, access_scan=_access_scan(ram, tracer))


def _access_scan(ram: GuestRam, tracer: Tracer) -> AccessScan | None:
    """None where the kernel lacks it (PAGEMAP_SCAN came with Linux 6.7): traces are answered faults then."""
    try:
        return AccessScan(ram, tracer.stub.pid)
    except OSError:
        return None


def make_write_scan(ram: GuestRam, tracer: Tracer) -> WriteScan | None:
    """What notes writes without faults, of a process that is being made; on the tracer's thread.

    None where the kernel lacks it (WP_ASYNC and PAGEMAP_SCAN came with Linux 6.7).
    """
    try:
        uffd = Userfaultfd(tracer.stub.open_write_notes(ram))
    except OSError:
        return None
    try:
        uffd.enable(WANTED)
        return WriteScan(ram, uffd, tracer.stub.pid)
    except OSError:
        os.close(uffd.fd)
        return None


def _span(heard: Heard | None, page: int) -> tuple[int, int]:
    """What somebody heard of at one access: the first page, and how many there are from the accessed one on."""
    first, end = page, page + 1
    for _, events in heard or ():
        first, end = min(first, events[0].page), max(end, events[-1].page + 1)
    return first, end - page


class Paging:
    """Decides, by page metadata, what a fault of the guest's is answered with.

    It is asked on the pager's thread, or on the tracer's by the mprotect engine.
    """

    def __init__(self, ram: GuestRam, engine: FaultEngine) -> None:
        self._ram = ram
        self._flags = ram.flags
        self._engine = engine

    def missing(self, page: int, write: int, vcpu: int) -> None:
        """The guest touched a page that it has not got."""
        traces, heard = self._ram.traces, None
        if traces is not None and self._flags[page] & TRACED:
            instruction = traces.where(page, vcpu)
            with self._ram.lock:
                heard = traces.hear(page, write, vcpu, instruction)
        loader = self._ram.loader
        if loader is None:
            give_zeros(self._ram, self._engine, page)
        else:
            loader.fault(page)
        if traces is not None and heard:
            traces.deliver(heard)

    def minor(self, page: int, write: int, vcpu: int) -> None:
        """The guest touched a page that has no page-table entry: it is traced, or was hidden along."""
        traces, heard = self._ram.traces, None
        instruction = traces.where(page, vcpu) if traces is not None else 0
        with self._ram.lock:
            if traces is not None and self._flags[page] & TRACED:
                heard = traces.hear(page, write, vcpu, instruction)
            first, along = _span(heard, page)
            if write:
                self._let_write(page, along)
            run = self._with_neighbours(page, max(along, _LEAST_REVEALED))
            self._engine.reveal(run, guarded=bool(self._flags[page] & WRITE_REASONS))
            while first < page:
                run = self._with_neighbours(first, page - first)
                if self._flags[first] in _REVEALED:
                    self._engine.reveal(run, guarded=bool(self._flags[first] & WRITE_REASONS))
                first = run.end
        if traces is not None and heard:
            traces.deliver(heard)

    def _with_neighbours(self, page: int, most: int) -> PageRun:
        """The page, and those behind it that may be revealed in the same way."""
        alike = _GUARDED if self._flags[page] & WRITE_REASONS else _FREE
        flags = self._flags[page + 1 : page + most]
        return PageRun(page, 1 + len(flags) - len(flags.lstrip(alike)))

    def write(self, page: int, vcpu: int) -> None:
        """The guest is about to write to a guarded page."""
        traces, heard = self._ram.traces, None
        instruction = traces.where(page, vcpu) if traces is not None else 0
        # All in one, or a save's instant could come between and guard pages that are let go of right after it.
        with self._ram.lock:
            if traces is not None and self._flags[page] & TRACED:
                heard = traces.hear(page, 1, vcpu, instruction)
            self._let_write(page, _span(heard, page)[1])
        if traces is not None and heard:
            traces.deliver(heard)

    def _let_write(self, page: int, along: int) -> None:
        """Lift the guard of a page, of those heard of `along` with it, and of those to be kept for a save as well.

        The lock is held.
        """
        runs = [PageRun(page, along)]
        kept = None
        if (keeper := self._ram.keeper) is not None:
            kept = keeper.around(page)
            keeper.keep(*kept)
            runs.append(kept)
        if (observer := self._ram.observer) is not None:
            runs.append(observer.faulted(page, kept))
        for run in united_runs(runs) if len(runs) > 1 else runs:
            self._engine.unguard(run)
