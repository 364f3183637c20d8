"""The mprotect engine, for kernels and containers without userfaultfd, and for lessons.

Pages lose their rights in the guest's own mappings: all of them while deferred or traced (HIDDEN), the right to write
while guarded (READONLY). The access is then a SIGSEGV, which the tracer sees before the guest would; it brings the page
in, or lets a save or a trace have it, and gives the rights back. Rights are changed by making the guest itself call
mprotect, so that happens only on the tracer's thread, while the guest stands still.

The signal does not say whether the access was a read or a write. So a hidden page gets the right to be read first, if
anybody wants to hear of writes: a write then faults once more, and is told from a read.

Rights come back for all neighbours that may have them, since each change of rights splits a mapping and Linux bounds
how many there are (vm.max_map_count, 65,530 by default).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from time import perf_counter_ns

from memvm.errors import GuestStateError
from memvm.memory.engine import FaultEngine, FaultHandler, GuestGone
from memvm.memory.pages import (
    BAD,
    DEFERRED,
    HIDDEN,
    READONLY,
    TRACE_ACCESS,
    WRITE_REASONS,
    PageRun,
    clear_flag,
    equal_runs,
    flagged_runs,
    set_flag,
    unflagged_runs,
)
from memvm.memory.protection import Prot
from memvm.memory.ram import GuestRam

_MOST_GRAINS = 8192
_NEIGHBOURS = 512
"""Pages on each side that may get their rights back together with one that was touched."""
_WRITE = int(Prot.WRITE)
_HIDING = DEFERRED | BAD | TRACE_ACCESS

Protect = Callable[[PageRun, int], None]
"""Sets the rights of pages in the guest's mapping; on the tracer's thread, with the guest stopped."""
OnTracer = Callable[[Callable[[], None]], None]
"""Runs a function on the tracer's thread while the guest stands still. Raises GuestStateError if it has ended."""


