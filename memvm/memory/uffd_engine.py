"""The userfaultfd engine: the kernel stops the guest's thread at a fault and sends a message here.

The thread that answers is the *pager*. Its loop is the path on which memvm is measured: a blocking read, a decision by
page metadata, one ioctl that places the page and wakes the guest. It runs on the guest's CPU, because handing
over within one CPU costs about 10 µs and across two about 50.

Traces hide pages by dropping their page-table entries: the memory file keeps the contents, and the next access is a
minor fault. Entries can only be dropped by the guest's own process (madvise), so the machine lends a function for it.
While there are traces, what is placed in a hidden page is written to the memory file: with minor faults reported, a
page without an entry cannot be seen by the guest, half written or whole.

A blocking read cannot be ended by closing the descriptor. At the end the descriptor's number is given to /dev/null,
and a signal interrupts the read: os.read tries again by the number, and now reads nothing.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Sequence
from time import perf_counter_ns

from memvm.linux.own_threads import Thread
from memvm.linux.userfaultfd import MESSAGE, MESSAGE_SIZE, FaultFlag, Feature, RegisterMode, Userfaultfd
from memvm.memory.access_scan import AccessScan
from memvm.memory.engine import FaultEngine, FaultHandler, GuestGone
from memvm.memory.pages import TRACE_ACCESS, WRITE_REASONS, PageRun, unflagged_runs
from memvm.memory.ram import GuestRam
from memvm.units import PAGE_SIZE

REQUIRED = (  # all of them: Linux 5.19
    Feature.PAGEFAULT_FLAG_WP
    | Feature.MISSING_SHMEM
    | Feature.MINOR_SHMEM
    | Feature.THREAD_ID
    | Feature.WP_HUGETLBFS_SHMEM
)
WAKE_SIGNAL = signal.SIGURG
"""Ends the pager's read; ignored by default, and nothing else here uses it."""

_WRITE, _WP, _MINOR = int(FaultFlag.WRITE), int(FaultFlag.WP), int(FaultFlag.MINOR)
_SLICE_PAGES = 4096
"""Pages whose guards are lifted while the RAM's lock is held: 64 to 100 µs."""
_BYTES_HEADER = bytes.__basicsize__ - 1
"""From the address of a bytes object, which CPython's id() is, to its contents: the C API's PyBytes_AS_STRING.
Asking through ctypes would cost as much as the rest of an answer. Tested in tests/memory/test_uffd_engine.py."""

Fill = Callable[[int, int], int]
"""Fills guest pages from an address on, a size of them; returns the bytes done."""


