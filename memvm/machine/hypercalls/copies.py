"""Calls that copy from one open file to another, without the data's going through the guest's memory.

Between regular files they are carried out, up to a megabyte at a time: callers go on by what is returned. With anything
else at either end they are refused as Linux refuses what it cannot shorten, and programs read and write instead.
"""

from __future__ import annotations

import errno
import os
import struct

from memvm.files.description import Description
from memvm.machine.callresult import CallError
from memvm.machine.guest import Guest
from memvm.machine.hypercalls.table import Address, Argument, Call, Int, hypercall

_OFFSET = struct.Struct("=q")
_TURN = 1 << 20
"""Bytes that one call copies: others wait for their turn meanwhile."""


@hypercall(40, "sendfile", Int("out"), Int("in"), Address("offset"), Argument("count"))
def sendfile(guest: Guest, call: Call, out: int, source: int, offset: int, count: int) -> int:
    """Copy from a file, at its position or at an offset, to where another file's position is."""
    return _copy(guest, _file(guest, source), offset, _file(guest, out), 0, count)


@hypercall(
    326,
    "copy_file_range",
    Int("in"),
    Address("in_offset"),
    Int("out"),
    Address("out_offset"),
    Argument("count"),
    Argument("flags"),
)
def copy_file_range(
    guest: Guest, call: Call, source: int, in_offset: int, out: int, out_offset: int, count: int, flags: int
) -> int:
    """Copy from one file to another, each at its position or at an offset."""
    reading, writing = _file(guest, source), _file(guest, out)
    if flags & 0xFFFFFFFF:
        raise CallError(errno.EINVAL)
    if writing.flags & os.O_APPEND:
        raise CallError(errno.EBADF)
    return _copy(guest, reading, in_offset, writing, out_offset, count)


@hypercall(275, "splice", Int("in"), Address("in_offset"), Int("out"), Address("out_offset"))
def splice(guest: Guest, call: Call, *_arguments: int) -> int:
    """Not for such descriptors: programs go on with read and write."""
    raise CallError(errno.EINVAL)


def _file(guest: Guest, fd: int) -> Description:
    opened = guest.files.get(fd).stream
    if not opened.is_file:
        raise CallError(errno.EINVAL)
    return opened


def _copy(guest: Guest, source: Description, offset: int, target: Description, target_offset: int, count: int) -> int:
    """The offsets are addresses of where they are kept, or 0 for a file's own position. Raises CallError."""
    try:
        first = _place(guest, source, offset)
        to = _place(guest, target, target_offset)
        size = min(count, _TURN, (1 << 63) - 1 - max(first, to))
        if _same(source, target) and first < to + size and to < first + size:
            raise CallError(errno.EINVAL)
        buffer = memoryview(bytearray(max(size, 0)))
        size = source.read([buffer], first)
        done = target.write([buffer[:size]], to if target_offset else None) if size else 0
        _move(guest, source, offset, first + done)
        if target_offset:
            _move(guest, target, target_offset, to + done)
    except OSError as error:
        raise CallError(error.errno or errno.EIO) from error
    return done


def _place(guest: Guest, file: Description, address: int) -> int:
    if not address:
        return file.seek(0, os.SEEK_CUR)
    (offset,) = guest.memory.unpack(_OFFSET, address)
    if offset < 0:
        raise CallError(errno.EINVAL)
    return int(offset)


def _move(guest: Guest, file: Description, address: int, offset: int) -> None:
    if address:
        guest.memory.pack(_OFFSET, address, offset)
    else:
        file.seek(offset, os.SEEK_SET)


def _same(one: Description, other: Description) -> bool:
    first, second = one.facts(), other.facts()
    return (first.device, first.inode) == (second.device, second.inode)
