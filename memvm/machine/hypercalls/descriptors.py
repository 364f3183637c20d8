"""Calls that make descriptors of what others wait for: counters, timers and signals (eventfd, timerfd, signalfd)."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

from memvm.machine.callresult import CallError
from memvm.machine.clocks import SECOND, Clock
from memvm.machine.guest import Guest
from memvm.machine.hypercalls.table import Address, Argument, Call, Choice, Flags, Int, hypercall, signed
from memvm.machine.signals import UNMASKABLE

if TYPE_CHECKING:
    from memvm.machine.timer_descriptor import TimerDescriptor

_INT = 0xFFFFFFFF
_NONBLOCK, _CLOEXEC, _SEMAPHORE = os.O_NONBLOCK, os.O_CLOEXEC, 1
_COMMON = _NONBLOCK | _CLOEXEC
_PERIODS = struct.Struct("=qqqq")  # struct itimerspec: interval, then value
_ABSTIME, _CANCEL_ON_SET = 1, 2  # TFD_TIMER_*
_LONGEST = (1 << 62) - 1
_SET_SIZE = 8  # sizeof(sigset_t) in the kernel
_ALARMS = (8, 9)  # CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM: they wake the machine, which needs a privilege
_CLOCKS = Choice("clock", **{f"CLOCK_{clock.name}": clock.value for clock in Clock})


@hypercall(284, "eventfd", Int("count"))
def eventfd(guest: Guest, call: Call, count: int) -> int:
    """A counter."""
    return _eventfd(guest, count, 0)


@hypercall(290, "eventfd2", Int("count"), Flags("flags", EFD_SEMAPHORE=1, EFD_NONBLOCK=_NONBLOCK, EFD_CLOEXEC=_CLOEXEC))
def eventfd2(guest: Guest, call: Call, count: int, flags: int) -> int:
    """A counter, or a semaphore."""
    if flags & _INT & ~(_COMMON | _SEMAPHORE):
        raise CallError(errno.EINVAL)
    return _eventfd(guest, count, flags)


def _eventfd(guest: Guest, count: int, flags: int) -> int:
    from memvm.files.eventfd import EventFd

    made = EventFd(guest.wake, count & _INT, semaphore=bool(flags & _SEMAPHORE), flags=flags & _NONBLOCK)
    return guest.files.add(made, bool(flags & _CLOEXEC))


@hypercall(283, "timerfd_create", _CLOCKS, Flags("flags", TFD_NONBLOCK=_NONBLOCK, TFD_CLOEXEC=_CLOEXEC))
def timerfd_create(guest: Guest, call: Call, clock: int, flags: int) -> int:
    """A timer to be read."""
    from memvm.machine.timer_descriptor import TimerDescriptor

    clock = signed(clock, 32)
    if flags & _INT & ~_COMMON:
        raise CallError(errno.EINVAL)
    if clock in _ALARMS:
        raise CallError(errno.EPERM)
    if clock not in (Clock.REALTIME, Clock.MONOTONIC, Clock.BOOTTIME):
        raise CallError(errno.EINVAL)
    made = TimerDescriptor(guest.wake, guest.timers, guest.clocks, clock, flags & _NONBLOCK)
    return guest.files.add(made, bool(flags & _CLOEXEC))


def _timer(guest: Guest, descriptor: int) -> TimerDescriptor:
    from memvm.machine.timer_descriptor import TimerDescriptor

    stream = guest.files.get(descriptor).stream
    if not isinstance(stream, TimerDescriptor):
        raise CallError(errno.EINVAL)
    return stream


@hypercall(
    286,
    "timerfd_settime",
    Int("fd"),
    Flags("flags", TFD_TIMER_ABSTIME=_ABSTIME, TFD_TIMER_CANCEL_ON_SET=_CANCEL_ON_SET),
    Address("new"),
    Address("old"),
)
def timerfd_settime(guest: Guest, call: Call, descriptor: int, flags: int, new: int, old: int) -> int:
    """Let a timer run, for a time or until one, or stop it; nobody is told when the time of day is set."""
    seconds, nanoseconds, value_seconds, value_nanoseconds = guest.memory.unpack(_PERIODS, new)
    if flags & _INT & ~(_ABSTIME | _CANCEL_ON_SET):
        raise CallError(errno.EINVAL)
    for whole, part in ((seconds, nanoseconds), (value_seconds, value_nanoseconds)):
        if whole < 0 or not 0 <= part < SECOND:
            raise CallError(errno.EINVAL)
    interval = min(seconds * SECOND + nanoseconds, _LONGEST)
    value = min(value_seconds * SECOND + value_nanoseconds, _LONGEST)
    timer = _timer(guest, descriptor)
    before = (timer.interval, timer.left())
    # For so long means by CLOCK_MONOTONIC, also where the time of day was asked for: it may be set meanwhile.
    clock = timer.clock if flags & _ABSTIME else Clock.MONOTONIC
    due = None if not value else value if flags & _ABSTIME else min(guest.clocks.read(clock) + value, _LONGEST)
    timer.set(clock, due, interval)
    if old:
        _store(guest, old, *before)
    return 0


@hypercall(287, "timerfd_gettime", Int("fd"), Address("value"))
def timerfd_gettime(guest: Guest, call: Call, descriptor: int, address: int) -> int:
    """What is left of a timer, and its interval."""
    timer = _timer(guest, descriptor)
    _store(guest, address, timer.interval, timer.left())
    return 0


def _store(guest: Guest, address: int, interval: int, left: int) -> None:
    guest.memory.pack(_PERIODS, address, *divmod(interval, SECOND), *divmod(left, SECOND))


@hypercall(282, "signalfd", Int("fd"), Address("mask"), Argument("size"))
def signalfd(guest: Guest, call: Call, descriptor: int, mask: int, size: int) -> int:
    """Signals to be read."""
    return _signalfd(guest, descriptor, mask, size, 0)


@hypercall(
    289,
    "signalfd4",
    Int("fd"),
    Address("mask"),
    Argument("size"),
    Flags("flags", SFD_NONBLOCK=_NONBLOCK, SFD_CLOEXEC=_CLOEXEC),
)
def signalfd4(guest: Guest, call: Call, descriptor: int, mask: int, size: int, flags: int) -> int:
    """Signals to be read; of a descriptor that there is, others."""
    return _signalfd(guest, descriptor, mask, size, flags & _INT)


def _signalfd(guest: Guest, descriptor: int, mask: int, size: int, flags: int) -> int:
    from memvm.machine.signal_descriptor import SignalDescriptor

    if size != _SET_SIZE:
        raise CallError(errno.EINVAL)
    wanted = int.from_bytes(guest.memory.read(mask, _SET_SIZE), "little") & ~UNMASKABLE
    if flags & ~_COMMON:
        raise CallError(errno.EINVAL)
    if signed(descriptor, 32) == -1:
        made = SignalDescriptor(guest, wanted, flags & _NONBLOCK)
        return guest.files.add(made, bool(flags & _CLOEXEC))
    stream = guest.files.get(descriptor).stream
    if not isinstance(stream, SignalDescriptor):
        raise CallError(errno.EINVAL)
    stream.set_mask(wanted)
    return descriptor & _INT
