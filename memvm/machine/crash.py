"""What is said when a guest goes wrong: the signal, the address, where in the program, and the registers."""

from __future__ import annotations

import signal
from collections.abc import Callable

from memvm.linux.ptrace import SignalInfo
from memvm.machine.layout import RAM_BASE, STUB_BASE
from memvm.machine.signal_frame import Fault
from memvm.machine.signals import signal_name
from memvm.machine.space import AddressSpace
from memvm.memory.protection import Prot
from memvm.units import PAGE_SIZE

FATAL_FAULTS = {
    signal.SIGSEGV: "bad memory access",
    signal.SIGILL: "illegal instruction",
    signal.SIGFPE: "arithmetic error",
    signal.SIGBUS: "memory that could not be provided",
    signal.SIGTRAP: "breakpoint or trap",
    signal.SIGSYS: "bad system call",
}
_SHOWN = ("rip", "rsp", "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp")
_SHOWN_TOO = ("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "eflags")

_PAGE_FAULT, _GENERAL_PROTECTION = 14, 13
_FROM_USER, _WRITING, _NO_RIGHT = 4, 2, 1  # of a page fault's error code: arch/x86/include/asm/trap_pf.h
_SEGV_ACCERR, _SI_KERNEL = 2, 128
_VECTORS = {signal.SIGFPE: 0, signal.SIGTRAP: 3, signal.SIGILL: 6, signal.SIGBUS: _PAGE_FAULT}

Symbols = Callable[[int], tuple[str, int] | None]


def crash_report(info: SignalInfo, registers: dict[str, int], space: AddressSpace, symbols: Symbols) -> str:
    """Several lines for people."""
    rip = registers["rip"]
    kind = FATAL_FAULTS.get(signal.Signals(info.number), "signal")
    lines = [f"{signal_name(info.number)}: {kind} {_cause(info, rip, space)}".rstrip()]
    lines.append(f"  at {rip:#x} {_place(rip, symbols)}".rstrip())
    for names in (_SHOWN, _SHOWN_TOO):
        lines += [
            "  " + "  ".join(f"{name:>6}={registers[name]:016x}" for name in names[start : start + 3])
            for start in range(0, len(names), 3)
        ]
    return "\n".join(lines)


def fault_of(info: SignalInfo, rip: int, space: AddressSpace) -> Fault:
    """What the processor says of a fault, as far as it can be told: ptrace does not show it.

    An access that was refused though the guest may read there must have been a write.
    """
    if info.number != signal.SIGSEGV or info.code == _SI_KERNEL:
        return Fault(0, _VECTORS.get(signal.Signals(info.number), _GENERAL_PROTECTION), info.address)
    error = _FROM_USER | (_NO_RIGHT if info.code == _SEGV_ACCERR else 0)
    region = space.region_at(info.address)
    if region is not None and region.protection & Prot.READ and info.address != rip:
        error |= _WRITING
    return Fault(error, _PAGE_FAULT, info.address)


def _cause(info: SignalInfo, rip: int, space: AddressSpace) -> str:
    if info.number not in (signal.SIGSEGV, signal.SIGBUS):
        return ""
    address = info.address
    if info.number == signal.SIGSEGV and info.code == 128 and not address:  # SI_KERNEL: no address is known
        return "(an address that no program can have, or a privileged instruction)"
    region = space.region_at(address)
    if region is not None:
        rights = "".join(
            letter if region.protection & bit else "-"
            for letter, bit in (("r", Prot.READ), ("w", Prot.WRITE), ("x", Prot.EXEC))
        )
        how = "executing" if address == rip else "touching"
        return f"{how} {address:#x}, in {region.kind} memory that is {rights}"
    return f"at {address:#x}, {_nowhere(address, space)}"


def _nowhere(address: int, space: AddressSpace) -> str:
    if address < PAGE_SIZE * 16:
        return "a null pointer"
    if STUB_BASE <= address < STUB_BASE + PAGE_SIZE:
        return "the stub's page, which is read-only"
    above = next((region for region in space if region.start > address), None)
    if above is not None and above.kind == "stack":
        return "below the stack: it overflowed, or a pointer is wild"
    if not space.in_ram(address, 1):
        return f"outside guest RAM, which begins at {RAM_BASE:#x}"
    return "in guest RAM that is not allocated"


def _place(rip: int, symbols: Symbols) -> str:
    found = symbols(rip)
    if found is None:
        return ""
    name, offset = found
    return f"in {name}+{offset:#x}" if offset else f"in {name}"
