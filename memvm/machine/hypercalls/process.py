"""Calls about the guest's one process: settings of its threads, and what is refused.

Other processes there are none: such calls are refused with the errno that programs understand, so that they go on
without.
"""

from __future__ import annotations

import errno
import os
import struct

from memvm.machine.callresult import CallError
from memvm.machine.guest import Guest
from memvm.machine.hypercalls.table import Address, Call, Choice, Int, Text, hypercall
from memvm.machine.thread import LONGEST_NAME

_ARCH_SET_GS, _ARCH_SET_FS, _ARCH_GET_FS, _ARCH_GET_GS = 0x1001, 0x1002, 0x1003, 0x1004
_PR_SET_NAME, _PR_GET_NAME, _PR_GET_DUMPABLE = 15, 16, 3
_ADDRESS_LIMIT = 1 << 47


@hypercall(
    158,
    "arch_prctl",
    Choice("code", ARCH_SET_GS=0x1001, ARCH_SET_FS=0x1002, ARCH_GET_FS=0x1003, ARCH_GET_GS=0x1004),
    Address("value"),
    traced=True,
)
def arch_prctl(guest: Guest, call: Call, code: int, value: int) -> int:
    """The FS and GS bases, where C libraries keep their thread's data."""
    if code in (_ARCH_SET_FS, _ARCH_SET_GS):
        if value >= _ADDRESS_LIMIT:
            raise CallError(errno.EPERM)
        setattr(call.registers, "fs_base" if code == _ARCH_SET_FS else "gs_base", value)
        return 0
    if code in (_ARCH_GET_FS, _ARCH_GET_GS):
        base = call.registers.fs_base if code == _ARCH_GET_FS else call.registers.gs_base
        guest.memory.write(value, struct.pack("=Q", base))
        return 0
    raise CallError(errno.EINVAL)


@hypercall(157, "prctl", Choice("option", PR_SET_NAME=15, PR_GET_NAME=16, PR_GET_DUMPABLE=3), Address("value"))
def prctl(guest: Guest, call: Call, option: int, value: int) -> int:
    """The thread's name."""
    option &= 0xFFFFFFFF
    if option == _PR_SET_NAME:
        call.thread.name = guest.memory.beginning(value, LONGEST_NAME)
        return 0
    if option == _PR_GET_NAME:
        guest.memory.write(value, call.thread.name.ljust(LONGEST_NAME + 1, b"\0"))
        return 0
    if option == _PR_GET_DUMPABLE:
        return 1
    raise CallError(errno.EINVAL)


@hypercall(57, "fork")
@hypercall(58, "vfork")
def no_more_processes(guest: Guest, call: Call, *_arguments: int) -> int:
    """One process."""
    guest.refuse("for another process", errno.ENOSYS)


@hypercall(59, "execve", Text("path"), Address("argv"), Address("envp"))
def no_other_program(guest: Guest, call: Call, path: int, *_rest: int) -> int:
    """Another program is not run, whatever the tree has."""
    name = guest.memory.string(path)
    try:
        guest.tree.may(guest.cwd, name, os.X_OK, follow=True)
    except OSError as error:
        raise CallError(error.errno or errno.ENOENT) from error
    guest.refuse(f"to run {os.fsdecode(name)[:100]}", errno.EACCES)


@hypercall(61, "wait4", Int("pid"), Address("status"), Address("options"), Address("usage"))
def no_children(guest: Guest, call: Call, *_arguments: int) -> int:
    """Nobody to wait for."""
    raise CallError(errno.ECHILD)
