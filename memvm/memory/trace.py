"""One trace: which pages it waits for, and what an access to one of them makes it hear.

Made and closed by Traces (traces.py), which also says what each kind of trace is for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from memvm.memory.events import Access, Handler, Ring, TraceEvent
from memvm.memory.pages import PageRun, flagged_runs

ANY, STORE = 1, 2
"""What a page is armed for: the bits of Access."""
_MOST_AROUND = 256
_BLOCK_PAGES = 64
"""Of a trace that takes pages along: who has used half of so many, one by one, is taken to use all of them."""
_NOTHING, _STORES = bytes(256), bytes(value & STORE for value in range(256))
"""What is left to wait for after a write, and after a read, by what was waited for."""
_WAITS_FOR = (
    bytes(int(bool(value & ANY)) for value in range(256)),
    bytes(int(value == STORE) for value in range(256)),
)
"""Which bits a page that waits for any access has, and one that waits for writes only."""


class Trace:
    """One request. Made by Traces.add; ends with `close`, or as a context manager."""

    def __init__(
        self,
        runs: list[PageRun],
        access: Access,
        rearm: float | None,
        handler: Handler,
        close: Callable[[Trace], None],
        *,
        around: bool,
        polled: bool,
        instruction: bool,
        grain: int,
    ) -> None:
        self.runs = runs
        """The pages, ascending."""
        self.access = access
        self.rearm = rearm
        self.around = around
        self.polled = polled
        """Whether the guest's accesses are heard of when somebody looks, and not before."""
        self.instruction = instruction
        self.heard = 0
        """Events so far."""
        self.ring: Ring | None = None
        """Where the events are if there is no handler."""
        self._close = close
        self.handler = handler
        self.first = runs[0].first if runs else 0
        self.armed = bytearray(runs[-1].end - self.first if runs else 0)
        """By page from the first one: the bits of Access that it still waits for."""
        self._fired = bytearray(len(self.armed) if rearm is not None else 0)
        """1 for pages to be armed again."""
        self._next_around = [PageRun(0, 1), PageRun(0, 1)]
        """What is accessed next if accesses are sequential: of pages that wait for any, and for writes only."""
        self._heard_in = bytearray(len(self.armed) // _BLOCK_PAGES + 1 if around else 0)
        """By block of pages, how many were accessed one by one."""
        self.grain = grain

    def waits_for(self, page: int) -> int:
        """The bits of Access that a page is armed for."""
        index = page - self.first
        return self.armed[index] if 0 <= index < len(self.armed) else 0

    def armed_pages(self) -> int:
        """How many pages have not been accessed since they were armed last."""
        return len(self.armed) - self.armed.count(0)

    def close(self) -> None:
        """End the trace; events of an access that is being answered just now may still come. Idempotent.

        The guest may have ended.
        """
        self._close(self)

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What follows is called by Traces, with the RAM's lock held.

    def arm(self, runs: Iterable[PageRun]) -> None:
        """Wait for accesses to these pages."""
        access = bytes((int(self.access),))
        for run in runs:
            start = run.first - self.first
            self.armed[start : start + run.count] = access * run.count

    def fire(self, page: int, write: int) -> PageRun:
        """Take note of an access that the trace waits for; the pages that it disarms, this one among them."""
        run = PageRun(page, 1)
        if self.around:
            run = self._widened(page)
        elif self.grain > 1:
            run = self._block(page)
        start = run.first - self.first
        if run.count == 1:
            self.armed[start] = 0 if write else self.armed[start] & STORE
            if self._fired:
                self._fired[start] = 1
        else:
            after = _NOTHING if write else _STORES
            self.armed[start : start + run.count] = self.armed[start : start + run.count].translate(after)
            if self._fired:
                self._fired[start : start + run.count] = b"\1" * run.count
        self.heard += run.count
        return run

    def events(self, run: PageRun, write: int, vcpu: int, instruction: int) -> list[TraceEvent]:
        """What is told of an access to these pages."""
        now, where = time.monotonic_ns(), instruction if self.instruction else 0
        access = STORE if write else ANY
        return [TraceEvent(page, access, vcpu, now, where) for page in range(run.first, run.first + run.count)]

    def disarm(self, run: PageRun) -> list[TraceEvent]:
        """Pages of a polled trace were accessed, in whichever way."""
        start = run.first - self.first
        self.armed[start : start + run.count] = bytes(run.count)
        self.heard += run.count
        return self.events(run, 0, 0, 0)

    def _block(self, page: int) -> PageRun:
        """Those of the block of pages around this one that wait for the same."""
        index = page - self.first
        armed = self.armed[index : index + self.grain - page % self.grain]
        before = self.armed[max(0, index - page % self.grain) : index]
        same = armed[:1]
        first = page - (len(before) - len(before.rstrip(same)))
        return PageRun(first, page - first + len(armed) - len(armed.lstrip(same)))

    def _widened(self, page: int) -> PageRun:
        """The page, and as many of those behind it as sequential accesses let expect; they wait for the same."""
        start = page - self.first
        kind = 0 if self.armed[start] & ANY else 1  # a program that reads and writes page after page does both
        expected = self._next_around[kind]
        count = min(2 * expected.count, _MOST_AROUND) if page == expected.first else 1
        armed = self.armed[start : start + count]
        run = PageRun(page, len(armed) - len(armed.lstrip(armed[:1])))
        self._next_around[kind] = PageRun(run.end, run.count)
        block = start // _BLOCK_PAGES
        self._heard_in[block] += run.count == 1
        if self._heard_in[block] >= _BLOCK_PAGES // 2 and run.count == 1:
            return self._rest_of(block, kind)
        return run

    def _rest_of(self, block: int, kind: int) -> PageRun:
        """From the first to the last page of a block that waits for the same; some between them may not."""
        first = block * _BLOCK_PAGES
        waiting = self.armed[first : first + _BLOCK_PAGES].translate(_WAITS_FOR[kind])
        start, stop = waiting.find(1), waiting.rfind(1) + 1
        return PageRun(self.first + first + start, stop - start)

    def spent(self) -> list[PageRun]:
        """The pages to be armed again."""
        spent = list(flagged_runs(self._fired, 0, len(self._fired), 1))
        for run in spent:
            self._fired[run.first : run.end] = bytes(run.count)
        return [PageRun(self.first + run.first, run.count) for run in spent]
