"""Calls about signals: what they do, who blocks them, and sending and awaiting them.

There is no other process: signals go to the guest itself and to its threads. Stopping signals do not stop it.
"""

from __future__ import annotations

import errno
import struct

from memvm.files.facts import USER
from memvm.machine.callresult import BLOCKED, CallError, CallResult
from memvm.machine.clocks import SECOND
from memvm.machine.guest import GUEST_PID, Guest
from memvm.machine.hypercalls.table import Address, Argument, Call, Choice, Int, hypercall, signed
from memvm.machine.signal_frame import SS_DISABLE, SS_ONSTACK, STACK, on_stack
from memvm.machine.signals import (
    ACTION_SIZE,
    INFO_SIZE,
    SI_TKILL,
    SI_USER,
    SIGNAL_COUNT,
    UNCATCHABLE,
    UNMASKABLE,
    Signal,
    make_signal,
    signal_name,
)
from memvm.machine.thread import GuestThread

_SET_SIZE = 8  # sizeof(sigset_t) in the kernel
_TIMESPEC = struct.Struct("=qq")
_CODE = struct.Struct("=i")
_CODE_OFFSET = 8


@hypercall(13, "rt_sigaction", Int("signal"), Address("new"), Address("old"), Argument("size"))
def rt_sigaction(guest: Guest, call: Call, number: int, new: int, old: int, size: int) -> int:
    """Set and tell what a signal does."""
    number = signed(number, 32)
    if size != _SET_SIZE or not 1 <= number <= SIGNAL_COUNT:
        raise CallError(errno.EINVAL)
    wanted = guest.memory.read(new, ACTION_SIZE) if new else b""
    if wanted and number in UNCATCHABLE:
        raise CallError(errno.EINVAL)
    if old:
        guest.memory.write(old, guest.signals.actions.get(number, bytes(ACTION_SIZE)))
    if wanted:
        mask = int.from_bytes(wanted[-8:], "little") & ~UNMASKABLE
        guest.signals.actions[number] = wanted[:-8] + mask.to_bytes(8, "little")
        if guest.signals.ignores(number):  # POSIX: what waits is forgotten then
            guest.signals.shared.drop(number)
            for thread in guest.threads.values():
                thread.signals.drop(number)
    return 0


@hypercall(
    14,
    "rt_sigprocmask",
    Choice("how", SIG_BLOCK=0, SIG_UNBLOCK=1, SIG_SETMASK=2),
    Address("new"),
    Address("old"),
    Argument("size"),
)
def rt_sigprocmask(guest: Guest, call: Call, how: int, new: int, old: int, size: int) -> int:
    """Set and tell which signals wait."""
    if size != _SET_SIZE:
        raise CallError(errno.EINVAL)
    thread = call.thread
    before = thread.mask
    if new:
        bits = _read_set(guest, new, size)
        how &= 0xFFFFFFFF
        if how > 2:
            raise CallError(errno.EINVAL)
        thread.mask = (before | bits, before & ~bits, bits)[how] & ~UNMASKABLE
    if old:
        guest.memory.write(old, before.to_bytes(8, "little"))
    return 0


def _read_set(guest: Guest, address: int, size: int) -> int:
    if size != _SET_SIZE:
        raise CallError(errno.EINVAL)
    return int.from_bytes(guest.memory.read(address, _SET_SIZE), "little")


@hypercall(127, "rt_sigpending", Address("set"), Argument("size"))
def rt_sigpending(guest: Guest, call: Call, address: int, size: int) -> int:
    """Which signals wait because they are blocked."""
    if size > _SET_SIZE:
        raise CallError(errno.EINVAL)
    waiting = (call.thread.signals.set() | guest.signals.shared.set()) & call.thread.mask
    guest.memory.write(address, waiting.to_bytes(8, "little")[:size])
    return 0


@hypercall(130, "rt_sigsuspend", Address("mask"), Argument("size"))
def rt_sigsuspend(guest: Guest, call: Call, mask: int, size: int) -> CallResult:
    """Wait for a signal, with others blocked meanwhile."""
    call.thread.block_meanwhile(_read_set(guest, mask, size))
    return BLOCKED


