"""Memory for keys, which does not reach swap, core dumps or /proc/PID/mem (memfd_secret(2), mlock(2), madvise(2)).

The kernel's own kind is memfd_secret: nobody but this process can read such pages, root and most of the kernel
included; they are locked, in no core dump, and while there are any, the machine does not hibernate. Its descriptor is
closed once the pages are mapped, so that pidfd_getfd(2) finds none. Linux has it since 5.14, unasked since 6.5 (before,
with secretmem.enable=1). Without it the pages are ordinary ones, locked and left out of core dumps: root can read them.
Where RLIMIT_MEMLOCK forbids even that, they may be written to swap, and `swap_warning` says so.

What is promised is the holder's own bytes, and no more than Python can keep. Reading them makes copies where whoever
reads does: OpenSSL expands an AES key into a schedule on its own heap, for as long as the cipher object is there, and
wipes that when it goes. What came as bytes was in ordinary memory until it was moved here, for microseconds, and what
it was computed from may still be. Code that runs in this process (a debugger that was let in, an injected call) reads
all of it.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import weakref
from contextlib import suppress
from enum import Enum
from types import TracebackType

from memvm.linux.libc import syscall
from memvm.linux.mlock import address_of, lock_pages
from memvm.units import format_size

# arch/x86/entry/syscalls/syscall_64.tbl
_SYSCALL_MMAP, _SYSCALL_GETRANDOM, SYSCALL_MEMFD_SECRET = 9, 318, 447
_MADV_WIPEONFORK = 18  # include/uapi/asm-generic/mman-common.h, since Linux 4.14
_MAP_FIXED = 0x10
_RIGHTS = mmap.PROT_READ | mmap.PROT_WRITE

Buffer = bytes | bytearray | memoryview


class Guard(Enum):
    """What keeps others from the bytes, and what it is called for people."""

    SECRET = "memfd_secret"
    LOCKED = "locked in memory"
    ORDINARY = "in no core dump, but may be written to swap"


class SecretMemory:
    """Some bytes, all zero at first, that nobody else sees. Nothing of them is in its text, and it is not pickled.

    Forked processes do not have them: there it is as if they had been wiped.
    """

    def __init__(self, size: int) -> None:
        """Raises OSError if there is no memory."""
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.guard = self._guarded()
        self._view = memoryview(self._memory).toreadonly()
        self._size = size
        _LIVE.add(self)

    @classmethod
    def random(cls, size: int) -> SecretMemory:
        """Bytes that nobody can foretell. Raises OSError."""
        made = cls(size)
        syscall(_SYSCALL_GETRANDOM, address_of(made._memory), size, 0)  # at most 256 bytes come all at once
        return made

    @classmethod
    def copy_of(cls, secret: Buffer) -> SecretMemory:
        """The same bytes. Raises OSError."""
        made = cls(len(secret))
        made._memory[:] = secret
        return made

    @classmethod
    def taking(cls, secret: bytes | bytearray) -> SecretMemory:
        """Bytes that are moved here: where they were are zeros afterwards (`overwrite`). Raises OSError."""
        try:
            return cls.copy_of(secret)
        finally:
            overwrite(secret)

    def _guarded(self) -> Guard:
        """The best that is to be had here."""
        try:
            self._map_secret()
        except OSError:
            _map_zeros(self._memory)  # which a failed mmap over it may have taken away
        else:
            return Guard.SECRET
        self._memory.madvise(mmap.MADV_DONTDUMP)
        self._memory.madvise(_MADV_WIPEONFORK)
        try:
            lock_pages(self._memory, 0, len(self._memory))
        except OSError as error:
            if error.errno not in (errno.ENOMEM, errno.EPERM, errno.EAGAIN):
                raise
            return Guard.ORDINARY
        return Guard.LOCKED

    def _map_secret(self) -> None:
        """Have the mapping be of a secret memory file. Python's own mmap would keep a descriptor of that."""
        fd = syscall(SYSCALL_MEMFD_SECRET, os.O_CLOEXEC)
        try:
            os.ftruncate(fd, len(self._memory))
            where = address_of(self._memory)
            syscall(_SYSCALL_MMAP, where, len(self._memory), _RIGHTS, mmap.MAP_SHARED | _MAP_FIXED, fd, 0)
        finally:
            os.close(fd)

    @property
    def view(self) -> memoryview:
        """The bytes, to be read where they are. Using it after `wipe` is a ValueError.

        Whoever makes bytes of it makes a copy that nobody wipes.
        """
        return self._view

    @property
    def address(self) -> int:
        """Where they are, for whoever keeps a part of `view` meanwhile, so that they stay there."""
        return address_of(self._memory)

    def wipe(self) -> None:
        """Overwrite the bytes, and give the memory back; idempotent. Raises BufferError if somebody is reading them."""
        if self._memory.closed:
            return
        self._memory[:] = bytes(self._size)
        self._view.release()
        self._memory.close()

    def _forget_in_child(self) -> None:
        """This process was forked, and shares what is mapped shared."""
        if self.guard is Guard.SECRET and not self._memory.closed:
            _map_zeros(self._memory)
        with suppress(BufferError):  # a thread that was using it; it is not in this process
            self._view.release()

    def __len__(self) -> int:
        return self._size

    def __enter__(self) -> SecretMemory:
        return self

    def __exit__(self, *_exception: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.wipe()

    def __repr__(self) -> str:
        return f"SecretMemory({self._size} bytes, {self.guard.value})"

    def __reduce__(self) -> str:
        raise TypeError("secret memory is not copied, and not pickled")


def overwrite(secret: bytes | bytearray) -> None:
    """Have zeros be where a secret was: also in bytes, which Python calls immutable.

    For an object that was just made of the secret, which nobody else has and nobody uses any more. Objects of one byte,
    of which Python has one each, are left alone.
    """
    if isinstance(secret, bytearray):
        secret[:] = bytes(len(secret))
    elif len(secret) > 1:
        ctypes.memset(ctypes.cast(ctypes.c_char_p(secret), ctypes.c_void_p), 0, len(secret))


def swap_warning() -> str:
    """What to tell people, once in a process, if keys that it has may be written to swap; otherwise nothing."""
    if _SAID or all(secret.guard is not Guard.ORDINARY for secret in _LIVE):
        return ""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    _SAID.append(f"keys in memory may be written to swap: this user may lock {format_size(limit)} (ulimit -l)")
    return _SAID[0]


def _map_zeros(memory: mmap.mmap) -> None:
    """Have ordinary memory be there, all zero."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
    syscall(_SYSCALL_MMAP, address_of(memory), len(memory), _RIGHTS, flags, -1, 0)


_LIVE: weakref.WeakSet[SecretMemory] = weakref.WeakSet()
_SAID: list[str] = []


def _forget_all_in_child() -> None:
    for secret in list(_LIVE):
        secret._forget_in_child()


os.register_at_fork(after_in_child=_forget_all_in_child)
