"""timerfd(2): timers that are read, by the guest's own clocks.

As the kernel's, one that has expired counts no further until it is read or asked for: the expiries since then are
reckoned up at that moment. So a short interval costs nothing while nobody looks.
"""

from __future__ import annotations

import errno
import os
import select
import struct
from collections.abc import Callable, Collection

from memvm.files.description import Description
from memvm.files.waitable import Waitable, fill
from memvm.machine.clocks import Clock, Clocks
from memvm.machine.timers import Timers

_COUNT = struct.Struct("=Q")


class TimerDescriptor(Waitable):
    """One timer. All times are ns."""

    shown = b"anon_inode:[timerfd]"
    is_message = True
    is_late = True

    def __init__(
        self, wake: Callable[[Waitable], bool], timers: Timers, clocks: Clocks, clock: int, flags: int = 0
    ) -> None:
        super().__init__(wake, os.O_RDWR | flags)
        self._timers, self._clocks = timers, clocks
        self.clock = clock
        """The clock that it was made for."""
        self.runs_by: int = Clock.MONOTONIC
        """The clock that `due` is a time of."""
        self.due: int | None = None
        """When it expires next, or did so that is not reckoned up; None while it does not run."""
        self.interval = 0
        self.expired = False
        """Whether `due` has passed, and nobody has looked since."""
        self.ticks = 0
        """Expiries that nobody has read."""
        timers.descriptors.add(self)

    @property
    def runs(self) -> bool:
        """Whether somebody has to look when it is due."""
        return self.due is not None and not self.expired

    def set(self, runs_by: int, due: int | None, interval: int) -> None:
        """Let it run, or stop it with None; what was not read is forgotten."""
        self.runs_by, self.due, self.interval = runs_by, due, interval
        self.expired, self.ticks = False, 0
        self._timers.changed = True
        self.look()

    def look(self) -> None:
        """Let it expire if it is due."""
        if self.due is not None and not self.expired and self._clocks.read(self.runs_by) >= self.due:
            self.expired = True
            self.ticks += 1
            self._timers.changed = True
            self.changed(select.POLLIN)

    def _reckon(self) -> None:
        """Count what has passed since it expired, and let it run on."""
        if not self.expired:
            return
        self.expired = False
        if self.due is not None and self.interval:
            passed = (self._clocks.read(self.runs_by) - self.due) // self.interval
            self.ticks += passed
            self.due += (passed + 1) * self.interval
        else:
            self.due = None
        self._timers.changed = True

    def left(self) -> int:
        """How long it still runs; 0 if it does not."""
        self.look()
        self._reckon()
        return 0 if self.due is None else max(1, self.due - self._clocks.read(self.runs_by))

    def collect(self, unless: Collection[Description] = ()) -> None:
        self.look()

    def events(self, asked: int) -> int:
        return asked & (select.POLLIN if self.ticks else 0)

    def read(self, views: list[memoryview], offset: int | None = None) -> int:
        if sum(map(len, views)) < _COUNT.size:
            raise OSError(errno.EINVAL, "a count has eight bytes")
        self.look()
        if not self.ticks:
            raise BlockingIOError
        self._reckon()
        ticks, self.ticks = self.ticks, 0
        return fill(views, _COUNT.pack(ticks))

    def close(self) -> None:
        self._timers.descriptors.discard(self)
        self._timers.changed = True
