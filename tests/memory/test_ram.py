"""Guest RAM without a guest: bounds, contents, and who is asked before each access."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memvm.errors import BadPage, HostError
from memvm.linux import memfd
from memvm.memory.pages import BAD, DEFERRED, PageFlag, PageRun, clear_flag, set_all, set_flag
from memvm.memory.protection import Prot
from memvm.memory.ram import GuestRam
from memvm.units import PAGE_SIZE

BASE = 0x200000
PAGES = 64
SIZE = PAGES * PAGE_SIZE


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    """Empty RAM."""
    ram = GuestRam(BASE, SIZE)
    yield ram
    ram.close()


class Recorder:
    """A loader and a keeper that write down what they are asked."""

    def __init__(self, ram: GuestRam) -> None:
        self.ram = ram
        self.asked: list[tuple[str, int, int]] = []

    @property
    def remaining(self) -> int:
        return 0

    def fault(self, page: int) -> None:
        raise AssertionError("nobody runs here")

    def bring(self, first: int, count: int) -> None:
        self.asked.append(("bring", first, count))
        clear_flag(self.ram.flags, first, count, DEFERRED)

    def forget(self, first: int, count: int) -> None:
        self.asked.append(("forget", first, count))

    def keep(self, first: int, count: int) -> None:
        self.asked.append(("keep", first, count))

    def around(self, page: int) -> PageRun:
        return PageRun(page, 1)


@pytest.fixture
def recorder(ram: GuestRam) -> Recorder:
    """A recorder behind the RAM, as loader and as keeper."""
    recorder = Recorder(ram)
    ram.loader = ram.keeper = recorder
    return recorder


@pytest.mark.parametrize(("base", "size"), [(BASE, 0), (BASE, -4096), (BASE, 4097), (BASE + 1, 4096)])
def test_sizes_that_are_not_whole_pages_are_refused(base: int, size: int) -> None:
    with pytest.raises(ValueError, match="whole pages"):
        GuestRam(base, size)


def test_new_ram_is_zero_and_holds_no_memory(ram: GuestRam) -> None:
    assert list(ram.touched()) == []
    assert ram.touched_bytes() == 0
    assert ram.read(BASE, SIZE) == bytes(SIZE)
    assert (ram.end, ram.page_count) == (BASE + SIZE, PAGES)


@pytest.mark.parametrize(
    ("address", "size"),
    [(BASE - 1, 1), (BASE - 1, 2), (BASE + SIZE, 1), (BASE + SIZE - 1, 2), (0, 8), (BASE, SIZE + 1), (BASE, -1)],
)
def test_ranges_that_do_not_lie_in_ram_are_refused(ram: GuestRam, address: int, size: int) -> None:
    for access in (ram.readable, ram.writable, ram.read):
        with pytest.raises(ValueError, match="not in guest RAM"):
            access(address, size)


def test_empty_ranges(ram: GuestRam, recorder: Recorder) -> None:
    assert ram.read(BASE, 0) == ram.read(BASE + SIZE, 0) == b""
    ram.write(BASE + SIZE, b"")
    assert recorder.asked == []


def test_pages_beyond_the_end_are_not_read_for_ever(ram: GuestRam) -> None:
    with pytest.raises(ValueError, match="not in guest RAM"):
        ram.copy_out(PAGES - 1, memoryview(bytearray(2 * PAGE_SIZE)))


@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.binary(max_size=3 * PAGE_SIZE)), max_size=8))
def test_it_is_a_byte_array(writes: list[tuple[int, bytes]]) -> None:
    ram = GuestRam(BASE, SIZE)
    model = bytearray(SIZE)
    for offset, wanted in writes:
        data = wanted[: SIZE - offset]
        ram.write(BASE + offset, data)
        model[offset : offset + len(data)] = data
        assert ram.read(BASE + offset, len(data)) == data
    buffer = bytearray(SIZE)
    ram.copy_out(0, memoryview(buffer))
    assert ram.read(BASE, SIZE) == model == buffer
    ram.close()


@given(st.sets(st.integers(0, PAGES - 1)), st.integers(0, PAGES - 1), st.integers(1, PAGES))
def test_what_was_touched(pages: set[int], first: int, count: int) -> None:
    ram = GuestRam(BASE, SIZE)
    count = min(count, PAGES - first)
    for page in pages:
        ram.write(BASE + page * PAGE_SIZE, b"x")
    found = [page for run in ram.touched(first, count) for page in range(run.first, run.end)]
    assert found == sorted(pages & set(range(first, first + count)))
    assert ram.touched_bytes() == len(pages) * PAGE_SIZE
    assert ram.next_touched(first) == min((page for page in pages if page >= first), default=PAGES)
    ram.close()


def test_discarded_pages_are_zero_and_hold_no_memory(ram: GuestRam) -> None:
    ram.write(BASE, b"x" * SIZE)
    ram.discard(3, 2)
    assert list(ram.touched()) == [(0, 3), (5, PAGES - 5)]
    assert ram.read(BASE + 2 * PAGE_SIZE, 4 * PAGE_SIZE) == b"x" * PAGE_SIZE + bytes(2 * PAGE_SIZE) + b"x" * PAGE_SIZE


def test_preallocated_pages_are_untouched_as_before(ram: GuestRam) -> None:
    set_all(ram.protection, 0, PAGES, Prot.READ | Prot.WRITE)
    ram.write(BASE, b"x" * 2 * PAGE_SIZE)
    assert ram.next_untouched(0) == ram.next_untouched(1) == 2
    assert ram.preallocate(PageRun(1, 9))
    assert (list(ram.touched()), ram.next_untouched(0), ram.next_touched(2)) == ([(0, 2)], 2, PAGES)
    assert ram.touched_bytes() == 10 * PAGE_SIZE
    buffer = bytearray(3 * PAGE_SIZE)
    ram.copy_out(1, memoryview(buffer))
    assert buffer == b"x" * PAGE_SIZE + bytes(2 * PAGE_SIZE)
    ram.move(BASE, BASE + 20 * PAGE_SIZE, 10 * PAGE_SIZE)
    assert (list(ram.touched()), ram.touched_bytes()) == ([(20, 2)], 2 * PAGE_SIZE)


@pytest.mark.parametrize("attending", ["loader", "keeper", "observer", "traces"])
@pytest.mark.parametrize("page", [3, 6])
@pytest.mark.parametrize("flag", [flag for flag in PageFlag if flag])
def test_nothing_is_preallocated_where_it_would_mean_something(
    ram: GuestRam, recorder: Recorder, attending: str, page: int, flag: PageFlag, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(ram.protection, 0, PAGES, Prot.READ | Prot.WRITE)
    set_flag(ram.flags, page, 1, flag)
    ram.keeper = None
    assert not ram.preallocate(PageRun(3, 4))
    assert ram.preallocate(PageRun(page + 1, 4)), "of the pages beside it nothing is known"
    ram.flags[page] = 0
    monkeypatch.setattr(ram, attending, recorder)
    assert ram.preallocate(PageRun(20, 4)) == (attending == "loader"), "who has deferred pages marks them"
    monkeypatch.undo()
    for protection in (Prot.NONE, Prot.READ, Prot.READ | Prot.WRITE | Prot.EXEC):
        ram.protection[page] = protection
        assert not ram.preallocate(PageRun(3, 4))


def test_without_memory_nothing_is_preallocated(ram: GuestRam, monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(ram.protection, 0, PAGES, Prot.READ | Prot.WRITE)

    def fail(number: int) -> Callable[..., None]:
        def preallocate(*_: int) -> None:
            raise OSError(number, os.strerror(number))

        return preallocate

    for number in (errno.ENOMEM, errno.ENOSPC):
        monkeypatch.setattr(memfd, "preallocate", fail(number))
        assert not ram.preallocate(PageRun(0, 4))
    monkeypatch.setattr(memfd, "preallocate", fail(errno.EBADF))
    with pytest.raises(OSError, match="Bad file descriptor"):
        ram.preallocate(PageRun(0, 4))


def test_moving_copies_what_is_there_and_leaves_holes_holes(ram: GuestRam) -> None:
    ram.write(BASE, b"a" * PAGE_SIZE)
    ram.write(BASE + 2 * PAGE_SIZE, b"c" * PAGE_SIZE)
    ram.move(BASE, BASE + 20 * PAGE_SIZE, 4 * PAGE_SIZE)
    assert list(ram.touched()) == [(20, 1), (22, 1)]
    moved = ram.read(BASE + 20 * PAGE_SIZE, 4 * PAGE_SIZE)
    assert moved == b"a" * PAGE_SIZE + bytes(PAGE_SIZE) + b"c" * PAGE_SIZE + bytes(PAGE_SIZE)


def test_moving_more_than_one_step_at_a_time() -> None:
    ram = GuestRam(BASE, 8 << 20)
    data = os.urandom(3 << 20)
    ram.write(BASE, data)
    ram.move(BASE, BASE + (4 << 20), 3 << 20)
    assert ram.read(BASE + (4 << 20), 3 << 20) == data
    ram.close()


def test_pieces_are_filled_in_one_after_the_other(ram: GuestRam, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the kernel takes them bit by bit."""
    pieces = [os.urandom(PAGE_SIZE * count) for count in (1, 3, 2)]
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: real(fd, [buffers[0][:3000]], offset))
    ram.copy_in(5, [pieces[0], memoryview(pieces[1]), b"", pieces[2]])
    monkeypatch.undo()
    assert ram.read(BASE + 5 * PAGE_SIZE, 6 * PAGE_SIZE) == b"".join(pieces)
    assert list(ram.touched()) == [(5, 6)]


