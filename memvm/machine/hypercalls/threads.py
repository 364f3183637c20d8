"""Calls about the guest's threads: making and ending them, and what is scheduled where.

A thread is made by the kernel, which is told so by the manager (Guest.make_vcpu); all that it is beside a vCPU is the
manager's to know. Other processes there are none: a clone that is no thread is refused.
"""

from __future__ import annotations

import errno
import struct
from contextlib import suppress

from memvm.machine.callresult import CallError
from memvm.machine.config import ExitStatus
from memvm.machine.futexes import OWNER_DIED, TID_MASK, WAITERS
from memvm.machine.guest import GUEST_PID, Guest
from memvm.machine.hypercalls.futex import hand_over
from memvm.machine.hypercalls.table import Address, Argument, Call, Int, hypercall, signed
from memvm.machine.thread import MOST_THREADS, GuestThread

# include/uapi/linux/sched.h
_VM, _SIGHAND, _PIDFD, _THREAD, _SETTLS = 0x100, 0x800, 0x1000, 0x10000, 0x80000
_PARENT_SETTID, _CHILD_CLEARTID, _CHILD_SETTID = 0x100000, 0x200000, 0x1000000
_A_THREAD = _VM | _SIGHAND | _THREAD
_NEW_NAMESPACES = 0x7E020000
_CLONE_ARGS = struct.Struct("=8Q")  # flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls
_INT = struct.Struct("=i")
_ADDRESS_LIMIT = 1 << 47
_LIST = struct.Struct("=QqQ")  # struct robust_list_head: first entry, offset of the word, pending entry
_POINTER = struct.Struct("=Q")
_MOST_ENTRIES = 2048  # ROBUST_LIST_LIMIT
_PI = 1


@hypercall(
    56,
    "clone",
    Address("flags"),
    Address("stack"),
    Address("parent_tid"),
    Address("child_tid"),
    Address("tls"),
    traced=True,
)
def clone(guest: Guest, call: Call, flags: int, stack: int, parent_tid: int, child_tid: int, tls: int) -> int:
    """A new thread; no new process."""
    return _make_thread(guest, call, flags & ~0xFF, stack, parent_tid, child_tid, tls)


@hypercall(435, "clone3", Address("args"), Argument("size"), traced=True)
def clone3(guest: Guest, call: Call, address: int, size: int) -> int:
    """A new thread; no new process."""
    if size < _CLONE_ARGS.size or size > 4096:
        raise CallError(errno.EINVAL)
    flags, _, child_tid, parent_tid, _, stack, stack_size, tls = guest.memory.unpack(_CLONE_ARGS, address)
    if any(guest.memory.read(address + _CLONE_ARGS.size, size - _CLONE_ARGS.size)):
        raise CallError(errno.EINVAL)
    return _make_thread(guest, call, flags, stack + stack_size, parent_tid, child_tid, tls)


def _make_thread(guest: Guest, call: Call, flags: int, stack: int, parent_tid: int, child_tid: int, tls: int) -> int:
    if flags & _A_THREAD != _A_THREAD:
        if flags & _NEW_NAMESPACES:
            raise CallError(errno.EPERM)
        if flags & _THREAD:
            raise CallError(errno.EINVAL)
        guest.refuse("for another process", errno.ENOSYS)
    if flags & _PIDFD or (flags & _SETTLS and tls >= _ADDRESS_LIMIT):
        raise CallError(errno.EINVAL)
    if len(guest.threads) >= MOST_THREADS:
        raise CallError(errno.EAGAIN)
    changed = {"rax": 0, "rsp": stack or int(call.registers.rsp)}
    if flags & _SETTLS:
        changed["fs_base"] = tls
    tid = guest.new_tid()
    if flags & _PARENT_SETTID:
        guest.memory.pack(_INT, parent_tid, tid)
    if flags & _CHILD_SETTID:
        with suppress(CallError):
            guest.memory.pack(_INT, child_tid, tid)
    thread = GuestThread(tid)
    thread.mask, thread.name = call.thread.mask, call.thread.name
    if flags & _CHILD_CLEARTID:
        thread.clear_child_tid = child_tid
    guest.make_vcpu(thread, call.registers, changed)
    return tid


