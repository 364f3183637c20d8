"""What all calls with paths share: where relative paths start, and how a view's refusal becomes the call's."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import wraps
from typing import TypeVar, cast

from memvm.files.description import OpenDirectory
from memvm.machine.callresult import CallError, CallResult
from memvm.machine.guest import Guest
from memvm.machine.hypercalls.table import signed

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW, AT_REMOVEDIR, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH = 0x100, 0x200, 0x400, 0x1000

F = TypeVar("F", bound=Callable[..., CallResult])


def refusable(function: F) -> F:
    """The errno of an OSError, which is how the tree refuses, is the answer to the guest."""

    @wraps(function)
    def answered(*arguments: object) -> CallResult:
        try:
            return function(*arguments)
        except OSError as error:
            raise CallError(error.errno or errno.EIO) from error

    return cast("F", answered)


def base_of(guest: Guest, descriptor: int, path: bytes) -> bytes:
    """The place that a path starts from. Raises CallError for a descriptor that is no directory's."""
    if path[:1] == b"/" or signed(descriptor, 32) == AT_FDCWD:
        return guest.cwd
    directory = guest.files.get(descriptor).stream
    if not isinstance(directory, OpenDirectory):
        raise CallError(errno.ENOTDIR)
    return directory.path