def test_reading_asks_for_deferred_pages_only(ram: GuestRam, recorder: Recorder) -> None:
    ram.read(BASE, SIZE)
    assert recorder.asked == []
    set_flag(ram.flags, 3, 1, DEFERRED)
    ram.read(BASE + 2 * PAGE_SIZE + 4000, 200)
    assert recorder.asked == [("bring", 2, 2)]


def test_changing_asks_for_deferred_pages_and_says_what_will_change(ram: GuestRam, recorder: Recorder) -> None:
    set_flag(ram.flags, 3, 1, DEFERRED)
    ram.write(BASE + 2 * PAGE_SIZE + 4000, bytes(200))
    assert recorder.asked == [("bring", 2, 2), ("keep", 2, 2)]


def test_throwing_away_says_so_and_loads_nothing(ram: GuestRam, recorder: Recorder) -> None:
    set_flag(ram.flags, 3, 1, DEFERRED)
    ram.discard(2, 4)
    assert recorder.asked == [("keep", 2, 4), ("forget", 2, 4)]


def test_bad_pages_are_errors_with_their_number(ram: GuestRam, recorder: Recorder) -> None:
    set_flag(ram.flags, 5, 2, BAD)
    for access in (ram.readable, ram.writable):
        with pytest.raises(BadPage) as raised:
            access(BASE + 4 * PAGE_SIZE, 3 * PAGE_SIZE)
        assert raised.value.page == 5
    assert ("keep", 4, 3) not in recorder.asked


def test_an_error_that_somebody_holds_does_not_hold_the_memory(ram: GuestRam, recorder: Recorder) -> None:
    """A view in the frame of a traceback would keep the mapping from being closed."""
    set_flag(ram.flags, 5, 1, BAD)
    with pytest.raises(BadPage) as raised:
        ram.writable(BASE + 5 * PAGE_SIZE, 1)
    ram.close()
    assert raised.value.page == 5


def test_closing_twice(ram: GuestRam) -> None:
    ram.close()
    ram.close()


@pytest.mark.parametrize(
    ("limit", "words"),
    [(resource.RLIMIT_FSIZE, "ulimit -f"), (resource.RLIMIT_AS, "ulimit -v")],
    ids=["file size", "address space"],
)
def test_ram_that_a_limit_forbids_is_an_error_in_words(limit: int, words: str) -> None:
    size = 1 << 36
    before = resource.getrlimit(limit)
    resource.setrlimit(limit, (1 << 35, before[1]))
    try:
        with pytest.raises(HostError, match=r"guest RAM of 64\.0 GiB cannot be made") as raised:
            GuestRam(BASE, size, bytearray())
    finally:
        resource.setrlimit(limit, before)
    assert words in raised.value.hint
