"""What memvm takes the kernel to do with userfaultfd, fact by fact, on the kernel that runs this.

Memory of this process is registered, and touched from threads by functions of the C library that are called without
the interpreter lock: a thread that held it while it waited for a page would keep everybody from bringing the page.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import mmap
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fcntl import ioctl

import pytest

from memvm.linux import memfd
from memvm.linux.libc import check, libc, syscall
from memvm.linux.userfaultfd import (
    MESSAGE,
    MESSAGE_SIZE,
    SYSCALL_USERFAULTFD,
    UFFD_USER_MODE_ONLY,
    UFFDIO_UNREGISTER,
    Event,
    FaultFlag,
    Feature,
    RegisterMode,
    Userfaultfd,
)
from memvm.units import PAGE_SIZE

PAGES = 16
PROT_NONE = 0
MADV_DONTNEED = 4
WANTED = Feature.PAGEFAULT_FLAG_WP | Feature.MISSING_SHMEM | Feature.MINOR_SHMEM | Feature.WP_HUGETLBFS_SHMEM
MISSING, WP, MINOR = RegisterMode.MISSING, RegisterMode.WP, RegisterMode.MINOR
A_MOMENT = 0.05
"""Seconds after which a thread that could go on would have gone on."""

libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
libc.memset.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
libc.memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def open_userfaultfd() -> int:
    """A userfaultfd of this process, as memvm opens it in a guest."""
    return syscall(SYSCALL_USERFAULTFD, os.O_CLOEXEC | UFFD_USER_MODE_ONLY)


class Memory:
    """A memory file mapped in this process, and a userfaultfd."""

    def __init__(self) -> None:
        try:
            self.uffd = Userfaultfd(open_userfaultfd())
        except OSError as error:
            pytest.skip(f"no userfaultfd here: {error.strerror}")
        try:
            self.features = self.uffd.enable(WANTED | Feature.POISON)
        except OSError:
            try:
                self.features = self.uffd.enable(WANTED)
            except OSError as error:
                os.close(self.uffd.fd)
                pytest.skip(f"this kernel is older than Linux 5.19: {error.strerror}")
        self.fd = memfd.create_memory("uffd-test", PAGES * PAGE_SIZE)
        self.base = self.map()
        self.source = mmap.mmap(-1, PAGES * PAGE_SIZE)
        self.source.write(b"".join(bytes([page + 1]) * PAGE_SIZE for page in range(PAGES)))
        self._buffer = (ctypes.c_char * (PAGES * PAGE_SIZE)).from_buffer(self.source)
        self.source_address = ctypes.addressof(self._buffer)

    def map(self) -> int:
        """One more mapping of the memory file."""
        address = libc.mmap(None, PAGES * PAGE_SIZE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, self.fd, 0)
        assert address not in (None, ctypes.c_void_p(-1).value)
        return int(address)

    def close(self) -> None:
        """Release everything."""
        os.close(self.uffd.fd)
        check(libc.munmap(self.base, PAGES * PAGE_SIZE), "munmap")
        del self._buffer
        self.source.close()
        os.close(self.fd)

    def at(self, page: int) -> int:
        """The address of a page."""
        return self.base + page * PAGE_SIZE

    def register(self, mode: RegisterMode) -> None:
        """Register all of it."""
        self.uffd.register(self.base, PAGES * PAGE_SIZE, mode)

    def copy(self, page: int, count: int = 1) -> int:
        """Place pages of the source, each at its own number; returns how many were placed."""
        source = self.source_address + page * PAGE_SIZE
        return self.uffd.copy(self.at(page), source, count * PAGE_SIZE) // PAGE_SIZE

    def zero(self, page: int, count: int = 1) -> int:
        """Place zeros."""
        return self.uffd.zero(self.at(page), count * PAGE_SIZE) // PAGE_SIZE

    def put(self, page: int, value: int) -> None:
        """Make a page present, through the file."""
        os.pwrite(self.fd, bytes([value]) * PAGE_SIZE, page * PAGE_SIZE)

    def drop(self, page: int, count: int) -> None:
        """Drop page-table entries, as a service thread does."""
        check(libc.madvise(self.at(page), count * PAGE_SIZE, MADV_DONTNEED), "madvise")

    def message(self) -> tuple[int, FaultFlag]:
        """The next fault: the page, and what kind."""
        event, flags, address, _thread = MESSAGE.unpack(os.read(self.uffd.fd, MESSAGE_SIZE))
        assert event == Event.PAGEFAULT
        return (address - self.base) // PAGE_SIZE, FaultFlag(flags)


@pytest.fixture
def memory() -> Iterator[Memory]:
    """Mapped, and not registered."""
    memory = Memory()
    yield memory
    memory.close()


class Touch:
    """A thread that reads or writes one byte of a page, and perhaps waits for it."""

    def __init__(self, memory: Memory, page: int, *, write: bool) -> None:
        self.value = 0
        self._done = threading.Event()
        self._memory, self._page, self._write = memory, page, write
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        byte = ctypes.create_string_buffer(1)
        address = self._memory.at(self._page)
        if self._write:
            libc.memset(address, 0xEE, 1)
        else:
            libc.memcpy(ctypes.addressof(byte), address, 1)
            self.value = byte.raw[0]
        self._done.set()

    def waits(self) -> bool:
        """Whether it still waits after a moment."""
        return not self._done.wait(A_MOMENT)

    def finish(self) -> int:
        """Wait until it is done; what it read."""
        assert self._done.wait(20), "the thread waits for ever"
        self._thread.join()
        return self.value


@contextmanager
def reading(memory: Memory, page: int) -> Iterator[Touch]:
    """A thread that reads a page; it must be done at the end of the block."""
    touch = Touch(memory, page, write=False)
    yield touch
    touch.finish()


@contextmanager
def writing(memory: Memory, page: int) -> Iterator[Touch]:
    """A thread that writes to a page; it must be done at the end of the block."""
    touch = Touch(memory, page, write=True)
    yield touch
    touch.finish()


def in_child(function: Callable[[], int]) -> int:
    """Run a function in a forked process; its exit code, negative for a signal."""
    pid = os.fork()
    if not pid:
        code = 99
        try:
            faulthandler.disable()  # pytest's would tell of the signals that are expected here
            code = function()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class TestOpening:
    """The descriptor and its handshake."""

    def test_it_needs_no_privilege(self) -> None:
        def as_nobody() -> int:
            if not os.getuid():
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            try:
                Userfaultfd(open_userfaultfd()).enable(Feature(0))
            except OSError as error:
                return error.errno or 98
            return 0

        code = in_child(as_nobody)
        if code == errno.ENOSYS:
            pytest.skip("this kernel has no userfaultfd")
        if code == errno.EPERM and in_child(lambda: int(open_userfaultfd() < 0)):
            pytest.skip("something forbids userfaultfd here (a container's filter)")
        assert code == 0

    def test_a_descriptor_that_was_refused_a_feature_can_ask_for_fewer(self) -> None:
        try:
            uffd = Userfaultfd(open_userfaultfd())
        except OSError as error:
            pytest.skip(f"no userfaultfd here: {error.strerror}")
        try:
            with pytest.raises(OSError, match="Invalid argument"):
                uffd.enable(Feature(1 << 62))
            assert uffd.enable(Feature.MISSING_SHMEM) & Feature.MISSING_SHMEM
        finally:
            os.close(uffd.fd)

    def test_what_is_offered_includes_what_is_granted(self, memory: Memory) -> None:
        uffd = Userfaultfd(open_userfaultfd())
        try:
            assert uffd.offer() & memory.features == memory.features
        finally:
            os.close(uffd.fd)


class TestMissing:
    """Missing faults, and what answers them."""

    @pytest.mark.parametrize("write", [False, True])
    def test_a_touch_of_an_absent_page_is_a_message_and_copying_ends_the_wait(
        self, memory: Memory, write: bool
    ) -> None:
        memory.register(MISSING)
        touch = Touch(memory, 3, write=write)
        assert memory.message() == (3, FaultFlag.WRITE if write else FaultFlag(0))
        assert touch.waits()
        assert memory.copy(3) == 1
        touch.finish()
        assert os.pread(memory.fd, 2, 3 * PAGE_SIZE) == (b"\xee\4" if write else b"\4\4")

    def test_a_page_that_is_in_the_file_is_not_missing(self, memory: Memory) -> None:
        """Presence in the memory file decides, not the page-table entry."""
        memory.register(MISSING)
        memory.put(3, 9)
        with reading(memory, 3) as touch:
            assert touch.finish() == 9

    def test_the_file_and_other_mappings_are_not_watched(self, memory: Memory) -> None:
        memory.register(MISSING)
        other = memory.map()
        assert ctypes.string_at(other + 5 * PAGE_SIZE, 1) == b"\0"
        assert os.pread(memory.fd, 1, 6 * PAGE_SIZE) == b"\0"
        check(libc.munmap(other, PAGES * PAGE_SIZE), "munmap")

    def test_zeros_end_the_wait_too(self, memory: Memory) -> None:
        memory.register(MISSING)
        with reading(memory, 3) as touch:
            memory.message()
            assert memory.zero(3) == 1
            assert touch.finish() == 0

    def test_copying_onto_a_page_that_is_there_fails_and_wakes_nobody(self, memory: Memory) -> None:
        memory.register(MISSING)
        with reading(memory, 3) as touch:
            memory.message()
            memory.put(3, 9)
            for place in (memory.copy, memory.zero):
                with pytest.raises(FileExistsError):
                    place(3)
            assert touch.waits()
            memory.uffd.wake(memory.at(3), PAGE_SIZE)
            assert touch.finish() == 9

    def test_a_fill_stops_in_front_of_a_page_that_is_there(self, memory: Memory) -> None:
        memory.register(MISSING)
        memory.put(3, 9)
        memory.put(8, 9)
        assert memory.copy(0, 8) == 3
        assert memory.zero(4, 8) == 4
        assert os.pread(memory.fd, PAGES * PAGE_SIZE, 0)[::PAGE_SIZE] == bytes([1, 2, 3, 9, 0, 0, 0, 0, 9, *bytes(7)])

    def test_a_fill_works_within_one_mapping(self, memory: Memory) -> None:
        """A change of rights ends a mapping; nothing is filled, not even the part in front."""
        memory.register(MISSING)
        check(libc.mprotect(memory.at(4), 2 * PAGE_SIZE, mmap.PROT_READ), "mprotect")
        for fill in (memory.copy, memory.zero):
            with pytest.raises(FileNotFoundError):
                fill(0, 8)
        assert list(memfd.data_extents(memory.fd, 0, PAGES * PAGE_SIZE)) == []
        assert [memory.copy(0, 4), memory.copy(4, 2), memory.copy(6, 2)] == [4, 2, 2]

    def test_pages_without_rights_can_be_filled(self, memory: Memory) -> None:
        memory.register(MISSING)
        check(libc.mprotect(memory.at(4), PAGE_SIZE, PROT_NONE), "mprotect")
        assert memory.copy(4) == 1

    def test_what_is_not_registered_cannot_be_filled(self, memory: Memory) -> None:
        with pytest.raises(FileNotFoundError):
            memory.copy(0)

    def test_another_region_of_the_process_is_filled_as_well(self, memory: Memory) -> None:
        """So bounds are the caller's business."""
        memory.register(MISSING)
        other = memory.map()
        memory.uffd.register(other, PAGES * PAGE_SIZE, MISSING)
        beyond = other - memory.base
        assert memory.uffd.copy(memory.base + beyond, memory.source_address, PAGE_SIZE) == PAGE_SIZE
        check(libc.munmap(other, PAGES * PAGE_SIZE), "munmap")

    def test_no_wait_is_left_when_faults_are_reported_no_more(self, memory: Memory) -> None:
        memory.register(MISSING)
        with reading(memory, 3) as touch:
            memory.message()
            assert touch.waits()
            memory.uffd.unregister(memory.base, PAGES * PAGE_SIZE)
            assert touch.finish() == 0


