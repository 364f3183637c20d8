"""Calls that open files and ask about them: open, stat, access, readlink and their kin; pipes."""

from __future__ import annotations

import errno
import os
import struct

from memvm.files.facts import BLOCK_SIZE, Facts
from memvm.files.pipes import make_pipe
from memvm.machine.callresult import CallError
from memvm.machine.clocks import SECOND
from memvm.machine.guest import Guest
from memvm.machine.hypercalls.paths import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    base_of,
    refusable,
)
from memvm.machine.hypercalls.table import Address, Argument, Buffer, Call, Choice, Flags, Int, Text, hypercall, signed

_INT = 0xFFFFFFFF
_STAT = struct.Struct("=QQQIIIIQqqqqqqqqq24x")  # struct stat: arch/x86/include/uapi/asm/stat.h
_STATX = struct.Struct("=IIQIIIHxxQQQQqIxxxxqIxxxxqIxxxxqIxxxxIIIIQ104x")  # include/uapi/linux/stat.h
_STATX_BASIC = 0x7FF
_STATFS = struct.Struct("=qqQQQQQIIqqq32x")
_TMPFS_MAGIC = 0x01021994
_ACCESS = Choice("flags", O_RDONLY=0, O_WRONLY=1, O_RDWR=2)
_OTHERS = Flags(
    "flags", "", O_CREAT=0o100, O_EXCL=0o200, O_TRUNC=0o1000, O_APPEND=0o2000,
    O_NONBLOCK=0o4000, O_DIRECTORY=0o200000, O_NOFOLLOW=0o400000, O_CLOEXEC=0o2000000, O_PATH=0o10000000,
)  # fmt: skip
_AT_FLAGS = Flags("flags", AT_SYMLINK_NOFOLLOW=AT_SYMLINK_NOFOLLOW, AT_EMPTY_PATH=AT_EMPTY_PATH)
_MODE = Flags("mode", "F_OK", R_OK=4, W_OK=2, X_OK=1)


class OpenFlags(Argument):
    """How open(2) is to open: an access mode, and bits."""

    def show(self, guest: Guest, values: dict[str, int]) -> str:
        value = values[self.name] & _INT
        shown = (_ACCESS.show(guest, {"flags": value & 3}), _OTHERS.show(guest, {"flags": value & ~3}))
        return "|".join(filter(None, shown))


_NAMES = OpenFlags("flags")


def _open(guest: Guest, directory: int, path: int, flags: int, mode: int) -> int:
    name = guest.memory.string(path)
    flags &= _INT
    opened = guest.tree.open(base_of(guest, directory, name), name, flags, mode & 0o7777 & ~guest.umask)
    guest.shared.attach(opened)
    if opened.users and flags & os.O_NONBLOCK:
        opened.nonblocking = True
    return guest.files.add(opened, bool(flags & os.O_CLOEXEC))


@hypercall(2, "open", Text("path"), _NAMES, Address("mode"))
@refusable
def open_(guest: Guest, call: Call, path: int, flags: int, mode: int) -> int:
    """Open a file or a directory of the guest's tree."""
    return _open(guest, AT_FDCWD, path, flags, mode)


@hypercall(257, "openat", Int("dirfd"), Text("path"), _NAMES, Address("mode"))
@refusable
def openat(guest: Guest, call: Call, directory: int, path: int, flags: int, mode: int) -> int:
    """open, relative to a directory."""
    return _open(guest, directory, path, flags, mode)


@hypercall(85, "creat", Text("path"), Address("mode"))
@refusable
def creat(guest: Guest, call: Call, path: int, mode: int) -> int:
    """open a new file, or one that is emptied."""
    return _open(guest, AT_FDCWD, path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, mode)


def _facts(guest: Guest, directory: int, path: int, flags: int) -> Facts:
    name = guest.memory.string(path)
    if not name and flags & AT_EMPTY_PATH:
        if signed(directory, 32) == AT_FDCWD:
            return guest.tree.facts(guest.cwd, b".", follow=True)
        return guest.files.get(directory).stream.facts()
    return guest.tree.facts(base_of(guest, directory, name), name, follow=not flags & AT_SYMLINK_NOFOLLOW)


