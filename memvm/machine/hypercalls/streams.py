"""Calls on open files: read, write and their kin, and descriptors.

A call that would block says what it waits for and returns BLOCKED; it is carried out again when that has come, also
after a restore. Files never block, but a call moves only so much of one at a time: then others get their turn.
"""

from __future__ import annotations

import errno
import fcntl
import select
import signal
import struct

from memvm.machine.callresult import CallError, CallResult
from memvm.machine.guest import Guest
from memvm.machine.hypercalls.blocking import failed, let_others, wait_until_ready
from memvm.machine.hypercalls.pieces import MOST, Piece, vectors, views_of
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
from memvm.machine.signals import make_signal
from memvm.machine.streams import MAX_DESCRIPTORS, OpenFile

_MOST_OFFSET = (1 << 63) - 1 - MOST
_TURN = 1 << 20
"""Bytes that a call moves before others get their turn."""
_INT = 0xFFFFFFFF
_O_CLOEXEC, _O_NONBLOCK, _O_APPEND = 0o2000000, 0o4000, 0o2000
_F_GETPIPE_SZ, _PIPE_SIZE = 1032, 65536
_LOCKS = {fcntl.F_GETLK, fcntl.F_SETLK, fcntl.F_SETLKW, 36, 37, 38}  # and F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW
_ASKING = {fcntl.F_GETLK, 36}
_FLOCK = struct.Struct("=hh4xqqi4x")
_F_UNLCK = 2


def _read(guest: Guest, call: Call, fd: int, pieces: list[Piece], offset: int | None = None) -> CallResult:
    stream = guest.files.get(fd).stream
    size = sum(size for _, size in pieces)
    until = min(size, call.progress + _TURN)
    while call.progress < until or stream.is_message:
        try:
            views = views_of(pieces, call.progress, until, guest.memory.writable)
            done = stream.read(views, None if offset is None else offset + call.progress)
        except BlockingIOError:
            return wait_until_ready(guest, call, stream, select.POLLIN)
        except OSError as error:
            return failed(call, error.errno or errno.EIO)
        except CallError as error:
            return failed(call, error.errno)
        call.progress += done
        if not stream.is_file or not done:
            return call.progress
    return call.progress if call.progress >= size else let_others(call, stream, select.POLLIN)


def _write(guest: Guest, call: Call, fd: int, pieces: list[Piece], offset: int | None = None) -> CallResult:
    stream = guest.files.get(fd).stream
    if not guest.wrote and stream in guest.files.streams:
        guest.wrote = True
        guest.on_first_output()
    size = sum(size for _, size in pieces)
    until = min(size, call.progress + _TURN)
    while call.progress < until or stream.is_message:
        try:
            views = views_of(pieces, call.progress, until, guest.memory.readable)
            call.progress += stream.write(views, None if offset is None else offset + call.progress)
        except BlockingIOError:
            return wait_until_ready(guest, call, stream, select.POLLOUT)
        except OSError as error:
            if error.errno == errno.EPIPE and stream.breaks_pipes:
                guest.send(make_signal(signal.SIGPIPE), call.thread)
            return failed(call, error.errno or errno.EIO)
        except CallError as error:
            return failed(call, error.errno)
        if stream.is_message:
            break
    return call.progress if call.progress >= size or stream.is_message else let_others(call, stream, select.POLLOUT)


@hypercall(0, "read", Int("fd"), Buffer("buf", "result"), Argument("count"))
def read(guest: Guest, call: Call, fd: int, buffer: int, count: int) -> CallResult:
    """Read; waits until there is something."""
    return _read(guest, call, fd, [(buffer, min(count, MOST))])


@hypercall(1, "write", Int("fd"), Buffer("buf", "count"), Argument("count"))
def write(guest: Guest, call: Call, fd: int, buffer: int, count: int) -> CallResult:
    """Write all of it; waits while the other end is full."""
    return _write(guest, call, fd, [(buffer, min(count, MOST))])


