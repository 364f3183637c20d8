"""Preallocates memory that a guest is about to touch for the first time, on another CPU, while it goes through a range.

The first touch of a page of a memory file costs the guest half as much again as one of anonymous memory: the kernel
finds a page, charges it, enters it in the file, makes it zero, and maps it. All but the last two can be done before, by
fallocate(2), which leaves contents to be made at the touch. What it did is seen in no other way: to SEEK_DATA, to reads
and to a save the page is untouched as before (linux/memfd.py), so that SEEK_HOLE also tells, in a microsecond, where
the guest is; and neither page tables nor contents change, so that nothing can come between.

CPU time for 512 MiB of one toucher, in s, on a machine that was busy otherwise (Linux 6.18, four runs):

    anonymous memory                         0.37 to 0.43
    a memory file                            0.54 to 0.65
    the same, preallocated                   0.28 to 0.33, and 0.20 to 0.24 of fallocate
    ... with 256 KiB at a time, meanwhile    0.32 to 0.36, and 507 of 512 MiB came in time

A guest that writes to each page of 512 MiB (tools/bench programs) needs 0.9 to 1.0 times the CPU time that it needs
natively, and 1.5 to 1.6 times without this; two threads on two CPUs, which leave none to spare, 1.1 and 1.5 times the
time. Where others keep all CPUs busy it is 0.9 to 1.3 and 1.4 to 1.9 times the time.

madvise(MADV_POPULATE_WRITE) in the guest's process would make the touch itself next to free, but takes 0.5 to 0.6 s, so
that a guest is at the place before it; in the host view it takes as long, and saves less. On the guest's own CPU the
sum is what it was, so with one CPU nothing is preallocated.

Nobody knows what a guest will touch. So a `Sequence` watches new, large ranges, and asks for no more than the guest has
been seen to touch in that range, from its beginning and without a gap, and for 32 MiB at most: so much can be
wasted, until the range is freed. Ranges that are touched here and there get nothing.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

from memvm.errors import HostError
from memvm.linux.available_memory import available_share
from memvm.linux.own_threads import Thread
from memvm.machine.placement import Placement
from memvm.machine.space import LARGE, Region, RegionKind
from memvm.memory.pages import PageRun
from memvm.memory.protection import Prot
from memvm.memory.ram import GuestRam
from memvm.units import PAGE_SIZE

_LEAST_PROGRESS = 256
"""Pages that the guest has to go on by for that to count: a third of a millisecond."""
_MOST_AHEAD = 8192
_STEP = 128
"""Pages that are preallocated at once, 220 µs of fallocate; the guest needs half as long again to touch them."""
_SHORTEST, _LONGEST = 0.0005, 0.1
"""Seconds between two looks at a range."""
_PATIENCE = 40
"""How many looks in a row may see no progress before a range is given up: three seconds and a half."""
_MOST_RANGES = 16
_LEAST_AVAILABLE = 0.1
"""The share of the machine's memory, and of the control group's, that has to be left."""
_LOOK_AT_MEMORY = 0.02
"""Seconds for which what is left of memory counts: asking takes 50 µs."""
_KINDS, _RIGHTS = (RegionKind.ANONYMOUS, RegionKind.HEAP), Prot.READ | Prot.WRITE


class Sequence:
    """How one guest goes through one range, look by look, and what of it to preallocate. Knows nothing but numbers."""

    def __init__(self, pages: PageRun, now: float, pause: float = _SHORTEST) -> None:
        """`pause` is how long to wait for the first look, in seconds."""
        self.pages = pages
        self.frontier = pages.first
        """The first page that was not touched, at the last look."""
        self.due = now + pause
        """When to look next."""
        self._origin = -1
        """Where it was at the first look: what is before may have been filled by whoever made the range."""
        self._proven = self._goal = self._ready = pages.first
        self._pause = pause
        self._rests = 0

    @property
    def has_moved(self) -> bool:
        """Whether the guest was seen to make progress."""
        return self._goal > self.pages.first

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to do."""
        return max(self.frontier, self._ready) >= self.pages.end or self._rests > _PATIENCE

    def look(self, frontier: int) -> None:
        """The guest has touched all pages of the range below this one, and not this one."""
        self.frontier = min(frontier, self.pages.end)
        if self._origin < 0:
            self._origin = self._proven = self.frontier
        elif self.frontier - self._proven >= _LEAST_PROGRESS:
            ahead = min(self.frontier - self._origin, _MOST_AHEAD)
            self._goal = min(self.pages.end, self.frontier + ahead)
            self._proven, self._rests = self.frontier, 0
            self._pause = max(_SHORTEST, self._pause / 2)

    def wanted(self) -> PageRun | None:
        """The pages to preallocate now; None if there are none, and time to rest."""
        # A guest that has caught up is left what it is at, or both would be at the same pages from now on.
        start = self._ready if self._ready > self.frontier else self.frontier + _STEP
        end = min(start + _STEP, self._goal)
        return PageRun(start, end - start) if start < end else None

    def done(self, run: PageRun) -> None:
        """What was wanted has been preallocated."""
        self._ready = run.end

    def rest(self, now: float) -> None:
        """Look again after a pause, which grows as long as the guest makes no progress."""
        self._rests += 1
        self.due = now + self._pause
        self._pause = min(_LONGEST, self._pause * 2)


