"""Calls that tell time and spend it."""

from __future__ import annotations

import errno
import struct
from contextlib import suppress
from functools import partial

from memvm.machine.callresult import BLOCKED, CallError, CallResult
from memvm.machine.clocks import COARSE, SECOND, Clock
from memvm.machine.guest import Guest
from memvm.machine.hypercalls.table import Address, Call, Choice, Flags, hypercall, signed

_TIMESPEC = struct.Struct("=qq")
_TIMEVAL = struct.Struct("=qq")
_TIMEZONE = struct.Struct("=ii")
_TMS = struct.Struct("=qqqq")
_TIMER_ABSTIME = 1
_TICK = SECOND // 100  # USER_HZ

_CLOCKS = Choice("clock", **{f"CLOCK_{clock.name}": clock.value for clock in Clock})


@hypercall(228, "clock_gettime", _CLOCKS, Address("time"))
def clock_gettime(guest: Guest, call: Call, clock: int, address: int) -> int:
    """The value of a clock."""
    guest.memory.pack(_TIMESPEC, address, *divmod(guest.clocks.read(signed(clock, 32)), SECOND))
    return 0


@hypercall(229, "clock_getres", _CLOCKS, Address("time"))
def clock_getres(guest: Guest, call: Call, clock: int, address: int) -> int:
    """The resolution of a clock."""
    guest.clocks.read(signed(clock, 32))
    if address:
        guest.memory.pack(_TIMESPEC, address, 0, 4_000_000 if clock in COARSE else 1)
    return 0


@hypercall(96, "gettimeofday", Address("time"), Address("zone"))
def gettimeofday(guest: Guest, call: Call, address: int, zone: int) -> int:
    """CLOCK_REALTIME in microseconds."""
    if address:
        seconds, nanoseconds = divmod(guest.clocks.read(Clock.REALTIME), SECOND)
        guest.memory.pack(_TIMEVAL, address, seconds, nanoseconds // 1000)
    if zone:
        guest.memory.pack(_TIMEZONE, zone, 0, 0)
    return 0


@hypercall(201, "time", Address("time"))
def time_(guest: Guest, call: Call, address: int) -> int:
    """CLOCK_REALTIME in seconds."""
    seconds = guest.clocks.read(Clock.REALTIME) // SECOND
    if address:
        guest.memory.write(address, struct.pack("=q", seconds))
    return seconds


@hypercall(100, "times", Address("times"))
def times(guest: Guest, call: Call, address: int) -> int:
    """CPU time in ticks of 10 ms, all of it as user time; the result is CLOCK_MONOTONIC in ticks."""
    if address:
        guest.memory.pack(_TMS, address, guest.clocks.cpu_time() // _TICK, 0, 0, 0)
    return guest.clocks.monotonic() // _TICK


@hypercall(35, "nanosleep", Address("wanted"), Address("left"))
def nanosleep(guest: Guest, call: Call, wanted: int, left: int) -> CallResult:
    """Sleep; a sleep goes on after a restore for what was left of it."""
    return _sleep(guest, call, Clock.MONOTONIC, 0, wanted, left)


@hypercall(230, "clock_nanosleep", _CLOCKS, Flags("flags", TIMER_ABSTIME=1), Address("wanted"), Address("left"))
def clock_nanosleep(guest: Guest, call: Call, clock: int, flags: int, wanted: int, left: int) -> CallResult:
    """Sleep by a clock, for a time or until one."""
    clock = signed(clock, 32)
    guest.clocks.read(clock)
    if clock not in (Clock.REALTIME, Clock.MONOTONIC, Clock.BOOTTIME, Clock.TAI):
        raise CallError(errno.EOPNOTSUPP)
    return _sleep(guest, call, clock, flags, wanted, left)


def _sleep(guest: Guest, call: Call, clock: int, flags: int, wanted: int, left: int) -> CallResult:
    now = guest.clocks.monotonic()
    until = flags & _TIMER_ABSTIME
    if call.deadline is None or until:  # the time of a clock comes nearer otherwise, if that is set or after a restore
        seconds, nanoseconds = guest.memory.unpack(_TIMESPEC, wanted)
        if seconds < 0 or not 0 <= nanoseconds < SECOND:
            raise CallError(errno.EINVAL)
        length = seconds * SECOND + nanoseconds - (guest.clocks.read(clock) if until else 0)
        call.deadline = max(0, min(now + length, (1 << 63) - 1))
    if now >= call.deadline:
        return 0
    if left and not until:
        call.on_interruption = partial(_tell_left, guest, call, left)
    return BLOCKED


def _tell_left(guest: Guest, call: Call, address: int) -> None:
    rest = max(0, (call.deadline or 0) - guest.clocks.monotonic())
    with suppress(CallError):
        guest.memory.pack(_TIMESPEC, address, *divmod(rest, SECOND))


@hypercall(34, "pause")
def pause(guest: Guest, call: Call) -> CallResult:
    """Wait for a signal."""
    return BLOCKED
