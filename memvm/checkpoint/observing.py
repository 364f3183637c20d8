"""Looks at a restore while it goes on: how long the guest waits for pages, and which pages it uses.

The first costs a microsecond a demand fault. The second needs a trace over all pages that the file has, placed before
the guest runs and lifted after a window of some seconds: a page fault more for each page that the guest uses in it. If
it is only for the next restore, pages behind one that the guest uses are taken along while accesses are sequential,
which saves most of these faults.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from time import monotonic_ns
from typing import TYPE_CHECKING, NamedTuple

from memvm.checkpoint.hint_file import Hints, merged, write_hints
from memvm.checkpoint.prefetch import Loaded
from memvm.errors import SaveError
from memvm.linux.own_threads import Thread
from memvm.memory.pages import PageRun
from memvm.memory.traces import Access, Trace, TraceEvent
from memvm.recording.metrics import RESPONSIVE_SHARE, RESPONSIVE_WINDOW, Stall, responsive_after, score
from memvm.recording.restored import RestoreReport

if TYPE_CHECKING:
    from memvm.machine.machine import Machine

_LOOK_INTERVAL = 0.25
"""Seconds between two looks whether the guest is responsive."""
WINDOW = 2.0
"""Seconds for which it is noted which pages a guest uses."""
_NS = 1e-9


class Observing(NamedTuple):
    """What is wanted of a restore beside the guest."""

    report: bool = False
    """Tell how it went: times, and demand faults."""
    score: bool = False
    """Tell also how well the prefetched pages were chosen. Slows the guest in the window."""
    record: bool = False
    """Note which pages the guest uses, for the next restore with the policy `recorded`."""
    window: float = WINDOW
    """Seconds for which the last two look at the guest."""
    responsive_window: float = RESPONSIVE_WINDOW
    """Seconds in which the guest has to run for `responsive_share` of the time to be called responsive."""
    responsive_share: float = RESPONSIVE_SHARE
    tell: Callable[[RestoreReport], None] | None = None
    """Is told the report once the guest is responsive and the window is over, or the guest has ended."""


class Waits:
    """When the guest waited for deferred pages; there are at most as many waits as RAM has pages.

    Pages that the manager needs for a hypercall are not counted: the guest waits for those too, but for few.
    """

    def __init__(self, load: Callable[[int], int]) -> None:
        """`load` brings a page that the guest waits for, and what belongs to it."""
        self._load = load
        self._starts, self._durations = array("q"), array("q")

    def __call__(self, page: int) -> int:
        """Bring a page that the guest waits for: DeferredPages.instead."""
        began = monotonic_ns()
        placed = self._load(page)
        self._starts.append(began)
        self._durations.append(monotonic_ns() - began)
        return placed

    def stalls(self) -> list[Stall]:
        """All so far, in seconds of CLOCK_MONOTONIC."""
        durations = self._durations[:]  # the last start may have none yet
        return [Stall(start * _NS, duration * _NS) for start, duration in zip(self._starts, durations, strict=False)]


class Observer:
    """Observes one restore, once it is attached to its machine."""

    def __init__(
        self, machine: Machine, checkpoint: Path, how: Observing, began: float, loaded: Loaded, hints: Hints | None
    ) -> None:
        """`began` is when the restore did, in seconds of CLOCK_MONOTONIC, as all times here.

        `hints` are those of earlier restores, into which this one is merged if it is recorded.
        """
        self._machine, self._checkpoint, self._how = machine, checkpoint, how
        self._began, self._loaded = began, loaded
        self._hints = hints if how.record else None
        self._responsive: float | None = None
        self._waits: Waits | None = None
        self._trace: Trace | None = None
        self._used: dict[int, None] = {}
        self._recorded: int | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def attach(self) -> None:
        """Place what observes: before the guest has registers."""
        deferred, machine = self._loaded.deferred, self._machine
        if self._how.report:
            machine.restore_report = self.report
            if deferred is not None:
                deferred.instead = self._waits = Waits(deferred.instead or deferred.demand_page)
        if self._how.score or self._hints is not None:
            around = not self._how.score
            self._trace = machine.traces.add(self._loaded.data, Access.READ, handler=self._hear, around=around)
        machine.at_start.insert(0, self._start)
        machine.at_close.append(self._stop)

    def _hear(self, events: list[TraceEvent]) -> None:
        used = self._used
        for event in events:
            used[event.page] = None

    def _start(self) -> None:
        """The guest runs."""
        if self._trace is not None or self._how.tell is not None:
            self._thread = Thread(target=self._run, name="observe restore", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            if self._trace is not None:
                self._over.wait(self._how.window)
                self._end_window(self._trace)
            if self._how.tell is not None:
                while self._responsive_since(self._stalls()) is None and not self._over.wait(_LOOK_INTERVAL):
                    continue
                self._how.tell(self.report())
        except BaseException as error:  # noqa: BLE001  # the machine ends the guest and reports it
            self._machine.failed(error)

    def _end_window(self, trace: Trace) -> None:
        trace.close()
        if self._hints is None:
            return
        hints = merged(self._hints, self._used, sum(run.count for run in self._loaded.data))
        try:
            write_hints(self._checkpoint, hints)
            self._recorded = len(hints.pages)
        except (SaveError, OSError) as error:
            reason = error.message if isinstance(error, SaveError) else str(error)
            self._machine.warn(f"what it uses is not recorded for the next restore: {reason}")

    def _stop(self) -> None:
        """The guest has ended."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def report(self) -> RestoreReport:
        """How the restore went until now."""
        stalls = self._stalls()
        responsive = self._responsive_since(stalls)
        output = self._machine.first_output
        prefetched = self._loaded.prefetched
        report = RestoreReport(
            policy=self._loaded.policy,
            began=self._began,
            first_instruction_seconds=self._after(self._machine.first_instruction),
            first_output_seconds=self._after(output),
            responsive_seconds=self._after(responsive),
            responsive_window_seconds=self._how.responsive_window,
            responsive_share_ratio=self._how.responsive_share,
            demand_faults=len(stalls),
            demand_faults_until_responsive=(
                None if responsive is None else sum(stall.start < responsive for stall in stalls)
            ),
            waited_seconds=sum(stall.duration for stall in stalls),
            prefetch_seconds=prefetched.seconds,
            prefetched_pages=sum(run.count for run in self._prefetched_runs()),
            prefetch_reads=prefetched.reads,
            bytes_prefetched=prefetched.bytes_read,
            window_seconds=self._how.window,
            recorded_pages=self._recorded,
        )
        return self._scored(report) if self._how.score else report

    def _stalls(self) -> list[Stall]:
        return self._waits.stalls() if self._waits is not None else []

    def _responsive_since(self, stalls: list[Stall]) -> float | None:
        started = self._machine.first_instruction
        if self._responsive is None and started is not None:
            how = self._how
            now = time.monotonic()
            self._responsive = responsive_after(stalls, started, now, how.responsive_window, how.responsive_share)
        return self._responsive

    def _after(self, moment: float | None) -> float | None:
        return None if moment is None else moment - self._began

    def _scored(self, report: RestoreReport) -> RestoreReport:
        prefetched = {page for run in self._prefetched_runs() for page in range(run.first, run.end)}
        found = score(prefetched, set(self._used))
        return report._replace(
            used_pages=found.needed,
            precision_ratio=found.precision,
            recall_ratio=found.recall,
            pollution_pages=found.pollution,
        )

    def _prefetched_runs(self) -> list[PageRun]:
        around = self._loaded.around
        return [*self._loaded.prefetched.there, *(around.brought if around is not None else ())]
