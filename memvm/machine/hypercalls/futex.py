"""The futex call, by which the guest's threads wait for each other."""

from __future__ import annotations

import errno
import struct
from functools import partial

from memvm.machine.callresult import BLOCKED, CallError, CallResult
from memvm.machine.clocks import SECOND, Clock
from memvm.machine.futexes import ANY, OWNER_DIED, TID_MASK, WAITERS
from memvm.machine.guest import Guest
from memvm.machine.hypercalls.table import Address, Argument, Call, Choice, hypercall, signed

# include/uapi/linux/futex.h
_WAIT, _WAKE, _REQUEUE, _CMP_REQUEUE, _WAKE_OP = 0, 1, 3, 4, 5
_LOCK_PI, _UNLOCK_PI, _TRYLOCK_PI, _WAIT_BITSET, _WAKE_BITSET, _LOCK_PI2 = 6, 7, 8, 9, 10, 13
_PRIVATE, _CLOCK_REALTIME = 128, 256
_COMMAND = 0xFFFFFFFF & ~(_PRIVATE | _CLOCK_REALTIME)
_TIMESPEC = struct.Struct("=qq")
_LONGEST = (1 << 63) - 1
_OP_SHIFTS = 8  # FUTEX_OP_OPARG_SHIFT, of the operation's upper half
_COMMANDS = Choice(
    "op",
    **{
        f"FUTEX_{name}{suffix}": number | flag
        for name, number in {
            "WAIT": 0,
            "WAKE": 1,
            "REQUEUE": 3,
            "CMP_REQUEUE": 4,
            "WAKE_OP": 5,
            "LOCK_PI": 6,
            "UNLOCK_PI": 7,
            "TRYLOCK_PI": 8,
            "WAIT_BITSET": 9,
            "WAKE_BITSET": 10,
            "LOCK_PI2": 13,
        }.items()
        for suffix, flag in (("", 0), ("_PRIVATE", _PRIVATE))
    },
)


@hypercall(
    202,
    "futex",
    Address("word"),
    _COMMANDS,
    Argument("value"),
    Address("timeout"),
    Address("word2"),
    Argument("value3"),
)
def futex(
    guest: Guest, call: Call, word: int, command: int, value: int, timeout: int, word2: int, value3: int
) -> CallResult:
    """Wait for a word of memory, and wake who waits: all of futex(2) but FUTEX_FD and FUTEX_WAIT_REQUEUE_PI."""
    realtime = bool(command & _CLOCK_REALTIME)
    command &= _COMMAND
    value &= ANY
    count = max(1, signed(value, 32))  # the kernel wakes one for 0, too
    if command in (_WAIT, _WAIT_BITSET):
        bits = ANY if command == _WAIT else value3 & ANY
        clock = None if command == _WAIT else Clock.REALTIME if realtime else Clock.MONOTONIC
        return _wait(guest, call, word, value, bits, timeout, clock)
    if command in (_WAKE, _WAKE_BITSET):
        return _wake(guest, word, count, ANY if command == _WAKE else value3 & ANY)
    if command in (_REQUEUE, _CMP_REQUEUE):
        if signed(value, 32) < 0 or signed(timeout, 32) < 0:
            raise CallError(errno.EINVAL)
        if command == _CMP_REQUEUE and guest.futexes.word(word) != value3 & ANY:
            raise CallError(errno.EAGAIN)
        woken = guest.futexes.wake(word, value)
        moved = guest.futexes.move(word, word2, timeout & ANY)
        return woken + moved
    if command == _WAKE_OP:
        return _wake_op(guest, word, count, word2, max(1, signed(timeout, 32)), value3 & ANY)
    if command in (_LOCK_PI, _LOCK_PI2, _TRYLOCK_PI):
        clock = Clock.MONOTONIC if command == _LOCK_PI2 and not realtime else Clock.REALTIME
        return _lock(guest, call, word, 0 if command == _TRYLOCK_PI else timeout, clock, command == _TRYLOCK_PI)
    if command == _UNLOCK_PI:
        return _unlock(guest, call, word)
    raise CallError(errno.ENOSYS)


def _wait(guest: Guest, call: Call, word: int, value: int, bits: int, timeout: int, clock: Clock | None) -> CallResult:
    if call.woken:
        return 0
    if call.place is None:
        if not bits:
            raise CallError(errno.EINVAL)
        _set_deadline(guest, call, timeout, clock)
        if guest.futexes.word(word) != value:
            raise CallError(errno.EAGAIN)
        guest.futexes.join(call, word, bits)
    return _keep_waiting(guest, call, timeout)


