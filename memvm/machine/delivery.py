"""Delivers signals: makes a stopped thread call the guest's handlers, and go on where it was when they return.

All of it happens on the tracer's thread, with the machine's lock held. A thread that waits in a call leaves it first:
with the call's result if there is one by now, to make it anew after the handler (SA_RESTART), or with EINTR; which,
the call says (Call.interrupted).
"""

from __future__ import annotations

import errno
import signal as numbers
from collections.abc import Callable
from typing import Any

from memvm.errors import MemvmError
from memvm.linux import ptrace
from memvm.machine.callresult import BLOCKED, CallError, CallResult
from memvm.machine.guest import Guest
from memvm.machine.hypercalls.table import Call
from memvm.machine.signal_frame import SS_AUTODISARM, STACK, Fault, Saved, build_frame, initial_xstate, on_stack
from memvm.machine.signal_frame import take_down_frame as _take_down_frame
from memvm.machine.signals import (
    SA_NODEFER,
    SA_ONSTACK,
    SA_RESETHAND,
    SA_RESTART,
    SA_RESTORER,
    SI_KERNEL,
    SIG_DFL,
    UNMASKABLE,
    Action,
    Signal,
    bit,
    make_signal,
    signal_name,
)
from memvm.machine.thread import GuestThread
from memvm.machine.vcpu import NOT_IN_CALL, SYSCALL_LENGTH, rewind

_U64 = (1 << 64) - 1
_NO_ROOM = "the guest's stack has no room for a signal handler"


class Delivery:
    """Delivers the signals of one guest."""

    def __init__(self, guest: Guest, perform: Callable[[Call], CallResult]) -> None:
        """`perform` carries out a call once more."""
        self._guest, self._perform = guest, perform

    def deliver(self, thread: GuestThread) -> None:
        """Have a stopped thread call the handlers of the signals that wait for it. Raises ThreadGone."""
        if not self._guest.has_signal(thread):
            return
        entering = _Entering(thread, ptrace.get_registers(thread.vcpu))
        while (one := self._guest.next_signal(thread)) is not None:
            action = self._guest.signals.action(one.number)
            if self._guest.signals.ignores(one.number):
                continue
            if action.handler == SIG_DFL:
                self._guest.end_by_signal(one.number)
                return
            if not entering.entered:
                self._leave_call(thread, entering.registers, action)
            if not self._enter(entering, action, one, Fault()):
                return
        if entering.entered:
            entering.install()

    def deliver_fault(self, thread: GuestThread, one: Signal, fault: Fault) -> bool:
        """Have a thread call the handler for what it just did; False if it has none, or blocks it."""
        action = self._guest.signals.action(one.number)
        if not thread.takes(one.number) or action.handler == SIG_DFL or self._guest.signals.ignores(one.number):
            return False
        entering = _Entering(thread, ptrace.get_registers(thread.vcpu))
        if self._enter(entering, action, one, fault):
            entering.install()
        return True

    def _leave_call(self, thread: GuestThread, registers: Any, action: Action) -> None:
        rewind(registers)
        call = thread.blocked
        if call is None or not call.same_as(int(registers.rax), _arguments(registers)):
            return
        thread.blocked = None
        done = self._perform(call) if call.answer is None else call.answer
        result = call.interrupted() if done is BLOCKED else done
        if result is None:
            if action.flags & SA_RESTART:
                return
            result = -errno.EINTR
        registers.rip += SYSCALL_LENGTH
        registers.rax = result & _U64
        registers.rcx, registers.r11 = registers.rip, registers.eflags

    def _enter(self, entering: _Entering, action: Action, one: Signal, fault: Fault) -> bool:
        """Enter a handler, or that of SIGSEGV if there is no room; False if the guest had to be ended."""
        try:
            self._enter_handler(entering, action, one, fault)
        except CallError:
            segv = self._guest.signals.action(numbers.SIGSEGV)
            usable = segv.handler > 1 and entering.thread.takes(numbers.SIGSEGV) and one.number != numbers.SIGSEGV
            if not usable:
                self._guest.end_by_signal(numbers.SIGSEGV, f"{_NO_ROOM} of {signal_name(one.number)}")
                return False
            return self._enter(entering, segv, make_signal(numbers.SIGSEGV, SI_KERNEL), Fault())
        return True

    def _enter_handler(self, entering: _Entering, action: Action, one: Signal, fault: Fault) -> None:
        thread, stack = entering.thread, entering.thread.alternate_stack
        if not action.flags & SA_RESTORER:
            raise CallError(errno.EFAULT)
        use_alternate = bool(action.flags & SA_ONSTACK and stack) and not on_stack(int(entering.registers.rsp), stack)
        before = thread.mask if thread.mask_afterwards is None else thread.mask_afterwards
        saved = Saved(entering.xstate, before, stack)
        build_frame(self._guest.memory, entering.registers, action, one, saved, use_alternate, fault)
        thread.mask_afterwards = None
        thread.mask |= action.mask | (0 if action.flags & SA_NODEFER else bit(one.number))
        thread.mask &= ~UNMASKABLE
        if stack and STACK.unpack(stack)[1] & SS_AUTODISARM:
            thread.alternate_stack = b""
        if action.flags & SA_RESETHAND:
            del self._guest.signals.actions[one.number]
        entering.entered = True
        entering.xstate = initial_xstate(entering.xstate)

    def take_down_frame(self, thread: GuestThread, registers: Any) -> None:
        """A handler has returned: go on as its frame says. A frame that makes no sense is a SIGSEGV."""
        try:
            saved = _take_down_frame(self._guest.memory, registers, ptrace.get_xstate(thread.vcpu))
            ptrace.set_xstate(thread.vcpu, saved.xstate)
        except (CallError, OSError, MemvmError):
            self._guest.send(make_signal(numbers.SIGSEGV, SI_KERNEL), thread)
            return
        thread.mask = saved.mask & ~UNMASKABLE
        if not on_stack(int(registers.rsp), thread.alternate_stack):
            thread.set_alternate_stack(saved.alternate_stack)


class _Entering:
    """A thread that is about to enter handlers, with what it will have then."""

    def __init__(self, thread: GuestThread, registers: Any) -> None:
        self.thread, self.registers = thread, registers
        self.xstate = ptrace.get_xstate(thread.vcpu)
        self.entered = False

    def install(self) -> None:
        self.registers.orig_rax = NOT_IN_CALL
        ptrace.set_registers(self.thread.vcpu, self.registers)
        ptrace.set_xstate(self.thread.vcpu, self.xstate)


def _arguments(registers: Any) -> tuple[int, ...]:
    return tuple(int(getattr(registers, name)) for name in ("rdi", "rsi", "rdx", "r10", "r8", "r9"))
