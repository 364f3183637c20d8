"""What a save sees of the guest's accesses: traces on all memory, for as long as it takes.

The pages that are heard of are the active ones. Those that are not stored yet are handed out in the order of first
access, a batch at a time, so that pages that are used together lie together in the file. Within a batch they ascend:
neighbours are read, indexed and found again as one.

A guest that uses a hundred megabytes while a gigabyte is saved would wait for 25,000 faults if each page that it uses
were one that the manager answers: half a second and more, of three. So the trace is polled: the kernel lets the guest
have its pages, and is asked which they are, often at first and ever more rarely. Pages that are new at one look ascend
in the order of first access.

Of writes the save's own guards tell, of as many pages as they let go of at once: a page is noted as written if it was
used, and it or a neighbour was about to be written while it was guarded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType

from memvm.checkpoint.sections import READ, WRITTEN, ActiveNotes, ActivePages
from memvm.memory.engine import GuestGone
from memvm.memory.pages import PageRun, flagged_runs, runs_of
from memvm.memory.traces import Access, TraceEvent, Traces

_YES = bytes((WRITTEN,))
_PAUSE, _SHARE = 0.02, 8
"""From one look to the next it is so many seconds at least, and this part of the time since the first: a look takes a
millisecond or three for a gigabyte, and new pages become ever rarer."""
_KINDS = {int(Access.READ): READ, int(Access.WRITE): WRITTEN}


class AccessNotes:
    """A context manager: enter it to place the traces, leave it to end them. The guest runs at both."""

    def __init__(self, traces: Traces, runs: Iterable[PageRun]) -> None:
        """For these pages."""
        self._traces, self._runs = traces, runs
        self._lock = threading.Lock()
        """Events come on whichever thread answers an access."""
        self._notes = ActiveNotes()
        self._written = bytearray(traces.page_count)
        """By page, WRITTEN if its guard was let go of."""
        self._fresh: list[int] = []
        """Pages that were heard of, and not handed out."""

    def __enter__(self) -> AccessNotes:
        """Raises GuestGone."""
        self._trace = self._traces.add(self._runs, Access.READ, handler=self._hear, around=True, polled=True)
        self._began = self._next_look = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            with suppress(GuestGone):  # who leaves it without an exception has looked
                self.look()
        finally:
            self._trace.close()

    def look(self) -> None:
        """Hear of what the guest has accessed by now. Raises GuestGone."""
        self._traces.look(self._trace)
        now = time.monotonic()
        self._next_look = now + max(_PAUSE, (now - self._began) / _SHARE)

    def _hear(self, events: list[TraceEvent]) -> None:
        with self._lock:
            for event in events:
                if self._notes.note(event.page, _KINDS[event.access]):
                    self._fresh.append(event.page)

    def fresh(self, least: int, most: int) -> list[PageRun]:
        """The next pages that were heard of for the first time, ascending; none if there are less than `least`.

        Looks for more if it is time to. Raises GuestGone.
        """
        if time.monotonic() >= self._next_look:
            self.look()
        with self._lock:
            if len(self._fresh) < max(least, 1):
                return []
            pages, self._fresh = self._fresh[:most], self._fresh[most:]
        return runs_of(sorted(pages))

    def batches(self, runs: Iterable[PageRun], most: int) -> tuple[list[list[PageRun]], list[PageRun]]:
        """Those of some pages that were heard of, `most` together in the order of first access; and the others."""
        left = bytearray(self._traces.page_count)
        for run in runs:
            left[run.first : run.end] = b"\1" * run.count
        with self._lock:
            noted = self._notes.pages().pages
        active = [page for page in noted if left[page]]
        for page in active:
            left[page] = 0
        together = [runs_of(sorted(active[start : start + most])) for start in range(0, len(active), most)]
        return together, list(flagged_runs(left, 0, len(left), 1))

    def appeared(self, runs: Iterable[PageRun]) -> None:
        """These pages were touched for the first time, where nothing was traced."""
        with self._lock:
            self._notes.note_runs(runs, WRITTEN)

    def wrote(self, runs: Iterable[PageRun]) -> None:
        """Guards were let go of for a write to one of these pages."""
        for run in runs:
            self._written[run.first : run.end] = _YES * run.count

    def pages(self) -> ActivePages:
        """All that were heard of so far."""
        with self._lock:
            pages, kinds = self._notes.pages()
        return ActivePages(pages, bytes(kind | self._written[page] for page, kind in zip(pages, kinds, strict=True)))
