"""userfaultfd(2): page faults of another process, read and answered here.

Facts that the callers rely on (tested in tests/linux/test_userfaultfd.py):

- UFFD_USER_MODE_ONLY needs no privilege, also with vm.unprivileged_userfaultfd=0.
- An unknown feature bit gives EINVAL, and the same descriptor can try again with fewer.
- UFFDIO_COPY onto a page that is there gives EEXIST *and does not wake the waiter*: wake it.
- UFFDIO_COPY works within one VMA: a range that crosses a change of protection gives ENOENT.
- It would also succeed in another region of the same process: bounds are the caller's business.
- Registering again adds modes, and takes none away: for that, unregister.
- With MINOR registered, touching a page that is in the memory file and has no page-table entry is a minor fault
  (flags MINOR, and WRITE for a write). UFFDIO_CONTINUE makes the entry; where there is one it gives EEXIST and wakes
  nobody, and at a page that is absent it ends with EFAULT, or EAGAIN with a part done.
- UFFDIO_COPY and UFFDIO_CONTINUE with mode WP (Linux 6.4 for the latter) make write-protected entries; without, they
  take protection away.
- UFFDIO_UNREGISTER wakes who waits for a missing page, and *not* who waits to write: wake it.
- ESRCH: the process has gone; REGISTER and UNREGISTER say ENOMEM then. No event says so.
- A blocking read needs no poll, and is one call less on the path of every fault.
"""

from __future__ import annotations

import errno
import struct
from enum import IntEnum, IntFlag
from fcntl import ioctl

from memvm.linux.ioctl import io_read, io_read_write

SYSCALL_USERFAULTFD = 323
UFFD_USER_MODE_ONLY = 1
UFFD_API_VERSION = 0xAA
_KIND = 0xAA

# include/uapi/linux/userfaultfd.h
UFFDIO_API = io_read_write(_KIND, 0x3F, 24)
UFFDIO_REGISTER = io_read_write(_KIND, 0x00, 32)
UFFDIO_UNREGISTER = io_read(_KIND, 0x01, 16)
UFFDIO_WAKE = io_read(_KIND, 0x02, 16)
UFFDIO_COPY = io_read_write(_KIND, 0x03, 40)
UFFDIO_ZEROPAGE = io_read_write(_KIND, 0x04, 32)
UFFDIO_WRITEPROTECT = io_read_write(_KIND, 0x06, 24)
UFFDIO_CONTINUE = io_read_write(_KIND, 0x07, 32)
UFFDIO_POISON = io_read_write(_KIND, 0x08, 32)  # since Linux 6.6


class Feature(IntFlag):
    """UFFD_FEATURE_*: what the kernel offers, and what is asked of it."""

    PAGEFAULT_FLAG_WP = 1 << 0
    EVENT_FORK = 1 << 1
    EVENT_REMAP = 1 << 2
    EVENT_REMOVE = 1 << 3
    MISSING_HUGETLBFS = 1 << 4
    MISSING_SHMEM = 1 << 5
    EVENT_UNMAP = 1 << 6
    SIGBUS = 1 << 7
    THREAD_ID = 1 << 8
    MINOR_HUGETLBFS = 1 << 9
    MINOR_SHMEM = 1 << 10
    EXACT_ADDRESS = 1 << 11
    WP_HUGETLBFS_SHMEM = 1 << 12
    WP_UNPOPULATED = 1 << 13
    POISON = 1 << 14
    WP_ASYNC = 1 << 15
    MOVE = 1 << 16


class RegisterMode(IntFlag):
    """UFFDIO_REGISTER_MODE_*: which faults of a range are reported."""

    MISSING = 1
    WP = 2
    MINOR = 4


class Event(IntEnum):
    """UFFD_EVENT_*: what a message tells."""

    PAGEFAULT = 0x12


class FaultFlag(IntFlag):
    """UFFD_PAGEFAULT_FLAG_*: what kind of access faulted."""

    WRITE = 1
    WP = 2
    MINOR = 4


_MODE_DONTWAKE, _MODE_WP = 1, 2  # UFFDIO_COPY_MODE_… and UFFDIO_CONTINUE_MODE_…
MESSAGE = struct.Struct("=B7xQQQ")  # struct uffd_msg: event, then flags, address, thread id
MESSAGE_SIZE = 32
_API = struct.Struct("=QQQ")
_REGISTER = struct.Struct("=QQQQ")
_RANGE = struct.Struct("=QQ")
_COPY = struct.Struct("=QQQQq")
_ZEROPAGE = struct.Struct("=QQQq")
_WRITEPROTECT = struct.Struct("=QQQ")
_DONE = struct.Struct("=q")


