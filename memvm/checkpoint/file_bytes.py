"""Where a checkpoint's bytes go to, and where they come from: a file as it is, or an encrypted one (encryption.py)."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from typing import Protocol

from memvm.checkpoint.format import FileHeader, FormatError


class Output(Protocol):
    """A file that is being written, and takes its name when it is whole. Its methods raise OSError."""

    def write(self, pieces: Sequence[bytes | memoryview], offset: int) -> int:
        """Write the pieces one after the other; returns the bytes."""

    def prepare(self, pieces: Sequence[bytes | memoryview], offset: int) -> Callable[[], int]:
        """What does that when it is called. The rest of the work is done here, by several threads at once perhaps."""

    def reserve(self, offset: int, size: int) -> None:
        """Have space for what will be written there, if there can be some."""

    def start_writeback(self, offset: int, size: int) -> None:
        """Have the kernel bring this to the disk; does not wait for it."""

    def truncate(self, length: int) -> None:
        """Nothing more will be written: the file has `length` bytes, and gives back what was reserved beyond."""

    def publish(self) -> None:
        """The file is whole: make it durable, and give it its name. Raises SaveError, too."""

    def discard(self) -> None:
        """Let go of the file; if it was not published, nothing is left of it. May be called again."""


OpenOutput = Callable[[FileHeader], Output]
"""Begins the file of a checkpoint with this header."""


class Input(Protocol):
    """A file that is being read; its methods may be called from any thread."""

    @property
    def size(self) -> int:
        """Bytes of it."""

    def pread(self, length: int, offset: int) -> bytes:
        """Bytes of it, perhaps fewer. Raises OSError, and FormatError if they are not what was written."""

    def preadv(self, views: Sequence[memoryview], offset: int) -> int:
        """Fill views, perhaps not wholly; returns the bytes. Raises as `pread` does."""

    def close(self) -> None:
        """Close it; idempotent."""


class PlainInput:
    """A file whose bytes are the checkpoint's own."""

    def __init__(self, fd: int) -> None:
        """Takes the descriptor over. Raises FormatError, and closes nothing then."""
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise FormatError("not a memvm checkpoint: it is not an ordinary file")
        self.fd = fd
        self.size = status.st_size

    def pread(self, length: int, offset: int) -> bytes:
        """As Input has it: the kernel may give fewer bytes, and gives at most 2 GiB at once."""
        return os.pread(self.fd, length, offset)

    def preadv(self, views: Sequence[memoryview], offset: int) -> int:
        """As Input has it."""
        return os.preadv(self.fd, views, offset)

    def close(self) -> None:
        """Close it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