class MprotectEngine(FaultEngine):
    """Faults by page protections and SIGSEGV."""

    name = "mprotect"
    poisons = False
    guards_while_running = False
    exact_pages = 16384  # each may cut a mapping in three: half of vm.max_map_count

    def __init__(self, ram: GuestRam, protect: Protect, on_tracer: OnTracer) -> None:
        super().__init__(ram)
        self._protect = protect
        self._on_tracer = on_tracer
        self._handler: FaultHandler | None = None
        self.grain = 16
        while self.grain * _MOST_GRAINS < ram.page_count:
            self.grain *= 2

    def start(self, handler: FaultHandler, failed: Callable[[BaseException], None]) -> None:
        """Faults come through `resolve`, from the tracer; its errors are the tracer's."""
        self._handler = handler

    def resolve(self, page: int, vcpu: int) -> bool:
        """Answer an access that the guest's mapping refused; False if the guest has no right to it anyway."""
        flags = self.ram.flags
        if not self.ram.protection[page] or self._handler is None:
            return False
        began = perf_counter_ns()
        if flags[page] & HIDDEN:
            self.faults += 1
            if flags[page] & (DEFERRED | BAD):
                self._handler.missing(page, 0, vcpu)
            else:
                self._handler.minor(page, 0, vcpu)
            self._give_back(page, HIDDEN, _HIDING)
        elif flags[page] & READONLY and self.ram.protection[page] & _WRITE:
            self.faults += 1
            self._handler.write(page, vcpu)
            self._give_back(page, READONLY, WRITE_REASONS)
        else:
            return False
        self.latencies.buckets[(perf_counter_ns() - began).bit_length()] += 1
        return True

    def _give_back(self, page: int, restriction: int, reasons: int) -> None:
        """Lift a restriction from a page and its neighbours, as far as there is no reason for it."""
        first, end = page, page + 1
        flags, protection = self.ram.flags, self.ram.protection[page]

        def free(other: int) -> bool:
            mine = flags[other]
            return bool(mine & restriction) and not mine & reasons and self.ram.protection[other] == protection

        with self.ram.lock:
            while first > max(0, page - _NEIGHBOURS) and free(first - 1):
                first -= 1
            while end < min(self.ram.page_count, page + _NEIGHBOURS) and free(end):
                end += 1
            self._lift(PageRun(first, end - first), restriction)

    def _lift(self, run: PageRun, restriction: int) -> None:
        if restriction == HIDDEN:
            for part in list(flagged_runs(self.ram.flags, run.first, run.count, WRITE_REASONS)):
                set_flag(self.ram.flags, part.first, part.count, READONLY)
        clear_flag(self.ram.flags, run.first, run.count, restriction)
        self._apply(run)

    def _apply(self, run: PageRun) -> None:
        for part, protection in equal_runs(self.ram.protection, run.first, run.count):
            for piece, rights in self.allowed(part, protection):
                self._protect(piece, rights)

    def allowed(self, run: PageRun, protection: int) -> Iterable[tuple[PageRun, int]]:
        """Nothing where hidden, no writing where read-only."""
        for part, flags in self._restrictions(run):
            if flags & HIDDEN:
                yield part, 0
            elif flags & READONLY:
                yield part, protection & ~_WRITE
            else:
                yield part, protection

    def _restrictions(self, run: PageRun) -> Iterator[tuple[PageRun, int]]:
        only = bytes(value & (HIDDEN | READONLY) for value in range(256))
        flags = self.ram.flags[run.first : run.end].translate(only)
        for part, value in equal_runs(flags, 0, run.count):
            yield PageRun(run.first + part.first, part.count), value

    def defer(self) -> None:
        """Hide what is deferred; the mappings follow when their rights are set."""
        for run in list(flagged_runs(self.ram.flags, 0, self.ram.page_count, DEFERRED)):
            set_flag(self.ram.flags, run.first, run.count, HIDDEN)

    def defer_no_more(self) -> None:
        """Give all hidden pages their rights."""
        self._lift_everywhere(HIDDEN, _HIDING)

    def place(self, first: int, data: bytes, reasons: int = 0) -> None:
        """The pages are hidden, so the guest cannot see them half written."""
        self.ram.copy_in(first, [data])

    def place_zeros(self, run: PageRun, reasons: int = 0) -> None:
        """Absent pages are zero by themselves, and their rights say what is guarded."""

    def poison(self, run: PageRun) -> None:
        """The pages stay hidden; touching one is an error for whoever answers the fault."""

    def heal(self, run: PageRun) -> None:
        """Hidden pages that are not bad any more are given back when they are touched."""

    def begin_guarding(self) -> None:
        """Nothing is needed before guards but to know of them."""
        self.guard_users += 1

    def guard(self, run: PageRun) -> None:
        """Take the right to write."""
        self._restrict([run], READONLY)

    def unguard(self, run: PageRun) -> None:
        """The right to write comes back at the next fault, or at the end."""

    def end_guarding(self) -> None:
        """Give pages back the right to write."""
        self.guard_users -= 1
        self._lift_everywhere(READONLY, WRITE_REASONS)

    def begin_tracing(self) -> None:
        """Nothing is needed before traces."""

    def hide(self, runs: Sequence[PageRun]) -> None:
        """Take all rights."""
        self._restrict(runs, HIDDEN)

    def reveal(self, run: PageRun, *, guarded: bool) -> None:
        """The rights come back when the fault has been answered, or at the end."""

    def end_tracing(self) -> None:
        """Give pages back their rights."""
        self._lift_everywhere(HIDDEN, _HIDING)
        self._lift_everywhere(READONLY, WRITE_REASONS)

    def _restrict(self, runs: Sequence[PageRun], restriction: int) -> None:
        def restrict() -> None:
            with self.ram.lock:
                for run in runs:
                    set_flag(self.ram.flags, run.first, run.count, restriction)
                    self._apply(run)

        self._standing_still(restrict)

    def _lift_everywhere(self, restriction: int, reasons: int) -> None:
        flags = self.ram.flags

        def lift() -> None:
            with self.ram.lock:
                for run in list(flagged_runs(flags, 0, self.ram.page_count, restriction)):
                    for free in list(unflagged_runs(flags, run.first, run.count, reasons)):
                        self._lift(free, restriction)

        self._standing_still(lift)

    def _standing_still(self, function: Callable[[], None]) -> None:
        try:
            self._on_tracer(function)
        except GuestStateError as error:
            raise GuestGone from error

    def stop(self) -> None:
        """Nothing to release."""
        self._handler = None
