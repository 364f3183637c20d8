"""epoll: which descriptors are ready, told as that changes."""

from __future__ import annotations

import errno
import select
import struct
from typing import TYPE_CHECKING

from memvm.machine.callresult import BLOCKED, CallError, CallResult
from memvm.machine.guest import Guest
from memvm.machine.hypercalls.blocking import block_meanwhile, deadline_passed, time_limit
from memvm.machine.hypercalls.paths import refusable
from memvm.machine.hypercalls.table import Address, Argument, Call, Choice, Flags, Int, hypercall, signed

if TYPE_CHECKING:
    from memvm.files.epoll import Epoll

_EVENT = struct.Struct("=IQ")  # struct epoll_event, which is packed
_MOST_EVENTS = 0x7FFFFFFF // _EVENT.size  # EP_MAX_EVENTS: fs/eventpoll.c
_CLOEXEC = 0o2000000  # EPOLL_CLOEXEC
_ADD, _DELETE, _MODIFY = 1, 2, 3


@hypercall(213, "epoll_create", Int("size"))
def epoll_create(guest: Guest, call: Call, size: int) -> int:
    """A new instance; its size means nothing."""
    if signed(size, 32) <= 0:
        raise CallError(errno.EINVAL)
    return _create(guest, close_on_exec=False)


@hypercall(291, "epoll_create1", Flags("flags", EPOLL_CLOEXEC=_CLOEXEC))
def epoll_create1(guest: Guest, call: Call, flags: int) -> int:
    """A new instance."""
    if flags & 0xFFFFFFFF & ~_CLOEXEC:
        raise CallError(errno.EINVAL)
    return _create(guest, close_on_exec=bool(flags & _CLOEXEC))


def _create(guest: Guest, *, close_on_exec: bool) -> int:
    from memvm.files.epoll import Epoll

    return guest.files.add(Epoll(guest.wake, guest.budget), close_on_exec)


def _instance(guest: Guest, descriptor: int) -> Epoll:
    from memvm.files.epoll import Epoll

    stream = guest.files.get(descriptor).stream
    if not isinstance(stream, Epoll):
        raise CallError(errno.EINVAL)
    return stream


@hypercall(
    233,
    "epoll_ctl",
    Int("epfd"),
    Choice("op", EPOLL_CTL_ADD=_ADD, EPOLL_CTL_DEL=_DELETE, EPOLL_CTL_MOD=_MODIFY),
    Int("fd"),
    Address("event"),
)
@refusable
def epoll_ctl(guest: Guest, call: Call, instance: int, operation: int, fd: int, event: int) -> int:
    """Be told of a descriptor's events, or of others, or no more."""
    operation &= 0xFFFFFFFF
    events, data = (0, 0) if operation == _DELETE else guest.memory.unpack(_EVENT, event)
    guest.files.get(instance)
    target = guest.files.get(fd).stream
    if not target.can_be_watched:
        raise CallError(errno.EPERM)
    epoll = _instance(guest, instance)
    if target is epoll:
        raise CallError(errno.EINVAL)
    if operation == _ADD:
        epoll.add(fd & 0xFFFFFFFF, target, events, data)
    elif operation == _DELETE:
        epoll.remove(epoll.interest(fd & 0xFFFFFFFF, target))
    elif operation == _MODIFY:
        epoll.modify(fd & 0xFFFFFFFF, target, events, data)
    else:
        raise CallError(errno.EINVAL)
    return 0


@hypercall(232, "epoll_wait", Int("epfd"), Address("events"), Int("maxevents"), Int("timeout"))
def epoll_wait(guest: Guest, call: Call, instance: int, events: int, most: int, timeout: int) -> CallResult:
    """Wait until something is ready, milliseconds at most; negative is for ever."""
    return _wait(guest, call, instance, events, most, _milliseconds(timeout))


@hypercall(
    281,
    "epoll_pwait",
    Int("epfd"),
    Address("events"),
    Int("maxevents"),
    Int("timeout"),
    Address("sigmask"),
    Argument("size"),
)
def epoll_pwait(
    guest: Guest, call: Call, instance: int, events: int, most: int, timeout: int, mask: int, size: int
) -> CallResult:
    """epoll_wait with other signals blocked meanwhile."""
    block_meanwhile(guest, call, mask, size)
    return _wait(guest, call, instance, events, most, _milliseconds(timeout))


@hypercall(
    441,
    "epoll_pwait2",
    Int("epfd"),
    Address("events"),
    Int("maxevents"),
    Address("timeout"),
    Address("sigmask"),
    Argument("size"),
)
def epoll_pwait2(
    guest: Guest, call: Call, instance: int, events: int, most: int, timeout: int, mask: int, size: int
) -> CallResult:
    """epoll_pwait with a timespec."""
    limit = time_limit(guest, timeout, 1)
    block_meanwhile(guest, call, mask, size)
    return _wait(guest, call, instance, events, most, limit)


def _milliseconds(timeout: int) -> int | None:
    milliseconds = signed(timeout, 32)
    return None if milliseconds < 0 else milliseconds * 1_000_000


def _wait(guest: Guest, call: Call, instance: int, address: int, most: int, limit: int | None) -> CallResult:
    guest.files.get(instance)
    most = signed(most, 32)
    if not 0 < most <= _MOST_EVENTS:
        raise CallError(errno.EINVAL)
    epoll = _instance(guest, instance)
    # No more than what may be ready is told, and room for that has to be there before anything is taken off the list.
    epoll.collect()
    most = min(most, max(1, len(epoll.ready)))
    guest.memory.writable(address, most * _EVENT.size)
    found = epoll.wait(most)
    guest.memory.write(address, b"".join(_EVENT.pack(*one) for one in found))
    if found or deadline_passed(guest, call, limit):
        return len(found)
    call.wait_for([(epoll, select.POLLIN)])
    return BLOCKED