@hypercall(128, "rt_sigtimedwait", Address("set"), Address("info"), Address("timeout"), Argument("size"))
def rt_sigtimedwait(guest: Guest, call: Call, wanted: int, info: int, timeout: int, size: int) -> CallResult:
    """Take a signal that waits; wait for one, for a time at most."""
    numbers = _read_set(guest, wanted, size) & ~UNMASKABLE
    one = call.thread.signals.take(numbers) or guest.signals.shared.take(numbers)
    if one is not None:
        if info:
            guest.memory.write(info, one.info)
        return one.number
    if timeout:
        seconds, nanoseconds = guest.memory.unpack(_TIMESPEC, timeout)
        if seconds < 0 or not 0 <= nanoseconds < SECOND:
            raise CallError(errno.EINVAL)
        now = guest.clocks.monotonic()
        if call.deadline is None:
            call.deadline = min(now + seconds * SECOND + nanoseconds, (1 << 63) - 1)
        if now >= call.deadline:
            raise CallError(errno.EAGAIN)
    call.awaits = numbers
    return BLOCKED


@hypercall(131, "sigaltstack", Address("new"), Address("old"), traced=True)
def sigaltstack(guest: Guest, call: Call, new: int, old: int) -> int:
    """Set and tell the stack for signal handlers."""
    thread = call.thread
    before = thread.alternate_stack or STACK.pack(0, SS_DISABLE, 0)
    on_it = on_stack(int(call.registers.rsp), thread.alternate_stack)
    if new:
        wanted = guest.memory.read(new, STACK.size)
        if on_it:
            raise CallError(errno.EPERM)
        thread.set_alternate_stack(wanted)
    if old:
        start, flags, size = STACK.unpack(before)
        guest.memory.pack(STACK, old, start, flags | (SS_ONSTACK if on_it else 0), size)
    return 0


@hypercall(15, "rt_sigreturn", traced=True)
def rt_sigreturn(guest: Guest, call: Call) -> int:
    """A signal handler has returned."""
    call.jumps = True
    guest.take_down_frame(call.thread, call.registers)
    return 0


@hypercall(62, "kill", Int("pid"), Int("signal"))
def kill(guest: Guest, call: Call, pid: int, number: int) -> int:
    """A signal to itself, which is all that there is."""
    if signed(pid, 32) not in (0, -1, GUEST_PID, -GUEST_PID):
        raise CallError(errno.ESRCH)
    return _send(guest, _checked(number), None, SI_USER)


@hypercall(200, "tkill", Int("tid"), Int("signal"))
def tkill(guest: Guest, call: Call, tid: int, number: int) -> int:
    """A signal to one of its threads."""
    return _send(guest, _checked(number), _thread(guest, tid), SI_TKILL)


@hypercall(234, "tgkill", Int("pid"), Int("tid"), Int("signal"))
def tgkill(guest: Guest, call: Call, pid: int, tid: int, number: int) -> int:
    """A signal to one of its threads, doubly named."""
    if signed(pid, 32) <= 0:
        raise CallError(errno.EINVAL)
    if signed(pid, 32) != GUEST_PID:
        raise CallError(errno.ESRCH)
    return _send(guest, _checked(number), _thread(guest, tid), SI_TKILL)


@hypercall(129, "rt_sigqueueinfo", Int("pid"), Int("signal"), Address("info"))
def rt_sigqueueinfo(guest: Guest, call: Call, pid: int, number: int, info: int) -> int:
    """A signal to itself, with a value."""
    raw = guest.memory.read(info, INFO_SIZE)
    if signed(pid, 32) != GUEST_PID:
        raise CallError(errno.ESRCH)
    return _send(guest, _checked(number), None, raw=raw)


@hypercall(297, "rt_tgsigqueueinfo", Int("pid"), Int("tid"), Int("signal"), Address("info"))
def rt_tgsigqueueinfo(guest: Guest, call: Call, pid: int, tid: int, number: int, info: int) -> int:
    """A signal to one of its threads, with a value."""
    raw = guest.memory.read(info, INFO_SIZE)
    if signed(pid, 32) != GUEST_PID:
        raise CallError(errno.ESRCH)
    return _send(guest, _checked(number), _thread(guest, tid), raw=raw)


def _checked(number: int) -> int:
    number = signed(number, 32)
    if not 0 <= number <= SIGNAL_COUNT:
        raise CallError(errno.EINVAL)
    return number


def _thread(guest: Guest, tid: int) -> GuestThread:
    tid = signed(tid, 32)
    if tid <= 0:
        raise CallError(errno.EINVAL)
    if tid not in guest.threads:
        raise CallError(errno.ESRCH)
    return guest.threads[tid]


def _send(guest: Guest, number: int, thread: GuestThread | None, code: int = SI_USER, raw: bytes = b"") -> int:
    if not number:
        return 0
    one = Signal(number, _CODE.pack(number) + raw[_CODE.size :]) if raw else make_signal(number, code, GUEST_PID, USER)
    guest.send(one, thread, f"the guest sent itself {signal_name(number)}")
    return 0
