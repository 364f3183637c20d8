"""Exits that arrive on the tracer's thread: calls that change mappings or registers, and signals.

All other calls come in on the hypercall loop (notifications.py), page faults on the pager (paging.py).
"""

from __future__ import annotations

import signal as signals
import threading
from collections.abc import Callable

from memvm.errors import MemvmError
from memvm.linux import ptrace
from memvm.machine.answering import Answering
from memvm.machine.callresult import NotYet
from memvm.machine.config import ExitStatus
from memvm.machine.crash import FATAL_FAULTS, crash_report, fault_of
from memvm.machine.delivery import Delivery
from memvm.machine.guest import Guest
from memvm.machine.hypercalls.table import Call
from memvm.machine.signals import Signal
from memvm.machine.tracer import Tracer
from memvm.machine.vcpu import NOT_IN_CALL, WaitingPlaces, registers_of
from memvm.machine.vcpus import Vcpus
from memvm.memory.engine import FaultEngine
from memvm.memory.mprotect_engine import MprotectEngine
from memvm.memory.pages import BAD
from memvm.units import PAGE_SIZE

_U64 = (1 << 64) - 1


class Exits:
    """Answers those of one guest."""

    def __init__(
        self,
        guest: Guest,
        lock: threading.Lock,
        tracer: Tracer,
        engine: FaultEngine,
        vcpus: Vcpus,
        answering: Answering,
        delivery: Delivery,
        *,
        poke: Callable[[], None],
        end: Callable[[ExitStatus], None],
        ended: Callable[[int], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """`lock` orders what is done to the guest's state. `poke` is called without it, when something was done that
        others may wait for; `end`, `ended` and `failed` are told how the guest has to end, or did."""
        self._guest, self._lock, self._tracer, self._engine, self._vcpus = guest, lock, tracer, engine, vcpus
        self._answering, self._delivery = answering, delivery
        self._poke, self._end = poke, end
        self.ended, self.failed = ended, failed
        self.tells_of_crashes = True
        """Whether a crash is reported with addresses and registers, or by the signal's name alone."""
        self._places = WaitingPlaces()
        self._refused: tuple[int, int, int] | None = None
        """The last access that the mprotect engine did not know: thread, instruction, address."""

    def close(self) -> None:
        """No exit comes any more."""
        self._places.close()

    def traced_call(self, vcpu: int) -> None:
        """A vCPU stands before a traced call: carry it out and give it the result."""
        registers = ptrace.get_registers(vcpu)
        number = int(registers.orig_rax)
        values = (registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9)
        thread = self._guest.by_vcpu[vcpu]
        call = Call(number, tuple(map(int, values)), thread, registers)
        with self._lock:
            self._vcpus.entry = registers
            result = self._answering.perform(call)
            self._vcpus.entry = None
            self._guest.count_call(thread)
            assert not isinstance(result, NotYet), "a traced call cannot wait"
            if not call.stays:
                registers.orig_rax = NOT_IN_CALL
                if not call.jumps:
                    registers.rax = result & _U64
                    # as the syscall instruction leaves them
                    registers.rcx, registers.r11 = registers.rip, registers.eflags
                ptrace.set_registers(vcpu, registers)
                self._delivery.deliver(thread)
        self._poke()

    def kicked(self, vcpu: int) -> None:
        """A vCPU was stopped on somebody's behalf: perhaps signals wait for it."""
        thread = self._guest.by_vcpu.get(vcpu)  # None while it ends
        if thread is not None:
            with self._lock:
                self._delivery.deliver(thread)  # which carries out, perhaps, what its call had waited for
            self._poke()

    def signal(self, vcpu: int, info: ptrace.SignalInfo) -> None:
        """A fault of the program's, a page that the mprotect engine guards, or a signal from outside."""
        if info.number == signals.SIGSEGV and info.code > 0 and self._resolve(vcpu, info.address):
            return
        guest = self._guest
        thread, one = guest.by_vcpu.get(vcpu, guest.main), Signal(info.number, info.raw)
        if info.number in FATAL_FAULTS and info.code > 0:
            registers = registers_of(vcpu)
            with self._lock:
                if self._delivery.deliver_fault(thread, one, fault_of(info, registers["rip"], guest.space)):
                    return
            self._end(ExitStatus(128 + info.number, info.number, self._crash_report(info, registers)))
        else:
            with self._lock:
                guest.send(one)
                self._delivery.deliver(thread)
            self._poke()

    def _crash_report(self, info: ptrace.SignalInfo, registers: dict[str, int]) -> str:
        guest, ram = self._guest, self._guest.ram
        if self.tells_of_crashes:
            report = crash_report(info, registers, guest.space, lambda address: symbol_at(guest, address))
        else:
            report = f"the guest was ended by {signals.Signals(info.number).name}; of a sealed guest no more is told"
        if ram.base <= info.address < ram.end:
            page = (info.address - ram.base) // PAGE_SIZE
            if info.number == signals.SIGBUS and ram.flags[page] & BAD:
                report = f"page {page} of guest RAM could not be verified, and the guest needs it\n{report}"
        return report

    def _resolve(self, vcpu: int, address: int) -> bool:
        """Whether an access was one to a page that the mprotect engine guards, and may be made again."""
        ram = self._guest.ram
        if not isinstance(self._engine, MprotectEngine) or not ram.base <= address < ram.end:
            return False
        page = (address - ram.base) // PAGE_SIZE
        if self._engine.resolve(page, vcpu):
            return True
        if len(self._guest.threads) == 1 or not ram.protection[page]:
            return False
        # Perhaps another thread's fault has been answered meanwhile: if it comes again, it is the program's.
        fault = (vcpu, int(ptrace.get_registers(vcpu).rip), address)
        again, self._refused = fault == self._refused, fault
        return not again

    def instruction(self, vcpu: int) -> int:
        """Where the program is in a fault that is being answered; 0 if the kernel does not say. On any thread."""
        if self._tracer.is_current():
            return int(ptrace.get_registers(vcpu).rip)
        return self._places.instruction(self._tracer.stub.pid, vcpu)


def symbol_at(guest: Guest, address: int) -> tuple[str, int] | None:
    """The function that an address is in, and how far, by the program's file as it is now; None if nobody can tell."""
    from memvm.machine.program import read_again
    from memvm.machine.symbols import SymbolTable

    try:
        contents = read_again(guest.views, guest.program)
    except MemvmError:  # the file went away: a report without names
        return None
    return SymbolTable.from_image(contents, guest.image_bias).lookup(address)