@hypercall(19, "readv", Int("fd"), Address("vec"), Argument("count"))
def readv(guest: Guest, call: Call, fd: int, vector: int, count: int) -> CallResult:
    """Read into several buffers."""
    guest.files.get(fd)
    return _read(guest, call, fd, vectors(guest, vector, count))


@hypercall(20, "writev", Int("fd"), Address("vec"), Argument("count"))
def writev(guest: Guest, call: Call, fd: int, vector: int, count: int) -> CallResult:
    """Write several buffers."""
    guest.files.get(fd)
    return _write(guest, call, fd, vectors(guest, vector, count))


def _position(guest: Guest, fd: int, offset: int) -> int:
    if signed(offset) < 0:
        raise CallError(errno.EINVAL)
    if not guest.files.get(fd).stream.is_file:
        raise CallError(errno.ESPIPE)
    return min(offset, _MOST_OFFSET)


@hypercall(17, "pread64", Int("fd"), Buffer("buf", "result"), Argument("count"), Argument("offset"))
def pread64(guest: Guest, call: Call, fd: int, buffer: int, count: int, offset: int) -> CallResult:
    """Read from a place in a file."""
    return _read(guest, call, fd, [(buffer, min(count, MOST))], _position(guest, fd, offset))


@hypercall(18, "pwrite64", Int("fd"), Buffer("buf", "count"), Argument("count"), Argument("offset"))
def pwrite64(guest: Guest, call: Call, fd: int, buffer: int, count: int, offset: int) -> CallResult:
    """Write to a place in a file."""
    return _write(guest, call, fd, [(buffer, min(count, MOST))], _position(guest, fd, offset))


@hypercall(74, "fsync", Int("fd"))
@hypercall(75, "fdatasync", Int("fd"))
def fsync(guest: Guest, call: Call, fd: int) -> int:
    """Write a file to its disk, if it is on one."""
    try:
        guest.files.get(fd).stream.sync()
    except OSError as error:
        raise CallError(error.errno or errno.EIO) from error
    return 0


@hypercall(221, "fadvise64", Int("fd"), Argument("offset"), Argument("length"), Argument("advice"))
def fadvise64(guest: Guest, call: Call, fd: int, *_advice: int) -> int:
    """Advice on a file is taken note of, and not followed."""
    if not guest.files.get(fd).stream.is_file:
        raise CallError(errno.ESPIPE)
    return 0


@hypercall(3, "close", Int("fd"))
def close(guest: Guest, call: Call, fd: int) -> int:
    """Close a descriptor; the manager keeps what is behind a standard stream."""
    guest.files.close(fd)
    return 0


@hypercall(32, "dup", Int("fd"))
def dup(guest: Guest, call: Call, fd: int) -> int:
    """A second descriptor for an open file."""
    return guest.files.duplicate(fd, 0, close_on_exec=False)


@hypercall(33, "dup2", Int("fd"), Int("target"))
def dup2(guest: Guest, call: Call, fd: int, target: int) -> int:
    """A given descriptor for an open file."""
    if fd & _INT == target & _INT:
        guest.files.get(fd)
        return target & _INT
    return guest.files.duplicate_to(fd, target & _INT, close_on_exec=False)


@hypercall(292, "dup3", Int("fd"), Int("target"), Flags("flags", O_CLOEXEC=_O_CLOEXEC))
def dup3(guest: Guest, call: Call, fd: int, target: int, flags: int) -> int:
    """dup2, which refuses equal descriptors and takes O_CLOEXEC."""
    if fd & _INT == target & _INT or flags & _INT & ~_O_CLOEXEC:
        raise CallError(errno.EINVAL)
    return guest.files.duplicate_to(fd, target & _INT, close_on_exec=bool(flags & _INT))


@hypercall(8, "lseek", Int("fd"), Argument("offset"), Choice("whence", SEEK_SET=0, SEEK_CUR=1, SEEK_END=2))
def lseek(guest: Guest, call: Call, fd: int, offset: int, whence: int) -> int:
    """Move in a file or a directory."""
    stream = guest.files.get(fd).stream
    try:
        return stream.seek(signed(offset), whence & _INT)
    except (OSError, OverflowError) as error:
        raise CallError(getattr(error, "errno", None) or errno.EINVAL) from error