class TestMinor:
    """Minor faults: pages of the memory file without a page-table entry."""

    @pytest.fixture
    def minor(self, memory: Memory) -> Memory:
        """Pages 0 to 7 in the file, all of it registered, and no entries."""
        for page in range(8):
            memory.put(page, page + 1)
        memory.register(MISSING | WP | MINOR)
        return memory

    @pytest.mark.parametrize("write", [False, True])
    def test_a_touch_is_a_message_and_continuing_ends_the_wait(self, minor: Memory, write: bool) -> None:
        touch = Touch(minor, 3, write=write)
        assert minor.message() == (3, FaultFlag.MINOR | (FaultFlag.WRITE if write else FaultFlag(0)))
        assert touch.waits()
        assert minor.uffd.continue_with(minor.at(3), PAGE_SIZE) == PAGE_SIZE
        assert touch.finish() == (0 if write else 4)
        assert os.pread(minor.fd, 1, 3 * PAGE_SIZE) == (b"\xee" if write else b"\4")

    def test_dropping_entries_makes_the_next_touch_a_message_and_keeps_the_contents(self, minor: Memory) -> None:
        minor.uffd.continue_with(minor.at(0), 8 * PAGE_SIZE)
        with reading(minor, 3) as touch:
            assert touch.finish() == 4
        minor.drop(0, 8)
        with reading(minor, 3) as touch:
            assert minor.message() == (3, FaultFlag.MINOR)
            minor.uffd.continue_with(minor.at(3), PAGE_SIZE)
            assert touch.finish() == 4

    def test_an_absent_page_is_missing_all_the_same(self, minor: Memory) -> None:
        with writing(minor, 9):
            assert minor.message() == (9, FaultFlag.WRITE)
            minor.copy(9)

    def test_what_is_written_to_the_file_appears_as_a_minor_fault(self, minor: Memory) -> None:
        """So a page can be filled that way while the guest runs: it does not see it before it is let."""
        minor.put(9, 77)
        with reading(minor, 9) as touch:
            assert minor.message() == (9, FaultFlag.MINOR)
            minor.uffd.continue_with(minor.at(9), PAGE_SIZE)
            assert touch.finish() == 77

    def test_who_waits_for_a_page_that_is_written_to_the_file_has_to_be_woken(self, minor: Memory) -> None:
        with reading(minor, 9) as touch:
            assert minor.message() == (9, FaultFlag(0))
            minor.put(9, 77)
            assert touch.waits()
            minor.uffd.wake(minor.at(9), PAGE_SIZE)
            assert minor.message() == (9, FaultFlag.MINOR)
            minor.uffd.continue_with(minor.at(9), PAGE_SIZE)
            assert touch.finish() == 77

    def test_continuing_where_there_is_an_entry_fails_and_wakes_nobody(self, minor: Memory) -> None:
        minor.uffd.continue_with(minor.at(3), PAGE_SIZE)
        minor.uffd.write_protect(minor.at(3), PAGE_SIZE)
        with writing(minor, 3) as touch:
            minor.message()
            with pytest.raises(FileExistsError):
                minor.uffd.continue_with(minor.at(3), PAGE_SIZE)
            assert touch.waits()
            minor.uffd.write_unprotect(minor.at(3), PAGE_SIZE)

    def test_continuing_ends_in_front_of_an_absent_page(self, minor: Memory) -> None:
        assert minor.uffd.continue_with(minor.at(6), 4 * PAGE_SIZE) == 2 * PAGE_SIZE
        with pytest.raises(OSError, match="Bad address"):
            minor.uffd.continue_with(minor.at(8), PAGE_SIZE)

    def test_write_protection_outlives_dropped_entries_unless_continuing_lifts_it(self, minor: Memory) -> None:
        minor.uffd.continue_with(minor.at(0), 8 * PAGE_SIZE)
        minor.uffd.write_protect(minor.at(0), 8 * PAGE_SIZE)
        minor.drop(0, 8)
        minor.uffd.continue_with(minor.at(1), PAGE_SIZE)
        with writing(minor, 1) as touch:
            touch.finish()
        with writing(minor, 2):
            assert minor.message() == (2, FaultFlag.MINOR | FaultFlag.WRITE)
            minor.uffd.continue_with(minor.at(2), PAGE_SIZE)

    def test_pages_can_appear_write_protected(self, minor: Memory) -> None:
        try:
            minor.uffd.continue_with(minor.at(1), PAGE_SIZE, protected=True)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            pytest.skip("this kernel is older than Linux 6.4")
        minor.uffd.copy(minor.at(9), minor.source_address, PAGE_SIZE, protected=True)
        for page in (1, 9):
            with reading(minor, page) as touch:
                touch.finish()
            with writing(minor, page):
                assert minor.message() == (page, FaultFlag.WRITE | FaultFlag.WP)
                minor.uffd.write_unprotect(minor.at(page), PAGE_SIZE)

    def test_no_wait_is_left_when_faults_are_reported_no_more(self, minor: Memory) -> None:
        with reading(minor, 3) as touch:
            minor.message()
            minor.uffd.unregister(minor.base, PAGES * PAGE_SIZE)
            assert touch.finish() == 4