class UserfaultfdEngine(FaultEngine):
    """Missing faults and write protection by a userfaultfd of the guest's process."""

    name = "userfaultfd"
    guards_while_running = True
    grain = 1

    def __init__(
        self, ram: GuestRam, uffd: Userfaultfd, *, can_poison: bool, access_scan: AccessScan | None = None
    ) -> None:
        super().__init__(ram)
        self._access_scan = access_scan
        if access_scan is not None:
            self.mapped = access_scan.mapped
        self._uffd = uffd
        self._base, self._copy = ram.base, uffd.copy  # looked up at every fault
        self.poisons = can_poison
        self._deferring = self._tracing = False
        self._mode = RegisterMode(0)
        self._registering = threading.Lock()
        """Held while what is registered is changed; RAM's lock may be held already, and is not taken then."""
        self._leaving = threading.Lock()
        """Held while somebody lets go of guest RAM, until that is done; taken before RAM's lock."""
        self._in_parts = False
        """Whether only some of the memory is registered, while it changes hands."""
        self._pager: threading.Thread | None = None
        self.settle: Callable[[], None] = lambda: None
        """Brings the calling thread to the guest's CPU; the pager calls it first."""
        self.drop: Callable[[Sequence[PageRun]], None] = _cannot_drop
        """Drops page-table entries in the guest's mapping. Raises GuestGone."""

    def start(self, handler: FaultHandler, failed: Callable[[BaseException], None]) -> None:
        """Start the pager thread. From the main thread, unless that has called `let_pagers_be_ended`."""
        if threading.current_thread() is threading.main_thread():
            let_pagers_be_ended()
        self._pager = Thread(target=self._answer, args=(handler, failed), name="pager", daemon=True)
        self._pager.start()

    def _answer(self, handler: FaultHandler, failed: Callable[[BaseException], None]) -> None:
        self.settle()
        read, fd, unpack, base = os.read, self._uffd.fd, MESSAGE.unpack, self.ram.base
        write, minor, missing = handler.write, handler.minor, handler.missing
        clock, latencies = perf_counter_ns, self.latencies.buckets
        try:
            while message := read(fd, MESSAGE_SIZE):
                began = clock()
                _event, flags, address, vcpu = unpack(message)
                self.faults += 1
                page = (address - base) // PAGE_SIZE
                if flags & _WP:
                    write(page, vcpu)
                elif flags & _MINOR:
                    minor(page, flags & _WRITE, vcpu)
                else:
                    missing(page, flags & _WRITE, vcpu)
                latencies[(clock() - began).bit_length()] += 1
        except GuestGone:
            return
        except BaseException as error:  # noqa: BLE001  # the manager ends the guest and reports it
            failed(error)

    def defer(self) -> None:
        """Register guest RAM for missing faults."""
        self._deferring = True
        self._watch()

    def defer_no_more(self) -> None:
        """Deregister; while pages are guarded or traced, missing faults go on being answered instead."""
        with self._leaving:
            self._deferring = False
            self._drop(guards=False)

    def begin_guarding(self) -> None:
        """Register guest RAM for write protection."""
        with self._registering:
            self.guard_users += 1
        self.give_way()
        self._watch()

    def end_guarding(self) -> None:
        """Drop what write protection has no reason left, by deregistering if nothing else needs it."""
        with self._leaving:
            with self._registering:
                self.guard_users -= 1
                if self._in_parts:  # the last part is deregistered already, and with it all
                    self._in_parts = False
                    self._mode = self._needed()
                    return
            self._drop(guards=True)

    def begin_guarding_part(self, run: PageRun) -> None:
        """Register it."""
        with self._registering:
            self._in_parts = True
            self._mode = self._needed() | RegisterMode.WP
            try:
                self._uffd.register(self.ram.base + run.first * PAGE_SIZE, run.count * PAGE_SIZE, self._mode)
            except ProcessLookupError as error:
                raise GuestGone from error

    def end_guarding_part(self, run: PageRun) -> None:
        """Deregister it, which drops its write protection."""
        with self._registering:
            self._in_parts = True
            try:
                self._uffd.unregister(self.ram.base + run.first * PAGE_SIZE, run.count * PAGE_SIZE)
            except ProcessLookupError as error:
                raise GuestGone from error

    def in_use_beside(self, guards: int) -> bool:
        """Deferred pages and traces need it too. Whoever is just letting go of it is waited for."""
        with self._leaving:
            return self.guard_users > guards or self._deferring or self._tracing

    def begin_tracing(self) -> None:
        """Register for everything: of the first touch of a page that holds no memory only missing faults tell."""
        self._tracing = True
        self.give_way()
        self._watch()

    def end_tracing(self) -> None:
        """Like end_guarding. Minor faults that still come where other registrations go on are let pass."""
        with self._leaving:
            self._tracing = False
            self._drop(guards=True)

    # Registered only while needed: a registered VMA does without the kernel's own fault-around.

    def _needed(self) -> RegisterMode:
        mode = RegisterMode.MISSING | RegisterMode.WP | RegisterMode.MINOR if self._tracing else RegisterMode(0)
        if self._deferring:
            mode |= RegisterMode.MISSING
        return mode | RegisterMode.WP if self.guard_users else mode

    def _watch(self) -> None:
        with self._registering:
            self._mode = self._needed()
            self._in_parts = False
            try:
                self._uffd.register(self.ram.base, self.ram.size, self._mode)
            except ProcessLookupError as error:
                raise GuestGone from error

    def _drop(self, *, guards: bool) -> None:
        """Somebody needs guest RAM no more: end what only they needed, write `guards` included."""
        # The kernel can add a mode, and drop all of them, but not drop one.
        try:
            with self._registering:
                self._mode = mode = self._needed()  # before it holds: an answer that comes too late must know
                if not mode:
                    self._uffd.unregister(self.ram.base, self.ram.size)
            if mode and guards:
                self._unguard_everywhere()
        except ProcessLookupError as error:
            raise GuestGone from error

    def _unguard_everywhere(self) -> None:
        for first in range(0, self.ram.page_count, _SLICE_PAGES):
            with self.ram.lock:
                self._lift(PageRun(first, min(_SLICE_PAGES, self.ram.page_count - first)))

    def place(self, first: int, data: bytes, reasons: int = 0) -> None:
        """UFFDIO_COPY: atomic for each page; a page that is there already stays as it is."""
        if reasons:
            self._place_with_reasons(first, data, reasons)
            return
        start, source, size = self._base + first * PAGE_SIZE, id(data) + _BYTES_HEADER, len(data)
        try:
            done = self._copy(start, source, size)
        except OSError as error:
            done = self._overcome(error, start, size, self._copying(source - start))
        if done < size:
            self._fill(start + done, size - done, self._copying(source - start))

    def _place_with_reasons(self, first: int, data: bytes, reasons: int) -> None:
        start = self._base + first * PAGE_SIZE
        if reasons & TRACE_ACCESS:
            with self._registering:
                if self._mode & RegisterMode.MINOR:  # and it stays so while half a page is there
                    self.ram.copy_in(first, [data])
                    # Who waited for the page before it was traced tries again, and meets the trace.
                    self._uffd.wake(start, len(data))
                    return
        ahead, guarded = id(data) + _BYTES_HEADER - start, bool(reasons & WRITE_REASONS)
        self._fill(start, len(data), lambda at, size: self._copy(at, at + ahead, size, protected=guarded))

    def _copying(self, ahead: int) -> Fill:
        """What copies to an address from `ahead` bytes further on."""
        return lambda at, size: self._copy(at, at + ahead, size)

    def place_zeros(self, run: PageRun, reasons: int = 0) -> None:
        """UFFDIO_ZEROPAGE, or UFFDIO_COPY of zeros where writes are guarded: only that can protect."""
        try:
            if reasons & WRITE_REASONS:
                self._place_with_reasons(run.first, bytes(run.count * PAGE_SIZE), reasons & WRITE_REASONS)
            else:
                self._fill(self.ram.base + run.first * PAGE_SIZE, run.count * PAGE_SIZE, self._uffd.zero)
        except FileNotFoundError:
            if self._mode & RegisterMode.MISSING:
                raise
            # All was loaded and faults ended between this one and its answer; the kernel woke who waited.

    def hide(self, runs: Sequence[PageRun]) -> None:
        """Drop the entries; before the guest runs there are none."""
        if self._pager is not None:
            self.drop(runs)

    def reveal(self, run: PageRun, *, guarded: bool) -> None:
        """UFFDIO_CONTINUE."""
        fill = self._continue_guarded if guarded else self._uffd.continue_with
        try:
            self._fill(self._base + run.first * PAGE_SIZE, run.count * PAGE_SIZE, fill)
        except FileNotFoundError:
            if self._mode & RegisterMode.MINOR:
                raise
            # Traces ended between this fault and its answer; deregistering woke who waited.

    def _continue_guarded(self, start: int, size: int) -> int:
        try:
            return self._uffd.continue_with(start, size, protected=True)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        # Before Linux 6.4. The guest's only thread waits for this, so nobody writes in between.
        done = self._uffd.continue_with(start, size, wake=False)
        self._uffd.write_protect(start, done)
        self._uffd.wake(start, done)
        return done

    def poison(self, run: PageRun) -> None:
        """UFFDIO_POISON (Linux 6.6): SIGBUS. Before, the pages stay missing and a touch ends the guest."""
        if self.poisons:
            self._fill(self.ram.base + run.first * PAGE_SIZE, run.count * PAGE_SIZE, self._uffd.poison)

    def heal(self, run: PageRun) -> None:
        """Put zeros in place of the poison: it is the mapping's, and would outlive a hole in the memory file."""
        if not self.poisons:
            return
        with self._registering:
            # Only registered memory can be filled, and outside restores and saves it is not registered.
            mode = self._mode or RegisterMode.MISSING
            try:
                self._uffd.register(self.ram.base, self.ram.size, mode)
                self._fill(self.ram.base + run.first * PAGE_SIZE, run.count * PAGE_SIZE, self._uffd.zero)
                if not self._mode:
                    self._uffd.unregister(self.ram.base, self.ram.size)
            except ProcessLookupError as error:
                raise GuestGone from error

    def _fill(self, start: int, size: int, fill: Fill) -> None:
        """Fill a range of guest addresses, whatever stands in the way."""
        end = start + size
        while start < end:
            try:
                start += fill(start, end - start)
            except OSError as error:
                start += self._overcome(error, start, end - start, fill)

    def _overcome(self, error: OSError, start: int, size: int, fill: Fill) -> int:
        """Get past what stopped a fill at its first page; returns the bytes done."""
        # There already, or (a page to be revealed) not any more: who waits tries again, and may meet another fault.
        if error.errno in (errno.EEXIST, errno.EFAULT):
            self._uffd.wake(start, PAGE_SIZE)
            return PAGE_SIZE
        if error.errno == errno.ESRCH:
            raise GuestGone from error
        if error.errno != errno.ENOENT or size == PAGE_SIZE:
            raise error
        # The kernel fills within one VMA at a time. Where one ends cannot be told from the page metadata, since
        # the guest's mappings may be changing this moment: so halves are tried, and halves of them.
        half = size // PAGE_SIZE // 2 * PAGE_SIZE
        self._fill(start, half, fill)
        return half

    def guard(self, run: PageRun) -> None:
        """UFFDIO_WRITEPROTECT: also pages that were never touched."""
        self._write_protection(self._uffd.write_protect, run)

    def unguard(self, run: PageRun) -> None:
        """Drop the protection, and wake who waits to write."""
        try:
            self._lift(run)
        except FileNotFoundError:
            # Not registered: the save ended after this fault was read, or the memory is changing hands. That dropped
            # the protection, and woke the guest.
            if self._mode & RegisterMode.WP and not self._in_parts:
                raise

    def _lift(self, run: PageRun) -> None:
        for free in unflagged_runs(self.ram.flags, run.first, run.count, WRITE_REASONS):
            self._write_protection(self._uffd.write_unprotect, free)

    def _write_protection(self, change: Callable[[int, int], None], run: PageRun) -> None:
        start, size = self.ram.base + run.first * PAGE_SIZE, run.count * PAGE_SIZE
        while True:
            try:
                change(start, size)
                return
            except ProcessLookupError as error:
                raise GuestGone from error
            except OSError as error:
                if error.errno != errno.EAGAIN:  # EAGAIN: the guest's mappings are changing this moment
                    raise

    def stop(self) -> None:
        """End the pager, then close the descriptor: the guest is dead, so nobody goes on with zero pages."""
        nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(nothing, self._uffd.fd, inheritable=False)
        os.close(nothing)
        pager = self._pager
        while pager is not None and pager.is_alive() and pager.ident is not None:
            signal.pthread_kill(pager.ident, WAKE_SIGNAL)
            pager.join(0.005)
        os.close(self._uffd.fd)
        if self._access_scan is not None:
            self._access_scan.close()


def let_pagers_be_ended() -> None:
    """Have WAKE_SIGNAL interrupt a pager's read; for the main thread, once in a process."""
    signal.signal(WAKE_SIGNAL, _ignore)


def _ignore(_number: int, _frame: object) -> None:
    """A handler that does nothing, so that the signal interrupts system calls."""


def _cannot_drop(runs: Sequence[PageRun]) -> None:
    raise NotImplementedError("nobody has lent a way to drop page-table entries in the guest")