def _store(guest: Guest, address: int, facts: Facts) -> int:
    identity = (facts.device, facts.inode, facts.links, facts.mode, facts.owner, facts.group, 0)
    extent = (facts.special, facts.size, BLOCK_SIZE, facts.blocks)
    times = (*divmod(facts.accessed, SECOND), *divmod(facts.modified, SECOND), *divmod(facts.changed, SECOND))
    guest.memory.write(address, _STAT.pack(*identity, *extent, *times))
    return 0


@hypercall(4, "stat", Text("path"), Address("stat"))
@refusable
def stat(guest: Guest, call: Call, path: int, address: int) -> int:
    """Facts about a file."""
    return _store(guest, address, _facts(guest, AT_FDCWD, path, 0))


@hypercall(6, "lstat", Text("path"), Address("stat"))
@refusable
def lstat(guest: Guest, call: Call, path: int, address: int) -> int:
    """Facts about a file, or about a link."""
    return _store(guest, address, _facts(guest, AT_FDCWD, path, AT_SYMLINK_NOFOLLOW))


@hypercall(5, "fstat", Int("fd"), Address("stat"))
@refusable
def fstat(guest: Guest, call: Call, fd: int, address: int) -> int:
    """Facts about an open file."""
    return _store(guest, address, guest.files.get(fd).stream.facts())


@hypercall(262, "newfstatat", Int("dirfd"), Text("path"), Address("stat"), _AT_FLAGS)
@refusable
def newfstatat(guest: Guest, call: Call, directory: int, path: int, address: int, flags: int) -> int:
    """Facts about a file, relative to a directory."""
    return _store(guest, address, _facts(guest, directory, path, flags))


@hypercall(332, "statx", Int("dirfd"), Text("path"), _AT_FLAGS, Address("mask"), Address("statx"))
@refusable
def statx(guest: Guest, call: Call, directory: int, path: int, flags: int, mask: int, address: int) -> int:
    """stat with more room; the basic facts are all that there are."""
    facts = _facts(guest, directory, path, flags)
    times = [part for ns in (facts.accessed, 0, facts.changed, facts.modified) for part in divmod(ns, SECOND)]
    numbers = (os.major(facts.special), os.minor(facts.special), os.major(facts.device), os.minor(facts.device))
    owner = (facts.links, facts.owner, facts.group, facts.mode)
    head = (_STATX_BASIC, BLOCK_SIZE, 0, *owner, facts.inode, facts.size, facts.blocks, 0)
    guest.memory.write(address, _STATX.pack(*head, *times, *numbers, 0))
    return 0


def _access(guest: Guest, directory: int, path: int, mode: int, flags: int) -> int:
    name = guest.memory.string(path)
    if mode & _INT & ~7:
        raise CallError(errno.EINVAL)
    if not name and flags & AT_EMPTY_PATH:
        guest.files.get(directory)
        return 0
    base = base_of(guest, directory, name)
    guest.tree.may(base, name, mode & 7, follow=not flags & AT_SYMLINK_NOFOLLOW)
    return 0


@hypercall(21, "access", Text("path"), _MODE)
@refusable
def access(guest: Guest, call: Call, path: int, mode: int) -> int:
    """Whether the guest may read, write or execute a file."""
    return _access(guest, AT_FDCWD, path, mode, 0)


@hypercall(269, "faccessat", Int("dirfd"), Text("path"), _MODE)
@refusable
def faccessat(guest: Guest, call: Call, directory: int, path: int, mode: int) -> int:
    """access, relative to a directory."""
    return _access(guest, directory, path, mode, 0)


@hypercall(439, "faccessat2", Int("dirfd"), Text("path"), _MODE, _AT_FLAGS)
@refusable
def faccessat2(guest: Guest, call: Call, directory: int, path: int, mode: int, flags: int) -> int:
    """access, relative to a directory, with flags."""
    return _access(guest, directory, path, mode, flags)


def _readlink(guest: Guest, directory: int, path: int, address: int, size: int) -> int:
    name = guest.memory.string(path)
    if signed(size, 32) <= 0:
        raise CallError(errno.EINVAL)
    target = guest.tree.target(base_of(guest, directory, name), name)[: signed(size, 32)]
    guest.memory.write(address, target)
    return len(target)


