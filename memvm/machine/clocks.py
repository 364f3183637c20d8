"""The guest's clocks.

CLOCK_MONOTONIC is the guest's own: it starts as the host's, and goes on from where it was when the guest is restored,
on whatever machine. CLOCK_REALTIME is the host's, always. CPU time counts what the guest has used in all its lives.
All values are nanoseconds.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from enum import IntEnum
from typing import Any

from memvm.machine.callresult import CallError

SECOND = 1_000_000_000


class Clock(IntEnum):
    """CLOCK_*: include/uapi/linux/time.h."""

    REALTIME = 0
    MONOTONIC = 1
    PROCESS_CPUTIME_ID = 2
    THREAD_CPUTIME_ID = 3
    MONOTONIC_RAW = 4
    REALTIME_COARSE = 5
    MONOTONIC_COARSE = 6
    BOOTTIME = 7
    TAI = 11


REAL_CLOCKS = {Clock.REALTIME, Clock.REALTIME_COARSE, Clock.TAI}
CPU_CLOCKS = {Clock.PROCESS_CPUTIME_ID, Clock.THREAD_CPUTIME_ID}
COARSE = {Clock.REALTIME_COARSE, Clock.MONOTONIC_COARSE}


_OF_PROCESS, _OF_THREAD = 2, 6
"""CPUCLOCK_SCHED, and the same with CPUCLOCK_PERTHREAD_MASK: include/linux/posix-timers_types.h."""


def thread_clock(tid: int) -> int:
    """A thread's CPU clock by its long name (pthread_getcpuclockid(3)); with 0, that of whoever asks."""
    return ~tid << 3 | _OF_THREAD


def is_cpu_clock(clock: int) -> bool:
    """Whether it is one of CPU time, by its short or long name."""
    return clock in CPU_CLOCKS or clock < 0


def clock_id(value: Any) -> int:
    """A clock that a timer may run by. Raises ValueError."""
    if type(value) is int and -(1 << 34) <= value < 0 and value & 7 in (_OF_PROCESS, _OF_THREAD):
        return value
    return Clock(value)


class Clocks:
    """The clocks of one guest; the offsets are what a checkpoint keeps."""

    def __init__(self) -> None:
        self.monotonic_offset = 0
        """What is added to the host's CLOCK_MONOTONIC."""
        self.cpu_before = 0
        """CPU time used in earlier lives."""
        self.cpu_clock: int | None = None
        """The host's clock id of the guest process (clock_getcpuclockid(3))."""
        self.not_the_guests = 0
        """CPU time of the guest process that the guest has not used: the service thread's."""
        self._cpu_shown = 0
        self.pid = 0
        """What the guest takes for its process id."""
        self.thread_time: Callable[[int], int] = lambda tid: self.cpu_time()
        """CPU time of a thread, 0 for the one that asks. Raises CallError(EINVAL) for one that there is not."""

    def follow(self, pid: int) -> None:
        """Take CPU time from this process."""
        self.cpu_clock = (~pid << 3) | 2  # CPUCLOCK_SCHED: include/linux/posix-timers_types.h

    def monotonic(self) -> int:
        """Guest CLOCK_MONOTONIC."""
        return time.monotonic_ns() + self.monotonic_offset

    def cpu_time(self) -> int:
        """CPU time of the guest in all its lives."""
        if self.cpu_clock is None:
            return self.cpu_before
        try:
            used = time.clock_gettime_ns(self.cpu_clock) - self.not_the_guests
        except OSError:  # the process has gone, and its clock with it
            return self.cpu_before
        # While the service thread works, what it uses is not known yet: the clock must not go back afterwards.
        self._cpu_shown = max(self._cpu_shown, used)
        return self.cpu_before + self._cpu_shown

    def read(self, clock: int) -> int:
        """The value of a clock. Raises CallError(EINVAL) for one that there is not."""
        if clock == Clock.MONOTONIC:
            return self.monotonic()
        if clock in REAL_CLOCKS:
            return time.time_ns()
        if clock == Clock.PROCESS_CPUTIME_ID:
            return self.cpu_time()
        if clock == Clock.THREAD_CPUTIME_ID:
            return self.thread_time(0)
        if clock in (Clock.MONOTONIC_RAW, Clock.MONOTONIC_COARSE, Clock.BOOTTIME):
            return self.monotonic()
        if clock < 0:  # clock_getcpuclockid(3)
            kind, number = clock & 7, ~(clock >> 3)
            if kind == _OF_THREAD:
                return self.thread_time(number)
            if kind == _OF_PROCESS and number in (0, self.pid):
                return self.cpu_time()
        raise CallError(errno.EINVAL)

    def resume_at(self, monotonic: int) -> None:
        """Let CLOCK_MONOTONIC go on from a saved value."""
        self.monotonic_offset = monotonic - time.monotonic_ns()