class Userfaultfd:
    """One userfaultfd descriptor, of any process. Not thread-safe for one structure: none is shared."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def offer(self) -> Feature:
        """The features of this kernel; leaves the descriptor needing a new one (it is for probing)."""
        return self._handshake(Feature(0))

    def enable(self, wanted: Feature) -> Feature:
        """Begin using the descriptor with `wanted`. Raises OSError(EINVAL) if the kernel lacks one."""
        return self._handshake(wanted)

    def _handshake(self, features: Feature) -> Feature:
        answer = bytearray(_API.pack(UFFD_API_VERSION, features, 0))
        ioctl(self.fd, UFFDIO_API, answer)
        return Feature(_API.unpack(answer)[1])

    def register(self, start: int, size: int, mode: RegisterMode) -> None:
        """Report faults of `mode` in the range, besides what this descriptor reports there already.

        Raises ProcessLookupError if the process has gone.
        """
        _change(self.fd, UFFDIO_REGISTER, bytearray(_REGISTER.pack(start, size, mode, 0)))

    def unregister(self, start: int, size: int) -> None:
        """Report no more faults in the range, wake who waits there, and drop its write protection.

        Raises ProcessLookupError if the process has gone.
        """
        _change(self.fd, UFFDIO_UNREGISTER, bytearray(_RANGE.pack(start, size)))
        self.wake(start, size)

    def copy(self, start: int, source: int, size: int, *, protected: bool = False) -> int:
        """Fill absent pages from memory at address `source`, and wake who waits; atomic for each page.

        Returns the bytes done: less than `size` when a page on the way is there already, and 0 when the
        kernel only wants to be asked again. Raises FileExistsError if the first page is there (nobody was
        woken), OSError(ENOENT) if the range is not within one registered VMA, ProcessLookupError if the
        process has gone. With `protected` the next write to each page is reported.
        """
        request = bytearray(_COPY.pack(start, source, size, _MODE_WP if protected else 0, 0))
        try:
            ioctl(self.fd, UFFDIO_COPY, request)
        except BlockingIOError:
            return _part_done(request)
        return size

    def zero(self, start: int, size: int) -> int:
        """Like copy, with zeros."""
        return self._fill(UFFDIO_ZEROPAGE, start, size)

    def poison(self, start: int, size: int) -> int:
        """Make absent pages raise SIGBUS when they are touched. A property of the mapping, not the memory."""
        return self._fill(UFFDIO_POISON, start, size)

    def continue_with(self, start: int, size: int, *, protected: bool = False, wake: bool = True) -> int:
        """Make page-table entries of pages that the memory file has, and wake who waits.

        Returns the bytes done. Raises FileExistsError if the first page has its entry (nobody was woken),
        OSError(EFAULT) if the memory file has not got it, OSError(ENOENT) and ProcessLookupError as copy does. With
        `protected` the next write to each page is reported (OSError(EINVAL) before Linux 6.4).
        """
        mode = (_MODE_WP if protected else 0) | (0 if wake else _MODE_DONTWAKE)
        return self._fill(UFFDIO_CONTINUE, start, size, mode)

    def _fill(self, number: int, start: int, size: int, mode: int = 0) -> int:
        request = bytearray(_ZEROPAGE.pack(start, size, mode, 0))
        try:
            ioctl(self.fd, number, request)
        except BlockingIOError:
            return _part_done(request)
        return size

    def wake(self, start: int, size: int) -> None:
        """Let who waits for a page of the range try again."""
        ioctl(self.fd, UFFDIO_WAKE, bytearray(_RANGE.pack(start, size)))

    def write_protect(self, start: int, size: int) -> None:
        """Report the next write to each page of the range (touched or not)."""
        ioctl(self.fd, UFFDIO_WRITEPROTECT, bytearray(_WRITEPROTECT.pack(start, size, 1)))

    def write_unprotect(self, start: int, size: int) -> None:
        """Allow writes again, and wake who waits to write."""
        ioctl(self.fd, UFFDIO_WRITEPROTECT, bytearray(_WRITEPROTECT.pack(start, size, 0)))


def _change(fd: int, request: int, structure: bytearray) -> None:
    try:
        ioctl(fd, request, structure)
    except OSError as error:
        if error.errno == errno.ENOMEM:  # fs/userfaultfd.c: what it says when the memory has gone
            raise ProcessLookupError(errno.ESRCH, "the process has gone") from error
        raise


def _part_done(request: bytearray) -> int:
    """After EAGAIN: the count of bytes done, which ends each of these structures, or -EAGAIN for none."""
    done: int = _DONE.unpack_from(request, len(request) - _DONE.size)[0]
    return max(done, 0)
