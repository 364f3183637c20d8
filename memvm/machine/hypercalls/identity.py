"""Calls by which a program asks about itself, its rights and limits, and the machine; and for randomness.

The answers are the same in every guest and after every restore, whoever runs the manager: user and group 1000, host
name and number of CPUs as they were set when it was started. Randomness comes from the host at each call, so two
restores of one checkpoint get other bytes.
"""

from __future__ import annotations

import errno
import os
import struct

from memvm.files.facts import USER
from memvm.machine.callresult import CallError
from memvm.machine.clocks import Clock
from memvm.machine.guest import GUEST_PID, PARENT_PID, Guest
from memvm.machine.hypercalls.table import (
    Address,
    Argument,
    Buffer,
    Call,
    Choice,
    Flags,
    Int,
    hypercall,
    signed,
)
from memvm.machine.layout import stack_size
from memvm.machine.streams import MAX_DESCRIPTORS
from memvm.machine.thread import MOST_THREADS

RELEASE, VERSION, MACHINE_NAME = "6.1.0", "#1 memvm", "memvm virtual CPU"
_RLIMIT = struct.Struct("=QQ")
_RUSAGE = struct.Struct("=4q14q")
_SYSINFO = struct.Struct("=q3Q6QHHxxxxQQI4x")
_INFINITY = (1 << 64) - 1
_RLIMIT_DATA, _RLIMIT_STACK, _RLIMIT_CORE, _RLIMIT_NPROC, _RLIMIT_NOFILE, _RLIMIT_AS = 2, 3, 4, 6, 7, 9
_RANDOM_MOST = 1 << 20
_LIMITS = Choice("resource", RLIMIT_DATA=2, RLIMIT_STACK=3, RLIMIT_CORE=4, RLIMIT_NPROC=6, RLIMIT_NOFILE=7, RLIMIT_AS=9)


@hypercall(39, "getpid")
def getpid(guest: Guest, call: Call) -> int:
    """The guest's only process."""
    return GUEST_PID


@hypercall(110, "getppid")
def getppid(guest: Guest, call: Call) -> int:
    """Somebody who is not there."""
    return PARENT_PID


@hypercall(111, "getpgrp")
def getpgrp(guest: Guest, call: Call) -> int:
    """A process group of its own."""
    return GUEST_PID


@hypercall(121, "getpgid", Int("pid"))
@hypercall(124, "getsid", Int("pid"))
def getpgid(guest: Guest, call: Call, pid: int) -> int:
    """A process group and session of its own."""
    if signed(pid, 32) not in (0, GUEST_PID):
        raise CallError(errno.ESRCH)
    return GUEST_PID


@hypercall(102, "getuid")
@hypercall(104, "getgid")
@hypercall(107, "geteuid")
@hypercall(108, "getegid")
def getuid(guest: Guest, call: Call) -> int:
    """An ordinary user."""
    return USER


@hypercall(105, "setuid", Int("id"))
@hypercall(106, "setgid", Int("id"))
def setuid(guest: Guest, call: Call, identity: int) -> int:
    """Who it is already, and nobody else."""
    if identity & 0xFFFFFFFF != USER:
        raise CallError(errno.EPERM)
    return 0


@hypercall(118, "getresuid", Address("real"), Address("effective"), Address("saved"))
@hypercall(120, "getresgid", Address("real"), Address("effective"), Address("saved"))
def getresuid(guest: Guest, call: Call, real: int, effective: int, saved: int) -> int:
    """An ordinary user, three times."""
    for address in (real, effective, saved):
        guest.memory.write(address, struct.pack("=I", USER))
    return 0


@hypercall(115, "getgroups", Int("size"), Address("list"))
def getgroups(guest: Guest, call: Call, size: int, address: int) -> int:
    """No further groups."""
    if signed(size, 32) < 0:
        raise CallError(errno.EINVAL)
    return 0


@hypercall(63, "uname", Address("name"))
def uname(guest: Guest, call: Call, address: int) -> int:
    """The machine's names, six fields of 65 bytes."""
    names = ("Linux", hostname(guest), RELEASE, VERSION, "x86_64", "(none)")
    guest.memory.write(address, b"".join(field.encode().ljust(65, b"\0") for field in names))
    return 0