@hypercall(
    72,
    "fcntl",
    Int("fd"),
    Choice("cmd", F_DUPFD=0, F_GETFD=1, F_SETFD=2, F_GETFL=3, F_SETFL=4, F_DUPFD_CLOEXEC=1030),
    Argument("arg"),
)
def fcntl_(guest: Guest, call: Call, fd: int, command: int, argument: int) -> int:
    """Flags, which are the guest's own; and locks of files, which nobody else holds."""
    entry: OpenFile = guest.files.get(fd)
    command &= _INT
    if command in (fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC):
        if argument >= MAX_DESCRIPTORS:
            raise CallError(errno.EINVAL)
        return guest.files.duplicate(fd, argument, close_on_exec=command == fcntl.F_DUPFD_CLOEXEC)
    if command == fcntl.F_GETFD:
        return int(entry.close_on_exec)
    if command == fcntl.F_SETFD:
        entry.close_on_exec = bool(argument & fcntl.FD_CLOEXEC)
        return 0
    if command == fcntl.F_GETFL:
        return entry.stream.flags | (_O_NONBLOCK if entry.stream.nonblocking else 0)
    if command == fcntl.F_SETFL:
        entry.stream.nonblocking = bool(argument & _O_NONBLOCK)
        entry.stream.flags = entry.stream.flags & ~_O_APPEND | argument & _O_APPEND
        return 0
    if command in _LOCKS:
        return _lock(guest, command, argument)
    if command == _F_GETPIPE_SZ:
        return _PIPE_SIZE
    raise CallError(errno.EINVAL)


def _lock(guest: Guest, command: int, address: int) -> int:
    """Nobody else uses the files: every lock can be had."""
    kind, whence, start, length, pid = guest.memory.unpack(_FLOCK, address)
    if not 0 <= kind <= _F_UNLCK or whence not in (0, 1, 2):
        raise CallError(errno.EINVAL)
    if command in _ASKING:
        guest.memory.pack(_FLOCK, address, _F_UNLCK, whence, start, length, pid)
    return 0


@hypercall(73, "flock", Int("fd"), Flags("operation", LOCK_SH=1, LOCK_EX=2, LOCK_NB=4, LOCK_UN=8))
def flock(guest: Guest, call: Call, fd: int, operation: int) -> int:
    """Nobody else uses the files: every lock can be had."""
    guest.files.get(fd)
    if operation & ~4 not in (1, 2, 8):
        raise CallError(errno.EINVAL)
    return 0


@hypercall(295, "preadv", Int("fd"), Address("vec"), Argument("count"), Argument("offset"))
def preadv(guest: Guest, call: Call, fd: int, vector: int, count: int, offset: int) -> CallResult:
    """Read from a place in a file into several buffers."""
    return _read(guest, call, fd, vectors(guest, vector, count), _position(guest, fd, offset))


@hypercall(296, "pwritev", Int("fd"), Address("vec"), Argument("count"), Argument("offset"))
def pwritev(guest: Guest, call: Call, fd: int, vector: int, count: int, offset: int) -> CallResult:
    """Write several buffers to a place in a file."""
    return _write(guest, call, fd, vectors(guest, vector, count), _position(guest, fd, offset))


@hypercall(436, "close_range", Argument("first"), Argument("last"), Flags("flags", CLOSE_RANGE_CLOEXEC=4))
def close_range(guest: Guest, call: Call, first: int, last: int, flags: int) -> int:
    """Close descriptors, or have exec close them."""
    first, last = first & _INT, last & _INT
    if first > last or flags & ~6:
        raise CallError(errno.EINVAL)
    for number in [number for number in guest.files.table if first <= number <= last]:
        if flags & 4:
            guest.files.table[number].close_on_exec = True
        else:
            guest.files.close(number)
    return 0
