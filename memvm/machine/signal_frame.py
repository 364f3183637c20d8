"""The frame on a thread's stack from which a signal handler returns: built, and taken down, as Linux does it.

From the stack pointer on, which is 8 below a multiple of 16 as after a call (arch/x86/kernel/signal_64.c, and
arch/x86/kernel/fpu/signal.c for the last part):

    return address     8   the C library's restorer, which makes the call rt_sigreturn
    struct ucontext  304   flags, link, alternate stack, registers, blocked signals
    siginfo_t        128
    XSAVE area             on a border of 64 bytes; its bytes 464 to 511 say how large it is, and a magic number
                           is behind it: so it can be told from the 512 bytes of FXSAVE
    red zone         128   below the interrupted function's stack pointer; not on an alternate stack
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from memvm.machine.callresult import CallError
from memvm.machine.guest_memory import GuestMemory
from memvm.machine.signals import Action, Signal
from memvm.machine.vcpu import VcpuState, xsave_features

STACK = struct.Struct("=QI4xQ")  # stack_t: sp, flags, size
SS_ONSTACK, SS_DISABLE, SS_AUTODISARM = 1, 2, 1 << 31
_CONTEXT = struct.Struct("=QQ24s18Q4HQQQQQ64xQ")
"""struct ucontext: flags, link, stack_t, registers, segments, err, trapno, oldmask, cr2, fpstate, signals."""
CONTEXT_REGISTERS = (
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
    *("rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx", "rsp", "rip", "eflags"),
)
_FX_SOFTWARE = struct.Struct("=IIQI28x")  # struct _fpx_sw_bytes: magic1, extended_size, xfeatures, xstate_size
_FX_SOFTWARE_OFFSET, _FX_SIZE, _XSAVE_LEAST = 464, 512, 576
_MAGIC1, _MAGIC2 = 0x46505853, (0x46505845).to_bytes(4, "little")
_X87_AND_SSE = 3
_UC_FLAGS = 7  # UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS
_RED_ZONE = 128
_POINTER = struct.Struct("=Q")
_USER_CS, _USER_SS = 0x33, 0x2B
_CLEARED_FLAGS = 0x10500  # DF, RF, TF: not for the handler
_RESTORED_FLAGS = 0x50DD5  # FIX_EFLAGS: arch/x86/include/asm/sighandling.h
_MXCSR_OFFSET, _MXCSR_DEFAULT = 24, 0x1F80
_FCW_DEFAULT = 0x37F


class Fault(NamedTuple):
    """What the processor says of a fault: error code, vector and address."""

    error: int = 0
    vector: int = 0
    address: int = 0


class Saved(NamedTuple):
    """What a frame holds beside the registers: the XSAVE area, the blocked signals, the alternate stack."""

    xstate: bytes
    mask: int
    alternate_stack: bytes


def on_stack(pointer: int, alternate_stack: bytes) -> bool:
    """Whether a stack pointer lies in the alternate stack (sas_ss_flags)."""
    if not alternate_stack:
        return False
    start, flags, size = STACK.unpack(alternate_stack)
    return not flags & SS_AUTODISARM and start < pointer <= start + size


def build_frame(
    memory: GuestMemory, registers: Any, action: Action, one: Signal, saved: Saved, use_alternate: bool, fault: Fault
) -> None:
    """Put a frame on the stack and have the registers enter the handler. Raises CallError(EFAULT).

    With `use_alternate` the frame goes to the beginning of the alternate stack.
    """
    if use_alternate:
        start, _, size = STACK.unpack(saved.alternate_stack)
        top = start + size
    else:
        top = int(registers.rsp) - _RED_ZONE
    area = _with_size(saved.xstate)
    floating = (top - len(area)) & -64
    pointer = ((floating - 8 - _CONTEXT.size - len(one.info)) & -16) - 8
    if not use_alternate and on_stack(int(registers.rsp), saved.alternate_stack):
        start, _, _ = STACK.unpack(saved.alternate_stack)
        if pointer < start:  # the alternate stack is full
            raise CallError(14)
    context = _CONTEXT.pack(
        _UC_FLAGS,
        0,
        saved.alternate_stack or STACK.pack(0, SS_DISABLE, 0),
        *(int(getattr(registers, name)) for name in CONTEXT_REGISTERS),
        *(_USER_CS, 0, 0, _USER_SS),
        *(fault.error, fault.vector, saved.mask, fault.address),
        floating,
        saved.mask,
    )
    memory.write(floating, area)
    memory.write(pointer, _POINTER.pack(action.restorer) + context + one.info)
    registers.rsp, registers.rip = pointer, action.handler
    registers.rdi, registers.rsi, registers.rdx = one.number, pointer + 8 + _CONTEXT.size, pointer + 8
    registers.rax = 0
    registers.eflags &= ~_CLEARED_FLAGS


def _with_size(xstate: bytes) -> bytes:
    area = bytearray(xstate)
    features = xsave_features(xstate, _FX_SOFTWARE_OFFSET)
    _FX_SOFTWARE.pack_into(area, _FX_SOFTWARE_OFFSET, _MAGIC1, len(xstate) + len(_MAGIC2), features, len(xstate))
    return bytes(area + _MAGIC2)


def initial_xstate(current: bytes) -> bytes:
    """The XSAVE area that a handler begins with: all features as after a reset."""
    area = bytearray(len(current))
    area[:2] = _FCW_DEFAULT.to_bytes(2, "little")
    area[_MXCSR_OFFSET : _MXCSR_OFFSET + 4] = _MXCSR_DEFAULT.to_bytes(4, "little")
    area[_FX_SOFTWARE_OFFSET : _FX_SOFTWARE_OFFSET + 8] = current[_FX_SOFTWARE_OFFSET : _FX_SOFTWARE_OFFSET + 8]
    return bytes(area)


def take_down_frame(memory: GuestMemory, registers: Any, current: bytes) -> Saved:
    """Give the registers what the frame says, of which a handler has just returned. Raises CallError(EFAULT).

    `current` is the thread's XSAVE area; its size is the one that this processor has. What the frame says may be
    anything: the caller gives it to the kernel, which checks it.
    """
    context = int(registers.rsp)  # the return address has been taken
    fields = _CONTEXT.unpack(memory.read(context, _CONTEXT.size))
    for name, value in zip(CONTEXT_REGISTERS, fields[3:21], strict=True):
        if name != "eflags":
            setattr(registers, name, value)
    registers.eflags = (registers.eflags & ~_RESTORED_FLAGS) | (fields[20] & _RESTORED_FLAGS)
    registers.cs, registers.ss = _USER_CS, _USER_SS
    floating, mask = fields[-2:]
    area = initial_xstate(current) if not floating else _read_area(memory, floating, current)
    return Saved(area, mask, fields[2])


def _read_area(memory: GuestMemory, address: int, current: bytes) -> bytes:
    legacy = memory.read(address, _FX_SIZE)
    magic, extended, features, size = _FX_SOFTWARE.unpack_from(legacy, _FX_SOFTWARE_OFFSET)
    whole = magic == _MAGIC1 and _XSAVE_LEAST <= size <= extended and size <= 1 << 16
    if whole and memory.read(address + size, len(_MAGIC2)) == _MAGIC2:
        area = bytearray(memory.read(address, size))
        here = xsave_features(current, _FX_SOFTWARE_OFFSET)
        allowed = (xsave_features(bytes(area), _FX_SIZE) & features & here).to_bytes(8, "little")
        area[_FX_SIZE : _FX_SIZE + 8] = allowed
    else:
        area = bytearray(legacy.ljust(len(current), b"\0"))
        area[_FX_SIZE : _FX_SIZE + 8] = _X87_AND_SSE.to_bytes(8, "little")
    area[_FX_SOFTWARE_OFFSET : _FX_SOFTWARE_OFFSET + 8] = current[_FX_SOFTWARE_OFFSET : _FX_SOFTWARE_OFFSET + 8]
    return VcpuState({}, bytes(area)).fitted_to(current)
