"""Whether the working set of a guest is being estimated, and at what cost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from memvm.errors import UsageError
from memvm.memory.ram import GuestRam
from memvm.memory.traces import Traces

if TYPE_CHECKING:
    from memvm.memory.working_set import WorkingSetEstimate, WorkingSetSampler


class Sampling:
    """That of one guest. Its methods may be called from any thread."""

    def __init__(self, ram: GuestRam, traces: Traces, failed: Callable[[BaseException], None]) -> None:
        """`failed` is told what went wrong in the sampler's own thread."""
        self._ram, self._traces, self._failed = ram, traces, failed
        self._sampler: WorkingSetSampler | None = None
        self._lock = threading.Lock()

    @property
    def estimate(self) -> WorkingSetEstimate | None:
        """The newest; None if there is none, or none yet."""
        sampler = self._sampler
        return sampler.estimate if sampler is not None else None

    def begin(self, pages: int, interval: float) -> None:
        """From now on with so many pages every `interval` seconds, or, with no pages, no more. Raises UsageError."""
        from memvm.memory.working_set import MOST_SAMPLED, WorkingSetSampler  # most guests are never sampled

        if pages < 0 or pages > MOST_SAMPLED or not 0.001 <= interval <= 3600:
            raise UsageError(
                f"a sample of {pages} pages every {interval:g} s",
                hint=f"up to {MOST_SAMPLED} pages, every millisecond at most",
            )
        with self._lock:
            self._stop()
            if pages:
                self._sampler = WorkingSetSampler(self._ram, self._traces, self._failed, pages=pages, interval=interval)
                self._sampler.start()

    def stop(self) -> None:
        """Estimate no more; idempotent."""
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        if self._sampler is not None:
            self._sampler.stop()
            self._sampler = None
