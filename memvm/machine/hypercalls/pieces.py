"""The buffers of a call: one, or several as readv(2) and sendmsg(2) have them."""

from __future__ import annotations

import errno
import struct

from memvm.machine.callresult import CallError
from memvm.machine.guest import Guest
from memvm.machine.guest_memory import Access

MOST = 0x7FFFF000
"""Bytes that a call moves at most. MAX_RW_COUNT: include/linux/fs.h."""
_IOVEC = struct.Struct("=QQ")
_IOV_MAX = 1024

Piece = tuple[int, int]
"""A guest address and a size."""


def vectors(guest: Guest, vector: int, count: int, too_many: int = errno.EINVAL) -> list[Piece]:
    """The buffers of an array of struct iovec. Raises CallError; with `too_many` for more than 1,024."""
    if count > _IOV_MAX:
        raise CallError(too_many)
    pieces, left = [], MOST
    for index in range(count):
        address, size = guest.memory.unpack(_IOVEC, vector + index * _IOVEC.size)
        if size >> 63:
            raise CallError(errno.EINVAL)
        pieces.append((address, min(size, left)))
        left -= pieces[-1][1]
    return pieces


def views_of(pieces: list[Piece], skip: int, until: int, access: Access) -> list[memoryview]:
    """The host view of bytes `skip` to `until` of the pieces. Raises CallError(EFAULT)."""
    views = []
    left = until - skip
    for address, size in pieces:
        if skip >= size:
            skip -= size
            continue
        views.append(access(address + skip, min(size - skip, left)))
        left -= len(views[-1])
        skip = 0
        if not left:
            break
    return views
