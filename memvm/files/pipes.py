"""Pipes: the host's, with both ends in the manager, so that poll(2) works on them as on any other descriptor.

What is in a pipe is part of a guest's state. While the guest stands still nobody else uses its pipes, so what is in one
can be read out and put back.
"""

from __future__ import annotations

import fcntl
import os
import struct
import termios

from memvm.files.description import Description
from memvm.files.facts import Facts


class Pipe(Description):
    """One end of a pipe."""

    def __init__(self, fd: int, flags: int, number: int) -> None:
        """`number` tells which pipe it is an end of."""
        super().__init__(flags)
        self._fd = fd
        self.number = number
        self.peer: Pipe | None = None
        """The other end, while it is open."""

    @property
    def fd(self) -> int:
        return self._fd

    @property
    def can_be_watched(self) -> bool:
        return True

    @property
    def edges_fd(self) -> int | None:
        return self._fd

    @property
    def writes(self) -> bool:
        """Whether it is the end to write to."""
        return self.flags & os.O_ACCMODE == os.O_WRONLY

    def read(self, views: list[memoryview], offset: int | None = None) -> int:
        self.check_access(os.O_RDONLY)
        done = os.readv(self._fd, views)
        self._tell_watches()
        return done

    def write(self, views: list[memoryview], offset: int | None = None) -> int:
        self.check_access(os.O_WRONLY)
        done = os.writev(self._fd, views)
        self._tell_watches()
        return done

    def _tell_watches(self) -> None:
        if self.peer is not None:
            for watch in tuple(self.peer.watches):
                watch.look()

    def facts(self) -> Facts:
        return Facts.of_host(os.fstat(self._fd))

    def waiting(self) -> int:
        """Bytes that are in the pipe."""
        return int(struct.unpack("=i", fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4)))[0])

    def close(self) -> None:
        os.close(self._fd)
        if self.peer is not None:
            self.peer.peer = None
            self._tell_watches()


def make_pipe(flags: int, number: int) -> tuple[Pipe, Pipe]:
    """Both ends, for reading and for writing. Raises OSError."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    ends = Pipe(reading, os.O_RDONLY | flags, number), Pipe(writing, os.O_WRONLY | flags, number)
    ends[0].peer, ends[1].peer = ends[1], ends[0]
    return ends


def contents(reading: Pipe) -> bytes:
    """What is in a pipe, which is read out and put back: nobody may use it meanwhile."""
    amount = reading.waiting()
    data = b""
    while len(data) < amount:
        data += os.read(reading.fd, amount - len(data))
    if data:  # the guest may have closed its own end to write to
        fd = os.open(f"/proc/self/fd/{reading.fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _put(fd, data)
        finally:
            os.close(fd)
    return data


def refill(writing: Pipe, data: bytes) -> None:
    """Put bytes into a pipe that has room for them."""
    _put(writing.fd, data)


def _put(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
