"""A vCPU: the registers of a guest's thread, taken from a stopped thread and given to a new one.

The general registers are user_regs_struct's; the XSAVE area holds x87, SSE, AVX and whatever else the processor has.

A thread is often stopped inside a system call that waits for the manager's answer. Linux shows that as rax = -ERESTART…
with orig_rax = the call's number. Such a call is *rewound* before it is saved: rip goes back to the `syscall`
instruction and rax gets the number, so that the restored thread makes the same call anew.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from memvm.errors import CheckpointError
from memvm.linux import ptrace

_U64 = 1 << 64
NOT_IN_CALL = _U64 - 1
"""What orig_rax is outside of system calls."""
_RESTARTS = {_U64 - code for code in (512, 513, 514, 516)}  # ERESTARTSYS …: include/linux/errno.h
SYSCALL_LENGTH = 2
_PLACE_SIZE = 256
"""Bytes that are enough for a line of /proc/PID/task/TID/syscall."""
XCR0_OFFSET = 464
"""What the kernel saves: sw_reserved bytes of the XSAVE area as ptrace gives it (arch/x86/kernel/fpu/regset.c)."""
_XSTATE_BV_OFFSET = 512
_USER_CS, _USER_SS = 0x33, 0x2B
_XSAVE_FEATURES = {  # bits of XCR0: Intel's Software Developer's Manual, volume 1, section 13.1
    0: "x87",
    1: "SSE",
    2: "AVX",
    3: "MPX bounds",
    4: "MPX configuration",
    5: "AVX-512 masks",
    6: "AVX-512 upper halves",
    7: "AVX-512 registers 16 to 31",
    9: "PKRU",
    17: "AMX configuration",
    18: "AMX tiles",
}


class VcpuState(NamedTuple):
    """Everything that a thread is."""

    registers: dict[str, int]
    xstate: bytes

    @classmethod
    def capture(cls, tid: int) -> VcpuState:
        """The state of a stopped thread, with a call that waits for its answer rewound."""
        raw = ptrace.get_registers(tid)
        rewind(raw)
        registers = {name: int(getattr(raw, name)) for name in ptrace.REGISTERS}
        return cls(registers, ptrace.get_xstate(tid))

    @property
    def features_in_use(self) -> tuple[str, ...]:
        """The parts of the XSAVE area that are not as after a reset, in words."""
        return feature_names(xsave_features(self.xstate, _XSTATE_BV_OFFSET))

    def install(self, tid: int) -> None:
        """Give a stopped thread this state. Raises CheckpointError if the processor cannot hold it."""
        raw = ptrace.get_registers(tid)
        for name, value in self.registers.items():
            setattr(raw, name, value)
        raw.orig_rax = NOT_IN_CALL
        raw.cs, raw.ss = _USER_CS, _USER_SS
        try:
            ptrace.set_registers(tid, raw)
            ptrace.set_xstate(tid, self.fitted_to(ptrace.get_xstate(tid)))
        except OSError as error:
            raise CheckpointError(f"the saved registers are not ones that a program can have: {error}") from error

    def fitted_to(self, current: bytes) -> bytes:
        """The XSAVE area in this processor's size. Raises CheckpointError if a feature in use is missing here."""
        mine, here = xsave_features(self.xstate, _XSTATE_BV_OFFSET), xsave_features(current, XCR0_OFFSET)
        if mine & ~here:
            raise CheckpointError(
                f"the guest uses processor state that this machine lacks (XSAVE features {mine & ~here:#x})",
                hint="restore it on a machine whose processor has the features of the one where it was saved",
            )
        size = len(current)
        if len(self.xstate) != size:
            if any(self.xstate[size:]):
                raise CheckpointError("the saved processor state does not fit this machine's XSAVE area")
            return self.xstate[:size].ljust(size, b"\0")
        return self.xstate


def rewind(registers: Any) -> None:
    """If the thread was interrupted in a call that waits for its answer, put it before that call."""
    if registers.orig_rax != NOT_IN_CALL and registers.rax in _RESTARTS:
        registers.rip -= SYSCALL_LENGTH
        registers.rax = registers.orig_rax
    registers.orig_rax = NOT_IN_CALL


def xsave_features(xstate: bytes, offset: int) -> int:
    """A mask of processor features in an XSAVE area: those in use or those that there are, by the offset."""
    return int.from_bytes(xstate[offset : offset + 8], "little")


def feature_names(mask: int) -> tuple[str, ...]:
    """XSAVE features in words."""
    return tuple(_XSAVE_FEATURES.get(bit, f"bit {bit}") for bit in range(64) if mask >> bit & 1)


def registers_of(tid: int) -> dict[str, int]:
    """The general registers of a stopped thread, as they are."""
    raw: Any = ptrace.get_registers(tid)
    return {name: int(getattr(raw, name)) for name in ptrace.REGISTERS}


class WaitingPlaces:
    """Where threads are that wait in a page fault, for anybody but the tracer.

    /proc/PID/task/TID/syscall of a thread that waits outside a system call has -1, stack and instruction pointer. Its
    descriptors are kept: opening costs more than reading, and the thread stands still meanwhile.
    """

    def __init__(self) -> None:
        self._open: dict[int, int] = {}

    def instruction(self, process: int, tid: int) -> int:
        """The instruction pointer; 0 if the thread does not wait so, or has gone."""
        try:
            fd = self._open.get(tid)
            if fd is None:
                fd = self._open[tid] = os.open(f"/proc/{process}/task/{tid}/syscall", os.O_RDONLY | os.O_CLOEXEC)
            fields = os.pread(fd, _PLACE_SIZE, 0).split()
        except OSError:  # it has ended; another one may get its id
            if (stale := self._open.pop(tid, None)) is not None:
                os.close(stale)
            return 0
        return int(fields[2], 16) if len(fields) == 3 and fields[0] == b"-1" else 0

    def close(self) -> None:
        """Close the descriptors."""
        while self._open:
            os.close(self._open.popitem()[1])