def _set_deadline(guest: Guest, call: Call, timeout: int, clock: Clock | None) -> None:
    """For so long, or, by a clock, until then."""
    if timeout:
        seconds, nanoseconds = guest.memory.unpack(_TIMESPEC, timeout)
        if seconds < 0 or not 0 <= nanoseconds < SECOND:
            raise CallError(errno.EINVAL)
        length = seconds * SECOND + nanoseconds - (0 if clock is None else guest.clocks.read(clock))
        call.deadline = max(0, min(guest.clocks.monotonic() + length, _LONGEST))


def _keep_waiting(guest: Guest, call: Call, timeout: int) -> CallResult:
    if call.deadline is not None and guest.clocks.monotonic() >= call.deadline:
        guest.futexes.leave(call)
        raise CallError(errno.ETIMEDOUT)
    call.begins_anew = not timeout
    call.on_interruption = partial(guest.futexes.leave, call)
    return BLOCKED


def _wake(guest: Guest, word: int, count: int, bits: int) -> int:
    if word % 4 or not bits:
        raise CallError(errno.EINVAL)
    return guest.futexes.wake(word, count, bits)


def _wake_op(guest: Guest, word: int, count: int, word2: int, count2: int, operation: int) -> int:
    """Change the second word, wake who waits for the first, and those of the second if it was as asked for."""
    operator, comparison = operation >> 28 & 15, operation >> 24 & 15
    argument, compared = signed(operation >> 12, 12), signed(operation, 12)
    if operator & _OP_SHIFTS:
        argument = 1 << (argument & 31)
    changes = {
        0: lambda old: argument,
        1: lambda old: old + argument,
        2: lambda old: old | argument,
        3: lambda old: old & ~argument,
        4: lambda old: old ^ argument,
    }
    comparisons = {
        0: int.__eq__,
        1: int.__ne__,
        2: int.__lt__,
        3: int.__le__,
        4: int.__gt__,
        5: int.__ge__,
    }
    if operator & 7 not in changes or comparison not in comparisons:
        raise CallError(errno.ENOSYS)
    if word % 4:
        raise CallError(errno.EINVAL)
    old = signed(guest.futexes.change(word2, changes[operator & 7]), 32)
    woken = guest.futexes.wake(word, count)
    if comparisons[comparison](old, compared):
        woken += guest.futexes.wake(word2, count2)
    return woken


# Locks that know their owner (PI). There are no priorities to be inherited: the longest waiter is the next owner.


def _lock(guest: Guest, call: Call, word: int, timeout: int, clock: Clock, only_try: bool) -> CallResult:
    if call.woken:
        return 0
    tid, futexes = call.thread.tid, guest.futexes
    if call.place is None:
        _set_deadline(guest, call, timeout, clock)
        while True:
            now = futexes.word(word)
            owner = now & TID_MASK
            if owner == tid:
                raise CallError(errno.EDEADLK)
            if not owner:
                rest = now & OWNER_DIED | (WAITERS if futexes.waiting(word) else 0)
                if futexes.exchange(word, now, tid | rest) == now:
                    return 0
            elif owner not in guest.threads:
                raise CallError(errno.ESRCH)
            elif only_try:
                raise CallError(errno.EAGAIN)
            elif _waits_in_the_end_for(guest, owner, tid):
                raise CallError(errno.EDEADLK)
            elif futexes.exchange(word, now, now | WAITERS) == now:
                break
        futexes.join(call, word, ANY)
    return _keep_waiting(guest, call, 1)


def _waits_in_the_end_for(guest: Guest, tid: int, other: int) -> bool:
    """Whether a thread waits for a lock whose owner waits for a lock, and so on, that another thread has."""
    for _ in guest.threads:
        thread = guest.threads.get(tid)
        call = thread.blocked if thread is not None else None
        if call is None or call.place is None or call.arguments[1] & _COMMAND not in (_LOCK_PI, _LOCK_PI2):
            return False
        tid = guest.futexes.word(call.place[0]) & TID_MASK
        if tid == other:
            return True
    return False


def _unlock(guest: Guest, call: Call, word: int) -> int:
    futexes = guest.futexes
    if futexes.word(word) & TID_MASK != call.thread.tid:
        raise CallError(errno.EPERM)
    hand_over(guest, word, 0)
    return 0


def hand_over(guest: Guest, word: int, mark: int) -> None:
    """Give a lock to who waits longest, or free it; with this mark."""
    waiting = guest.futexes.waiting(word)
    if not waiting:
        guest.futexes.change(word, lambda old: mark)
        return
    heir = waiting[0]
    new = heir.thread.tid | mark | (WAITERS if len(waiting) > 1 else 0)
    guest.futexes.change(word, lambda old: new)
    guest.futexes.wake_one(heir)