@hypercall(89, "readlink", Text("path"), Buffer("buf", "result"), Argument("size"))
@refusable
def readlink(guest: Guest, call: Call, path: int, address: int, size: int) -> int:
    """Where a symbolic link leads."""
    return _readlink(guest, AT_FDCWD, path, address, size)


@hypercall(267, "readlinkat", Int("dirfd"), Text("path"), Buffer("buf", "result"), Argument("size"))
@refusable
def readlinkat(guest: Guest, call: Call, directory: int, path: int, address: int, size: int) -> int:
    """readlink, relative to a directory."""
    return _readlink(guest, directory, path, address, size)


@hypercall(77, "ftruncate", Int("fd"), Argument("size"))
@refusable
def ftruncate(guest: Guest, call: Call, fd: int, size: int) -> int:
    """Cut an open file, or let it grow."""
    if signed(size) < 0:
        raise CallError(errno.EINVAL)
    guest.files.get(fd).stream.truncate(size)
    return 0


@hypercall(76, "truncate", Text("path"), Argument("size"))
@refusable
def truncate(guest: Guest, call: Call, path: int, size: int) -> int:
    """Cut a file, or let it grow."""
    name = guest.memory.string(path)
    if signed(size) < 0:
        raise CallError(errno.EINVAL)
    opened = guest.tree.open(guest.cwd, name, os.O_WRONLY, 0)
    guest.shared.attach(opened)
    try:
        opened.truncate(size)
    finally:
        if not opened.users:
            opened.close()
    return 0


@hypercall(285, "fallocate", Int("fd"), Address("mode"), Argument("offset"), Argument("size"))
@refusable
def fallocate(guest: Guest, call: Call, fd: int, mode: int, offset: int, size: int) -> int:
    """Let a file grow; other modes are not supported, and there is always room for what is in memory."""
    stream = guest.files.get(fd).stream
    if mode & _INT & ~1:
        raise CallError(errno.EOPNOTSUPP)
    if signed(offset) < 0 or signed(size) <= 0:
        raise CallError(errno.EINVAL)
    if not stream.is_file:
        raise CallError(errno.ENODEV)
    if not mode & 1 and stream.facts().size < offset + size:
        stream.truncate(offset + size)
    return 0


def _store_room(guest: Guest, address: int) -> int:
    budget = guest.budget
    blocks, free = budget.most // BLOCK_SIZE, (budget.most - budget.used) // BLOCK_SIZE
    fields = (_TMPFS_MAGIC, BLOCK_SIZE, blocks, free, free, 1 << 16, 1 << 15, 0, 0, 255, BLOCK_SIZE, 0)
    guest.memory.write(address, _STATFS.pack(*fields))
    return 0


@hypercall(137, "statfs", Text("path"), Address("statfs"))
@refusable
def statfs(guest: Guest, call: Call, path: int, address: int) -> int:
    """How much room there is: that for files in memory, wherever a path leads."""
    guest.tree.facts(guest.cwd, guest.memory.string(path), follow=True)
    return _store_room(guest, address)


@hypercall(138, "fstatfs", Int("fd"), Address("statfs"))
def fstatfs(guest: Guest, call: Call, fd: int, address: int) -> int:
    """statfs for an open file."""
    guest.files.get(fd)
    return _store_room(guest, address)


@hypercall(22, "pipe", Address("pair"))
@refusable
def pipe(guest: Guest, call: Call, address: int) -> int:
    """Both ends of a new pipe."""
    return _pipe(guest, address, 0)


@hypercall(293, "pipe2", Address("pair"), Flags("flags", O_NONBLOCK=os.O_NONBLOCK, O_CLOEXEC=os.O_CLOEXEC))
@refusable
def pipe2(guest: Guest, call: Call, address: int, flags: int) -> int:
    """pipe with flags."""
    if flags & _INT & ~(os.O_NONBLOCK | os.O_CLOEXEC):
        raise CallError(errno.EINVAL)
    return _pipe(guest, address, flags & _INT)


def _pipe(guest: Guest, address: int, flags: int) -> int:
    guest.memory.writable(address, 8)
    guest.pipes += 1
    ends = make_pipe(flags & os.O_NONBLOCK, guest.pipes)
    numbers = guest.files.add_all(ends, bool(flags & os.O_CLOEXEC))
    guest.memory.write(address, struct.pack("=ii", *numbers))
    return 0
