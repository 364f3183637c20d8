"""ptrace(2) of one thread, through python-ptrace's binding.

What the binding has no function for (SEIZE, INTERRUPT, the XSTATE register set) goes through its `ptrace`
function. Every call must come from the thread that seized the guest.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from enum import IntEnum, IntFlag
from types import ModuleType
from typing import Any, NamedTuple

from memvm.linux.libc import libc


def _give_binding_our_libc() -> None:
    """Spare the start of each guest a process that python-ptrace would start.

    Its module ptrace.ctypes_libc does nothing but look for the C library, and ctypes.util.find_library does that by
    running ldconfig: 5 ms and several modules, for a library that is here already. What we put in its place holds the
    same two names. A python-ptrace without that module does not notice.
    """
    module = ModuleType("ptrace.ctypes_libc")
    vars(module).update(LIBC_FILENAME=None, libc=libc)
    sys.modules.setdefault(module.__name__, module)


_give_binding_our_libc()

from ptrace import PtraceError  # noqa: E402  # after what it needs
from ptrace.binding import func as binding  # noqa: E402

PTRACE_CONT = 7
PTRACE_SYSCALL = 24
# include/uapi/linux/ptrace.h
PTRACE_GETEVENTMSG = 0x4201
PTRACE_GETREGSET = 0x4204
PTRACE_SETREGSET = 0x4205
PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207
PTRACE_GETSIGMASK = 0x420A
PTRACE_SETSIGMASK = 0x420B
NT_X86_XSTATE = 0x202  # include/uapi/linux/elf.h
WALL = 0x40000000  # __WALL: include/uapi/linux/wait.h
WNOTHREAD = 0x20000000  # __WNOTHREAD

_XSTATE_ROOM = 16384
"""Bytes offered for the XSAVE area: AVX-512 needs 2,696, AMX 11,008."""


class Option(IntFlag):
    """PTRACE_O_*."""

    TRACESYSGOOD = 1
    TRACECLONE = 1 << 3
    TRACEEXEC = 1 << 4
    TRACESECCOMP = 1 << 7
    EXITKILL = 1 << 20


class StopEvent(IntEnum):
    """PTRACE_EVENT_*: the third byte of a wait status."""

    NONE = 0
    CLONE = 3
    EXEC = 4
    SECCOMP = 7
    STOP = 128


class SignalInfo(NamedTuple):
    """The part of siginfo_t that faults fill in, and all of it as the kernel has it."""

    number: int
    code: int
    address: int
    sender: int
    raw: bytes = b""


REGISTERS = tuple(name for name, _ in binding.ptrace_registers_t._fields_)
"""The names of user_regs_struct (sys/user.h), in its order."""


class ThreadGone(Exception):
    """The traced thread died before the request (ESRCH)."""


def _request(command: int, tid: int, argument: int = 0, data: int = 0) -> None:
    try:
        binding.ptrace(command, tid, argument, data)
    except PtraceError as error:
        raise _translated(error) from error


def _translated(error: PtraceError) -> Exception:
    if error.errno == errno.ESRCH:
        return ThreadGone()
    return OSError(error.errno or 0, str(error))


def seize(tid: int, options: Option) -> None:
    """Begin tracing a running thread, without stopping it."""
    _request(PTRACE_SEIZE, tid, 0, options)


def interrupt(tid: int) -> None:
    """Stop the thread soon; wait for the stop (StopEvent.STOP)."""
    _request(PTRACE_INTERRUPT, tid)


def resume(tid: int) -> None:
    """Let a stopped thread run, dropping the signal that it stopped for."""
    _request(PTRACE_CONT, tid)


def resume_to_syscall_exit(tid: int) -> None:
    """Let a thread that stands at a seccomp stop make its call, and stop it after."""
    _request(PTRACE_SYSCALL, tid)


def get_registers(tid: int) -> Any:
    """The general registers as python-ptrace's user_regs_struct; raises ThreadGone."""
    try:
        return binding.ptrace_getregs(tid)
    except PtraceError as error:
        raise _translated(error) from error


def set_registers(tid: int, registers: Any) -> None:
    """Set the general registers; raises ThreadGone."""
    try:
        binding.ptrace_setregs(tid, registers)
    except PtraceError as error:
        raise _translated(error) from error


def get_xstate(tid: int) -> bytes:
    """The XSAVE area (standard format) of a stopped thread: x87, SSE, AVX and what else there is."""
    area = ctypes.create_string_buffer(_XSTATE_ROOM)
    vector = binding.iovec_struct(buf=ctypes.addressof(area), len=_XSTATE_ROOM)
    _request(PTRACE_GETREGSET, tid, NT_X86_XSTATE, ctypes.addressof(vector))
    return area.raw[: vector.len]


def set_xstate(tid: int, state: bytes) -> None:
    """Set the XSAVE area; OSError(EINVAL or EFAULT) if it does not fit this processor."""
    area = ctypes.create_string_buffer(state, len(state))
    vector = binding.iovec_struct(buf=ctypes.addressof(area), len=len(state))
    _request(PTRACE_SETREGSET, tid, NT_X86_XSTATE, ctypes.addressof(vector))


def get_signal_mask(tid: int) -> int:
    """The signals that a stopped thread blocks, a bit each (bit 0 is signal 1)."""
    raw = ctypes.create_string_buffer(8)
    _request(PTRACE_GETSIGMASK, tid, len(raw), ctypes.addressof(raw))
    return int.from_bytes(raw.raw, "little")


def set_signal_mask(tid: int, mask: int) -> None:
    """Have a stopped thread block these signals; SIGKILL and SIGSTOP cannot be blocked."""
    raw = ctypes.create_string_buffer(mask.to_bytes(8, "little"), 8)
    _request(PTRACE_SETSIGMASK, tid, len(raw), ctypes.addressof(raw))


def get_signal_info(tid: int) -> SignalInfo:
    """Why the thread stands at a signal-delivery stop (siginfo_t, asm-generic/siginfo.h)."""
    raw = ctypes.create_string_buffer(128)
    _request(binding.PTRACE_GETSIGINFO, tid, 0, ctypes.addressof(raw))
    info = bytes(raw)
    number, _errno, code = (int.from_bytes(info[i : i + 4], "little", signed=True) for i in (0, 4, 8))
    address = int.from_bytes(info[16:24], "little")  # si_addr of faults
    sender = int.from_bytes(info[16:20], "little")  # si_pid of kill and tgkill
    return SignalInfo(number, code, address, sender, info)


def wait(tid: int, *, hang: bool = True) -> tuple[int, int]:
    """waitpid for one traced thread, of whatever kind: (tid or 0, status)."""
    return os.waitpid(tid, WALL | (0 if hang else os.WNOHANG))


def wait_any() -> tuple[int, int]:
    """waitpid for any thread that the calling thread traces (or started): (tid, status)."""
    return os.waitpid(-1, WALL | WNOTHREAD)


def event_message(tid: int) -> int:
    """What a thread that stands at an event has to tell: of CLONE, the new thread's id."""
    message = ctypes.c_ulong()
    _request(PTRACE_GETEVENTMSG, tid, 0, ctypes.addressof(message))
    return message.value


def stop_event(status: int) -> int:
    """The ptrace event of a stop: a StopEvent, or NONE for a signal or system-call stop."""
    return status >> 16
