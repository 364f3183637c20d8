"""The guest's threads as vCPUs: each is a thread of the guest's process, made, ended and made to call from here.

Everything happens on the tracer's thread, while the thread concerned stands still.
"""

from __future__ import annotations

import errno
from typing import Any

from memvm.errors import HostError
from memvm.linux import ptrace
from memvm.machine.callresult import CallError
from memvm.machine.guest import Guest
from memvm.machine.placement import Placement
from memvm.machine.thread import GuestThread
from memvm.machine.tracer import Tracer
from memvm.machine.vcpu import NOT_IN_CALL, VcpuState


class Vcpus:
    """Those of one guest."""

    def __init__(self, guest: Guest, tracer: Tracer, placement: Placement) -> None:
        self._guest, self._tracer, self._placement = guest, tracer, placement
        self.entry: Any = None
        """The registers of a vCPU that stands before a traced call, until something else was called in its place."""

    def adopt_first(self) -> None:
        """The process has been made: its only thread is the guest's first."""
        self._name(self._guest.main, self._tracer.stub.pid)

    def set_first(self, registers: dict[str, int]) -> None:
        """Where a program that is launched begins."""
        pid = self._tracer.stub.pid
        VcpuState(registers, ptrace.get_xstate(pid)).install(pid)

    def add(self, tid: int) -> GuestThread:
        """Give a guest that is being restored one more thread. Raises HostError."""
        thread = GuestThread(tid)
        if not self._guest.threads:
            self._name(thread, self._tracer.stub.pid)
        else:
            try:
                vcpu = self._tracer.stub.make_vcpu()
            except OSError as error:
                raise HostError(
                    f"cannot start the guest's {len(self._guest.threads) + 1} threads: {error.strerror}",
                    hint="the limit of processes may be reached: ulimit -u",
                ) from error
            self._name(thread, vcpu)
            self._follow(vcpu)
        self._guest.threads[tid] = thread
        return thread

    def make(self, thread: GuestThread, entry: Any, changed: dict[str, int]) -> None:
        """Start a thread, where another stands before a clone with the registers `entry`. Raises CallError."""
        self.entry = None
        try:
            vcpu = self._tracer.stub.make_vcpu(entry)
        except OSError as error:
            raise CallError(error.errno or errno.EAGAIN) from error
        registers = type(entry).from_buffer_copy(entry)
        registers.orig_rax, registers.rcx, registers.r11 = NOT_IN_CALL, registers.rip, registers.eflags
        for name, value in changed.items():
            setattr(registers, name, value)
        ptrace.set_registers(vcpu, registers)
        self._guest.threads[thread.tid] = thread
        self._name(thread, vcpu)
        self._follow(vcpu)

    def _name(self, thread: GuestThread, vcpu: int) -> None:
        thread.vcpu = vcpu
        self._guest.by_vcpu[vcpu] = thread

    def _follow(self, vcpu: int) -> None:
        self._tracer.add(vcpu)
        self._placement.spread(vcpu)

    def end(self, thread: GuestThread) -> None:
        """A thread stands before its exit."""
        del self._guest.by_vcpu[thread.vcpu]
        if thread.vcpu == self._tracer.stub.pid:
            self._tracer.park()

    def have_called(self, number: int, *arguments: int) -> None:
        """Make the stopped guest call the kernel. Raises OSError.

        In place of its own call if a vCPU stands before one (who answers that puts the registers back), or in between.
        """
        entry, self.entry = self.entry, None
        if entry is not None:
            self._tracer.stub.call_instead(entry, number, *arguments)
        else:
            self._tracer.stub.call_in_between(number, *arguments)
