"""Guest RAM: a memory file, mapped shared in the guest and once more here (the *host view*).

Nobody in the manager touches guest RAM except through this class. Before a read it brings in deferred pages; before a
change it lets a save have the old contents, and tells an observer. The first two are looked up in the page metadata
(pages.py).

The lock
--------
`lock` orders every change of a page's flags with what the flag stands for. Who clears DEFERRED places the page while
holding it, so a page that was thrown away meanwhile cannot come back with old contents. Who clears GUARDED has
copied the page, so a page is changed only after its contents are safe. It is held for microseconds, and never while
waiting for the guest, a disk, or another lock.

The host view is a mapping of its own that no userfaultfd knows: touching it never waits for a fault.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from memvm.errors import BadPage, HostError
from memvm.linux import memfd
from memvm.linux.mlock import lock_pages, unlock_pages
from memvm.memory.pages import BAD, DEFERRED, TRACED, PageRun, flagged_runs, page_span
from memvm.memory.protection import Prot
from memvm.units import PAGE_SIZE, format_size

_READY = bytes(value for value in range(256) if not value & (DEFERRED | BAD))
"""The metadata bytes of pages that may be read."""
_UNTRACED = bytes(value for value in range(256) if not value & TRACED)
_COPY_STEP = 1 << 20
_READ_WRITE = int(Prot.READ | Prot.WRITE)
_WHY_NO_MEMORY = {
    errno.EFBIG: "to the kernel it is a file: allow larger ones (ulimit -f unlimited), or give it a smaller --ram",
    errno.ENOMEM: "allow more address space (ulimit -v unlimited), or give it a smaller --ram",
}


class Loader(Protocol):
    """Who has the contents of deferred pages."""

    @property
    def remaining(self) -> int:
        """Pages that are still deferred."""

    def fault(self, page: int) -> None:
        """The guest waits for this page: place it. Raises BadPage if nothing can be placed."""

    def bring(self, first: int, count: int) -> None:
        """Load the deferred pages among these. Raises BadPage."""

    def forget(self, first: int, count: int) -> None:
        """These pages are being thrown away: never load them. Called with the lock held."""


class Keeper(Protocol):
    """A save that hears of every change that the manager is about to make."""

    def keep(self, first: int, count: int) -> None:
        """Take copies of the guarded pages among these, and clear their flags."""

    def around(self, page: int) -> PageRun:
        """The pages to keep together with one that the guest is about to write."""


class Observer(Protocol):
    """Who notes which pages change, to tell of them later."""

    def faulted(self, page: int, along: PageRun | None) -> PageRun:
        """The guest is about to write to a guarded page; the keeper, if there is one, lets go of it `along` with more.

        Returns the pages that nobody has to guard any more for this observer's sake. Called with the lock held.
        """

    def wrote(self, first: int, count: int) -> None:
        """The manager is about to write to these pages."""

    def discarded(self, first: int, count: int) -> None:
        """These pages have just been thrown away. Called with the lock held."""


class Watcher(Protocol):
    """Traces, as seen by whoever accesses pages or answers faults (memory/traces.py)."""

    def where(self, page: int, vcpu: int) -> int:
        """The instruction of an access by the guest, if somebody wants to know it."""

    def hear(self, page: int, write: int, vcpu: int, instruction: int) -> list[Any]:
        """Take note of an access to a traced page; called with the lock held. The result is for `deliver`."""

    def deliver(self, heard: list[Any]) -> None:
        """Tell who waited for the access; called without the lock."""

    def accessed(self, first: int, count: int, write: int) -> None:
        """The manager is about to access these pages, some of them traced."""


class Unmeasured(Protocol):
    """A measurement of what guest RAM has at launch that is not complete yet (machine/measurement.py)."""

    def about_to_change(self, first: int, count: int) -> None:
        """These pages will change, or the guest may change them from now on. Called without the lock."""


def _make_memory(size: int) -> tuple[int, mmap.mmap]:
    """A memory file of this size, mapped. Raises HostError."""
    with ExitStack() as undo:
        try:
            fd = memfd.create_memory("memvm-ram", size)
            undo.callback(os.close, fd)
            mapped = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError as error:
            raise HostError(
                f"guest RAM of {format_size(size)} cannot be made: {error.strerror}",
                hint=_WHY_NO_MEMORY.get(error.errno or 0, "'memvm doctor' says what this machine can do"),
            ) from error
        mapped.madvise(mmap.MADV_DONTDUMP)  # a core dump of the manager's has nothing of it
        undo.pop_all()
    return fd, mapped


class GuestRam:
    """The memory of one guest: `size` bytes from guest address `base`, all zero at first."""

    def __init__(self, base: int, size: int, flags: bytearray | None = None) -> None:
        """`flags` are its pages' flags, if they have been made already. Raises HostError, ValueError for the size."""
        if size <= 0 or size % PAGE_SIZE or base % PAGE_SIZE:
            raise ValueError(f"RAM of {size} bytes at {base:#x} is not made of whole pages")
        self.base = base
        self.size = size
        self.page_count = size // PAGE_SIZE
        self.flags = bytearray(self.page_count) if flags is None else flags
        self.protection = bytearray(self.page_count)
        self.lock = threading.RLock()
        self.discards = 0
        """How often pages were thrown away; with the lock held, none is while it stays the same."""
        self.loader: Loader | None = None
        self.keeper: Keeper | None = None
        self.observer: Observer | None = None
        self.traces: Watcher | None = None
        """There while there are traces."""
        self.unmeasured: Unmeasured | None = None
        self.fd, self._map = _make_memory(size)
        self._view = memoryview(self._map)
        self._filling = -1
        """Another descriptor for the memory file, with a position that only `read_in` uses."""

    @property
    def end(self) -> int:
        """The guest address behind the last byte."""
        return self.base + self.size

    def read(self, address: int, size: int) -> bytes:
        """A copy of `size` bytes. Raises BadPage; the range must lie in RAM."""
        return bytes(self.readable(address, size))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store bytes. Raises BadPage; the range must lie in RAM."""
        if data:
            self.writable(address, len(data))[:] = data

    def readable(self, address: int, size: int) -> memoryview:
        """The host view of a range, loaded and ready to be read: use it and let go of it at once."""
        offset = self._offset(address, size)
        if self.loader is not None and size:
            self._load(*page_span(address, size, self.base))
        if self.traces is not None and size:
            self._access(self.traces, *page_span(address, size, self.base), 0)
        return self._view[offset : offset + size]

    def writable(self, address: int, size: int) -> memoryview:
        """The host view of a range, ready to be changed: use it and let go of it at once."""
        offset = self._offset(address, size)
        if self.unmeasured is not None and size:
            self.unmeasured.about_to_change(*page_span(address, size, self.base))
        if self.loader is not None and size:
            self._load(*page_span(address, size, self.base))
        keeper = self.keeper
        if keeper is not None and size:
            keeper.keep(*page_span(address, size, self.base))
        if self.observer is not None and size:
            self.observer.wrote(*page_span(address, size, self.base))
        if self.traces is not None and size:
            self._access(self.traces, *page_span(address, size, self.base), 1)
        return self._view[offset : offset + size]

    def _access(self, traces: Watcher, first: int, count: int, write: int) -> None:
        if self.flags[first : first + count].translate(None, _UNTRACED):
            traces.accessed(first, count, write)

    def _offset(self, address: int, size: int) -> int:
        offset = address - self.base
        if not 0 <= offset <= offset + size <= self.size:
            raise ValueError(f"{size} bytes at {address:#x} are not in guest RAM")
        return offset

    def _load(self, first: int, count: int) -> None:
        """Bring in what is deferred of these pages. Raises BadPage."""
        if not self.flags[first : first + count].translate(None, _READY):
            return
        if self.loader is not None:
            self.loader.bring(first, count)
        for run in flagged_runs(self.flags, first, count, BAD):
            raise BadPage(run.first, f"page {run.first} of guest RAM could not be verified")

    def read_in(self, address: int, size: int, fd: int, offset: int) -> None:
        """Fill a range from an open file, as far as that goes. Raises BadPage, OSError.

        sendfile(2) copies from the file's cached pages to those of the memory file, without a mapping in between: twice
        as fast as reading into the host view, which faults at each page. It wants a position of its own.
        """
        if not size:
            return
        self.writable(address, size)
        if self._filling < 0:
            self._filling = os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)
        os.lseek(self._filling, address - self.base, os.SEEK_SET)
        while size and (step := os.sendfile(self._filling, fd, offset, size)):
            offset, size = offset + step, size - step

    def discard(self, first: int, count: int) -> None:
        """Throw pages away: they are zero afterwards, and hold no memory."""
        if self.unmeasured is not None:
            self.unmeasured.about_to_change(first, count)
        with self.lock:
            self.discards += 1
            if self.keeper is not None:
                self.keeper.keep(first, count)
            if self.loader is not None:
                self.loader.forget(first, count)
            memfd.punch_hole(self.fd, first * PAGE_SIZE, count * PAGE_SIZE)
            if self.observer is not None:
                self.observer.discarded(first, count)

    def preallocate(self, run: PageRun) -> bool:
        """Have memory ready for the guest's first touch of pages that it may write; contents stay, and so does what
        `touched` tells.

        False if that is not to be, or cannot be: somebody attends to accesses or changes, or has something to do with
        one of the pages; the guest has no right to write to one any more; there is no memory. All this cannot change
        meanwhile, since the lock is held: some 200 µs for 128 pages.
        """
        with self.lock:
            if self.keeper is not None or self.observer is not None or self.traces is not None:
                return False
            if self.flags.count(0, run.first, run.end) != run.count:
                return False
            # Who takes the right to free the pages does so before, and punches its hole with the lock held.
            if self.protection.count(_READ_WRITE, run.first, run.end) != run.count:
                return False
            try:
                memfd.preallocate(self.fd, run.first * PAGE_SIZE, run.count * PAGE_SIZE)
            except OSError as error:
                if error.errno not in (errno.ENOMEM, errno.ENOSPC, errno.EINTR):
                    raise
                return False
        return True

    def pin(self, address: int, size: int) -> None:
        """Keep the pages of a range in memory, for a secret: they are not written to swap, also where the guest has
        them mapped. Raises BadPage, OSError if this user may not lock so much.

        Of a copy that is made of them nothing is promised, nor of what comes in their place when they are discarded.
        """
        self.readable(address, size)
        lock_pages(self._map, address - self.base, size)

    def unpin(self, address: int, size: int) -> None:
        """The pages of a range may be written to swap again."""
        unlock_pages(self._map, self._offset(address, size), size)

    def wipe(self) -> None:
        """Give all memory back, whatever anybody still wants of it; the guest has ended."""
        memfd.punch_hole(self.fd, 0, self.size)

    def move(self, source: int, target: int, size: int) -> None:
        """Copy what is there of a range of whole pages to another, empty and not overlapping, then discard it."""
        self.readable(source, size)
        start = source - self.base
        shift = target - source
        for first, last in memfd.data_extents(self.fd, start, start + size):
            for offset in range(first, last, _COPY_STEP):
                step = min(_COPY_STEP, last - offset)
                self.write(self.base + offset + shift, self._view[offset : offset + step])
        self.discard(start // PAGE_SIZE, size // PAGE_SIZE)

    def copy_out(self, first: int, buffer: memoryview) -> None:
        """Read whole pages into a buffer; what is deferred must be loaded already.

        Not from the host view: reading a hole there would give it memory, and pages may be thrown away meanwhile.
        """
        offset, done = first * PAGE_SIZE, 0
        if offset + len(buffer) > self.size:
            raise ValueError(f"{len(buffer)} bytes from page {first} are not in guest RAM")
        while done < len(buffer):
            done += os.preadv(self.fd, [buffer[done:]], offset + done)

    def copy_in(self, first: int, pieces: Sequence[bytes | memoryview]) -> None:
        """Fill neighbouring pages that the guest cannot see yet, past all metadata."""
        memfd.write_all(self.fd, first * PAGE_SIZE, pieces)

    def touched(self, first: int = 0, count: int | None = None) -> Iterator[PageRun]:
        """The runs of pages that hold memory."""
        end = self.page_count if count is None else first + count
        for start, stop in memfd.data_extents(self.fd, first * PAGE_SIZE, end * PAGE_SIZE):
            yield PageRun(start // PAGE_SIZE, (stop - start) // PAGE_SIZE)

    def next_touched(self, page: int) -> int:
        """The first page from this one on that holds memory; the count of all pages if none does."""
        try:
            return os.lseek(self.fd, page * PAGE_SIZE, os.SEEK_DATA) // PAGE_SIZE
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return self.page_count

    def next_untouched(self, page: int) -> int:
        """The first page from this one on that was not touched; the count of all pages if all were."""
        return os.lseek(self.fd, page * PAGE_SIZE, os.SEEK_HOLE) // PAGE_SIZE

    def touched_bytes(self) -> int:
        """How much memory guest RAM holds now; what was preallocated, and not touched yet, is counted too."""
        return os.fstat(self.fd).st_blocks * 512

    def close(self) -> None:
        """Give the memory back; idempotent."""
        if self.fd < 0:
            return
        self._view.release()
        self._map.close()
        os.close(self.fd)
        self.fd = -1
        if self._filling >= 0:
            os.close(self._filling)
