"""Open file descriptions (open(2)): what a guest's descriptors refer to, with position and flags.

A description never waits: what cannot be done at once raises BlockingIOError. Whether it can be done by now, `events`
says; when it may be, is told by a descriptor of the host's that can be polled, or, for what is the manager's own, by a
call (waitable.py).
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Protocol

from memvm.files.facts import Entry, Facts

O_ACCMODE = 3
POLL_EVENTS = 0x7FFF
"""Of the 16 bits of struct pollfd, those that poll(2) gives a meaning."""


class Watch(Protocol):
    """An interest in a description that lasts as long as that is open: an epoll instance's."""

    exclusive: bool
    """Whether it is enough that one of those is told (EPOLLEXCLUSIVE)."""

    def notice(self, events: int) -> bool:
        """These events may hold now, or any if 0; whether that woke somebody."""

    def look(self) -> None:
        """The host has something to tell of it."""

    def end(self) -> None:
        """The description is about to be closed."""


class Mapped(Protocol):
    """The shared mappings of a file (machine/shared_files.py), as whoever reads or writes it sees them."""

    def collect(self, offset: int, size: int) -> None:
        """Bring what was stored through them in this part into the file. Raises OSError."""

    def changed(self, offset: int, size: int) -> None:
        """This part was written, or the size is another: bring them up to date. Raises OSError, BadPage."""


