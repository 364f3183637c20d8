"""Which pages of a running guest were written, or thrown away, since somebody last looked.

Three parties change pages. The guest's own stores are seen in one of two ways. The manager's (answers to
hypercalls, write_memory) and what is thrown away (munmap, madvise) come through GuestRam, which tells its
observer: this tracker.

Those ways are the kernel's notes and write guards: noting.py has both. Where writes are guarded, a guest that writes
a large array would fault at each of its pages; so some pages ahead of a long sequence of faults are let go of with it,
and reported: an eighth more than were written, at most. If nobody but saves wants to know (the watches are *quiet*),
what a save lets go of at a fault is let go of here too, and reported: to guard it again would slow the guest.

Nothing is lost, and what cannot be told is reported: a page that came to hold memory without passing through a guard
(an untouched page that is touched, by a read too; a deferred page that is loaded) may count as written.

A watch keeps, for each page, what happened since its own last look; so many may watch, each at its own pace. A page
that was thrown away and touched again since has been written; one that holds no memory now was punched. Contents that
are read after a look are those of that look or newer: what a look reports is guarded before it is reported.

Locks are taken in this order: the tracker's, then that of the hypercalls (`between_calls`), then GuestRam's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, TypeVar

from memvm.errors import GuestStateError
from memvm.memory.engine import FaultEngine, GuestGone
from memvm.memory.noting import Frozen, HandOver, WriteNoting
from memvm.memory.pages import CLEAN, PageRun, clear_flag, flagged_runs, set_flag, united_runs
from memvm.memory.ram import GuestRam
from memvm.memory.write_scan import WriteScan
from memvm.units import PAGE_SIZE

T = TypeVar("T")

_SEQUENCE_SHARE = 8
_MOST_AHEAD = 256
_WRITTEN, _PUNCHED, _THERE = 1, 2, 4
_RESULT = bytes(
    _WRITTEN if value & _THERE and value & 3 else _PUNCHED if value & _PUNCHED and not value & _THERE else 0
    for value in range(256)
)
"""From what was noted of a page, and whether it holds memory, to what is reported."""


class DirtyPages(NamedTuple):
    """What changed between two looks: ascending runs of pages, none of them in both."""

    seconds: float
    """Since the look before."""
    written: list[PageRun]
    """Pages that may have other contents now, and hold memory."""
    punched: list[PageRun]
    """Pages that were thrown away: they are zero, and hold no memory."""

    @property
    def written_bytes(self) -> int:
        """How much memory was written."""
        return sum(run.count for run in self.written) * PAGE_SIZE


class DirtyWatch:
    """One party that wants to know; a context manager. Made by DirtyTracker.watch."""

    def __init__(self, tracker: DirtyTracker, page_count: int, *, quiet: bool = False) -> None:
        self._tracker = tracker
        self.quiet = quiet
        """Its looks are no rate that anybody would want to know."""
        self.notes = bytearray(page_count)
        """A byte a page: written, punched; of the tracker."""
        self.since = time.monotonic()

    def __enter__(self) -> DirtyWatch:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @property
    def means(self) -> str:
        """How it is known, for people."""
        return self._tracker.means

    def look(self) -> DirtyPages:
        """What was written and punched since the last look, or since the watch was made.

        Must not be called while a hypercall is being answered. Raises GuestStateError if the guest has ended.
        """
        return self._tracker.look(self)

    def at_instant(self, then: Callable[[Callable[[], DirtyPages]], T]) -> T:
        """Stop the guest, and call `then` with a function that looks; returns what that does.

        `then` is called within `Frozen`, on another thread. Raises what it raises, and GuestStateError.
        """
        return self._tracker.at_instant(self, then)

    def begin(self, touched: list[PageRun]) -> None:
        """Forget what was noted so far: the watch begins at this instant. For one of watch_from_instant.

        The guest stands still, and these pages, all that hold memory, have just been guarded by somebody else. The
        save's thread has held the tracker's lock since before that, or nobody else uses the tracker.
        """
        self._tracker.begin(self, touched)

    def put_back(self, pages: DirtyPages) -> None:
        """What a look told is told once more, by the next one: whoever needed it could not make use of it."""
        self._tracker.put_back(self, pages)

    def close(self) -> None:
        """Watch no more; with the last one, tracking ends. Idempotent; the guest may have ended."""
        self._tracker.forget(self)


class DirtyTracker:
    """The written pages of one guest. Costs nothing while nobody watches."""

    def __init__(
        self,
        ram: GuestRam,
        engine: FaultEngine,
        scan: WriteScan | None,
        frozen: Frozen,
        between_calls: AbstractContextManager[object],
        failed: Callable[[BaseException], None],
    ) -> None:
        """`scan` is how the kernel notes writes, if it can; `between_calls` is held where no call may be half done.

        `failed` hears of errors that nobody else can be told of.
        """
        self._ram = ram
        self._engine = engine
        self._frozen = frozen
        self._lock = threading.RLock()
        self._noting = WriteNoting(ram, engine, scan, frozen, between_calls, lambda run: self._mark(run, _WRITTEN))
        self._hand_over = HandOver(self._noting, self._lock, failed)
        self._watches: list[DirtyWatch] = []
        self._closed = False
        self._sequence = PageRun(0, 0)
        """Pages that the guest wrote one after the other, up to the last fault."""
        self._rated: tuple[DirtyWatch, float] | None = None
        engine.give_way = self._give_way

    @property
    def means(self) -> str:
        """Which way is in use, for people."""
        return "noted by the kernel" if self._noting.by_kernel else f"write guards ({self._engine.name})"

    @property
    def rate(self) -> float | None:
        """Bytes written per second between the last two looks of one watch; None while nobody wants to know."""
        rated = self._rated
        return None if rated is None else rated[1]

    def watch_for_free(self) -> DirtyWatch | None:
        """Begin to watch quietly, if that costs the guest next to nothing now: where the kernel notes writes."""
        with self._lock:
            if not self._noting.by_kernel and (self._watches or not self._noting.may_begin_by_kernel()):
                return None
            return self.watch(quiet=True)

    def watch_from_instant(self) -> DirtyWatch | None:
        """The same for somebody who guards all of guest RAM now, and then calls the watch's `begin`.

        While guest RAM is guarded, this watch's guards cost the guest something too, afterwards next to nothing.
        """
        with self._lock, self._living():
            if not self._noting.can_be_by_kernel:
                return None
            self._noting.use_guards()
            return self._add(quiet=True)

    def begin(self, watch: DirtyWatch, touched: list[PageRun]) -> None:
        """DirtyWatch.begin."""
        with self._ram.lock:
            self._noting.note_guarded(touched)
            watch.notes[:] = bytes(len(watch.notes))
        watch.since = time.monotonic()

    def watch(self, *, quiet: bool = False) -> DirtyWatch:
        """Begin to watch: from now on nothing is missed. Raises GuestStateError if the guest has ended."""
        with self._lock, self._living():
            if not self._watches:
                self._ram.observer = self  # before any guard: who lets go of one has to say so
                self._noting.begin()
            else:
                self._noting.everywhere(self._noting.note)  # or what was written before would be this watch's
            return self._add(quiet=quiet)

    def _add(self, *, quiet: bool) -> DirtyWatch:
        watch = DirtyWatch(self, self._ram.page_count, quiet=quiet)
        with self._ram.lock:
            self._ram.observer = self
            self._watches.append(watch)
        return watch

    def look(self, watch: DirtyWatch) -> DirtyPages:
        """DirtyWatch.look."""
        with self._lock, self._living():
            self._hand_over.begin()
            return self._look(watch, self._noting.everywhere)

    def at_instant(self, watch: DirtyWatch, then: Callable[[Callable[[], DirtyPages]], T]) -> T:
        """DirtyWatch.at_instant. The tracker's lock is held meanwhile: it cannot be taken within `Frozen`."""
        results: list[T] = []
        with self._lock, self._living():
            self._frozen(lambda: results.append(then(lambda: self._look(watch, self._noting.at_once_everywhere))))
        return results[0]

    def _look(self, watch: DirtyWatch, everywhere: Callable[[Callable[[PageRun], None]], None]) -> DirtyPages:
        written: list[PageRun] = []
        punched: list[PageRun] = []

        def take(run: PageRun) -> None:
            self._noting.note(run)
            result = self._take(watch, run)
            written.extend(PageRun(run.first + f, n) for f, n in flagged_runs(result, 0, run.count, _WRITTEN))
            punched.extend(PageRun(run.first + f, n) for f, n in flagged_runs(result, 0, run.count, _PUNCHED))

        everywhere(take)
        now = time.monotonic()
        seconds, watch.since = now - watch.since, now
        pages = DirtyPages(seconds, united_runs(written), united_runs(punched))
        if not watch.quiet:
            self._rated = watch, pages.written_bytes / max(seconds, 1e-6)
        return pages

    def put_back(self, watch: DirtyWatch, pages: DirtyPages) -> None:
        """DirtyWatch.put_back."""
        with self._ram.lock:
            for runs, what in ((pages.written, _WRITTEN), (pages.punched, _PUNCHED)):
                for run in runs:
                    set_flag(watch.notes, run.first, run.count, what)

    def settle(self) -> None:
        """Let the kernel note writes again, if whoever needed guest RAM for something else has let go of it.

        That takes its time, on a thread of its own. The guest may have ended.
        """
        with self._lock:
            if self._watches and not self._closed:
                self._hand_over.begin()

    def forget(self, watch: DirtyWatch) -> None:
        """DirtyWatch.close."""
        with self._lock:
            if watch not in self._watches:
                return
            with self._ram.lock:
                self._watches.remove(watch)
            if self._rated is not None and self._rated[0] is watch:
                self._rated = None
            if self._watches:
                return
            try:
                self._ram.observer = None
                self._noting.end()
            except GuestGone:  # its mappings, guards and all, went with it
                return

    def close(self) -> None:
        """Release what the tracker holds. The guest has ended."""
        self._hand_over.stop()
        with self._lock:
            self._closed = True
            for watch in list(self._watches):
                self.forget(watch)
            self._noting.close()

    @contextmanager
    def _living(self) -> Iterator[None]:
        """For what needs a guest that lives. Raises GuestStateError."""
        if self._closed:
            raise GuestStateError("the guest has ended")
        try:
            yield
        except GuestGone:
            raise GuestStateError("the guest has ended") from None

    # Notes. GuestRam tells of the manager's changes, the pager of the guest's.

    def faulted(self, page: int, along: PageRun | None) -> PageRun:
        """The guest is about to write to a guarded page: note it, and those that are let go of with it. Returns them.

        `along` are those that a save lets go of. GuestRam's lock is held.
        """
        if along is not None and all(watch.quiet for watch in self._watches):
            self.wrote(*along)
            return along
        if page == self._sequence.end:
            ahead = self._sequence.count // _SEQUENCE_SHARE
        else:
            self._sequence, ahead = PageRun(page, 0), 0
        grain = self._engine.grain
        first = page & -grain
        count = min(max(grain, min(ahead, _MOST_AHEAD) & -grain), self._ram.page_count - first)
        self._sequence = PageRun(self._sequence.first, first + count - self._sequence.first)
        self.wrote(first, count)
        return PageRun(first, count)

    def wrote(self, first: int, count: int) -> None:
        """The manager is about to write to these pages, or the guest to guarded ones."""
        with self._ram.lock:
            self._mark(PageRun(first, count), _WRITTEN)
            clear_flag(self._ram.flags, first, count, CLEAN)

    def discarded(self, first: int, count: int) -> None:
        """These pages were thrown away; the lock is held."""
        self._mark(PageRun(first, count), _PUNCHED)
        clear_flag(self._ram.flags, first, count, CLEAN)

    def _mark(self, run: PageRun, what: int) -> None:
        for watch in self._watches:
            set_flag(watch.notes, run.first, run.count, what)

    def _take(self, watch: DirtyWatch, run: PageRun) -> bytearray:
        """What a watch has to hear of a slice, a byte a page; it is forgotten here."""
        notes = watch.notes[run.first : run.end]
        if notes.count(0) == run.count:
            return notes
        watch.notes[run.first : run.end] = bytes(run.count)
        for there in self._ram.touched(*run):
            set_flag(notes, there.first - run.first, there.count, _THERE)
        return notes.translate(_RESULT)

    def _give_way(self) -> None:
        """The engine is about to take guest RAM, and must not be used before this returns."""
        with self._lock:
            self._noting.give_way()
