"""What each policy would have done for a restore, worked out from one recording.

The recording is cut in two at a moment (`Cut`). Before it, the guest is taken to have been saved: what it accessed
there is what the save saw, the active pages. After it, the guest is taken to have been restored: it accesses the same
pages in the same order, as fast as it did, but waits wherever a page is not there.

The cost model is simple on purpose, so that its figures can be understood: a demand fault costs `fault` seconds, and
each page that is brought `page` seconds, whether before the guest runs or at a fault while it waits. Nothing is loaded
in the background: if it were, all policies but eager would stall less in the end.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from memvm.memory.events import TraceEvent
from memvm.memory.pages import PageRun, runs_of
from memvm.recording.format import EventBlock
from memvm.recording.metrics import Stall, responsive_after, score
from memvm.recording.policies import ActiveList, CheckedPolicy, RestoreFacts, in_order

Blocks = Callable[[], Iterable[EventBlock]]
"""Goes through a recording from its beginning."""


@dataclass(frozen=True)
class CostModel:
    """Seconds."""

    fault: float = 100e-6
    """A demand fault: stop, find, read, let go on. About what memvm needs for a chunk that is in the page cache."""
    page: float = 4e-6
    """One page more, read and decompressed: 1 GB/s."""


@dataclass(frozen=True)
class Replayed:
    """What a policy would have done."""

    policy: str
    demand_faults: int
    """Times that the guest would have waited for a page."""
    pages_loaded: int
    """In all: before the guest runs, at its faults, and with them."""
    pages_prefetched: int
    """Those that the policy named, and nobody had asked for when they were loaded."""
    precision: float | None
    """The share of the prefetched pages that the guest used later; None if there were none."""
    recall: float | None
    """The share of the pages that the guest used that were prefetched; None if it used none."""
    pollution: int
    """Pages that were prefetched in vain."""
    start_seconds: float
    """Estimated wait until the guest runs."""
    stall_seconds: float
    """Estimated waiting in all, the start included."""
    responsive_seconds: float | None
    """Estimated time until the guest runs for most of a window (metrics.py); None if the recording ends before."""


@dataclass(frozen=True)
class Cut:
    """Where the recording is cut in two."""

    at: int
    """Nanoseconds of CLOCK_MONOTONIC: what was seen before this was seen by the save."""
    window: int
    """Nanoseconds: how long an earlier restore recorded the pages that the guest used."""


def facts_from(
    blocks: Blocks, cut: Cut, ram_pages: int, data_runs: list[PageRun] | None = None, hints: list[int] | None = None
) -> RestoreFacts:
    """What a policy would have known at the cut.

    `data_runs` are the pages that have data in the checkpoint; without them, all that the recording has seen are taken.
    `hints` are the pages that an earlier restore used; without them, those that the guest used in the window after the
    cut: an earlier restore at which it did just the same.
    """
    active: dict[int, int] = {}
    recorded: dict[int, None] = {}
    seen: set[int] = set()
    for block in blocks():
        seen.update(block.pages)
        for page, access, _, time, _ in block:
            if time < cut.at:
                active[page] = active.get(page, 0) | access
            elif time < cut.at + cut.window:
                recorded[page] = None
    return RestoreFacts(
        ram_pages,
        runs_of(sorted(seen)) if data_runs is None else data_runs,
        ActiveList.of(active.items()),
        list(recorded) if hints is None else hints,
    )


def replay(blocks: Blocks, cut: Cut, facts: RestoreFacts, policy: CheckedPolicy, costs: CostModel) -> Replayed:
    """Restore at the cut with this policy. Raises UsageError if the policy misbehaves."""
    memory = _Memory(facts)
    named = policy.prefetch(facts)
    memory.prefetch(named if isinstance(named, list) else in_order(named))
    start = clock = len(memory.prefetched) * costs.page
    stalls = [Stall(0.0, start)]
    faults = 0
    end = 0.0
    for event in _after(blocks, cut):
        end = (event.time - cut.at) / 1e9
        if not memory.needs(event.page):
            continue
        faults += 1
        before = len(memory.loaded)
        memory.demand(event.page)
        memory.prefetch(policy.on_fault(event.page, facts))
        cost = costs.fault + (len(memory.loaded) - before) * costs.page
        stalls.append(Stall(end + clock, cost))
        clock += cost
    found = score(memory.prefetched, memory.used)
    return Replayed(
        policy.name,
        faults,
        len(memory.loaded),
        found.prefetched,
        found.precision,
        found.recall,
        found.pollution,
        start,
        clock,
        responsive_after(stalls, 0.0, end + clock),
    )


def _after(blocks: Blocks, cut: Cut) -> Iterator[TraceEvent]:
    for block in blocks():
        yield from (event for event in block if event.time >= cut.at)


class _Memory:
    """Which pages are there, who asked for them, and which the guest used."""

    def __init__(self, facts: RestoreFacts) -> None:
        self.loaded: set[int] = set()
        self.prefetched: set[int] = set()
        self.used: set[int] = set()
        self._runs = facts.data_runs
        self._firsts = [run.first for run in facts.data_runs]

    def needs(self, page: int) -> bool:
        """The guest accesses a page: whether it has to wait for it."""
        if page in self.used or not self._has_data(page):
            return False
        self.used.add(page)
        return page not in self.loaded

    def demand(self, page: int) -> None:
        """Bring the page that the guest waits for."""
        self.loaded.add(page)

    def prefetch(self, runs: list[PageRun]) -> None:
        """Bring what of these has data and is not there."""
        for run in runs:
            for part in self._data_in(run):
                fresh = set(range(part.first, part.end)) - self.loaded
                self.loaded |= fresh
                self.prefetched |= fresh

    def _has_data(self, page: int) -> bool:
        place = bisect_right(self._firsts, page) - 1
        return place >= 0 and page < self._runs[place].end

    def _data_in(self, run: PageRun) -> Iterator[PageRun]:
        place = max(0, bisect_right(self._firsts, run.first) - 1)
        while place < len(self._runs) and self._runs[place].first < run.end:
            first, end = max(run.first, self._runs[place].first), min(run.end, self._runs[place].end)
            if first < end:
                yield PageRun(first, end - first)
            place += 1
