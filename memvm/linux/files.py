"""What Linux offers for writing a file that nobody sees before it is whole.

Facts that the callers rely on (open(2), linkat(2), flock(2), sync_file_range(2)):

- O_TMPFILE makes a file without a name. If its process dies, nothing is left of it. Not every file
  system has it: EOPNOTSUPP, and EISDIR from kernels before 3.11.
- Such a file gets a name by linkat with AT_SYMLINK_FOLLOW from /proc/self/fd. CPython's os.link uses
  link(2), which does not follow, unless a directory descriptor is given.
- flock belongs to the open file: it goes with the last descriptor, also at SIGKILL. So a file whose
  lock can be taken has lost its writer.
- Space that is allocated before it is written (fallocate) makes writing it half as dear on ext4. With
  KEEP_SIZE it is no part of the file; truncating the file to its size gives back what was not used.
- The blocks and cached pages of a file are freed when its last name and its last descriptor have gone, by whoever
  lets go of that: a tenth of a second for some hundred megabytes.
- fsync waits for all that is dirty. SYNC_FILE_RANGE_WRITE starts that work early and does not wait;
  it promises nothing, so fsync is still needed.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

SYSCALL_SYNC_FILE_RANGE, SYSCALL_FALLOCATE = 277, 285  # arch/x86/entry/syscalls/syscall_64.tbl
SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
FALLOC_FL_KEEP_SIZE = 1  # linux/falloc.h

_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR)
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_NO_WRITEBACK = (errno.ENOSYS, errno.EINVAL, errno.ESPIPE, errno.EOPNOTSUPP)


def open_unnamed(directory: int) -> int | None:
    """A new file of mode 0600 without a name, on the file system of the open `directory`.

    None if it can have no name later: the file system has no O_TMPFILE, or /proc is not there.
    Raises OSError if the directory cannot be written.
    """
    try:
        fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory)
    except OSError as error:
        if error.errno in _NO_TMPFILE:
            return None
        raise
    if not Path(f"/proc/self/fd/{fd}").exists():
        os.close(fd)
        return None
    return fd


def link_unnamed(fd: int, directory: int, name: str) -> None:
    """Gives a file from `open_unnamed` a name in `directory`. Raises OSError, FileExistsError included."""
    os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory, follow_symlinks=True)


def lock(fd: int) -> bool | None:
    """Takes the exclusive lock of an open file without waiting.

    False if another open file has it; None if this file system has no locks.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def start_writeback(fd: int, offset: int, length: int) -> bool:
    """Asks the kernel to begin writing a range of bytes to the disk; does not wait for it.

    False if this is not to be had here. Raises OSError if the disk fails.
    """
    from memvm.linux.libc import syscall

    try:
        syscall(SYSCALL_SYNC_FILE_RANGE, fd, offset, length, SYNC_FILE_RANGE_WRITE)
    except OSError as error:
        if error.errno in _NO_WRITEBACK:
            return False
        raise
    return True


def reserve(fd: int, offset: int, length: int) -> bool:
    """Allocates space for bytes that will be written; the file's size stays.

    False if there is none to be had: it is a favour, and whoever writes there hears why.
    """
    from memvm.linux.libc import syscall

    try:
        syscall(SYSCALL_FALLOCATE, fd, FALLOC_FL_KEEP_SIZE, offset, length)
    except OSError:
        return False
    return True


def sync_directory(path: Path) -> None:
    """Have names that were made or changed there outlive a crash. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
