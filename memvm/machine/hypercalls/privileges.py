"""Calls that change who a program is, or the machine: an ordinary user may make those that change nothing.

Programs that shed privileges they do not have go on after a 0, and others after EPERM, where ENOSYS would end them.
"""

from __future__ import annotations

import errno
import struct

from memvm.files.facts import USER
from memvm.machine.callresult import CallError
from memvm.machine.clocks import SECOND, Clock
from memvm.machine.guest import GUEST_PID, Guest
from memvm.machine.hypercalls.table import Address, Argument, Call, Choice, Int, hypercall, signed

_TIMESPEC = struct.Struct("=qq")
_CAPABILITY_HEADER = struct.Struct("=Ii")
_CAPABILITY_SET = 12
"""Bytes of what is effective, permitted and inheritable of 32 capabilities."""
_CAPABILITY_VERSIONS = {0x19980330: 1, 0x20071026: 2, 0x20080522: 2}
"""Versions of the header, and how many sets each has: include/uapi/linux/capability.h."""
_VERSION = struct.Struct("=I")
_UNCHANGED = 0xFFFFFFFF
_SETTABLE = {Clock.REALTIME}
_PRIO_PROCESS, _PRIO_PGRP, _PRIO_USER = range(3)
_WHICH = Choice("which", PRIO_PROCESS=_PRIO_PROCESS, PRIO_PGRP=_PRIO_PGRP, PRIO_USER=_PRIO_USER)


@hypercall(113, "setreuid", Int("real"), Int("effective"))
@hypercall(114, "setregid", Int("real"), Int("effective"))
@hypercall(117, "setresuid", Int("real"), Int("effective"), Int("saved"))
@hypercall(119, "setresgid", Int("real"), Int("effective"), Int("saved"))
def setresuid(guest: Guest, call: Call, *identities: int) -> int:
    """Who it is already, and nobody else."""
    if any(identity & 0xFFFFFFFF not in (USER, _UNCHANGED) for identity in identities):
        raise CallError(errno.EPERM)
    return 0


@hypercall(116, "setgroups", Int("size"), Address("list"))
@hypercall(161, "chroot", Address("path"))
@hypercall(165, "mount", Address("source"), Address("target"), Address("type"), Address("flags"), Address("data"))
@hypercall(166, "umount2", Address("target"), Address("flags"))
@hypercall(170, "sethostname", Address("name"), Argument("size"))
@hypercall(171, "setdomainname", Address("name"), Argument("size"))
def not_for_ordinary_users(guest: Guest, call: Call, *_arguments: int) -> int:
    """For the superuser only."""
    raise CallError(errno.EPERM)


@hypercall(164, "settimeofday", Address("time"), Address("zone"))
def settimeofday(guest: Guest, call: Call, *_arguments: int) -> int:
    """CLOCK_REALTIME is the host's."""
    raise CallError(errno.EPERM)


@hypercall(227, "clock_settime", Int("clock"), Address("time"))
def clock_settime(guest: Guest, call: Call, clock: int, address: int) -> int:
    """CLOCK_REALTIME is the host's, and no other can be set at all."""
    if signed(clock, 32) not in _SETTABLE:
        raise CallError(errno.EINVAL)
    guest.memory.unpack(_TIMESPEC, address)
    raise CallError(errno.EPERM)


@hypercall(140, "getpriority", _WHICH, Int("who"))
def getpriority(guest: Guest, call: Call, which: int, who: int) -> int:
    """A nice value of 0, as the kernel tells it: 20 less that."""
    _check_who(which, who)
    return 20


@hypercall(141, "setpriority", _WHICH, Int("who"), Int("nice"))
def setpriority(guest: Guest, call: Call, which: int, who: int, nice: int) -> int:
    """The nice value stays as it is: how guests share the machine is their managers' business."""
    _check_who(which, who)
    if signed(nice, 32):
        raise CallError(errno.EPERM)
    return 0


def _check_who(which: int, who: int) -> None:
    ours = {_PRIO_PROCESS: (0, GUEST_PID), _PRIO_PGRP: (0, GUEST_PID), _PRIO_USER: (0, USER)}
    known = ours.get(signed(which, 32))
    if known is None:
        raise CallError(errno.EINVAL)
    if signed(who, 32) not in known:
        raise CallError(errno.ESRCH)


@hypercall(148, "sched_rr_get_interval", Int("pid"), Address("interval"))
def sched_rr_get_interval(guest: Guest, call: Call, pid: int, address: int) -> int:
    """How long a thread may run at a stretch; the scheduler's own business, as for all of SCHED_OTHER."""
    if (tid := signed(pid, 32)) < 0:
        raise CallError(errno.EINVAL)
    if tid and tid not in guest.threads and tid != GUEST_PID:
        raise CallError(errno.ESRCH)
    guest.memory.pack(_TIMESPEC, address, 0, SECOND // 250)
    return 0


@hypercall(125, "capget", Address("header"), Address("data"))
def capget(guest: Guest, call: Call, header: int, data: int) -> int:
    """It has no capabilities."""
    sets = _capability_sets(guest, header, data)
    if sets:
        guest.memory.write(data, bytes(_CAPABILITY_SET * sets))
    return 0


@hypercall(126, "capset", Address("header"), Address("data"))
def capset(guest: Guest, call: Call, header: int, data: int) -> int:
    """It may go without capabilities, as it does."""
    sets = _capability_sets(guest, header, 1)
    if any(guest.memory.read(data, _CAPABILITY_SET * sets)):
        raise CallError(errno.EPERM)
    return 0


def _capability_sets(guest: Guest, header: int, data: int) -> int:
    """How many sets of 32 capabilities are asked for; none if only the version is. As cap_validate_magic() has it."""
    version, pid = guest.memory.unpack(_CAPABILITY_HEADER, header)
    if version not in _CAPABILITY_VERSIONS:
        guest.memory.write(header, _VERSION.pack(max(_CAPABILITY_VERSIONS)))
        if not data:
            return 0
        raise CallError(errno.EINVAL)
    if not data:
        return 0
    if pid < 0:
        raise CallError(errno.EINVAL)
    if pid not in (0, GUEST_PID, *guest.threads):
        raise CallError(errno.ESRCH)
    return _CAPABILITY_VERSIONS[version]
