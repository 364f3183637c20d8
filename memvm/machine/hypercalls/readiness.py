"""Calls that wait for readiness: poll, select and their kin.

Readiness is asked for at each try. What was left of the time is told where Linux tells it (select(2)).
"""

from __future__ import annotations

import errno
import select
import struct
from contextlib import suppress

from memvm.files.description import POLL_EVENTS, Description
from memvm.machine.callresult import BLOCKED, CallError, CallResult
from memvm.machine.clocks import SECOND
from memvm.machine.guest import Guest
from memvm.machine.hypercalls.blocking import TIMESPEC, block_meanwhile, deadline_passed, time_limit
from memvm.machine.hypercalls.table import Address, Argument, Call, Int, hypercall, signed
from memvm.machine.streams import MAX_DESCRIPTORS

_POLLFD = struct.Struct("=iHH")
_SIGNAL_SET = struct.Struct("=QQ")  # what pselect6 points to: address and size of a set


@hypercall(7, "poll", Address("fds"), Argument("nfds"), Int("timeout"))
def poll(guest: Guest, call: Call, descriptors: int, count: int, timeout: int) -> CallResult:
    """Wait for readiness, milliseconds at most; negative is for ever."""
    milliseconds = signed(timeout, 32)
    return _poll(guest, call, descriptors, count, None if milliseconds < 0 else milliseconds * 1_000_000)


@hypercall(271, "ppoll", Address("fds"), Argument("nfds"), Address("timeout"), Address("sigmask"), Argument("size"))
def ppoll(guest: Guest, call: Call, descriptors: int, count: int, timeout: int, mask: int, size: int) -> CallResult:
    """poll with a timespec, and other signals blocked meanwhile."""
    limit = time_limit(guest, timeout, 1)
    block_meanwhile(guest, call, mask, size)
    result = _poll(guest, call, descriptors, count, limit)
    return _tell_left(guest, call, timeout, 1, result)


def _tell_left(guest: Guest, call: Call, address: int, unit: int, result: CallResult) -> CallResult:
    """Store what was left of the time; a place that cannot be written is no error (poll_select_finish)."""

    def tell() -> None:
        if address and call.deadline is not None:
            left = max(0, call.deadline - guest.clocks.monotonic())
            with suppress(CallError):
                guest.memory.pack(TIMESPEC, address, left // SECOND, left % SECOND // unit)

    if result is BLOCKED:
        call.on_interruption = tell
    else:
        tell()
    return result


def _poll(guest: Guest, call: Call, address: int, count: int, limit: int | None) -> CallResult:
    count &= 0xFFFFFFFF
    if count > MAX_DESCRIPTORS:
        raise CallError(errno.EINVAL)
    entries = list(_POLLFD.iter_unpack(guest.memory.read(address, count * _POLLFD.size)))
    ready, wanted, answers = 0, list[tuple[Description, int]](), []
    for fd, events, _ in entries:
        found = 0
        if fd >= 0:
            found = select.POLLNVAL
            if fd in guest.files.table:
                description = guest.files.get(fd).stream
                description.collect()
                found = description.events(events & POLL_EVENTS)
                wanted.append((description, events))
        answers.append(_POLLFD.pack(fd, events, found))
        ready += bool(found)
    guest.memory.write(address, b"".join(answers))
    if ready or deadline_passed(guest, call, limit):
        return ready
    call.wait_for(wanted)
    return BLOCKED


@hypercall(23, "select", Int("nfds"), Address("read"), Address("write"), Address("except"), Address("timeout"))
def select_(
    guest: Guest, call: Call, count: int, reading: int, writing: int, excepting: int, timeout: int
) -> CallResult:
    """Wait for readiness, with bit sets and a timeval."""
    limit = time_limit(guest, timeout, 1000)
    result = _select(guest, call, count, (reading, writing, excepting), limit)
    return _tell_left(guest, call, timeout, 1000, result)


@hypercall(
    270,
    "pselect6",
    Int("nfds"),
    Address("read"),
    Address("write"),
    Address("except"),
    Address("timeout"),
    Address("sigmask"),
)
def pselect6(
    guest: Guest, call: Call, count: int, reading: int, writing: int, excepting: int, timeout: int, mask: int
) -> CallResult:
    """select with a timespec, and other signals blocked meanwhile."""
    limit = time_limit(guest, timeout, 1)
    if mask:
        block_meanwhile(guest, call, *guest.memory.unpack(_SIGNAL_SET, mask))
    result = _select(guest, call, count, (reading, writing, excepting), limit)
    return _tell_left(guest, call, timeout, 1, result)


_IN = select.POLLIN | select.POLLHUP | select.POLLERR
_OUT = select.POLLOUT | select.POLLERR
_EXCEPT = select.POLLPRI


def _select(guest: Guest, call: Call, count: int, sets: tuple[int, int, int], limit: int | None) -> CallResult:
    count = signed(count, 32)
    if count < 0:
        raise CallError(errno.EINVAL)
    count = min(count, MAX_DESCRIPTORS)
    size = (count + 63) // 64 * 8
    asked = [int.from_bytes(guest.memory.read(at, size), "little") if at else 0 for at in sets]
    found, ready, wanted = [0, 0, 0], 0, list[tuple[Description, int]]()
    for fd in range(count):
        bit = 1 << fd
        masks = [mask if want & bit else 0 for want, mask in zip(asked, (_IN, _OUT, _EXCEPT), strict=True)]
        if not any(masks):
            continue
        description = guest.files.get(fd).stream
        events = (masks[0] | masks[1] | masks[2]) & (select.POLLIN | select.POLLOUT | select.POLLPRI)
        description.collect()
        now = description.events(events)
        if not now:  # else it is ready, or has hung up, which is the last that there will be to hear of it
            wanted.append((description, events))
        for which, mask in enumerate(masks):
            if now & mask:
                found[which] |= bit
                ready += 1
    if not ready and not deadline_passed(guest, call, limit):
        call.wait_for(wanted)
        return BLOCKED
    for at, bits in zip(sets, found, strict=True):
        if at:
            guest.memory.write(at, bits.to_bytes(size, "little"))
    return ready
