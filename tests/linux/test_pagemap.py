"""What memvm takes the kernel to do with PAGEMAP_SCAN and WP_ASYNC, fact by fact, on the kernel that runs this."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator

import pytest

from memvm.linux import memfd
from memvm.linux.libc import check, libc
from memvm.linux.pagemap import Pagemap
from memvm.linux.userfaultfd import Feature, RegisterMode, Userfaultfd
from memvm.units import PAGE_SIZE
from tests.linux.test_userfaultfd import in_child, open_userfaultfd

PAGES = 4096
SIZE = PAGES * PAGE_SIZE
MADV_DONTNEED = 4
SYNCHRONOUS = Feature.PAGEFAULT_FLAG_WP | Feature.WP_HUGETLBFS_SHMEM

libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Memory:
    """A memory file mapped in this process, whose writes can be noted."""

    def __init__(self) -> None:
        self.uffd = Userfaultfd(_opened())
        try:
            self.uffd.enable(SYNCHRONOUS | Feature.WP_UNPOPULATED | Feature.WP_ASYNC)
        except OSError as error:
            os.close(self.uffd.fd)
            pytest.skip(f"this kernel is older than Linux 6.7: {error.strerror}")
        self.fd = memfd.create_memory("pagemap-test", SIZE)
        address = libc.mmap(None, SIZE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, self.fd, 0)
        assert address not in (None, ctypes.c_void_p(-1).value)
        self.base = int(address)
        self.pagemap = Pagemap(os.getpid())

    def close(self) -> None:
        self.pagemap.close()
        os.close(self.uffd.fd)
        check(libc.munmap(self.base, SIZE), "munmap")
        os.close(self.fd)

    def register(self) -> None:
        """Note writes from now on."""
        self.uffd.register(self.base, SIZE, RegisterMode.WP)
        self.uffd.write_protect(self.base, SIZE)

    def write(self, page: int) -> None:
        ctypes.memset(self.base + page * PAGE_SIZE, 0xEE, 1)

    def read(self, page: int) -> int:
        return ctypes.string_at(self.base + page * PAGE_SIZE, 1)[0]

    def drop(self, page: int, count: int = 1) -> None:
        """Drop page-table entries."""
        check(libc.madvise(self.base + page * PAGE_SIZE, count * PAGE_SIZE, MADV_DONTNEED), "madvise")

    def present(self) -> list[int]:
        """What has a page-table entry."""
        found = self.pagemap.present(self.base, self.base + SIZE)
        return [
            page
            for first, last in found
            for page in range((first - self.base) // PAGE_SIZE, (last - self.base) // PAGE_SIZE)
        ]

    def written(self, pagemap: Pagemap | None = None) -> list[int]:
        """What was written since the last call."""
        found = (pagemap or self.pagemap).written(self.base, self.base + SIZE)
        return [
            page
            for first, last in found
            for page in range((first - self.base) // PAGE_SIZE, (last - self.base) // PAGE_SIZE)
        ]


def _opened() -> int:
    try:
        return open_userfaultfd()
    except OSError as error:
        pytest.skip(f"no userfaultfd here: {error.strerror}")


@pytest.fixture
def memory() -> Iterator[Memory]:
    """Mapped, and not registered."""
    memory = Memory()
    yield memory
    memory.close()


class TestNotes:
    """What is reported as written."""

    def test_each_write_is_reported_once(self, memory: Memory) -> None:
        memory.register()
        for page in (3, 4, 700):
            memory.write(page)
        assert memory.written() == [3, 4, 700]
        assert memory.written() == []
        memory.write(4)
        assert memory.written() == [4]

    def test_more_regions_than_one_call_returns(self, memory: Memory) -> None:
        memory.register()
        pages = list(range(0, PAGES, 2))
        for page in pages:
            memory.write(page)
        assert memory.written() == pages
        assert memory.written() == []

    def test_a_read_is_none(self, memory: Memory) -> None:
        memory.write(1)
        memory.register()
        assert (memory.read(0), memory.read(1)) == (0, 0xEE)
        assert memory.written() == []

    def test_what_is_not_protected_counts_as_written(self, memory: Memory) -> None:
        memory.write(1)
        memory.uffd.register(memory.base, SIZE, RegisterMode.WP)
        assert 1 in memory.written()
        assert memory.written() == []

    def test_deregistering_and_registering_loses_the_protection_and_no_write(self, memory: Memory) -> None:
        memory.register()
        memory.write(1)
        memory.uffd.unregister(memory.base, SIZE)
        memory.uffd.register(memory.base, SIZE, RegisterMode.WP)
        assert 1 in memory.written()

    def test_a_dropped_entry_loses_no_write(self, memory: Memory) -> None:
        memory.register()
        memory.write(1)
        memory.drop(0, 8)
        assert memory.written() == [1]
        assert memory.read(1) == 0xEE
        assert memory.written() == []

    def test_a_dropped_entry_of_a_page_that_was_not_written_stays_protected(self, memory: Memory) -> None:
        memory.write(1)
        memory.register()
        memory.drop(1)
        assert memory.written() == []
        memory.write(1)
        assert memory.written() == [1]

    def test_a_punched_page_is_not_reported(self, memory: Memory) -> None:
        for page in (1, 2):
            memory.write(page)
        memory.register()
        memory.write(2)
        memory.written()
        memfd.punch_hole(memory.fd, PAGE_SIZE, 2 * PAGE_SIZE)
        assert memory.written() == []
        assert memory.read(1) == 0
        memory.write(2)
        assert memory.written() == [2]

    def test_a_write_past_the_mapping_is_not_reported(self, memory: Memory) -> None:
        memory.write(1)
        memory.register()
        os.pwrite(memory.fd, b"x", PAGE_SIZE)
        assert memory.written() == []


class TestPresence:
    """What is reported as present: what was accessed since its entry was dropped."""

    def test_each_page_that_was_accessed_and_no_other(self, memory: Memory) -> None:
        for page in range(PAGES):
            memory.write(page)
        memory.register()
        assert memory.present() == list(range(PAGES))
        memory.drop(0, PAGES)
        assert memory.present() == []
        assert [memory.read(page) for page in (3, 700)] == [0xEE, 0xEE]
        memory.write(4)
        assert memory.present() == memory.present() == [3, 4, 700]

    def test_more_regions_than_one_call_returns(self, memory: Memory) -> None:
        memory.register()
        pages = list(range(0, PAGES, 2))
        for page in pages:
            memory.write(page)
        assert memory.present() == pages

    def test_a_page_that_is_only_marked_as_protected_is_not_present(self, memory: Memory) -> None:
        memory.register()
        memory.write(1)
        memory.drop(0, 8)
        memory.uffd.write_protect(memory.base, SIZE)
        assert memory.present() == []

    def test_what_another_mapping_brings_is_not_present(self, memory: Memory) -> None:
        memory.register()
        os.pwrite(memory.fd, b"x" * SIZE, 0)
        assert memory.present() == []


class TestRegistration:
    """Whose memory it is."""

    def test_memory_that_is_not_registered_is_refused(self, memory: Memory) -> None:
        with pytest.raises(OSError) as error:
            memory.written()
        assert error.value.errno == errno.EPERM

    def test_one_descriptor_at_a_time(self, memory: Memory) -> None:
        other = Userfaultfd(open_userfaultfd())
        try:
            other.enable(SYNCHRONOUS)
            memory.register()
            with pytest.raises(OSError) as error:
                other.register(memory.base, PAGE_SIZE, RegisterMode.WP)
            assert error.value.errno == errno.EBUSY
            # but pages can change hands one by one
            memory.uffd.unregister(memory.base, PAGE_SIZE)
            other.register(memory.base, PAGE_SIZE, RegisterMode.WP)
            other.unregister(memory.base, PAGE_SIZE)
        finally:
            os.close(other.fd)

    def test_closing_the_descriptor_only_ends_the_noting(self, memory: Memory) -> None:
        memory.register()
        spare = os.dup(memory.uffd.fd)
        os.close(memory.uffd.fd)
        os.close(spare)
        memory.write(5)
        assert memory.read(5) == 0xEE
        with pytest.raises(OSError) as error:
            memory.written()
        assert error.value.errno == errno.EPERM
        memory.uffd = Userfaultfd(open_userfaultfd())  # for close


class TestAnotherProcess:
    """A guest's pages, seen from its manager."""

    def test_it_needs_no_privilege(self) -> None:
        assert in_child(_as_nobody) == 0

    def test_a_process_that_has_gone_is_told_apart(self, memory: Memory) -> None:
        memory.register()
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
        other = Pagemap(pid)
        os.close(reading)
        os.close(writing)
        os.waitpid(pid, 0)
        try:
            with pytest.raises(ProcessLookupError):
                memory.written(other)
        finally:
            other.close()


def _as_nobody() -> int:
    """Notes, as an ordinary user has them; that they are also had of another process, every test with a guest shows."""
    if not os.getuid():
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        libc.prctl(4, 1)  # PR_SET_DUMPABLE: as after an exec, which a guest's process has behind it
    memory = Memory()
    memory.register()
    memory.write(9)
    return 0 if memory.written() == [9] else 1
