"""A view of a directory of the host's: read-only, or written through.

Every path is opened from the view's own descriptor with openat2, without following a link and without leaving the
directory (memvm/linux/openat2.py): whatever the guest, or anybody on the host, renames meanwhile, nothing outside is
reached. A link on the way is ELOOP, which tells the tree (tree.py) to walk itself.

Only regular files and directories are opened; a pipe or a device of the host's could make the manager wait.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from memvm.files.description import O_ACCMODE, Description, HostFile, OpenDirectory
from memvm.files.facts import Entry, Facts
from memvm.files.view import View, refuse_writing
from memvm.linux.openat2 import open_beneath

_ASKED = os.O_PATH | os.O_NOFOLLOW
_READING = os.O_DIRECTORY
_WRITING = O_ACCMODE | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_DIRECTORY | os.O_SYNC | os.O_DSYNC
"""The flags of a guest's that the host hears: openat2 refuses what it does not know."""
_ALWAYS = os.O_NONBLOCK | os.O_NOCTTY  # no O_NOFOLLOW: with O_DIRECTORY a link would then be ENOTDIR, not ELOOP

Change = Callable[[int, bytes], None]
"""Does something to a name in an open directory."""


class HostView(View):
    """What is in a directory of the host's."""

    def __init__(self, directory: int, *, writable: bool = False) -> None:
        """`directory` is an open directory, which is closed with the view."""
        self._root = directory
        self.writable = writable

    def close(self) -> None:
        os.close(self._root)

    def facts(self, path: bytes) -> Facts:
        fd = open_beneath(self._root, path or b".", _ASKED)
        try:
            return Facts.of_host(os.fstat(fd))
        finally:
            os.close(fd)

    def target(self, path: bytes) -> bytes:
        fd = open_beneath(self._root, path or b".", _ASKED)
        try:
            return os.readlink(b"", dir_fd=fd)
        except FileNotFoundError:  # what readlinkat says of an open file that is no link
            raise OSError(errno.EINVAL, "not a link") from None
        finally:
            os.close(fd)

    def names(self, path: bytes) -> list[Entry]:
        fd = open_beneath(self._root, path or b".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(fd) as found:
                return [Entry(os.fsencode(one.name), one.inode(), _kind(one)) for one in found]
        finally:
            os.close(fd)

    def may(self, path: bytes, wanted: int) -> None:
        if wanted & os.W_OK and not self.writable:
            refuse_writing()
        fd = open_beneath(self._root, path or b".", _ASKED)
        try:
            if not os.access(f"/proc/self/fd/{fd}", wanted):
                raise PermissionError(errno.EACCES, "not allowed")
        finally:
            os.close(fd)

    def open(self, path: bytes, flags: int, mode: int, place: bytes) -> Description:
        if not self.writable:
            if flags & O_ACCMODE or flags & os.O_TRUNC:
                self.facts(path)  # a name that is not there is told first
                refuse_writing()
            fd = self._open_existing(path, flags, place)
        else:
            fd = open_beneath(self._root, path or b".", flags & _WRITING | _ALWAYS, mode if flags & os.O_CREAT else 0)
        try:
            facts = os.fstat(fd)
            if stat.S_ISDIR(facts.st_mode):
                os.close(fd)
                return OpenDirectory(place, flags, Facts.of_host(facts))
            if not stat.S_ISREG(facts.st_mode):
                raise OSError(errno.ENXIO, "neither a file nor a directory")
        except OSError:
            os.close(fd)
            raise
        return HostFile(fd, place, flags, written_through=self.writable)

    def _open_existing(self, path: bytes, flags: int, place: bytes) -> int:
        try:
            fd = open_beneath(self._root, path or b".", flags & _READING | _ALWAYS)
        except FileNotFoundError:
            if flags & os.O_CREAT:
                refuse_writing()
            raise
        if flags & os.O_CREAT and flags & os.O_EXCL:
            os.close(fd)
            raise FileExistsError(errno.EEXIST, "is there")
        return fd

    # What changes names, where the host's directory is written through.

    def make_directory(self, path: bytes, mode: int) -> None:
        self._at(path, lambda parent, name: os.mkdir(name, mode, dir_fd=parent))

    def remove_directory(self, path: bytes) -> None:
        self._at(path, lambda parent, name: os.rmdir(name, dir_fd=parent))

    def remove(self, path: bytes) -> None:
        self._at(path, lambda parent, name: os.unlink(name, dir_fd=parent))

    def make_link(self, path: bytes, target: bytes) -> None:
        self._at(path, lambda parent, name: os.symlink(target, name, dir_fd=parent))

    def rename(self, path: bytes, new: bytes, *, replace: bool) -> None:
        def move(parent: int, name: bytes) -> None:
            def to(new_parent: int, new_name: bytes) -> None:
                if not replace and _is_there(new_parent, new_name):
                    raise FileExistsError(errno.EEXIST, "is there")
                os.rename(name, new_name, src_dir_fd=parent, dst_dir_fd=new_parent)

            self._at(new, to)

        self._at(path, move)

    def add_name(self, path: bytes, new: bytes) -> None:
        def link(parent: int, name: bytes) -> None:
            self._at(
                new,
                lambda new_parent, new_name: os.link(
                    name, new_name, src_dir_fd=parent, dst_dir_fd=new_parent, follow_symlinks=False
                ),
            )

        self._at(path, link)

    def set_mode(self, path: bytes, mode: int) -> None:
        self._on(path, lambda file: file.chmod(mode & 0o777))

    def set_times(self, path: bytes, accessed: int, modified: int) -> None:
        if not self.writable:
            refuse_writing()
        self._at(
            path,
            lambda parent, name: os.utime(name, ns=(accessed, modified), dir_fd=parent, follow_symlinks=False),
        )

    def _at(self, path: bytes, change: Change) -> None:
        """Change a name in its directory, which is opened beneath the root: the name itself follows no link."""
        if not self.writable:
            refuse_writing()
        parent, _, name = path.rpartition(b"/")
        if not name:
            raise OSError(errno.EBUSY, "the root of a view")
        fd = open_beneath(self._root, parent or b".", os.O_PATH | os.O_DIRECTORY)
        try:
            change(fd, name)
        finally:
            os.close(fd)

    def _on(self, path: bytes, change: Callable[[Path], None]) -> None:
        if not self.writable:
            refuse_writing()
        fd = open_beneath(self._root, path or b".", _ASKED)
        try:
            if stat.S_ISLNK(os.fstat(fd).st_mode):
                raise OSError(errno.EOPNOTSUPP, "a link")
            change(Path(f"/proc/self/fd/{fd}"))
        finally:
            os.close(fd)


def _kind(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return stat.S_IFLNK
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    return 0


def _is_there(directory: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
