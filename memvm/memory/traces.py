"""Traces: requests to be told of the next accesses to pages of guest RAM.

A trace covers any pages, and each of them is *armed* by itself: for its first access, its first write, or both. An
access that it waits for becomes a TraceEvent and disarms the page as far as that goes; a re-arming trace arms it again
after a while, and a one-shot trace never. What a read trace hears of is the first access of any kind, since a page
that may be written can also be read; the event says which it was. The mprotect engine cannot tell a first write from a
first read: there, a page that a trace of both waits for is read and then written.

The manager's own accesses on behalf of the guest (a read(2) that fills a buffer) count like the guest's, with vCPU 0.
Where the mprotect engine traces many pages, an access takes the armed pages of its block of 16 or more along, since a
process may not have that many pieces of mapping; there are events of all of them.

What is thrown away (munmap, madvise) stays armed: its next access is an access to zeros.

A *polled* trace hears of the guest's accesses when somebody looks (`look`): its pages are hidden like others, but the
kernel itself reveals them, and is asked which it has revealed (access_scan.py). That costs the guest a twentieth of a
fault that is answered here. Where it cannot be had a polled trace is one like any other.

Rules
-----
Many traces may cover a page. Its TRACE_ACCESS and TRACE_WRITE flags are what any of them waits for, and change with
the RAM's lock held, together with what the traces know. Events reach rings and handlers *after* the access was let go,
with no lock held, on the thread that answered it: the pager, the tracer (mprotect engine), or whoever in the manager
touched the page. A handler must be quick, for the next fault waits for it, and must neither add nor close traces, nor
ask the machine for anything that stops the guest. An exception in a handler ends the guest, as any error does on the
path of a fault.

`add` and `close` may be called from any thread that holds neither lock, and not within Machine.frozen; they take
milliseconds for a gigabyte, and the guest runs meanwhile (the mprotect engine stops it).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

from memvm.memory.engine import FaultEngine, GuestGone
from memvm.memory.events import Access, Handler, Ring, TraceEvent
from memvm.memory.pages import (
    TRACE_ACCESS,
    TRACE_WRITE,
    TRACED,
    PageRun,
    clear_flag,
    flagged_runs,
    merged_runs,
    set_flag,
    unflagged_runs,
    united_runs,
)
from memvm.memory.ram import GuestRam
from memvm.memory.repeating import Repeating
from memvm.memory.trace import ANY, STORE, Trace

__all__ = ["Access", "Handler", "Ring", "Trace", "TraceEvent", "Traces"]

DEFAULT_ROOM = 1 << 16
"""Events that a ring holds."""
_SLICE_PAGES = 4096
_GAP_PAGES = 16
"""Pages that are hidden along when runs are hidden again: a fault too many costs less than one more run."""
_FLAGS = (0, TRACE_ACCESS, TRACE_WRITE, TRACED)
"""The flags of pages by the bits that they are armed for."""

Heard = list[tuple[Trace, list[TraceEvent]]]
"""Who is to be told what of one access."""


class Traces:
    """All traces of one guest."""

    def __init__(
        self,
        ram: GuestRam,
        engine: FaultEngine,
        instruction: Callable[[int], int],
        failed: Callable[[BaseException], None],
    ) -> None:
        """`instruction` tells where a vCPU that waits in a fault is, or 0; asked on the thread that answers it.

        `failed` hears of an error that nobody could handle.
        """
        self._ram = ram
        self._engine = engine
        self._instruction = instruction
        self._traces: list[Trace] = []
        self._changing = threading.Lock()
        """Held while traces come and go; taken before the RAM's lock, as is the next one."""
        self._arming = threading.Lock()
        """Held while pages are armed: what has its flag when somebody gets this lock is hidden or guarded in fact."""
        self._looking = threading.Lock()
        """Held while the engine is asked what is mapped."""
        self._asking = 0
        """How many traces want to know the instruction."""
        self.on_idle: Callable[[], None] = lambda: None
        """Called, with no lock held, when the last trace has ended."""
        self._rearming = Repeating(self._rearm, failed)

    @property
    def page_count(self) -> int:
        """How many pages guest RAM has."""
        return self._ram.page_count

    def add(
        self,
        runs: Iterable[PageRun],
        access: Access,
        *,
        rearm: float | None = None,
        handler: Handler | None = None,
        room: int = DEFAULT_ROOM,
        around: bool = False,
        polled: bool = False,
        instruction: bool = False,
    ) -> Trace:
        """Trace pages; when this returns, the next access to each of them is heard of.

        With `rearm` a page is armed again at most that many seconds after it was heard of; without, it is heard of
        once. Events go to `handler`, or else into the trace's `ring`, which holds `room` of them. `around` takes pages
        behind the one that was accessed along, 1, 2, 4 to 256 of them while accesses are sequential, and the rest of a
        block of 64 when half of it was accessed one by one: fewer faults, and events of pages that may not have been
        accessed. `polled`, for accesses of any kind and once, is as said above: no pages are taken along, and events
        of reads may stand for writes. `instruction` has events say where in the program it was.

        Raises GuestGone, and ValueError for pages that guest RAM has not got, a `rearm` that is not positive, or what
        cannot be polled.
        """
        pages = united_runs(runs)
        if pages and (pages[0].first < 0 or pages[-1].end > self._ram.page_count):
            raise ValueError(f"pages {pages[0].first} to {pages[-1].end - 1}: guest RAM has {self._ram.page_count}")
        if not access or (rearm is not None and rearm <= 0):
            raise ValueError("a trace waits for some access, and is armed again after some time")
        if polled and (access != Access.READ or rearm is not None or instruction):
            raise ValueError("a polled trace is for the first access of any kind, and knows no more of it")
        polled = polled and self._engine.mapped is not None
        ring = Ring(room) if handler is None else None
        trace = Trace(
            pages,
            access,
            rearm,
            ring.put if ring is not None else handler,  # type: ignore[arg-type]  # one of them is there
            self._remove,
            around=around and not polled,
            polled=polled,
            instruction=instruction,
            grain=1,
        )
        trace.ring = ring
        with self._changing:
            if polled:
                # For each of them: with write protection the kernel reveals one page at a time.
                self._engine.begin_guarding()
            elif all(each.polled for each in self._traces):
                self._engine.begin_tracing()
            self._ram.traces = self
            self._traces.append(trace)
            if sum(run.count for each in self._traces for run in each.runs) > self._engine.exact_pages:
                trace.grain = self._engine.grain
            self._asking += instruction
        try:
            for each in list(self._traces):
                if each is not trace:
                    self.look(each)  # it may be hidden what was accessed since the last look
            self._arm(trace, pages)
        except BaseException:
            trace.close()
            raise
        if rearm is not None:
            self._rearming.add(trace, rearm)
        return trace

    def _arm(self, trace: Trace, runs: list[PageRun]) -> None:
        with self._arming:
            flags, fresh = self._ram.flags, list[PageRun]()
            mark = TRACE_ACCESS if trace.access & Access.READ else TRACE_WRITE
            with self._ram.lock:
                if trace not in self._traces:
                    return
                trace.arm(runs)
                # With polled traces, what has the flag may have been revealed all the same.
                seen_through = any(each.polled for each in self._traces)
                for run in runs:
                    fresh += (run,) if seen_through else unflagged_runs(flags, run.first, run.count, mark)
                    set_flag(flags, run.first, run.count, mark)
                    if trace.access & Access.WRITE:  # of a page that is hidden too, the guard comes when it is revealed
                        set_flag(flags, run.first, run.count, TRACE_WRITE)
            if mark == TRACE_ACCESS:
                self._engine.hide(list(merged_runs(fresh, _GAP_PAGES)))
                return
            for run in fresh:
                for first in range(run.first, run.end, _SLICE_PAGES):
                    self._engine.guard(PageRun(first, min(_SLICE_PAGES, run.end - first)))

    def _remove(self, trace: Trace) -> None:
        with self._changing:
            with self._ram.lock:
                if trace not in self._traces:
                    return
                self._traces.remove(trace)
                self._rearming.remove(trace)
                self._asking -= trace.instruction
                for run in trace.runs:
                    self._recompute(run)
            if not self._traces:
                self._ram.traces = None
            with suppress(GuestGone):  # its mappings went with it
                if trace.polled:
                    self._engine.end_guarding()
                elif all(each.polled for each in self._traces):
                    self._engine.end_tracing()
                elif trace.access & Access.WRITE:
                    for run in trace.runs:
                        for first in range(run.first, run.end, _SLICE_PAGES):
                            with self._ram.lock:
                                self._engine.unguard(PageRun(first, min(_SLICE_PAGES, run.end - first)))
            idle = not self._traces
        if idle:
            self.on_idle()

    def _recompute(self, run: PageRun) -> None:
        """Set the flags of pages by what the traces wait for; the lock is held."""
        flags = self._ram.flags
        clear_flag(flags, run.first, run.count, TRACED)
        for trace in self._traces:
            first = max(run.first, trace.first)
            count = min(run.end, trace.first + len(trace.armed)) - first
            if count <= 0:
                continue
            for bit, flag in ((ANY, TRACE_ACCESS), (STORE, TRACE_WRITE)):
                for part in flagged_runs(trace.armed, first - trace.first, count, bit):
                    set_flag(flags, part.first + trace.first, part.count, flag)

    def look(self, trace: Trace) -> None:
        """Have a polled trace hear of what the guest accessed since the last look, in the order of pages.

        Of a page that another trace hides anew in between, it hears at the access after that. Does nothing for other
        traces, and for one that has ended. Raises GuestGone.
        """
        mapped = self._engine.mapped
        if not trace.polled or mapped is None:
            return
        armed, before = trace.armed, trace.first
        with self._looking:
            for first, end in mapped(PageRun(before, len(armed))):
                if armed.find(ANY, first - before, end - before) >= 0:
                    for start in range(first, end, _SLICE_PAGES):
                        self.deliver(self._revealed(trace, start, min(start + _SLICE_PAGES, end)))

    def _revealed(self, trace: Trace, first: int, end: int) -> Heard:
        """Take note of pages that the guest has accessed, as far as the trace still waits for them."""
        heard: Heard = []
        with self._ram.lock:
            if trace in self._traces:
                for run in list(flagged_runs(trace.armed, first - trace.first, end - first, ANY)):
                    pages = PageRun(trace.first + run.first, run.count)
                    heard.append((trace, trace.disarm(pages)))
                    self._recompute(pages)
        return heard

    # What is asked at every access to a traced page.

    def where(self, page: int, vcpu: int) -> int:
        """The instruction of an access to a page, if anybody wants to know; before the lock is taken."""
        if self._asking and self._ram.flags[page] & TRACED:
            return self._instruction(vcpu)
        return 0

    def hear(self, page: int, write: int, vcpu: int, instruction: int) -> Heard:
        """Take note of an access; the lock is held. What comes back is to be delivered once it has been let go."""
        heard: Heard = []
        left = 0
        for trace in self._traces:
            index = page - trace.first
            armed = trace.armed[index] if 0 <= index < len(trace.armed) else 0
            if armed & (3 if write else ANY):
                run = trace.fire(page, write)
                heard.append((trace, trace.events(run, write, vcpu, instruction)))
                if run.count > 1:
                    self._recompute(run)
                armed = trace.armed[index]
            left |= armed
        flags = self._ram.flags
        flags[page] = flags[page] & ~TRACED | _FLAGS[left]
        return heard

    def deliver(self, heard: Heard) -> None:
        """Tell who waited; without the lock."""
        for trace, events in heard:
            trace.handler(events)

    def accessed(self, first: int, count: int, write: int) -> None:
        """The manager is about to access pages on behalf of the guest."""
        heard: Heard = []
        with self._ram.lock:
            for run in list(flagged_runs(self._ram.flags, first, count, TRACED)):
                for page in range(run.first, run.end):
                    heard += self.hear(page, write, 0, 0)
        self.deliver(heard)

    def _rearm(self, trace: Trace) -> None:
        """Arm again what has fired."""
        with self._ram.lock:
            spent = trace.spent()
        self._arm(trace, spent)

    def stop(self) -> None:
        """End what was begun; the guest has ended."""
        self._rearming.stop()
