"""Calls about what is in mapped memory, and where else it is: madvise, msync, mincore, mlock."""

from __future__ import annotations

import errno

from memvm.machine.callresult import CallError
from memvm.machine.guest import Guest
from memvm.machine.hypercalls.mappings import checked_range
from memvm.machine.hypercalls.paths import refusable
from memvm.machine.hypercalls.table import Address, Argument, Call, Choice, Flags, hypercall
from memvm.machine.space import page_up
from memvm.memory.pages import page_span
from memvm.units import PAGE_SIZE

# include/uapi/asm-generic/mman-common.h
MADV_DONTNEED, MADV_REMOVE, MADV_DONTFORK, MADV_DOFORK = 4, 9, 10, 11
MS_SYNC = 4
MADV_POPULATE_READ, MADV_POPULATE_WRITE = 22, 23
_ADVICE_WITHOUT_EFFECT = {
    0,
    1,
    2,
    3,
    8,
    12,
    13,
    14,
    15,
    16,
    17,
    18,
    19,
    20,
    21,
    25,
    MADV_DONTFORK,
    MADV_DOFORK,
}


@hypercall(
    28,
    "madvise",
    Address("addr"),
    Argument("length"),
    Choice(
        "advice",
        MADV_NORMAL=0,
        MADV_WILLNEED=3,
        MADV_DONTNEED=4,
        MADV_FREE=8,
        MADV_REMOVE=9,
        MADV_HUGEPAGE=14,
    ),
)
def madvise(guest: Guest, call: Call, start: int, size: int, advice: int) -> int:
    """MADV_DONTNEED and MADV_REMOVE give zeros; other advice is taken note of, and not followed."""
    if start % PAGE_SIZE or start + page_up(size) >> 64:
        raise CallError(errno.EINVAL)
    if not size:
        return 0
    end = checked_range(guest, start, size, errno.ENOMEM)
    if not guest.space.holds(start, end - start):
        raise CallError(errno.ENOMEM)
    advice &= 0xFFFFFFFF
    if advice in (MADV_DONTNEED, MADV_REMOVE):
        _forget(guest, start, end, keep_files=advice == MADV_DONTNEED)
        guest.mapped_last = None
    elif advice not in _ADVICE_WITHOUT_EFFECT and advice not in (MADV_POPULATE_READ, MADV_POPULATE_WRITE):
        raise CallError(errno.EINVAL)
    return 0


def _forget(guest: Guest, start: int, end: int, *, keep_files: bool) -> None:
    """Throw memory away; what is mapped of a file would be read from there again, so it stays where that is wanted."""
    kept = guest.shared.covering(start, end) if keep_files else []
    for mapping in sorted(kept, key=lambda mapping: mapping.start):
        if start < mapping.start:
            guest.ram.discard(*page_span(start, mapping.start - start, guest.ram.base))
        start = max(start, min(mapping.end, end))
    if start < end:
        guest.ram.discard(*page_span(start, end - start, guest.ram.base))


@hypercall(
    26,
    "msync",
    Address("addr"),
    Argument("length"),
    Flags("flags", MS_ASYNC=1, MS_INVALIDATE=2, MS_SYNC=4),
)
@refusable
def msync(guest: Guest, call: Call, start: int, size: int, flags: int) -> int:
    """Bring what was stored in shared mappings to their files, and with MS_SYNC to the disk."""
    if start % PAGE_SIZE or flags & ~7 or flags & 5 == 5:
        raise CallError(errno.EINVAL)
    if not size:
        return 0
    if not guest.space.holds(start, page_up(size)):
        raise CallError(errno.ENOMEM)
    guest.shared.collect(start, start + page_up(size), sync=bool(flags & MS_SYNC))
    return 0


@hypercall(27, "mincore", Address("addr"), Argument("length"), Address("vec"))
def mincore(guest: Guest, call: Call, start: int, size: int, vector: int) -> int:
    """Which pages hold memory or are about to: deferred pages count as there."""
    if start % PAGE_SIZE:
        raise CallError(errno.EINVAL)
    if not size:
        return 0
    end = checked_range(guest, start, size, errno.ENOMEM)
    if not guest.space.holds(start, end - start):
        raise CallError(errno.ENOMEM)
    first, count = page_span(start, end - start, guest.ram.base)
    present = bytearray(1 if flag else 0 for flag in guest.ram.flags[first : first + count])
    for run in guest.ram.touched(first, count):
        present[run.first - first : run.end - first] = b"\1" * run.count
    guest.memory.write(vector, bytes(present))
    return 0


@hypercall(149, "mlock", Address("addr"), Argument("length"))
@hypercall(150, "munlock", Address("addr"), Argument("length"))
def mlock(guest: Guest, call: Call, start: int, size: int) -> int:
    """Guest RAM is the manager's to page; the wish is accepted."""
    first = start // PAGE_SIZE * PAGE_SIZE
    if size and not guest.space.holds(first, page_up(start + size - first)):
        raise CallError(errno.ENOMEM)
    return 0
