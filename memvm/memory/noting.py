"""How it becomes known which pages the guest writes: by the kernel's notes, by write guards, or part each.

- *The kernel notes writes* (write_scan.py), and nothing faults. That needs guest RAM for itself.
- *Write guards* by the fault engine: the first write to each page since the last look is a fault. So it is while the
  engine is in use for something else (a live save, a lazy restore), and with engines and kernels that have nothing
  better. The mprotect engine guards several pages at once (`FaultEngine.grain`), and they are reported together.

When the engine is wanted it asks for guest RAM, and waits until it has it. When it has no more use for it, guest RAM
goes over to the kernel's notes in a thread. Neither way can begin before the other has ended, so it changes hands in
slices, and for each of them the guest stands still, for a millisecond or two; in between it has the most part of the
time. The slices that the kernel's notes have are always the lowest ones.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

from memvm.errors import GuestStateError
from memvm.linux.own_threads import Thread
from memvm.memory.engine import FaultEngine, GuestGone
from memvm.memory.pages import (
    BAD,
    CLEAN,
    DEFERRED,
    PageRun,
    clear_flag,
    count_flag,
    flagged_runs,
    merged_runs,
    set_flag,
)
from memvm.memory.ram import GuestRam
from memvm.memory.write_scan import WriteScan

SLICE_PAGES = 8192
_GAP_PAGES = 512
"""Untouched gaps smaller than this are guarded along with what lies around them."""
_SMALL_GAP = 16
"""Guarding as many pages without a reason is cheaper than another call."""
_GUEST_SHARE = 4
"""How much longer the guest runs between two slices than it stood still for the last one."""
_UNGUARDED = bytes(int(not value & (CLEAN | DEFERRED)) for value in range(256))

Frozen = Callable[[Callable[[], None]], None]
"""Runs a function while the guest stands still and no call is half done. Raises GuestStateError if it has ended."""


class WriteNoting:
    """One guest's writes, noted for whoever is told through `mark`. For one thread at a time but where it is said.

    Methods raise GuestGone if the guest has ended.
    """

    def __init__(
        self,
        ram: GuestRam,
        engine: FaultEngine,
        scan: WriteScan | None,
        frozen: Frozen,
        between_calls: AbstractContextManager[object],
        mark: Callable[[PageRun], None],
    ) -> None:
        """`mark` is told of pages that were written, with the RAM's lock held."""
        self._ram = ram
        self._engine = engine
        self._scan = scan
        self._frozen = frozen
        self._between_calls = between_calls
        self._mark = mark
        self._frontier = 0
        """Pages below it are noted by the kernel; a whole number of slices, or all pages."""
        self._guarding = False
        """Whether the engine counts this among those who guard."""

    @property
    def by_kernel(self) -> bool:
        """Whether the kernel notes all writes."""
        return self._frontier == self._ram.page_count

    @property
    def can_be_by_kernel(self) -> bool:
        """Whether it could, if nobody needed guest RAM for anything else. Bad pages are healed by registering:
        leave that possible."""
        return self._scan is not None and not count_flag(self._ram.flags, BAD)

    def may_begin_by_kernel(self) -> bool:
        """Whether it could now."""
        return self.can_be_by_kernel and not self._engine.in_use_beside(int(self._guarding))

    def begin(self) -> None:
        """From now on no write is missed."""
        if self.may_begin_by_kernel():
            assert self._scan is not None
            self._frontier = self._ram.page_count
            for run in self._slices():
                self._scan.register(run)
                self._protect(run)
        else:
            self.use_guards()
            self.everywhere(self.note)

    def use_guards(self) -> None:
        """Be ready for guards everywhere; what is not guarded yet counts as written at the next look."""
        self.give_way()
        self._begin_guarding()

    def _begin_guarding(self) -> None:
        if not self._guarding:
            self._guarding = True
            self._engine.begin_guarding()

    def end(self) -> None:
        """Note no more."""
        if self._frontier:
            assert self._scan is not None
            kernels, self._frontier = PageRun(0, self._frontier), 0
            self._scan.unregister(kernels)
            if self._guarding:
                self._engine.end_guarding_part(PageRun(kernels.end, self._ram.page_count - kernels.end))
        if self._guarding:
            self._guarding = False
            with self._ram.lock:
                clear_flag(self._ram.flags, 0, self._ram.page_count, CLEAN)
            self._engine.end_guarding()

    def close(self) -> None:
        """Release what the kernel's notes hold. The guest has ended."""
        if self._scan is not None:
            self._scan.close()
            self._scan = None

    # Looking.

    def everywhere(self, do: Callable[[PageRun], None]) -> None:
        """Do something for each slice of guest RAM when no call is half done, and no page's flags change."""
        if self._guarding and not self._engine.guards_while_running:
            self._frozen(lambda: self.at_once_everywhere(do))
            return
        for run in self._slices():
            with self._between_calls, self._ram.lock:
                do(run)

    def at_once_everywhere(self, do: Callable[[PageRun], None]) -> None:
        """The same while the guest stands still."""
        for run in self._slices():
            with self._ram.lock:
                do(run)

    def note(self, run: PageRun) -> None:
        """Mark what the guest wrote in a slice, and arm it again; within one of the two above."""
        if run.end <= self._frontier:
            assert self._scan is not None
            for part in self._scan.written(run):
                self._mark(part)
            return
        unguarded = list(self._unguarded(self._ram.touched(*run)))
        for part in unguarded:
            self._mark(part)
        self._guard(unguarded)
        self._guard_deferred(run)

    def note_guarded(self, touched: list[PageRun]) -> None:
        """The same for all of guest RAM, where somebody else has just guarded all that holds memory: these pages."""
        with self._ram.lock:
            for part in list(self._unguarded(touched)):
                self._mark(part)
            for run in touched:
                set_flag(self._ram.flags, run.first, run.count, CLEAN)
            self._guard_deferred(PageRun(0, self._ram.page_count))

    def _guard_deferred(self, run: PageRun) -> None:
        # Nobody loads these pages but through place, which guards them: so they count only if they are written.
        for part in list(flagged_runs(self._ram.flags, run.first, run.count, DEFERRED)):
            set_flag(self._ram.flags, part.first, part.count, CLEAN)

    def _unguarded(self, touched: Iterator[PageRun] | list[PageRun]) -> Iterator[PageRun]:
        """Pages that hold memory and are not guarded: whatever was done to them was not seen."""
        for there in touched:
            candidates = self._ram.flags[there.first : there.end].translate(_UNGUARDED)
            for part in flagged_runs(candidates, 0, there.count, 1):
                yield PageRun(there.first + part.first, part.count)

    def _guard(self, runs: list[PageRun]) -> None:
        for run in runs:
            set_flag(self._ram.flags, run.first, run.count, CLEAN)
        for run in merged_runs(runs, _SMALL_GAP):
            self._engine.guard(run)

    def _slices(self) -> Iterator[PageRun]:
        for first in range(0, self._ram.page_count, SLICE_PAGES):
            yield self._slice(first)

    def _slice(self, first: int) -> PageRun:
        return PageRun(first, min(SLICE_PAGES, self._ram.page_count - first))

    def _protect(self, run: PageRun) -> None:
        """Arm the scan of a slice; all that was written before is forgotten."""
        assert self._scan is not None
        for there in merged_runs(self._ram.touched(*run), _GAP_PAGES):
            self._scan.protect(there)
        for _ in self._scan.written(run):  # for the rest of these page tables, which counts as written otherwise
            pass

    # From one way to the other.

    def give_way(self) -> None:
        """All of guest RAM is the engine's when this returns."""
        if not self._frontier:
            return
        while self._frontier:
            run = self._slice((self._frontier - 1) // SLICE_PAGES * SLICE_PAGES)
            began = time.monotonic()
            self._frozen(partial(self._to_guards, run))
            self._frontier = run.first
            time.sleep(_GUEST_SHARE * (time.monotonic() - began))
        self._begin_guarding()

    def _to_guards(self, run: PageRun) -> None:
        assert self._scan is not None
        with self._ram.lock:
            for part in self._scan.written(run):
                self._mark(part)
            self._scan.unregister(run)
            self._engine.begin_guarding_part(run)
            self._guard(list(self._ram.touched(*run)))

    def hand_over(self) -> float:
        """Let the kernel note the writes of one slice more, if it may.

        Returns for how many seconds the guest is to run before the next one; 0: there is nothing to do now.
        """
        if not self._guarding or not self.may_begin_by_kernel():
            return 0
        run = self._slice(self._frontier)
        began = time.monotonic()
        self._frozen(partial(self._to_kernel, run))
        self._frontier = run.end
        if self.by_kernel:
            self._guarding = False
            self._engine.end_guarding()
            return 0
        return _GUEST_SHARE * (time.monotonic() - began)

    def _to_kernel(self, run: PageRun) -> None:
        assert self._scan is not None
        with self._ram.lock:
            for part in list(self._unguarded(self._ram.touched(*run))):
                self._mark(part)
            clear_flag(self._ram.flags, run.first, run.count, CLEAN)
            self._engine.end_guarding_part(run)
            self._scan.register(run)
            self._protect(run)


class HandOver:
    """The thread that lets the kernel note writes again, when the engine has no more use for guest RAM."""

    def __init__(
        self, noting: WriteNoting, lock: AbstractContextManager[object], failed: Callable[[BaseException], None]
    ) -> None:
        """`lock` is held at each step; `failed` hears of what is not just the guest's end."""
        self._noting, self._lock, self._failed = noting, lock, failed
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def begin(self) -> None:
        """Go on until all is handed over, or may not be. Does nothing if it is under way; the lock is held."""
        if self._noting.by_kernel or not self._noting.may_begin_by_kernel():
            return
        if self._thread is None and not self._over.is_set():
            self._thread = Thread(target=self._run, name="hand over", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        pause = 0.0
        try:
            while not self._over.wait(pause):
                with self._lock:
                    pause = self._noting.hand_over()
                    if not pause:
                        self._thread = None
                        return
        except (GuestGone, GuestStateError):
            return
        except BaseException as error:  # noqa: BLE001  # the manager ends the guest and reports it
            self._failed(error)

    def stop(self) -> None:
        """End the thread, for good; the lock is not held."""
        self._over.set()
        thread = self._thread
        if thread is not None:
            thread.join()
