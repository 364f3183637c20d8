"""The clock page: what the guest's vDSO computes the time from, kept right by the manager while the guest runs.

The page lies outside guest RAM, shared with the manager, and read-only for the guest. 64-bit words:

    0  sequence number   odd while the others are being changed; never the same in two lives of a guest
    1  usable            0: make a system call instead
    2  counter           what the processor's counter (RDTSC) showed
    3  rate              nanoseconds a tick, times 2^32
    4  monotonic         what guest CLOCK_MONOTONIC showed then
    5  offset            what is to be added for the time of day

The manager's clocks are the truth. They are disciplined (adjtimex(2)), and the first rate comes from a few
milliseconds, so now and then both are compared, and the rate is set to what makes the guest's clock right by the next
time. It is never set back, and jumps only forward, where the guest is far behind (a virtual machine was stopped).
"""

from __future__ import annotations

import mmap
import os
import threading
import time

from memvm.linux import memfd
from memvm.linux.machine_code import ClockPair, MachineCode
from memvm.linux.own_threads import Thread
from memvm.linux.processor import processor_flags
from memvm.machine.clocks import Clocks
from memvm.units import PAGE_SIZE

_SEQUENCE, _USABLE, _COUNTER, _RATE, _MONOTONIC, _OFFSET = range(6)
_WORDS = 6
_U64 = (1 << 64) - 1
_LIVES = 1 << 32
"""Sequence numbers for one life."""
_FIRST_LOOK, _LAST_LOOK = 0.02, 2.0
"""Seconds until the rate is set anew: longer each time."""
_BASELINE = 30.0
"""Seconds over which the counter's frequency is measured."""
_LEAST_MEASURED = 1_000_000
"""Nanoseconds that are enough for a first frequency."""
_MOST_CORRECTION = 0.05
"""Of the rate: how much slower or faster a wrong clock may go."""
_FAR_BEHIND = 1_000_000
"""Nanoseconds; then it jumps."""
_CLOCK_SOURCE = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
_SAME_COUNTER = ("tsc", "kvm-clock", "hyperv_clocksource_tsc_page")
"""Clock sources of the kernel that rest on the counter; of the last two the processor must say that it is steady."""


class ClockPage:
    """The clock page of one guest."""

    def __init__(self, clocks: Clocks) -> None:
        self._clocks = clocks
        self.fd = memfd.create_memory("memvm-clock", PAGE_SIZE)
        self._map = mmap.mmap(self.fd, PAGE_SIZE)
        memfd.forbid_new_writers(self.fd)
        self._words = memoryview(self._map).cast("Q")
        self._code = _machine_code()
        self._first = self._code.read_clocks() if self._code is not None else None
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def begin(self, life: int) -> None:
        """Keep the page from now on; the guest is about to run, for the so manieth time."""
        self._words[_SEQUENCE] = life * _LIVES
        if self._code is None or self._first is None:
            return
        while (now := self._code.read_clocks()).monotonic - self._first.monotonic < _LEAST_MEASURED:
            time.sleep(_LEAST_MEASURED / 1e9)
        self._set(now, self._frequency(now), now.monotonic + self._clocks.monotonic_offset)
        self._thread = Thread(target=self._keep, name="clock", daemon=True)
        self._thread.start()

    def _frequency(self, now: ClockPair) -> float:
        """Nanoseconds a tick."""
        assert self._first is not None
        return (now.monotonic - self._first.monotonic) / (now.counter - self._first.counter)

    def _set(self, now: ClockPair, rate: float, monotonic: int) -> None:
        words = self._words
        offset = _time_of_day_offset() - self._clocks.monotonic_offset
        words[_SEQUENCE] |= 1
        words[_COUNTER], words[_RATE] = now.counter, round(rate * (1 << 32))
        words[_MONOTONIC], words[_OFFSET] = monotonic & _U64, offset & _U64
        words[_USABLE] = 1
        words[_SEQUENCE] += 1

    def _keep(self) -> None:
        interval = _FIRST_LOOK
        while not self._over.wait(interval):
            interval = min(2 * interval, _LAST_LOOK)
            self.look(interval)

    def look(self, interval: float) -> None:
        """Compare with the manager's clocks, and have the guest's be right so many seconds later."""
        assert self._code is not None
        assert self._first is not None
        now = self._code.read_clocks()
        shown = self._shown(now.counter)
        behind = now.monotonic + self._clocks.monotonic_offset - shown
        frequency = self._frequency(now)
        if now.monotonic - self._first.monotonic > _BASELINE * 1e9:
            self._first = now
        if behind > _FAR_BEHIND:
            self._set(now, frequency, shown + behind)
            return
        correction = behind / (interval * 1e9)
        self._set(now, frequency * (1 + max(-_MOST_CORRECTION, min(correction, _MOST_CORRECTION))), shown)

    def _shown(self, counter: int) -> int:
        """What guest CLOCK_MONOTONIC is by the page."""
        words = self._words
        return words[_MONOTONIC] + (max(0, counter - words[_COUNTER]) * words[_RATE] >> 32)

    def close(self) -> None:
        """Keep it no more; the guest has ended, or never began."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        self._words.release()
        self._map.close()
        os.close(self.fd)


def _time_of_day_offset() -> int:
    """How far the time of day is from CLOCK_MONOTONIC, in ns: the best of a few looks, as one may be interrupted."""
    best, offset = _U64, 0
    for _ in range(5):
        before, day, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        if after - before < best:
            best, offset = after - before, day - (before + after) // 2
    return offset


def _machine_code() -> MachineCode | None:
    """What reads the counter; None where it cannot be used for time."""
    try:
        return MachineCode() if _counter_is_a_clock() else None
    except OSError:
        return None


def _counter_is_a_clock() -> bool:
    """Whether the kernel itself tells the time by the counter: so it is steady, and the same on all CPUs."""
    with open(_CLOCK_SOURCE, "rb", buffering=0) as file:
        source = file.read(100).decode().strip()
    if source == _SAME_COUNTER[0]:
        return True
    if source not in _SAME_COUNTER:
        return False
    return processor_flags() >= {"constant_tsc", "nonstop_tsc"}
