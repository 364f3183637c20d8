"""Precopy against a model: what it says is copied is what the page holds, whatever happens in between."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from memvm.memory import precopy as precopy_module
from memvm.memory.pages import GUARDED, PageRun, count_flag, runs_of
from memvm.memory.precopy import Precopy, Round
from memvm.memory.ram import GuestRam
from memvm.memory.traces import Access, Traces
from memvm.units import PAGE_SIZE
from tests.memory.fake_engine import FakeEngine
from tests.memory.sources import page_of

PAGES = 64
BASE = 0x200000
ZERO = bytes(PAGE_SIZE)

some_page = st.integers(0, PAGES - 1)
some_pages = st.sets(some_page, max_size=12)
some_value = st.integers(1, 1 << 60)


class PrecopyMachine(RuleBasedStateMachine):
    """One RAM, copied in rounds; the copies are kept as a file keeps them: a page may not be given twice."""

    @initialize(grain=st.sampled_from([1, 4]), guards_while_running=st.booleans(), touched=some_pages)
    def begin(self, grain: int, guards_while_running: bool, touched: set[int]) -> None:
        self.ram = GuestRam(BASE, PAGES * PAGE_SIZE)
        self.ram.protection[:] = b"\3" * PAGES
        self.engine = FakeEngine(self.ram, guards_while_running=guards_while_running, grain=grain)
        self.model = [ZERO] * PAGES
        self.file: dict[int, bytes] = {}
        self.wrote: set[int] = set()
        self.between = threading.Lock()
        self.precopy = Precopy(
            self.ram, self.engine, self.between, lambda run: self.wrote.update(range(run.first, run.end))
        )
        self.traces = Traces(self.ram, self.engine, lambda _vcpu: 0, self._failed)
        for page in touched:
            self.guest_writes(page, page + 1)
        self.precopy.begin()
        self.left: set[int] = set()

    def _failed(self, error: BaseException) -> None:
        raise error

    @rule(page=some_page, value=some_value)
    def guest_writes(self, page: int, value: int) -> None:
        self.engine.guest_write(page, page_of(value))
        self.model[page] = page_of(value)

    @rule(page=some_page)
    def guest_reads(self, page: int) -> None:
        assert self.engine.guest_read(page) == self.model[page]

    @rule(page=some_page, value=some_value)
    def manager_writes(self, page: int, value: int) -> None:
        with self.between:
            self.ram.write(BASE + page * PAGE_SIZE, page_of(value))
        self.model[page] = page_of(value)

    @rule(page=some_page, count=st.integers(1, 6))
    def discard(self, page: int, count: int) -> None:
        count = min(count, PAGES - page)
        self.ram.discard(page, count)
        self.model[page : page + count] = [ZERO] * count

    @rule()
    def trace(self) -> None:
        """What is hidden is guarded when it is revealed."""
        with self._stopped(), self.traces.add([PageRun(0, PAGES)], Access.READ, around=True):
            for page in range(0, PAGES, 7):
                self.guest_reads(page)
                self.guest_writes(page, page + 77)

    @contextmanager
    def _stopped(self) -> Iterator[None]:
        self.engine.standing_still = True  # an engine that guards only then has the guest stopped
        yield
        self.engine.standing_still = False

    @rule()
    def next_round(self) -> None:
        with self._stopped():
            todo = self.precopy.next_round()
        self._forget(todo)
        self.left = {page for run in todo.pages for page in range(run.first, run.end)}
        assert self.left.isdisjoint(self.file)
        assert self.left == {page for page in range(PAGES) if self._touched(page)} - self.file.keys()

    def _forget(self, todo: Round) -> None:
        for run in todo.outdated:
            for page in range(run.first, run.end):
                del self.file[page]  # there was a copy: nothing is said to be outdated for no reason

    def _touched(self, page: int) -> bool:
        return self.ram.next_touched(page) == page

    @precondition(lambda self: self.left)
    @rule(data=st.data(), twice=st.booleans(), disturbed=some_page)
    def take(self, data: st.DataObject, twice: bool, disturbed: int) -> None:
        """In any order, perhaps the same pages by two threads, and a page is written while it is copied."""
        pages = data.draw(st.lists(st.sampled_from(sorted(self.left)), min_size=1, max_size=12, unique=True))
        runs = [run for page in pages for run in runs_of([page])]
        buffer = bytearray(len(runs) * PAGE_SIZE)
        copy_out = self.ram.copy_out

        def and_write(first: int, into: memoryview) -> None:
            copy_out(first, into)
            self.ram.copy_out = copy_out  # type: ignore[method-assign]
            self.guest_writes(disturbed, 4711)

        self.ram.copy_out = and_write  # type: ignore[method-assign, assignment]
        for part, offset in self.precopy.take(runs, memoryview(buffer)):
            for page in range(part.first, part.end):
                assert page not in self.file, "a page was returned twice"
                start = offset + (page - part.first) * PAGE_SIZE
                self.file[page] = bytes(buffer[start : start + PAGE_SIZE])
        self.ram.copy_out = copy_out  # type: ignore[method-assign]
        if twice:
            assert not self.precopy.take(runs, memoryview(buffer))

    @rule()
    def finish(self) -> None:
        """With what is left, the copies are what memory holds."""
        with self._stopped(), self.between:
            todo = self.precopy.last_round()
            self._forget(todo)
        for run in todo.pages:
            for page in range(run.first, run.end):
                assert page not in self.file
                self.file[page] = self.model[page]
        assert [self.file.get(page, ZERO) for page in range(PAGES)] == self.model
        for run in todo.pages:  # as if nothing of it had been copied after all
            for page in range(run.first, run.end):
                del self.file[page]

    @invariant()
    def copies_of_guarded_pages_are_good(self) -> None:
        if hasattr(self, "ram"):
            for page, copy in self.file.items():
                assert not self.ram.flags[page] & GUARDED or copy == self.model[page]

    @invariant()
    def what_is_left_is_known(self) -> None:
        if hasattr(self, "ram"):
            good = {page for page in self.file if self.ram.flags[page] & GUARDED}
            assert self.precopy.left() == sum(map(self._touched, range(PAGES))) - len(good)

    def teardown(self) -> None:
        if hasattr(self, "ram"):
            self.finish()
            self.precopy.end()
            self.precopy.end()
            assert not count_flag(self.ram.flags, GUARDED)
            assert self.ram.keeper is None
            for page in range(PAGES):
                self.guest_writes(page, 1)
            self.ram.close()


def test_what_is_thrown_away_while_a_round_begins_is_not_copied() -> None:
    """Slice by slice, between calls: there the guest can throw away what was there at first."""
    pages = 3 * precopy_module._SLICE_PAGES
    ram = GuestRam(BASE, pages * PAGE_SIZE)
    for page in range(0, pages, 100):
        ram.write(BASE + page * PAGE_SIZE, b"x")
    calls = 0

    @contextmanager
    def between() -> Iterator[None]:
        nonlocal calls
        calls += 1
        if calls == 2:
            ram.discard(0, pages - 1000)
        yield

    class BetweenCalls:
        def __enter__(self) -> None:
            self.entered = between()
            self.entered.__enter__()

        def __exit__(self, *exception: object) -> None:
            self.entered.__exit__(None, None, None)

    precopy = Precopy(ram, FakeEngine(ram), BetweenCalls(), lambda run: None)
    precopy.begin()
    found = [page for run in precopy.next_round().pages for page in range(run.first, run.end)]
    first = [page for page in range(0, pages, 100) if page < precopy_module._SLICE_PAGES]
    assert found == first + [page for page in range(0, pages, 100) if page >= pages - 1000]
    assert precopy.last_round().pages == list(ram.touched())
    precopy.end()
    ram.close()


TestPrecopy = PrecopyMachine.TestCase
TestPrecopy.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
