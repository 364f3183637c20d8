"""Calls that set timers, which send signals: alarm, setitimer, timer_create and their kin."""

from __future__ import annotations

import errno
import signal
import struct

from memvm.machine.callresult import CallError
from memvm.machine.clocks import REAL_CLOCKS, SECOND, Clock, is_cpu_clock, thread_clock
from memvm.machine.guest import Guest
from memvm.machine.hypercalls.table import Address, Call, Choice, Flags, Int, hypercall, signed
from memvm.machine.signals import SIGNAL_COUNT
from memvm.machine.timers import ITIMER_PROF, ITIMER_REAL, ITIMER_VIRTUAL, MOST_TIMERS, Timer

_PERIODS = struct.Struct("=qqqq")  # struct itimerspec and itimerval: interval, then value
_SIGEVENT = struct.Struct("=Qiii44x")  # struct sigevent: value, signal, notify, thread id
_SIGEV_SIGNAL, _SIGEV_NONE, _SIGEV_THREAD, _SIGEV_THREAD_ID = 0, 1, 2, 4  # include/uapi/asm-generic/siginfo.h
_TIMER_ABSTIME = 1
_LONGEST = (1 << 62) - 1
_MICROSECOND = 1000
_INTERVAL_TIMERS = {
    0: (ITIMER_REAL, Timer(Clock.MONOTONIC, signal.SIGALRM)),
    1: (ITIMER_VIRTUAL, Timer(Clock.PROCESS_CPUTIME_ID, signal.SIGVTALRM, runs_by=Clock.PROCESS_CPUTIME_ID)),
    2: (ITIMER_PROF, Timer(Clock.PROCESS_CPUTIME_ID, signal.SIGPROF, runs_by=Clock.PROCESS_CPUTIME_ID)),
}
_WHICH = Choice("which", ITIMER_REAL=0, ITIMER_VIRTUAL=1, ITIMER_PROF=2)
_CLOCKS = Choice("clock", **{f"CLOCK_{clock.name}": clock.value for clock in Clock})