class TestWriteProtection:
    """Write protection of pages that are there, and that are not."""

    def test_the_next_write_is_a_message_and_reads_are_free(self, memory: Memory) -> None:
        memory.put(3, 9)
        memory.register(WP)
        memory.uffd.write_protect(memory.base, PAGES * PAGE_SIZE)
        with reading(memory, 3) as touch:
            assert touch.finish() == 9
        with writing(memory, 3) as touch:
            assert memory.message() == (3, FaultFlag.WRITE | FaultFlag.WP)
            assert touch.waits()
            memory.uffd.write_unprotect(memory.at(3), PAGE_SIZE)
        with writing(memory, 3):
            pass

    def test_untouched_pages_can_be_protected(self, memory: Memory) -> None:
        memory.register(WP)
        memory.uffd.write_protect(memory.base, PAGES * PAGE_SIZE)
        with reading(memory, 3) as touch:
            assert touch.finish() == 0
        for page in (3, 4):
            with writing(memory, page):
                assert memory.message() == (page, FaultFlag.WRITE | FaultFlag.WP)
                memory.uffd.write_unprotect(memory.at(page), PAGE_SIZE)

    def test_with_missing_faults_a_placed_page_is_not_protected(self, memory: Memory) -> None:
        """So whoever places a page in protected memory has to take the place of the write fault."""
        memory.register(MISSING | WP)
        memory.uffd.write_protect(memory.base, PAGES * PAGE_SIZE)
        with writing(memory, 3):
            assert memory.message() == (3, FaultFlag.WRITE)
            memory.zero(3)

    def test_a_hole_in_the_file_leaves_it(self, memory: Memory) -> None:
        memory.put(3, 9)
        memory.register(WP)
        memory.uffd.write_protect(memory.base, PAGES * PAGE_SIZE)
        with reading(memory, 3):
            pass
        memfd.punch_hole(memory.fd, 3 * PAGE_SIZE, PAGE_SIZE)
        with writing(memory, 3):
            assert memory.message() == (3, FaultFlag.WRITE | FaultFlag.WP)
            memory.uffd.write_unprotect(memory.at(3), PAGE_SIZE)

    def test_changes_of_rights_leave_it(self, memory: Memory) -> None:
        memory.put(3, 9)
        memory.register(WP)
        memory.uffd.write_protect(memory.base, PAGES * PAGE_SIZE)
        for rights in (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE):
            check(libc.mprotect(memory.at(2), 3 * PAGE_SIZE, rights), "mprotect")
        with writing(memory, 3):
            assert memory.message() == (3, FaultFlag.WRITE | FaultFlag.WP)
            memory.uffd.write_unprotect(memory.base, PAGES * PAGE_SIZE)  # across the borders, if there are any

    def test_writes_through_the_file_are_not_stopped(self, memory: Memory) -> None:
        memory.put(3, 9)
        memory.register(WP)
        memory.uffd.write_protect(memory.base, PAGES * PAGE_SIZE)
        memory.put(3, 7)
        with reading(memory, 3) as touch:
            assert touch.finish() == 7

    def test_what_is_not_registered_cannot_be_protected(self, memory: Memory) -> None:
        with pytest.raises(FileNotFoundError):
            memory.uffd.write_unprotect(memory.at(3), PAGE_SIZE)

    def test_the_kernel_does_not_wake_writers_when_it_deregisters(self, memory: Memory) -> None:
        memory.put(3, 9)
        memory.register(WP)
        memory.uffd.write_protect(memory.base, PAGES * PAGE_SIZE)
        with writing(memory, 3) as touch:
            memory.message()
            ioctl(memory.uffd.fd, UFFDIO_UNREGISTER, bytearray(struct.pack("=QQ", memory.base, PAGES * PAGE_SIZE)))
            assert touch.waits()
            memory.uffd.wake(memory.base, PAGES * PAGE_SIZE)

    def test_no_writer_is_left_waiting_when_faults_are_reported_no_more(self, memory: Memory) -> None:
        memory.put(3, 9)
        memory.register(WP)
        memory.uffd.write_protect(memory.base, PAGES * PAGE_SIZE)
        with writing(memory, 3) as touch:
            memory.message()
            assert touch.waits()
            memory.uffd.unregister(memory.base, PAGES * PAGE_SIZE)
            touch.finish()
        with writing(memory, 4):
            pass