def hostname(guest: Guest) -> str:
    """What the guest takes for the name of its machine."""
    return guest.hostname


@hypercall(99, "sysinfo", Address("info"))
def sysinfo(guest: Guest, call: Call, address: int) -> int:
    """Guest RAM is the memory of the machine."""
    uptime = guest.clocks.monotonic() // 1_000_000_000
    free = max(0, guest.ram.size - guest.ram.touched_bytes())
    guest.memory.pack(_SYSINFO, address, uptime, 0, 0, 0, guest.ram.size, free, 0, 0, 0, 0, 1, 0, 0, 0, 1)
    return 0


def _limit(guest: Guest, resource: int) -> tuple[int, int]:
    resource &= 0xFFFFFFFF
    if resource > 15:
        raise CallError(errno.EINVAL)
    if resource == _RLIMIT_STACK:
        return stack_size(guest.ram.size), stack_size(guest.ram.size)
    if resource == _RLIMIT_NOFILE:
        return MAX_DESCRIPTORS, MAX_DESCRIPTORS
    if resource in (_RLIMIT_AS, _RLIMIT_DATA):
        return guest.ram.size, guest.ram.size
    if resource == _RLIMIT_NPROC:
        return MOST_THREADS, MOST_THREADS
    if resource == _RLIMIT_CORE:
        return 0, 0
    return _INFINITY, _INFINITY


@hypercall(97, "getrlimit", _LIMITS, Address("limit"))
def getrlimit(guest: Guest, call: Call, resource: int, address: int) -> int:
    """What the guest may use."""
    guest.memory.pack(_RLIMIT, address, *_limit(guest, resource))
    return 0


@hypercall(160, "setrlimit", _LIMITS, Address("limit"))
def setrlimit(guest: Guest, call: Call, resource: int, address: int) -> int:
    """Limits stay as they are; wishing for less is granted, for more is not."""
    return _wish(guest, resource, address)


@hypercall(302, "prlimit64", Int("pid"), _LIMITS, Address("new"), Address("old"))
def prlimit64(guest: Guest, call: Call, pid: int, resource: int, new: int, old: int) -> int:
    """getrlimit and setrlimit in one."""
    if signed(pid, 32) not in (0, GUEST_PID):
        raise CallError(errno.ESRCH)
    if old:
        guest.memory.pack(_RLIMIT, old, *_limit(guest, resource))
    return _wish(guest, resource, new) if new else 0


def _wish(guest: Guest, resource: int, address: int) -> int:
    soft, hard = guest.memory.unpack(_RLIMIT, address)
    if soft > hard:
        raise CallError(errno.EINVAL)
    if hard > _limit(guest, resource)[1]:
        raise CallError(errno.EPERM)
    return 0


@hypercall(98, "getrusage", Choice("who", RUSAGE_SELF=0, RUSAGE_THREAD=1), Address("usage"))
def getrusage(guest: Guest, call: Call, who: int, address: int) -> int:
    """CPU time, all of it as user time, and the memory in use."""
    if signed(who, 32) not in (-1, 0, 1):
        raise CallError(errno.EINVAL)
    clock = {0: Clock.PROCESS_CPUTIME_ID, 1: Clock.THREAD_CPUTIME_ID}.get(signed(who, 32))
    used = 0 if clock is None else guest.clocks.read(clock)
    seconds, nanoseconds = divmod(used, 1_000_000_000)
    resident = guest.ram.touched_bytes() // 1024
    guest.memory.pack(_RUSAGE, address, seconds, nanoseconds // 1000, 0, 0, resident, *([0] * 13))
    return 0


@hypercall(
    318,
    "getrandom",
    Buffer("buf", "result"),
    Argument("size"),
    Flags("flags", GRND_NONBLOCK=1, GRND_RANDOM=2, GRND_INSECURE=4),
)
def getrandom(guest: Guest, call: Call, address: int, size: int, flags: int) -> int:
    """Random bytes of the host's, new ones at every call."""
    if flags & 0xFFFFFFFF & ~7 or flags & 6 == 6:  # GRND_RANDOM and GRND_INSECURE exclude each other
        raise CallError(errno.EINVAL)
    size = min(size, _RANDOM_MOST)
    guest.memory.write(address, os.urandom(size))
    return size
