"""The working-set size of a running guest, estimated by sampling accesses.

Every interval a fresh random sample of the pages that hold memory, or whose contents are still deferred, is traced. The
share of them that is accessed before the interval is over is an estimate of the share of all (Waldspurger: Memory
Resource Management in VMware ESX Server, OSDI 2002). So the working set is what the guest accesses within one
interval, and the cost is at most one fault for each page of the sample and interval: the caller sets both.

The last few samples count together. The standard error is that of a share estimated from so many independent draws, of
which two more are taken to have been seen, one accessed and one not: otherwise a sample without any access would claim
to be certain.
"""

from __future__ import annotations

import random
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from math import sqrt

from memvm.linux.own_threads import Thread
from memvm.memory.engine import GuestGone
from memvm.memory.pages import DEFERRED, PageRun, flagged_runs, runs_of, united_runs
from memvm.memory.ram import GuestRam
from memvm.memory.traces import Access, Traces
from memvm.units import PAGE_SIZE

MOST_SAMPLED = 1 << 16
"""Pages of one sample: more would make a sample of its own cost of it."""
_SAMPLES = 8
"""Samples that count together."""


@dataclass(frozen=True)
class WorkingSetEstimate:
    """What the last samples say."""

    size: float
    """Bytes."""
    error: float
    """Its standard error, in bytes: two times out of three the true size is not farther away than this."""
    population: int
    """Bytes that hold memory or are deferred."""
    sampled: int
    """Pages in the samples that count."""
    accessed: int
    """How many of them were accessed."""
    interval: float
    """Seconds within which they were."""


class WorkingSetSampler:
    """Samples one guest's accesses, from `start` to `stop`, on a thread of its own."""

    def __init__(
        self,
        ram: GuestRam,
        traces: Traces,
        failed: Callable[[BaseException], None],
        *,
        pages: int,
        interval: float,
        seed: int | None = None,
    ) -> None:
        """A sample has `pages` pages and stands for `interval` seconds; `failed` hears of what must not happen."""
        if pages < 1 or interval <= 0:
            raise ValueError("a sample has at least one page, and takes some time")
        self.pages, self.interval = pages, interval
        self._ram, self._traces, self._failed = ram, traces, failed
        self._chance = random.Random(seed)
        self._samples: deque[tuple[int, int]] = deque(maxlen=_SAMPLES)
        self._population = 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = Thread(target=self._run, name="working set", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._traces.add([], Access.READ):  # keeps traces at hand between two samples
                while not self._over.is_set():
                    self.sample(lambda: self._over.wait(self.interval))
        except GuestGone:
            return
        except BaseException as error:  # noqa: BLE001  # the manager ends the guest and reports it
            self._failed(error)

    def sample(self, wait: Callable[[], object]) -> None:
        """Take one sample: trace, wait, and count. Raises GuestGone."""
        runs = self._choose()
        chosen = sum(run.count for run in runs)
        with self._traces.add(runs, Access.READ, room=self.pages) as trace:
            wait()
            self._samples.append((chosen, trace.heard))

    def _choose(self) -> list[PageRun]:
        """A random sample of the pages that there are."""
        ram = self._ram
        there = united_runs([*ram.touched(), *flagged_runs(ram.flags, 0, ram.page_count, DEFERRED)])
        ends = list(accumulate(run.count for run in there))
        self._population = ends[-1] if ends else 0
        pages = []
        for number in sorted(self._chance.sample(range(self._population), min(self.pages, self._population))):
            index = bisect_right(ends, number)
            pages.append(there[index].end - (ends[index] - number))
        return runs_of(pages)

    @property
    def estimate(self) -> WorkingSetEstimate | None:
        """What the samples so far say; None before the first is over."""
        samples = list(self._samples)
        drawn = sum(pages for pages, _ in samples)
        if not drawn:
            return None
        seen = sum(accessed for _, accessed in samples)
        population = self._population * PAGE_SIZE
        likely = (seen + 1) / (drawn + 2)
        return WorkingSetEstimate(
            size=population * seen / drawn,
            error=population * sqrt(likely * (1 - likely) / (drawn + 2)),
            population=population,
            sampled=drawn,
            accessed=seen,
            interval=self.interval,
        )

    def stop(self) -> None:
        """End; the sample that is under way does not count."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
