"""How calls wait: for a description to be ready, for a time at most, and with other signals blocked meanwhile."""

from __future__ import annotations

import errno
import struct

from memvm.files.description import Description
from memvm.machine.callresult import BLOCKED, CallError, CallResult
from memvm.machine.clocks import SECOND
from memvm.machine.guest import Guest
from memvm.machine.hypercalls.table import Call

TIMESPEC = struct.Struct("=qq")  # timeval has the same layout
_LONGEST = (1 << 63) - 1
_SET_SIZE = 8  # sizeof(sigset_t) in the kernel


def wait_until_ready(
    guest: Guest, call: Call, description: Description, events: int, *, nonblocking: bool = False
) -> CallResult:
    """Have a call tried again when these events may hold.

    If it may not wait, or no longer, its result is what it has done by now. Raises CallError(EAGAIN) for nothing.
    """
    if description.nonblocking or nonblocking:
        return failed(call, errno.EAGAIN)
    limit = description.time_limit(events)
    if deadline_passed(guest, call, limit or None):
        return failed(call, errno.EAGAIN)
    call.wait_for([(description, events)])
    call.begins_anew = not limit
    return BLOCKED


def let_others(call: Call, description: Description, events: int) -> CallResult:
    """Have a call go on when others have had their turn: a request to freeze the guest first of all."""
    call.waits_for = {description.fd: events}
    call.begins_anew = True
    return BLOCKED


def failed(call: Call, error: int) -> int:
    """What was done counts; the error will come again. Raises CallError."""
    if call.progress:
        return call.progress
    raise CallError(error)


def deadline_passed(guest: Guest, call: Call, limit: int | None) -> bool:
    """Whether a call that may wait `limit` ns has waited enough; remembers when it began."""
    if limit is None:
        return False
    now = guest.clocks.monotonic()
    if call.deadline is None:
        call.deadline = min(now + limit, _LONGEST)
    return now >= call.deadline


def time_limit(guest: Guest, address: int, unit: int) -> int | None:
    """The time to wait, in ns, from a timespec (unit 1) or timeval (unit 1000); None for ever. Raises CallError."""
    if not address:
        return None
    seconds, parts = guest.memory.unpack(TIMESPEC, address)
    if seconds < 0 or parts < 0 or (unit == 1 and parts >= SECOND):
        raise CallError(errno.EINVAL)
    return min(seconds * SECOND + parts * unit, _LONGEST)


def block_meanwhile(guest: Guest, call: Call, mask: int, size: int) -> None:
    """Block the signals of a set in memory until the call has ended, if there is one. Raises CallError."""
    if mask:
        if size != _SET_SIZE:
            raise CallError(errno.EINVAL)
        call.thread.block_meanwhile(int.from_bytes(guest.memory.read(mask, _SET_SIZE), "little"))
