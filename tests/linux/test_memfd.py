"""Memory files: seals, holes, and files that can be executed."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memvm.linux import memfd

PAGE = mmap.PAGESIZE
SIZE = 32 * PAGE


def test_a_memory_file_is_zero_holds_no_memory_and_is_not_inherited() -> None:
    fd = memfd.create_memory("test", SIZE)
    try:
        assert os.pread(fd, SIZE, 0) == bytes(SIZE)
        assert os.fstat(fd).st_blocks == 0
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", [SIZE - PAGE, SIZE + PAGE])
def test_it_can_neither_shrink_nor_grow(size: int) -> None:
    fd = memfd.create_memory("test", SIZE)
    try:
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    finally:
        os.close(fd)


def test_a_size_that_cannot_be_is_refused_and_leaves_no_descriptor() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        memfd.create_memory("test", -1)


def test_a_hole_reads_as_zeros_in_every_mapping_and_holds_no_memory() -> None:
    fd = memfd.create_memory("test", SIZE)
    try:
        with mmap.mmap(fd, SIZE) as first, mmap.mmap(fd, SIZE) as second:
            first[:] = b"x" * SIZE
            memfd.punch_hole(fd, 2 * PAGE, 3 * PAGE)
            expected = b"x" * 2 * PAGE + bytes(3 * PAGE) + b"x" * (SIZE - 5 * PAGE)
            assert os.fstat(fd).st_blocks == (SIZE - 3 * PAGE) // 512
            assert first[:] == second[:] == expected
    finally:
        os.close(fd)


def test_a_failed_call_raises() -> None:
    with pytest.raises(OSError, match="fallocate") as raised:
        memfd.punch_hole(-1, 0, PAGE)
    assert raised.value.errno == errno.EBADF


@given(st.sets(st.integers(0, 31)), st.integers(0, 32), st.integers(0, 32))
def test_extents_are_the_pages_that_hold_memory(pages: set[int], start: int, end: int) -> None:
    fd = memfd.create_memory("test", SIZE)
    try:
        for page in pages:
            os.pwrite(fd, b"x", page * PAGE + 7)
        extents = list(memfd.data_extents(fd, start * PAGE, end * PAGE))
    finally:
        os.close(fd)
    found = [page for first, last in extents for page in range(first // PAGE, last // PAGE)]
    assert found == sorted(pages & set(range(start, end)))
    assert all(before[1] < after[0] for before, after in pairwise(extents))


def test_reading_through_a_mapping_makes_memory_and_reading_the_file_does_not() -> None:
    fd = memfd.create_memory("test", SIZE)
    try:
        os.pread(fd, SIZE, 0)
        assert list(memfd.data_extents(fd, 0, SIZE)) == []
        with mmap.mmap(fd, SIZE) as view:
            assert view[3 * PAGE] == 0
        assert any(first <= 3 * PAGE < last for first, last in memfd.data_extents(fd, 0, SIZE))
    finally:
        os.close(fd)


def run(fd: int) -> int:
    """Execute a memory file; its exit code."""
    pid = os.posix_spawn(f"/proc/self/fd/{fd}", ["true"], {})
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_an_executable_memory_file_runs() -> None:
    program = shutil.which("true")
    assert program is not None
    fd = memfd.create_executable("test", Path(program).read_bytes())
    try:
        assert run(fd) == 0
    finally:
        os.close(fd)


def test_kernels_before_mfd_exec(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux 6.3 brought it; before, the flag is an error and not needed."""
    real: Callable[[str, int], int] = os.memfd_create

    def older(name: str, flags: int) -> int:
        if flags & memfd.MFD_EXEC:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(name, flags)

    monkeypatch.setattr(os, "memfd_create", older)
    fd = memfd.create_executable("test", b"contents")
    try:
        assert os.pread(fd, 100, 0) == b"contents"
    finally:
        os.close(fd)


def test_preallocated_memory_is_a_hole_until_it_is_touched() -> None:
    """Only st_blocks tells of it; reading, of the file or of a mapping, gives zeros."""
    fd = memfd.create_memory("test", SIZE)
    try:
        os.pwrite(fd, b"x" * PAGE, 2 * PAGE)
        memfd.preallocate(fd, 0, 8 * PAGE)
        assert os.fstat(fd).st_blocks * 512 == 8 * PAGE
        assert list(memfd.data_extents(fd, 0, SIZE)) == [(2 * PAGE, 3 * PAGE)]
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
        assert os.lseek(fd, 2 * PAGE, os.SEEK_HOLE) == 3 * PAGE
        assert os.pread(fd, 4 * PAGE, 0) == bytes(2 * PAGE) + b"x" * PAGE + bytes(PAGE)
        assert list(memfd.data_extents(fd, 0, SIZE)) == [(2 * PAGE, 3 * PAGE)]
        with mmap.mmap(fd, SIZE) as mapped:
            assert mapped[5 * PAGE] == 0
            mapped[6 * PAGE] = 1
        os.pwrite(fd, b"y", 4 * PAGE + 7)
        assert list(memfd.data_extents(fd, 0, SIZE)) == [(2 * PAGE, 3 * PAGE), (4 * PAGE, 7 * PAGE)]
        assert os.pread(fd, PAGE, 4 * PAGE) == bytes(7) + b"y" + bytes(PAGE - 8)
        memfd.punch_hole(fd, 0, SIZE)
        assert os.fstat(fd).st_blocks == 0
    finally:
        os.close(fd)