class Description:
    """What can be asked of anything that is open. The base class refuses what only some can do."""

    is_file = False
    """Whether it has a position: reads and writes never wait, and are done to the end."""
    path = b""
    """Where it is in the guest's tree; empty for what has no place there."""
    shown = b""
    """What a link in /proc/self/fd to it reads, if that is neither its path nor that of a pipe."""
    is_message = False
    """Whether each read and each write is of one message, which is never done in parts."""
    breaks_pipes = True
    """Whether SIGPIPE is sent to who writes when nobody can read any more."""
    awaited = False
    """Whether there may be calls that wait to be told of a change."""

    def __init__(self, flags: int = os.O_RDWR) -> None:
        self.flags = flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK)
        """O_ACCMODE, O_APPEND and the like, as F_GETFL tells them, but for O_NONBLOCK."""
        self.nonblocking = bool(flags & os.O_NONBLOCK)
        """The guest's O_NONBLOCK."""
        self.users = 0
        """Descriptors that refer to it, and messages under way that carry it."""
        self.watches: list[Watch] = []
        """Those of epoll instances, the exclusive ones last."""

    @property
    def fd(self) -> int:
        """A descriptor of the host's to poll."""
        return always_ready()

    @property
    def can_be_watched(self) -> bool:
        """Whether epoll takes it: not what is always ready, as files are."""
        return False

    @property
    def edges_fd(self) -> int | None:
        """The descriptor of the host's whose changes an epoll instance is to be told of, if there is one."""
        return None

    def collect(self, unless: Collection[Description] = ()) -> None:
        """Take note of what has happened to it meanwhile, before it is asked; `unless` it has happened to these."""

    def events(self, asked: int) -> int:
        """Which of the `asked` events of poll(2) hold now; POLLERR and POLLHUP also if they were not asked for."""
        return host_events(self.fd, asked)

    def host_waits(self, events: int) -> Mapping[int, int]:
        """The host's descriptors to poll, and for what, until these events may hold."""
        return {self.fd: events & POLL_EVENTS}

    def time_limit(self, events: int) -> int:
        """How long a call may wait for these events, in ns; 0 for ever."""
        return 0

    def read(self, views: list[memoryview], offset: int | None = None) -> int:
        """Read what there is, at the position or at `offset`. Raises BlockingIOError instead of waiting, OSError."""
        raise OSError(errno.EINVAL, "cannot be read")

    def write(self, views: list[memoryview], offset: int | None = None) -> int:
        """Write what there is room for. Raises BlockingIOError instead of waiting, and OSError."""
        raise OSError(errno.EINVAL, "cannot be written")

    def seek(self, offset: int, whence: int) -> int:
        """Move the position; the new one. Raises OSError."""
        raise OSError(errno.ESPIPE, "has no position")

    def facts(self) -> Facts:
        """What fstat(2) tells. Raises OSError."""
        raise NotImplementedError

    def waiting(self) -> int | None:
        """Bytes that wait to be read (FIONREAD), of what is no file and can tell."""
        return None

    def truncate(self, size: int) -> None:
        """Cut or grow it. Raises OSError."""
        raise OSError(errno.EINVAL, "has no size")

    def sync(self) -> None:
        """Bring it to its disk, if it has one. Raises OSError."""

    def set_mode(self, mode: int) -> None:
        """Set its permission bits. Raises OSError."""
        raise OSError(errno.EPERM, "keeps its mode")

    def set_times(self, accessed: int, modified: int) -> None:
        """Set its times, in ns. Raises OSError."""
        raise OSError(errno.EPERM, "keeps its times")

    def settle(self, offset: int, size: int) -> None:
        """Bring what was stored in this part through shared mappings into the file. Raises OSError."""

    def contents(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`, for a mapping. Raises OSError(ENODEV) for what cannot be mapped."""
        raise OSError(errno.ENODEV, "cannot be mapped")

    @property
    def host_file(self) -> int | None:
        """The descriptor of the host's regular file that it is, if it is one."""
        return None

    def close(self) -> None:
        """The last descriptor has gone."""

    def carried(self) -> Iterable[Description]:
        """Other descriptions that are under way in it, and go with it."""
        return ()

    @property
    def readable(self) -> bool:
        """Whether it was opened for reading."""
        return self.flags & O_ACCMODE in (os.O_RDONLY, os.O_RDWR) and not self.flags & os.O_PATH

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self.flags & O_ACCMODE in (os.O_WRONLY, os.O_RDWR) and not self.flags & os.O_PATH

    def check_access(self, wanted: int) -> None:
        """Raises EBADF unless it was opened for what is `wanted`: O_RDONLY or O_WRONLY."""
        mode = self.flags & O_ACCMODE
        if mode not in (wanted, os.O_RDWR) or self.flags & os.O_PATH:
            raise OSError(errno.EBADF, "not opened for that")


class HostFile(Description):
    """A regular file of the host's."""

    is_file = True

    def __init__(self, fd: int, path: bytes, flags: int, *, written_through: bool = False) -> None:
        super().__init__(flags)
        self._fd = fd
        self.path = path
        self.written_through = written_through
        """Whether the guest may change it, through this descriptor or another one."""
        self.mapped: Mapped | None = None

    @property
    def fd(self) -> int:
        return self._fd

    @property
    def host_file(self) -> int | None:
        return self._fd

    def read(self, views: list[memoryview], offset: int | None = None) -> int:
        if self.mapped is not None:
            self.settle(self.seek(0, os.SEEK_CUR) if offset is None else offset, sum(map(len, views)))
        return os.readv(self._fd, views) if offset is None else os.preadv(self._fd, views, offset)

    def write(self, views: list[memoryview], offset: int | None = None) -> int:
        done = os.writev(self._fd, views) if offset is None else os.pwritev(self._fd, views, offset)
        if self.mapped is not None:
            if self.flags & os.O_APPEND:  # pwrite(2) too, on Linux
                start = self.seek(0, os.SEEK_CUR) - done if offset is None else os.fstat(self._fd).st_size - done
            else:
                start = self.seek(0, os.SEEK_CUR) - done if offset is None else offset
            self.mapped.changed(start, done)
        return done

    def seek(self, offset: int, whence: int) -> int:
        return os.lseek(self._fd, offset, whence)

    def facts(self) -> Facts:
        return Facts.of_host(os.fstat(self._fd))

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)
        if self.mapped is not None:
            self.mapped.changed(0, 0)

    def sync(self) -> None:
        self.settle(0, os.fstat(self._fd).st_size)
        os.fsync(self._fd)

    def set_mode(self, mode: int) -> None:
        self.check_access(os.O_WRONLY)
        os.fchmod(self._fd, mode & 0o777)

    def set_times(self, accessed: int, modified: int) -> None:
        self.check_access(os.O_WRONLY)
        os.utime(self._fd, ns=(accessed, modified))

    def settle(self, offset: int, size: int) -> None:
        if self.mapped is not None:
            self.mapped.collect(offset, size)

    def contents(self, offset: int, size: int) -> bytes:
        self.settle(offset, size)
        return os.pread(self._fd, size, offset)

    def close(self) -> None:
        os.close(self._fd)


class OpenDirectory(Description):
    """A directory, with the names that were in it when it was first read; a rewind reads them anew."""

    def __init__(self, path: bytes, flags: int, facts: Facts, names: list[Entry] | None = None) -> None:
        super().__init__(flags)
        self.path = path
        self._facts = facts
        self.names = names
        """What it has, once it was asked."""
        self.position = 0

    def seek(self, offset: int, whence: int) -> int:
        if whence == os.SEEK_CUR:
            offset += self.position
        if whence not in (os.SEEK_SET, os.SEEK_CUR) or offset < 0:
            raise OSError(errno.EINVAL, "no such position")
        self.position = offset
        if not offset:
            self.names = None
        return offset

    def read(self, views: list[memoryview], offset: int | None = None) -> int:
        raise IsADirectoryError(errno.EISDIR, "a directory")

    def write(self, views: list[memoryview], offset: int | None = None) -> int:
        raise OSError(errno.EBADF, "a directory")

    def facts(self) -> Facts:
        return self._facts


@cache
def always_ready() -> int:
    """A descriptor that is always ready, for all that never waits; it stays open as long as the process."""
    return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def drop(description: Description) -> None:
    """One descriptor less refers to it; with the last one it is closed, and with it what only it carried."""
    left = [description]
    while left:
        one = left.pop()
        one.users -= 1
        if not one.users:
            for watch in tuple(one.watches):
                watch.end()
            left += one.carried()
            one.close()


def host_events(fd: int, asked: int) -> int:
    """What poll(2) says of a descriptor of the host's."""
    poll = select.poll()
    poll.register(fd, asked & POLL_EVENTS)
    return next((found for _, found in poll.poll(0)), 0)
