"""Calls about directories and names: where the guest is, what is in a directory, what gets, loses or changes a name."""

from __future__ import annotations

import errno
import struct
import time

from memvm.files.description import OpenDirectory
from memvm.files.facts import USER
from memvm.machine.callresult import CallError
from memvm.machine.clocks import SECOND
from memvm.machine.guest import Guest
from memvm.machine.hypercalls.paths import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_REMOVEDIR,
    AT_SYMLINK_FOLLOW,
    AT_SYMLINK_NOFOLLOW,
    base_of,
    refusable,
)
from memvm.machine.hypercalls.table import Address, Argument, Buffer, Call, Flags, Int, Text, hypercall

_INT = 0xFFFFFFFF
_DIRENT = struct.Struct("=QqHB")  # struct linux_dirent64, up to its name
_TIMES = struct.Struct("=qqqq")
_UTIME_NOW, _UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2  # include/linux/stat.h
_RENAME_NOREPLACE = 1
_AT_FLAGS = Flags("flags", AT_SYMLINK_NOFOLLOW=AT_SYMLINK_NOFOLLOW, AT_EMPTY_PATH=AT_EMPTY_PATH)


@hypercall(79, "getcwd", Address("buf"), Argument("size"))
def getcwd(guest: Guest, call: Call, address: int, size: int) -> int:
    """Where the guest is in its tree."""
    if size < len(guest.cwd) + 1:
        raise CallError(errno.ERANGE)
    guest.memory.write(address, guest.cwd + b"\0")
    return len(guest.cwd) + 1


@hypercall(80, "chdir", Text("path"))
@refusable
def chdir(guest: Guest, call: Call, path: int) -> int:
    """Go to another directory."""
    guest.cwd = guest.tree.directory(guest.cwd, guest.memory.string(path))
    return 0


@hypercall(81, "fchdir", Int("fd"))
@refusable
def fchdir(guest: Guest, call: Call, fd: int) -> int:
    """Go to an open directory."""
    directory = guest.files.get(fd).stream
    if not isinstance(directory, OpenDirectory):
        raise CallError(errno.ENOTDIR)
    guest.cwd = guest.tree.directory(b"/", directory.path)
    return 0


@hypercall(95, "umask", Argument("mask"))
def umask(guest: Guest, call: Call, mask: int) -> int:
    """Set the file mode mask, and tell the one before."""
    before, guest.umask = guest.umask, mask & 0o777
    return before