@hypercall(60, "exit", Int("status"), traced=True)
def exit_(guest: Guest, call: Call, status: int) -> int:
    """A thread's end; the last one's is the guest's."""
    if len(guest.threads) == 1:
        guest.end(ExitStatus(status & 0xFF))
        return 0
    thread = call.thread
    del guest.threads[thread.tid]
    _leave_locks(guest, thread)
    if thread.clear_child_tid:
        with suppress(CallError):
            guest.memory.pack(_INT, thread.clear_child_tid, 0)
            guest.futexes.wake(thread.clear_child_tid, 1)
    guest.end_vcpu(thread)
    call.stays = True
    return 0


@hypercall(231, "exit_group", Int("status"), traced=True)
def exit_group(guest: Guest, call: Call, status: int) -> int:
    """The guest's end."""
    guest.end(ExitStatus(status & 0xFF))
    return 0


def _leave_locks(guest: Guest, thread: GuestThread) -> None:
    """Mark the locks that a thread held as its heirs expect it (get_robust_list(2)), as far as its list makes sense."""
    head, _ = thread.robust_list
    if not head:
        return
    with suppress(CallError):
        entry, offset, pending = guest.memory.unpack(_LIST, head)
        for _ in range(_MOST_ENTRIES):
            if entry & ~_PI == head:
                break
            (following,) = guest.memory.unpack(_POINTER, entry & ~_PI)
            if entry & ~_PI != pending & ~_PI:
                _leave_lock(guest, thread, (entry & ~_PI) + offset, bool(entry & _PI))
            entry = following
        if pending:
            _leave_lock(guest, thread, (pending & ~_PI) + offset, bool(pending & _PI))


def _leave_lock(guest: Guest, thread: GuestThread, word: int, inherits: bool) -> None:
    word %= 1 << 64
    if guest.futexes.word(word) & TID_MASK != thread.tid:
        return
    if inherits:
        hand_over(guest, word, OWNER_DIED)
    elif guest.futexes.change(word, lambda old: old & WAITERS | OWNER_DIED) & WAITERS:
        guest.futexes.wake(word, 1)


@hypercall(218, "set_tid_address", Address("tid"))
def set_tid_address(guest: Guest, call: Call, address: int) -> int:
    """Where to clear the thread's id at its end."""
    call.thread.clear_child_tid = address
    return call.thread.tid


@hypercall(273, "set_robust_list", Address("head"), Argument("size"))
def set_robust_list(guest: Guest, call: Call, head: int, size: int) -> int:
    """Which locks a thread holds, so that they are not lost with it."""
    if size != _LIST.size:
        raise CallError(errno.EINVAL)
    call.thread.robust_list = (head, size)
    return 0


@hypercall(274, "get_robust_list", Int("tid"), Address("head"), Address("size"))
def get_robust_list(guest: Guest, call: Call, tid: int, head: int, size: int) -> int:
    """The same, told."""
    thread = _thread(guest, call, tid)
    guest.memory.pack(_POINTER, size, _LIST.size)
    guest.memory.pack(_POINTER, head, thread.robust_list[0])
    return 0


def _thread(guest: Guest, call: Call, tid: int) -> GuestThread:
    tid = signed(tid, 32)
    if tid < 0:
        raise CallError(errno.EINVAL)
    if not tid:
        return call.thread
    if tid not in guest.threads and tid != GUEST_PID:
        raise CallError(errno.ESRCH)
    return guest.threads.get(tid, guest.main)


@hypercall(334, "rseq", Address("area"), Argument("size"), Address("flags"), Address("signature"))
def rseq(guest: Guest, call: Call, *_arguments: int) -> int:
    """Restartable sequences are the kernel's to keep; C libraries go on without."""
    raise CallError(errno.ENOSYS)