class Preallocating:
    """The thread that does it for one guest."""

    def __init__(
        self, ram: GuestRam, placement: Placement, may: Callable[[], bool], failed: Callable[[BaseException], None]
    ) -> None:
        """`may` tells whether this is a time for it; `failed` hears of errors that nobody else can be told of."""
        self._ram, self._placement, self._may, self._failed = ram, placement, may, failed
        self._changed = threading.Condition()
        self._sequences: list[Sequence] = []
        self._first_pause = _SHORTEST
        """Before the first look at a range; it doubles with each that was dropped before the guest made progress."""
        self._waits_until: float | None = None
        """When the thread looks by itself; None if it waits for the first range."""
        self._cpus: set[int] = set()
        self._memory_looked_at, self._memory_left = 0.0, False
        self._over = False
        self._thread: Thread | None = None

    @property
    def watched(self) -> list[PageRun]:
        """The ranges that are watched now."""
        with self._changed:
            return [sequence.pages for sequence in self._sequences]

    def changed(self, start: int, end: int, region: Region | None) -> None:
        """AddressSpace.changed; costs next to nothing for small ranges."""
        if self._over:
            return
        fresh = region is not None and region.size >= LARGE and region.protection == _RIGHTS and region.kind in _KINDS
        if fresh or self._sequences:
            first, last = (start - self._ram.base) // PAGE_SIZE, (end - self._ram.base) // PAGE_SIZE
            with self._changed:
                for sequence in self._sequences[:]:
                    if first < sequence.pages.end and sequence.pages.first < last:
                        self._sequences.remove(sequence)
                        self._first_pause = _SHORTEST if sequence.has_moved else min(_LONGEST, self._first_pause * 2)
                if fresh:
                    self._watch(PageRun(first, last - first))

    def _watch(self, pages: PageRun) -> None:
        new = Sequence(pages, time.monotonic(), self._first_pause)
        self._sequences = [*self._sequences[1 - _MOST_RANGES :], new]
        if self._thread is None:
            thread = Thread(target=self._run, name="preallocating", daemon=True)
            try:
                thread.start()
            except HostError:  # no more threads may be had: the guest goes on without, as on one CPU
                self._over, self._sequences = True, []
                return
            self._thread = thread
        if self._waits_until is None or new.due < self._waits_until:  # not for each of a guest that maps and unmaps
            self._changed.notify()

    def _run(self) -> None:
        try:
            while due := self._due():
                self._go_elsewhere()
                for sequence in due:
                    self._look(sequence)
        except BaseException as error:  # noqa: BLE001  # the machine ends the guest and reports it
            self._failed(error)

    def _due(self) -> list[Sequence]:
        """The ranges to look at, once there are any; none when all is over."""
        with self._changed:
            while not self._over:
                self._sequences = [each for each in self._sequences if not each.is_over]
                now = time.monotonic()
                if due := [each for each in self._sequences if each.due <= now]:
                    return due
                self._waits_until = min((each.due for each in self._sequences), default=None)
                self._changed.wait(None if self._waits_until is None else self._waits_until - now)
        return []

    def _go_elsewhere(self) -> None:
        """Keep away from the guest's CPU, on which this thread was started."""
        cpus = self._placement.elsewhere()
        if cpus != self._cpus:
            with contextlib.suppress(OSError):  # a cpuset changed: it stays where it is
                os.sched_setaffinity(0, cpus)
            self._cpus = cpus

    def _look(self, sequence: Sequence) -> None:
        sequence.look(self._ram.next_untouched(sequence.frontier))
        run = sequence.wanted()
        if run is not None and self._may() and self._is_memory_left() and self._ram.preallocate(run):
            sequence.done(run)
        else:
            sequence.rest(time.monotonic())

    def _is_memory_left(self) -> bool:
        now = time.monotonic()
        if now - self._memory_looked_at >= _LOOK_AT_MEMORY:
            self._memory_looked_at, self._memory_left = now, available_share() >= _LEAST_AVAILABLE
        return self._memory_left

    def stop(self) -> None:
        """End the thread; the guest has ended."""
        with self._changed:
            self._over = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