@hypercall(217, "getdents64", Int("fd"), Address("buf"), Argument("size"))
@refusable
def getdents64(guest: Guest, call: Call, fd: int, address: int, size: int) -> int:
    """What is in a directory, as much of it as fits."""
    directory = guest.files.get(fd).stream
    if not isinstance(directory, OpenDirectory):
        raise CallError(errno.ENOTDIR)
    names = guest.tree.names(directory)
    size &= _INT
    records: list[bytes] = []
    used = 0
    position = directory.position
    while position < len(names):
        name, inode, kind = names[position]
        length = -(-(_DIRENT.size + len(name) + 1) // 8) * 8
        if used + length > size:
            break
        position += 1
        head = _DIRENT.pack(inode, position, length, kind >> 12)
        records.append((head + name).ljust(length, b"\0"))
        used += length
    if not records and position < len(names):
        raise CallError(errno.EINVAL)
    guest.memory.write(address, b"".join(records))
    directory.position = position
    return used


def _make_directory(guest: Guest, directory: int, path: int, mode: int) -> int:
    name = guest.memory.string(path)
    bits = mode & 0o1777 & ~guest.umask
    base = base_of(guest, directory, name)
    try:
        guest.tree.change(base, name.rstrip(b"/") or b"/", lambda view, inside: view.make_directory(inside, bits))
    except OSError as error:  # a mount point, or `.`: it is there
        if error.errno == errno.EBUSY:
            raise CallError(errno.EEXIST) from error
        raise
    return 0


@hypercall(83, "mkdir", Text("path"), Argument("mode"))
@refusable
def mkdir(guest: Guest, call: Call, path: int, mode: int) -> int:
    """Make a directory."""
    return _make_directory(guest, AT_FDCWD, path, mode)


@hypercall(258, "mkdirat", Int("dirfd"), Text("path"), Argument("mode"))
@refusable
def mkdirat(guest: Guest, call: Call, directory: int, path: int, mode: int) -> int:
    """mkdir, relative to a directory."""
    return _make_directory(guest, directory, path, mode)


def _remove(guest: Guest, directory: int, path: int, flags: int) -> int:
    name = guest.memory.string(path)
    base = base_of(guest, directory, name)
    if flags & AT_REMOVEDIR:
        guest.tree.change(base, name.rstrip(b"/") or b"/", lambda view, inside: view.remove_directory(inside))
    else:
        guest.tree.change(base, name, lambda view, inside: view.remove(inside))
    return 0


@hypercall(84, "rmdir", Text("path"))
@refusable
def rmdir(guest: Guest, call: Call, path: int) -> int:
    """Remove an empty directory."""
    return _remove(guest, AT_FDCWD, path, AT_REMOVEDIR)


@hypercall(87, "unlink", Text("path"))
@refusable
def unlink(guest: Guest, call: Call, path: int) -> int:
    """Remove a name; a file without one is there as long as it is open."""
    return _remove(guest, AT_FDCWD, path, 0)


@hypercall(263, "unlinkat", Int("dirfd"), Text("path"), Flags("flags", AT_REMOVEDIR=AT_REMOVEDIR))
@refusable
def unlinkat(guest: Guest, call: Call, directory: int, path: int, flags: int) -> int:
    """unlink or rmdir, relative to a directory."""
    return _remove(guest, directory, path, flags)


def _rename(guest: Guest, old: tuple[int, int], new: tuple[int, int], flags: int) -> int:
    if flags & _INT & ~_RENAME_NOREPLACE:
        raise CallError(errno.EINVAL)
    names = [guest.memory.string(path) for _, path in (old, new)]
    bases = [base_of(guest, directory, name) for (directory, _), name in zip((old, new), names, strict=True)]
    replace = not flags & _RENAME_NOREPLACE
    first, second = (name.rstrip(b"/") or b"/" for name in names)
    moved = guest.tree.pair(
        (bases[0], first), (bases[1], second), lambda view, inside, to: view.rename(inside, to, replace=replace)
    )
    guest.moved(*moved)
    return 0


@hypercall(82, "rename", Text("old"), Text("new"))
@refusable
def rename(guest: Guest, call: Call, old: int, new: int) -> int:
    """Give a file another name, in the same view."""
    return _rename(guest, (AT_FDCWD, old), (AT_FDCWD, new), 0)


@hypercall(264, "renameat", Int("olddir"), Text("old"), Int("newdir"), Text("new"))
@refusable
def renameat(guest: Guest, call: Call, old_directory: int, old: int, new_directory: int, new: int) -> int:
    """rename, relative to directories."""
    return _rename(guest, (old_directory, old), (new_directory, new), 0)


@hypercall(316, "renameat2", Int("olddir"), Text("old"), Int("newdir"), Text("new"), Flags("flags", RENAME_NOREPLACE=1))
@refusable
def renameat2(guest: Guest, call: Call, old_directory: int, old: int, new_directory: int, new: int, flags: int) -> int:
    """renameat, which can leave what is there."""
    return _rename(guest, (old_directory, old), (new_directory, new), flags)


def _link(guest: Guest, old: tuple[int, int], new: tuple[int, int], flags: int) -> int:
    names = [guest.memory.string(path) for _, path in (old, new)]
    bases = [base_of(guest, directory, name) for (directory, _), name in zip((old, new), names, strict=True)]
    if flags & AT_EMPTY_PATH and not names[0]:
        raise CallError(errno.ENOENT)
    source = (bases[0], names[0])
    if flags & AT_SYMLINK_FOLLOW:
        source = (b"/", guest.tree.walk(*source, follow=True).path)
    guest.tree.pair(source, (bases[1], names[1]), lambda view, inside, to: view.add_name(inside, to))
    return 0


@hypercall(86, "link", Text("old"), Text("new"))
@refusable
def link(guest: Guest, call: Call, old: int, new: int) -> int:
    """Give a file a second name, in the same view."""
    return _link(guest, (AT_FDCWD, old), (AT_FDCWD, new), 0)


@hypercall(
    265, "linkat", Int("olddir"), Text("old"), Int("newdir"), Text("new"), Flags("flags", AT_SYMLINK_FOLLOW=0x400)
)
@refusable
def linkat(guest: Guest, call: Call, old_directory: int, old: int, new_directory: int, new: int, flags: int) -> int:
    """link, relative to directories."""
    return _link(guest, (old_directory, old), (new_directory, new), flags)


def _make_link(guest: Guest, target: int, directory: int, path: int) -> int:
    where, name = guest.memory.string(target), guest.memory.string(path)
    if not where:
        raise CallError(errno.ENOENT)
    base = base_of(guest, directory, name)
    guest.tree.change(base, name, lambda view, inside: view.make_link(inside, where))
    return 0


@hypercall(88, "symlink", Text("target"), Text("path"))
@refusable
def symlink(guest: Guest, call: Call, target: int, path: int) -> int:
    """Make a symbolic link, which leads where it says in the guest's tree."""
    return _make_link(guest, target, AT_FDCWD, path)


@hypercall(266, "symlinkat", Text("target"), Int("dirfd"), Text("path"))
@refusable
def symlinkat(guest: Guest, call: Call, target: int, directory: int, path: int) -> int:
    """symlink, relative to a directory."""
    return _make_link(guest, target, directory, path)


def _set_mode(guest: Guest, directory: int, path: int, mode: int) -> int:
    name = guest.memory.string(path)
    base = base_of(guest, directory, name)
    guest.tree.change(base, name, lambda view, inside: view.set_mode(inside, mode), follow=True)
    return 0


@hypercall(90, "chmod", Text("path"), Argument("mode"))
@refusable
def chmod(guest: Guest, call: Call, path: int, mode: int) -> int:
    """Set a file's permission bits."""
    return _set_mode(guest, AT_FDCWD, path, mode)


@hypercall(268, "fchmodat", Int("dirfd"), Text("path"), Argument("mode"))
@refusable
def fchmodat(guest: Guest, call: Call, directory: int, path: int, mode: int) -> int:
    """chmod, relative to a directory."""
    return _set_mode(guest, directory, path, mode)


@hypercall(91, "fchmod", Int("fd"), Argument("mode"))
@refusable
def fchmod(guest: Guest, call: Call, fd: int, mode: int) -> int:
    """Set an open file's permission bits."""
    opened = guest.files.get(fd).stream
    if isinstance(opened, OpenDirectory):
        guest.tree.change(b"/", opened.path, lambda view, inside: view.set_mode(inside, mode))
    else:
        opened.set_mode(mode)
    return 0


def _own(owner: int, group: int) -> int:
    """The guest's user and group, or what is there already, and nobody else."""
    if owner & _INT not in (USER, _INT) or group & _INT not in (USER, _INT):
        raise CallError(errno.EPERM)
    return 0


@hypercall(92, "chown", Text("path"), Int("owner"), Int("group"))
@refusable
def chown(guest: Guest, call: Call, path: int, owner: int, group: int) -> int:
    """Files in memory belong to the guest's user, and to nobody else."""
    guest.tree.facts(guest.cwd, guest.memory.string(path), follow=True)
    return _own(owner, group)


@hypercall(94, "lchown", Text("path"), Int("owner"), Int("group"))
@refusable
def lchown(guest: Guest, call: Call, path: int, owner: int, group: int) -> int:
    """chown of a link."""
    guest.tree.facts(guest.cwd, guest.memory.string(path), follow=False)
    return _own(owner, group)


@hypercall(93, "fchown", Int("fd"), Int("owner"), Int("group"))
def fchown(guest: Guest, call: Call, fd: int, owner: int, group: int) -> int:
    """chown of an open file."""
    guest.files.get(fd)
    return _own(owner, group)


@hypercall(260, "fchownat", Int("dirfd"), Text("path"), Int("owner"), Int("group"), _AT_FLAGS)
@refusable
def fchownat(guest: Guest, call: Call, directory: int, path: int, owner: int, group: int, flags: int) -> int:
    """chown, relative to a directory."""
    name = guest.memory.string(path)
    if name or not flags & AT_EMPTY_PATH:
        guest.tree.facts(base_of(guest, directory, name), name, follow=not flags & AT_SYMLINK_NOFOLLOW)
    else:
        guest.files.get(directory)
    return _own(owner, group)


@hypercall(280, "utimensat", Int("dirfd"), Text("path"), Address("times"), _AT_FLAGS)
@refusable
def utimensat(guest: Guest, call: Call, directory: int, path: int, times: int, flags: int) -> int:
    """Set a file's times; a null path is the open file itself."""
    now = time.time_ns()
    wanted: list[int | None] = [now, now]
    if times:
        parts = guest.memory.unpack(_TIMES, times)
        for which in (0, 1):
            seconds, nanoseconds = parts[2 * which : 2 * which + 2]
            if nanoseconds == _UTIME_OMIT:
                wanted[which] = None
            elif nanoseconds != _UTIME_NOW:
                if not 0 <= nanoseconds < SECOND or not 0 <= seconds < 1 << 33:
                    raise CallError(errno.EINVAL)
                wanted[which] = seconds * SECOND + nanoseconds
    name = guest.memory.string(path) if path else b""
    if not path or (flags & AT_EMPTY_PATH and not name):
        opened = guest.files.get(directory).stream
        if not isinstance(opened, OpenDirectory):
            facts = opened.facts()
            opened.set_times(*(facts[9 + which] if ns is None else ns for which, ns in enumerate(wanted)))
            return 0
        base, name, follow = b"/", opened.path, True
    else:
        base, follow = base_of(guest, directory, name), not flags & AT_SYMLINK_NOFOLLOW
    facts = guest.tree.facts(base, name, follow=follow)
    accessed, modified = (facts[9 + which] if ns is None else ns for which, ns in enumerate(wanted))
    guest.tree.change(base, name, lambda view, inside: view.set_times(inside, accessed, modified), follow=follow)
    return 0


@hypercall(133, "mknod", Text("path"), Argument("mode"), Argument("device"))
@hypercall(259, "mknodat", Int("dirfd"), Text("path"), Argument("mode"), Argument("device"))
def no_special_files(guest: Guest, call: Call, *_arguments: int) -> int:
    """Named pipes and devices are not made."""
    raise CallError(errno.EPERM)


@hypercall(191, "getxattr", Text("path"), Text("name"), Buffer("value", "result"), Argument("size"))
@hypercall(192, "lgetxattr", Text("path"), Text("name"), Buffer("value", "result"), Argument("size"))
@hypercall(193, "fgetxattr", Int("fd"), Text("name"), Buffer("value", "result"), Argument("size"))
@hypercall(188, "setxattr", Text("path"), Text("name"), Buffer("value", "size"), Argument("size"))
@hypercall(190, "fsetxattr", Int("fd"), Text("name"), Buffer("value", "size"), Argument("size"))
@hypercall(194, "listxattr", Text("path"), Buffer("list", "result"), Argument("size"))
@hypercall(195, "llistxattr", Text("path"), Buffer("list", "result"), Argument("size"))
@hypercall(196, "flistxattr", Int("fd"), Buffer("list", "result"), Argument("size"))
def no_attributes(guest: Guest, call: Call, *_arguments: int) -> int:
    """Files have no extended attributes."""
    raise CallError(errno.EOPNOTSUPP)


@hypercall(162, "sync")
@hypercall(306, "syncfs", Int("fd"))
@hypercall(277, "sync_file_range", Int("fd"), Argument("offset"), Argument("size"))
def sync(guest: Guest, call: Call, *_arguments: int) -> int:
    """Files in memory are where they shall be."""
    return 0
