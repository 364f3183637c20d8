"""The guest's timers: what setitimer, alarm and timer_create set, kept by the manager and saved with the guest.

A timer runs by a clock of the guest's, so it goes on after a restore as that clock does: one that was set for a time
to come of CLOCK_MONOTONIC (also any that was set to run for so long) stands still while the guest is in a file.
All times are nanoseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from memvm.machine.callresult import CallError
from memvm.machine.clocks import REAL_CLOCKS, Clock, Clocks, is_cpu_clock

if TYPE_CHECKING:
    from memvm.machine.timer_descriptor import TimerDescriptor

ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF = -1, -2, -3
"""The numbers that setitimer's timers have here; timer_create's are from 0."""
MOST_TIMERS = 1024
_LEAST_CPU_WAIT = 1_000_000
"""How soon to look again whether enough CPU time was used."""


class Timer(NamedTuple):
    """One timer."""

    clock: int
    """The clock that it was made for."""
    number: int
    """The signal that it sends; 0 for none."""
    tid: int = 0
    """The thread that it sends it to; 0 for the guest as a whole."""
    value: int = 0
    """What the handler is told, si_value."""
    due: int | None = None
    """None while it does not run."""
    interval: int = 0
    runs_by: int = Clock.MONOTONIC
    """The clock that `due` is a time of."""
    overrun: int = 0
    """Expiries that had no signal of their own, up to the last signal."""


class Timers:
    """The timers of one guest."""

    def __init__(self, clocks: Clocks) -> None:
        self._clocks = clocks
        self.table: dict[int, Timer] = {}
        self.descriptors: set[TimerDescriptor] = set()
        """Those that are open (timer_descriptor.py)."""
        self.changed = False
        """Set when there may be another one to wait for; whoever waits clears it."""

    def set(self, identity: int, timer: Timer) -> None:
        """Put a timer in its place."""
        self.table[identity] = timer
        self.changed = True

    def remove(self, identity: int) -> None:
        """Take a timer away."""
        del self.table[identity]
        self.changed = True

    def adopt(self, table: dict[int, Timer]) -> None:
        """Take over the timers of a checkpoint."""
        self.table = dict(table)
        self.changed = True

    def left(self, timer: Timer) -> int:
        """How long it still runs; 0 if it does not."""
        now = self._now(timer.runs_by)
        return 0 if timer.due is None or now is None else max(1, timer.due - now)

    def _now(self, clock: int) -> int | None:
        """What a clock shows; None if it was that of a thread which has ended."""
        try:
            return self._clocks.read(clock)
        except CallError:
            return None

    def next_look(self) -> int | None:
        """When the next one is due, in guest CLOCK_MONOTONIC, or may be; None if there is none."""
        times = [self._when(timer.runs_by, timer.due) for timer in self.table.values() if timer.due is not None]
        times += [self._when(one.runs_by, one.due) for one in self.descriptors if one.due is not None and one.runs]
        return min((time for time in times if time is not None), default=None)

    def _when(self, clock: int, due: int) -> int | None:
        if is_cpu_clock(clock):
            now = self._now(clock)
            return None if now is None else self._clocks.monotonic() + max(due - now, _LEAST_CPU_WAIT)
        if clock in REAL_CLOCKS:
            return self._clocks.monotonic() + due - self._clocks.read(clock)
        return due

    def look_at_descriptors(self) -> None:
        """Let those expire that are due."""
        for one in self.descriptors:
            one.look()

    def expired(self) -> list[tuple[int, Timer, int]]:
        """The timers that are due, with how often they were; each is set for its next time, or runs no more."""
        found = []
        for identity, timer in self.table.items():
            now = None if timer.due is None else self._now(timer.runs_by)
            if timer.due is None or now is None or now < timer.due:
                continue
            late = now - timer.due
            times = 1 + late // timer.interval if timer.interval else 1
            due = timer.due + times * timer.interval if timer.interval else None
            found.append((identity, timer._replace(due=due), times))
        for identity, timer, _ in found:
            self.set(identity, timer)
        return found
