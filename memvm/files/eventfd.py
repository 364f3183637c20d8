"""eventfd(2): a counter to wait for, by which threads wake each other and event loops."""

from __future__ import annotations

import errno
import os
import select
import struct
from collections.abc import Callable

from memvm.files.waitable import Waitable, fill, joined

MOST = (1 << 64) - 2
"""The highest count."""
_COUNT = struct.Struct("=Q")


class EventFd(Waitable):
    """One counter. Writing adds to it; reading takes all of it, or, of a semaphore, one."""

    shown = b"anon_inode:[eventfd]"
    is_message = True

    def __init__(self, wake: Callable[[Waitable], bool], count: int, *, semaphore: bool, flags: int = 0) -> None:
        super().__init__(wake, os.O_RDWR | flags)
        self.count, self.semaphore = count, semaphore

    def events(self, asked: int) -> int:
        readable = select.POLLIN if self.count else 0
        writable = select.POLLOUT if self.count < MOST else 0
        return asked & (readable | writable)

    def read(self, views: list[memoryview], offset: int | None = None) -> int:
        if sum(map(len, views)) < _COUNT.size:
            raise OSError(errno.EINVAL, "a count has eight bytes")
        if not self.count:
            raise BlockingIOError
        taken = 1 if self.semaphore else self.count
        self.count -= taken
        fill(views, _COUNT.pack(taken))
        self.changed(select.POLLOUT)
        return _COUNT.size

    def write(self, views: list[memoryview], offset: int | None = None) -> int:
        if sum(map(len, views)) != _COUNT.size:  # as Linux has it since 6.10; before, there could be more
            raise OSError(errno.EINVAL, "a count has eight bytes")
        (added,) = _COUNT.unpack(joined(views, _COUNT.size))
        if added > MOST:
            raise OSError(errno.EINVAL, "more than a count can be")
        if self.count + added > MOST:
            raise BlockingIOError
        self.count += added
        self.changed(select.POLLIN)
        return _COUNT.size