@hypercall(324, "membarrier", Int("command"), Address("flags"), Int("cpu"))
def membarrier(guest: Guest, call: Call, command: int, flags: int, cpu: int) -> int:
    """None of its commands is there, as a query is told."""
    if command & 0xFFFFFFFF or flags & 0xFFFFFFFF:
        raise CallError(errno.EINVAL)
    return 0


@hypercall(24, "sched_yield")
def sched_yield(guest: Guest, call: Call) -> int:
    """Others get their turn while the manager answers."""
    return 0


@hypercall(309, "getcpu", Address("cpu"), Address("node"))
def getcpu(guest: Guest, call: Call, cpu: int, node: int) -> int:
    """All threads are said to be on CPU 0."""
    for address in (cpu, node):
        if address:
            guest.memory.write(address, bytes(4))
    return 0


def _thread_with_cpus(guest: Guest, call: Call, tid: int) -> None:
    """A negative id is one that nobody has, where the kernel's other calls of this family say EINVAL."""
    if signed(tid, 32) < 0:
        raise CallError(errno.ESRCH)
    _thread(guest, call, tid)


@hypercall(204, "sched_getaffinity", Int("pid"), Argument("size"), Address("mask"))
def sched_getaffinity(guest: Guest, call: Call, pid: int, size: int, mask: int) -> int:
    """The CPUs that the guest is told of, wherever it is restored; threads use as many as there are."""
    _thread_with_cpus(guest, call, pid)
    if size < 8 or size % 8:
        raise CallError(errno.EINVAL)
    guest.memory.write(mask, struct.pack("=Q", (1 << guest.cpus) - 1))
    return 8


@hypercall(203, "sched_setaffinity", Int("pid"), Argument("size"), Address("mask"))
def sched_setaffinity(guest: Guest, call: Call, pid: int, size: int, mask: int) -> int:
    """Any set with the one CPU in it is granted."""
    _thread_with_cpus(guest, call, pid)
    if not size or not guest.memory.read(mask, min(size, 1024))[0] & 1:
        raise CallError(errno.EINVAL)
    return 0


@hypercall(145, "sched_getscheduler", Int("pid"))
def sched_getscheduler(guest: Guest, call: Call, pid: int) -> int:
    """SCHED_OTHER."""
    _thread(guest, call, pid)
    return 0


@hypercall(143, "sched_getparam", Int("pid"), Address("param"))
def sched_getparam(guest: Guest, call: Call, pid: int, address: int) -> int:
    """Priority 0, the only one of SCHED_OTHER."""
    if not address:
        raise CallError(errno.EINVAL)
    _thread(guest, call, pid)
    guest.memory.pack(_INT, address, 0)
    return 0


@hypercall(144, "sched_setscheduler", Int("pid"), Int("policy"), Address("param"))
def sched_setscheduler(guest: Guest, call: Call, pid: int, policy: int, address: int) -> int:
    """SCHED_OTHER, SCHED_BATCH and SCHED_IDLE are the same here; the others are not for ordinary users."""
    if not address or signed(policy, 32) not in (0, 1, 2, 3, 5):
        raise CallError(errno.EINVAL)
    _thread(guest, call, pid)
    (priority,) = guest.memory.unpack(_INT, address)
    if policy & 0xFFFFFFFF in (1, 2):
        raise CallError(errno.EPERM)
    if priority:
        raise CallError(errno.EINVAL)
    return 0


@hypercall(146, "sched_get_priority_max", Int("policy"))
@hypercall(147, "sched_get_priority_min", Int("policy"))
def sched_get_priority(guest: Guest, call: Call, policy: int) -> int:
    """The bounds of priorities."""
    policy = signed(policy, 32)
    if policy not in (0, 1, 2, 3, 5, 6):
        raise CallError(errno.EINVAL)
    if policy in (1, 2):
        return 99 if call.number == 146 else 1
    return 0


@hypercall(186, "gettid")
def gettid(guest: Guest, call: Call) -> int:
    """The thread's id; the first one's is the process's."""
    return call.thread.tid