class TestRegistering:
    """Registering what is registered already."""

    def test_it_adds_modes(self, memory: Memory) -> None:
        memory.register(WP)
        memory.register(WP | MISSING)
        with reading(memory, 3):
            assert memory.message() == (3, FaultFlag(0))
            memory.zero(3)
        memory.uffd.write_protect(memory.at(3), PAGE_SIZE)
        with writing(memory, 3):
            assert memory.message() == (3, FaultFlag.WRITE | FaultFlag.WP)
            memory.uffd.write_unprotect(memory.at(3), PAGE_SIZE)

    def test_it_takes_none_away(self, memory: Memory) -> None:
        memory.register(WP | MISSING)
        memory.register(WP)
        with reading(memory, 3):
            assert memory.message() == (3, FaultFlag(0))
            memory.zero(3)


class TestPoison:
    """Pages that are errors; in processes of their own, which end by SIGBUS."""

    @pytest.fixture(autouse=True)
    def _can_poison(self, memory: Memory) -> None:
        if not memory.features & Feature.POISON:
            pytest.skip("this kernel is older than Linux 6.6: no UFFDIO_POISON")

    @staticmethod
    def touched_after(change: Callable[[Memory], object]) -> int:
        """How a process ends that poisons a page, changes something, and reads the page."""

        def run() -> int:
            memory = Memory()
            memory.register(MISSING)
            assert memory.uffd.poison(memory.at(2), 3 * PAGE_SIZE) == 3 * PAGE_SIZE
            change(memory)
            ctypes.string_at(memory.at(3), 1)
            return 0

        return in_child(run)

    def test_a_touch_is_a_bus_error(self) -> None:
        assert self.touched_after(lambda memory: None) == -signal.SIGBUS

    def test_it_outlives_the_registration(self) -> None:
        change = lambda memory: memory.uffd.unregister(memory.base, PAGES * PAGE_SIZE)  # noqa: E731
        assert self.touched_after(change) == -signal.SIGBUS

    def test_it_outlives_a_hole_in_the_file(self) -> None:
        change = lambda memory: memfd.punch_hole(memory.fd, 0, PAGES * PAGE_SIZE)  # noqa: E731
        assert self.touched_after(change) == -signal.SIGBUS

    @pytest.mark.parametrize("way", ["zero", "copy"])
    def test_filling_the_page_ends_it(self, way: str) -> None:
        assert self.touched_after(lambda memory: getattr(memory, way)(3)) == 0

    def test_only_absent_pages_can_be_poisoned(self, memory: Memory) -> None:
        memory.register(MISSING)
        memory.copy(3)
        with pytest.raises(FileExistsError):
            memory.uffd.poison(memory.at(3), PAGE_SIZE)

    def test_it_ends_the_wait_of_who_waits(self) -> None:
        def run() -> int:
            memory = Memory()
            memory.register(MISSING)
            Touch(memory, 3, write=False)
            memory.message()
            memory.uffd.poison(memory.at(3), PAGE_SIZE)
            signal.sigtimedwait([], 20)
            return 0

        assert in_child(run) == -signal.SIGBUS


