"""The guest's standard streams, and the table of its descriptors.

The guest's streams are the manager's own descriptors 0, 1 and 2. They are shared with other processes (a shell, the
other end of a pipe), so they are never set non-blocking. But nothing that the guest does may keep the thread waiting
that answers it. So a pipe or a terminal is opened once more: what comes of that (open(2): an *open file description*)
is ours alone, and is non-blocking. Where that is not possible (sockets, the terminals of other users) readiness is
asked for first, and at most PIPE_BUF bytes are written at a time, which poll(2) promises not to block.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
from collections.abc import Sequence
from contextlib import closing

from memvm.files.description import Description, drop
from memvm.files.facts import Facts
from memvm.machine.callresult import CallError

MAX_DESCRIPTORS = 1024


class Stream(Description):
    """One standard stream: a descriptor of the manager's, and what the guest set on it."""

    def __init__(self, index: int, host_fd: int) -> None:
        super().__init__(_access(host_fd))
        self.index = index
        self.host_fd = host_fd
        mode = _mode(host_fd)
        self.is_file = stat.S_ISREG(mode)
        """Whether it is a regular file, which has a position and never blocks."""
        own = _reopened(host_fd) if stat.S_ISFIFO(mode) or os.isatty(host_fd) else None
        self._own = host_fd if own is None else own
        self._ready = select.poll()
        self._ask_first = not self.is_file and own is None

    @property
    def fd(self) -> int:
        """The descriptor to read, write and poll."""
        return self._own

    @property
    def can_be_watched(self) -> bool:
        if self.is_file:
            return False
        with closing(select.epoll()) as asked:
            try:
                asked.register(self._own)
            except OSError:  # a device that is always ready
                return False
        return True

    @property
    def edges_fd(self) -> int | None:
        return self._own

    def read(self, views: list[memoryview], offset: int | None = None) -> int:
        if self._ask_first and not self._can(select.POLLIN):
            raise BlockingIOError
        return os.readv(self._own, views) if offset is None else os.preadv(self._own, views, offset)

    def write(self, views: list[memoryview], offset: int | None = None) -> int:
        if self._ask_first:
            if not self._can(select.POLLOUT):
                raise BlockingIOError
            views = _beginning(views, select.PIPE_BUF)
        return os.writev(self._own, views) if offset is None else os.pwritev(self._own, views, offset)

    def _can(self, events: int) -> bool:
        self._ready.register(self._own, events)
        return bool(self._ready.poll(0))

    def offset(self) -> int | None:
        """The position in a regular file; None for anything else."""
        return os.lseek(self._own, 0, os.SEEK_CUR) if self.is_file else None

    def seek(self, offset: int, whence: int) -> int:
        return os.lseek(self.host_fd, offset, whence)

    def facts(self) -> Facts:
        return Facts.of_host(os.fstat(self.host_fd))

    def truncate(self, size: int) -> None:
        os.ftruncate(self.host_fd, size)

    def sync(self) -> None:
        os.fsync(self.host_fd)

    @property
    def host_file(self) -> int | None:
        return self.host_fd if self.is_file else None

    def contents(self, offset: int, size: int) -> bytes:
        return os.pread(self.host_fd, size, offset) if self.is_file else super().contents(offset, size)

    def release(self) -> None:
        """Close what was opened here; the standard stream itself stays, and so does this when it has no descriptor."""
        if self._own != self.host_fd:
            os.close(self._own)
            self._own = self.host_fd


def _mode(fd: int) -> int:
    try:
        return os.fstat(fd).st_mode
    except OSError:  # closed by whoever started us: every use will say EBADF
        return 0


def _access(fd: int) -> int:
    try:
        return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError:
        return os.O_RDWR


def _reopened(fd: int) -> int | None:
    """A non-blocking descriptor of its own for the same pipe or terminal, or None."""
    try:
        access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        return os.open(f"/proc/self/fd/{fd}", access | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # another user's terminal; a pipe that nobody reads any more; no /proc
        return None


def _beginning(views: list[memoryview], most: int) -> list[memoryview]:
    parts = []
    for view in views:
        parts.append(view[:most])
        most -= len(parts[-1])
        if not most:
            break
    return parts


class OpenFile:
    """What one of the guest's descriptors refers to."""

    def __init__(self, stream: Description, close_on_exec: bool = False) -> None:
        self.stream = stream
        """The open file description; it may have several descriptors."""
        self.close_on_exec = close_on_exec
        stream.users += 1


class OpenFiles:
    """The guest's descriptor table."""

    def __init__(self) -> None:
        self.streams = [Stream(index, index) for index in range(3)]
        self.table = {index: OpenFile(stream) for index, stream in enumerate(self.streams)}
        self._lowest = 0
        """Below this all descriptors are in use."""

    def release(self) -> None:
        """Close everything."""
        for number in list(self.table):
            self.close(number)
        for stream in self.streams:
            stream.release()

    def adopt(self, table: dict[int, OpenFile]) -> None:
        """Take over the descriptors of a checkpoint."""
        self.table, self._lowest = table, 0

    def get(self, descriptor: int) -> OpenFile:
        """What a descriptor refers to. Raises CallError(EBADF)."""
        try:
            return self.table[descriptor & 0xFFFFFFFF]
        except KeyError:
            raise CallError(errno.EBADF) from None

    def close(self, descriptor: int) -> None:
        """Forget a descriptor; with the last one its description is closed. Raises CallError(EBADF)."""
        number = descriptor & 0xFFFFFFFF
        stream = self.get(number).stream
        del self.table[number]
        self._lowest = min(self._lowest, number)
        drop(stream)

    def add(self, stream: Description, close_on_exec: bool = False, lowest: int = 0) -> int:
        """The lowest free descriptor from `lowest`, for a description. Raises CallError(EMFILE)."""
        table = self.table
        number = first = max(lowest, self._lowest)
        while number in table:
            number += 1
        if number >= MAX_DESCRIPTORS:
            if not stream.users:
                stream.close()
            raise CallError(errno.EMFILE)
        if first == self._lowest:
            self._lowest = number + 1
        table[number] = OpenFile(stream, close_on_exec)
        return number

    def add_all(self, streams: Sequence[Description], close_on_exec: bool) -> list[int]:
        """Descriptors for descriptions that nobody has yet: for all, or for none. Raises CallError(EMFILE)."""
        numbers: list[int] = []
        try:
            for stream in streams:
                numbers.append(self.add(stream, close_on_exec))  # noqa: PERF401 - those so far matter if one fails
        except CallError:
            for stream in streams[len(numbers) + 1 :]:
                stream.close()
            for number in numbers:
                self.close(number)
            raise
        return numbers

    def duplicate(self, descriptor: int, lowest: int, close_on_exec: bool) -> int:
        """The lowest free descriptor from `lowest`, for the same description. Raises CallError."""
        stream = self.get(descriptor).stream
        if lowest >= MAX_DESCRIPTORS:
            raise CallError(errno.EINVAL)
        return self.add(stream, close_on_exec, lowest)

    def duplicate_to(self, descriptor: int, target: int, close_on_exec: bool) -> int:
        """Make `target` refer to the same description. Raises CallError."""
        stream = self.get(descriptor).stream
        if not 0 <= target < MAX_DESCRIPTORS:
            raise CallError(errno.EBADF)
        new = OpenFile(stream, close_on_exec)
        if target in self.table:
            self.close(target)
        self.table[target] = new
        return target