@hypercall(37, "alarm", Int("seconds"))
def alarm(guest: Guest, call: Call, seconds: int) -> int:
    """SIGALRM after some seconds; tells how many were left of the last one."""
    left = _set_interval_timer(guest, ITIMER_REAL, (seconds & 0xFFFFFFFF) * SECOND, 0)
    return max(1, (left + SECOND // 2) // SECOND) if left else 0


@hypercall(36, "getitimer", _WHICH, Address("value"))
def getitimer(guest: Guest, call: Call, which: int, address: int) -> int:
    """What is left of a timer, and its interval."""
    identity = _interval_timer(which)
    timer = guest.timers.table.get(identity)
    _write(guest, address, timer.interval if timer else 0, guest.timers.left(timer) if timer else 0, _MICROSECOND)
    return 0


@hypercall(38, "setitimer", _WHICH, Address("new"), Address("old"))
def setitimer(guest: Guest, call: Call, which: int, new: int, old: int) -> int:
    """A signal after a time, and again in each interval."""
    identity = _interval_timer(which)
    interval, value = _read(guest, new, _MICROSECOND) if new else (0, 0)
    before = guest.timers.table.get(identity)
    left = _set_interval_timer(guest, identity, value, interval)
    if old:
        _write(guest, old, before.interval if before else 0, left, _MICROSECOND)
    return 0


def _interval_timer(which: int) -> int:
    which = signed(which, 32)
    if which not in _INTERVAL_TIMERS:
        raise CallError(errno.EINVAL)
    return _INTERVAL_TIMERS[which][0]


def _set_interval_timer(guest: Guest, identity: int, value: int, interval: int) -> int:
    """Set one of setitimer's; returns what was left."""
    before = guest.timers.table.get(identity)
    left = guest.timers.left(before) if before else 0
    kind = next(timer for other, timer in _INTERVAL_TIMERS.values() if other == identity)
    due = guest.clocks.read(kind.runs_by) + value if value else None
    guest.timers.set(identity, kind._replace(due=due, interval=interval))
    return left


def _read(guest: Guest, address: int, unit: int) -> tuple[int, int]:
    """Interval and value, in ns."""
    fields = guest.memory.unpack(_PERIODS, address)
    for seconds, part in (fields[:2], fields[2:]):
        if seconds < 0 or not 0 <= part < SECOND // unit:
            raise CallError(errno.EINVAL)
    interval, value = (min(fields[at] * SECOND + fields[at + 1] * unit, _LONGEST) for at in (0, 2))
    return interval, value


def _write(guest: Guest, address: int, interval: int, value: int, unit: int) -> None:
    parts = [*divmod(interval, SECOND), *divmod(value, SECOND)]
    guest.memory.pack(_PERIODS, address, parts[0], parts[1] // unit, parts[2], -(-parts[3] // unit))


@hypercall(222, "timer_create", _CLOCKS, Address("event"), Address("timer"))
def timer_create(guest: Guest, call: Call, clock: int, event: int, address: int) -> int:
    """A timer that sends a signal, by any clock of the guest's."""
    clock = signed(clock, 32)
    if clock in (Clock.THREAD_CPUTIME_ID, thread_clock(0)):
        clock = thread_clock(call.thread.tid)
    guest.clocks.read(clock)
    identity = next(number for number in range(MOST_TIMERS + 1) if number not in guest.timers.table)
    if identity == MOST_TIMERS:
        raise CallError(errno.EAGAIN)
    value, number, notify, tid = guest.memory.unpack(_SIGEVENT, event) if event else (identity, signal.SIGALRM, 0, 0)
    if notify not in (_SIGEV_SIGNAL, _SIGEV_NONE, _SIGEV_THREAD, _SIGEV_THREAD_ID):
        raise CallError(errno.EINVAL)
    if notify == _SIGEV_THREAD_ID and tid not in guest.threads:
        raise CallError(errno.EINVAL)
    if notify != _SIGEV_NONE and not 1 <= number <= SIGNAL_COUNT:
        raise CallError(errno.EINVAL)
    guest.memory.write(address, struct.pack("=i", identity))
    timer = Timer(clock, 0 if notify == _SIGEV_NONE else number, tid if notify == _SIGEV_THREAD_ID else 0, value)
    guest.timers.set(identity, timer)
    return 0


def _timer(guest: Guest, identity: int) -> Timer:
    timer = guest.timers.table.get(signed(identity, 32))
    if timer is None or signed(identity, 32) < 0:
        raise CallError(errno.EINVAL)
    return timer


@hypercall(223, "timer_settime", Int("timer"), Flags("flags", TIMER_ABSTIME=1), Address("new"), Address("old"))
def timer_settime(guest: Guest, call: Call, identity: int, flags: int, new: int, old: int) -> int:
    """Let a timer run, for a time or until one, or stop it."""
    if not new:
        raise CallError(errno.EINVAL)
    interval, value = _read(guest, new, 1)
    timer = _timer(guest, identity)
    if old:
        _write(guest, old, timer.interval, guest.timers.left(timer), 1)
    absolute = bool(flags & _TIMER_ABSTIME)
    # For so long means by CLOCK_MONOTONIC, also where the time of day was asked for: it may be set meanwhile.
    own = is_cpu_clock(timer.clock) or (absolute and timer.clock in REAL_CLOCKS)
    clock = timer.clock if own else Clock.MONOTONIC
    due = None if not value else value if absolute else min(guest.clocks.read(clock) + value, _LONGEST)
    guest.timers.set(signed(identity, 32), timer._replace(runs_by=clock, due=due, interval=interval, overrun=0))
    return 0


@hypercall(224, "timer_gettime", Int("timer"), Address("value"))
def timer_gettime(guest: Guest, call: Call, identity: int, address: int) -> int:
    """What is left of a timer, and its interval."""
    timer = _timer(guest, identity)
    _write(guest, address, timer.interval, guest.timers.left(timer), 1)
    return 0


@hypercall(225, "timer_getoverrun", Int("timer"))
def timer_getoverrun(guest: Guest, call: Call, identity: int) -> int:
    """How often it expired beside the last time that it sent a signal."""
    return _timer(guest, identity).overrun


@hypercall(226, "timer_delete", Int("timer"))
def timer_delete(guest: Guest, call: Call, identity: int) -> int:
    """A timer's end."""
    _timer(guest, identity)
    guest.timers.remove(signed(identity, 32))
    return 0