class TestEnding:
    """The process whose memory it is has gone; and how a read is ended."""

    def test_a_process_that_has_gone(self) -> None:
        """Memory of another process, by a descriptor that it sent."""
        try:
            os.close(open_userfaultfd())
        except OSError as error:
            pytest.skip(f"no userfaultfd here: {error.strerror}")
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if not pid:
            try:
                memory = Memory()
                memory.register(MISSING | WP)
                socket.send_fds(theirs, [struct.pack("=Q", memory.base)], [memory.uffd.fd])
                signal.pause()
            finally:
                os._exit(1)
        with ours, theirs:
            message, (fd,), _, _ = socket.recv_fds(ours, 8, 1)
        (base,) = struct.unpack("=Q", message)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        uffd, size = Userfaultfd(fd), PAGES * PAGE_SIZE
        page = ctypes.create_string_buffer(2 * PAGE_SIZE)
        source = ctypes.addressof(page) + PAGE_SIZE & -PAGE_SIZE
        attempts: list[Callable[[], object]] = [
            lambda: uffd.copy(base, source, PAGE_SIZE),
            lambda: uffd.zero(base, PAGE_SIZE),
            lambda: uffd.write_protect(base, size),
            lambda: uffd.write_unprotect(base, size),
            lambda: uffd.register(base, size, MISSING),
            lambda: uffd.unregister(base, size),
        ]
        try:
            for attempt in attempts:
                with pytest.raises(ProcessLookupError):
                    attempt()
        finally:
            os.close(fd)

    def test_a_read_that_is_interrupted_goes_on_with_what_the_number_means_then(self, memory: Memory) -> None:
        """That is how the pager is ended: closing the descriptor would leave it waiting."""
        before = signal.signal(signal.SIGURG, lambda _number, _frame: None)
        got: list[bytes] = []
        thread = threading.Thread(target=lambda: got.append(os.read(memory.uffd.fd, MESSAGE_SIZE)))
        thread.start()
        try:
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, memory.uffd.fd, inheritable=False)
            os.close(nothing)
            for _ in range(1000):
                assert thread.ident is not None
                if not thread.is_alive():
                    break
                signal.pthread_kill(thread.ident, signal.SIGURG)
                thread.join(0.02)
        finally:
            signal.signal(signal.SIGURG, before)
        assert got == [b""]
