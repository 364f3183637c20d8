"""What a view is: a part of the guest's tree, from one source.

Paths in a view are bytes, relative to its root, which is `b""`; they are made of plain names, without `.`, `..` and
doubled slashes. A view follows no link: one on the way is ELOOP, one at the end is what the call is about.
"""

from __future__ import annotations

import errno
from typing import NoReturn

from memvm.files.description import Description
from memvm.files.facts import Entry, Facts


def refuse_writing() -> NoReturn:
    """What a read-only view says."""
    raise OSError(errno.EROFS, "read-only")


class View:
    """The base class is a view that cannot be changed. Every method raises OSError."""

    writable = False

    def close(self) -> None:
        """Let go of what it holds."""

    def facts(self, path: bytes) -> Facts:
        """What lstat(2) tells."""
        raise NotImplementedError

    def target(self, path: bytes) -> bytes:
        """Where a link leads; EINVAL if it is none."""
        raise NotImplementedError

    def behind(self, path: bytes) -> Description | None:
        """What a link stands for that leads to something open and not to a path, as those in /proc/self/fd do."""
        return None

    def names(self, path: bytes) -> list[Entry]:
        """What is in a directory, without `.` and `..`."""
        raise NotImplementedError

    def may(self, path: bytes, wanted: int) -> None:
        """Raises EACCES unless the guest may do what is `wanted` (R_OK, W_OK, X_OK; 0 for whether it is there)."""
        raise NotImplementedError

    def open(self, path: bytes, flags: int, mode: int, place: bytes) -> Description:
        """Open a file or a directory; `place` is where that is in the guest's tree. `mode` has the umask taken off."""
        raise NotImplementedError

    def make_directory(self, path: bytes, mode: int) -> None:
        refuse_writing()

    def remove_directory(self, path: bytes) -> None:
        refuse_writing()

    def remove(self, path: bytes) -> None:
        """Take a name away from what is no directory."""
        refuse_writing()

    def make_link(self, path: bytes, target: bytes) -> None:
        """Make a symbolic link."""
        refuse_writing()

    def rename(self, path: bytes, new: bytes, *, replace: bool) -> None:
        """Give another name; EEXIST if that is there and is not to be replaced."""
        refuse_writing()

    def add_name(self, path: bytes, new: bytes) -> None:
        """Give a second name (a hard link)."""
        refuse_writing()

    def set_mode(self, path: bytes, mode: int) -> None:
        refuse_writing()

    def set_times(self, path: bytes, accessed: int, modified: int) -> None:
        """Set the times, in ns."""
        refuse_writing()
