"""Dirty tracking, in each of its ways, on a real guest: every change is reported, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from memvm.errors import GuestStateError, HostError
from memvm.machine.config import ExitStatus
from memvm.memory import noting
from memvm.memory.dirty import DirtyTracker, DirtyWatch
from memvm.memory.pages import CLEAN, PageRun, count_flag
from memvm.memory.snapshot import Snapshot
from memvm.units import PAGE_SIZE
from tests.memory.sources import FakeSource, page_of, saved_value
from tests.memory.touching import FIRST, Touching

PATIENCE = 20.0
WAYS = ["noted", "guards", "mprotect"]


def start(toucher: Path, way: str, time_scale: float = 1.0, source: FakeSource | None = None) -> Touching:
    """The guest, running, with a tracker that goes this way."""
    try:
        guest = Touching(toucher, "mprotect" if way == "mprotect" else "userfaultfd", PATIENCE * time_scale)
    except HostError as error:
        pytest.skip(str(error))
    machine = guest.machine
    if way == "noted" and not machine.dirty._noting.can_be_by_kernel:
        guest.__exit__(None, None, None)
        pytest.skip("this kernel notes no writes")
    if way == "guards":
        machine.dirty.close()
        machine.dirty = DirtyTracker(machine.ram, machine.engine, None, machine.frozen, machine.lock, machine.failed)
    if source is not None:
        guest.defer(source)
    guest.start()
    return guest


@pytest.fixture(params=WAYS)
def guest(request: pytest.FixtureRequest, toucher: Path, time_scale: float) -> Iterator[Touching]:
    """The guest, running, in each way of tracking."""
    with start(toucher, request.param, time_scale) as guest:
        yield guest


def in_area(runs: list[PageRun], count: int = 2048) -> set[int]:
    """Pages of the area among runs of guest RAM."""
    return {page - FIRST for run in runs for page in range(run.first, run.end)} & set(range(count))


def grain_of(guest: Touching, pages: set[int]) -> set[int]:
    """These pages, and those that are let go of together with them."""
    grain = guest.engine.grain
    return {start - FIRST + i for page in pages for start in [(FIRST + page) & -grain] for i in range(grain)}


class TestLooks:
    """One watch."""

    def test_a_write_is_reported_once(self, guest: Touching) -> None:
        guest.write(0, 1, 64)
        with guest.machine.dirty.watch() as watch:
            guest.write(40, 2)
            written = in_area(watch.look().written)
            assert {40} <= written <= grain_of(guest, {40})
            assert not in_area(watch.look().written)
            guest.write(40, 3)
            assert 40 in in_area(watch.look().written)

    def test_a_read_is_not_reported(self, guest: Touching) -> None:
        guest.fill(0, 1, 64)
        with guest.machine.dirty.watch() as watch:
            assert guest.read(3) == 1
            assert not in_area(watch.look().written)

    def test_the_first_touch_of_a_page_is_a_write(self, guest: Touching) -> None:
        with guest.machine.dirty.watch() as watch:
            guest.write(500, 1)
            assert in_area(watch.look().written) == {500}

    def test_what_the_manager_writes_is_reported(self, guest: Touching) -> None:
        guest.write(0, 1, 8)
        with guest.machine.dirty.watch() as watch:
            guest.read_call(2, 9)
            guest.machine.write_memory(guest.ram.base + (FIRST + 3) * PAGE_SIZE, b"x")
            assert in_area(watch.look().written) == {2, 3}

    def test_what_is_thrown_away_is_punched(self, guest: Touching) -> None:
        guest.write(0, 1, 32)
        with guest.machine.dirty.watch() as watch:
            guest.write(20, 2, 4)
            guest.madvise(21, 2)
            look = watch.look()
            assert in_area(look.punched) == {21, 22}
            assert {20, 23} <= in_area(look.written)
            assert not in_area(look.written) & {21, 22}
            assert not watch.look().punched

    def test_what_is_thrown_away_and_written_again_is_written(self, guest: Touching) -> None:
        guest.write(0, 1, 32)
        with guest.machine.dirty.watch() as watch:
            guest.remap(4, 2)
            guest.write(5, 1)
            look = watch.look()
            assert in_area(look.punched) == {4}
            assert 5 in in_area(look.written)

    def test_it_says_how_long_and_how_fast(self, guest: Touching) -> None:
        assert guest.machine.status().dirty_rate is None
        with guest.machine.dirty.watch() as watch:
            guest.write(0, 1, 100)
            look = watch.look()
            assert look.written_bytes >= 100 * PAGE_SIZE
            assert guest.machine.status().dirty_rate == pytest.approx(look.written_bytes / look.seconds)
        assert guest.machine.status().dirty_rate is None

    def test_a_paused_guest_can_be_looked_at(self, guest: Touching) -> None:
        guest.write(0, 1, 8)
        with guest.machine.dirty.watch() as watch:
            guest.write(1, 2)
            guest.machine.pause()
            assert 1 in in_area(watch.look().written)
            guest.machine.resume()

    def test_afterwards_nothing_is_left(self, guest: Touching) -> None:
        guest.write(0, 1, 64)
        guest.machine.dirty.watch().close()
        assert not count_flag(guest.ram.flags, CLEAN)
        assert not guest.engine.guard_users
        assert guest.ram.observer is None
        faults = guest.engine.faults
        guest.write(0, 2, 64)
        assert guest.engine.faults == faults


def test_a_long_sequence_of_writes_is_few_faults(toucher: Path, time_scale: float) -> None:
    with start(toucher, "guards", time_scale) as guest:
        guest.write(0, 1, 2048)
        with guest.machine.dirty.watch() as watch:
            faults = guest.engine.faults
            guest.write(0, 2, 1500)
            assert guest.engine.faults - faults < 100
            assert set(range(1500)) <= in_area(watch.look().written) <= set(range(1500 + 1500 // 8))


class TestWatches:
    """Several, each at its own pace, and guests that end."""

    def test_each_watch_hears_of_what_came_since_its_own_look(self, guest: Touching) -> None:
        tracker = guest.machine.dirty
        guest.write(0, 1, 200)
        with tracker.watch() as slow:
            guest.write(0, 2)
            with tracker.watch() as quick:
                assert not in_area(quick.look().written)
                guest.write(100, 2)
                assert 100 in in_area(quick.look().written)
            guest.write(150, 2)
            assert {0, 100, 150} <= in_area(slow.look().written)

    def test_closing_twice_is_closing_once(self, guest: Touching) -> None:
        watch = guest.machine.dirty.watch()
        watch.close()
        watch.close()
        assert not guest.engine.guard_users

    def test_a_guest_that_has_ended(self, guest: Touching) -> None:
        watch = guest.machine.dirty.watch()
        guest.machine.kill()
        assert guest.ended().signal == 9
        watch.close()
        guest.machine.close()
        with pytest.raises(GuestStateError):
            guest.machine.dirty.watch()

    def test_looks_while_the_guest_writes_add_up(self, guest: Touching) -> None:
        """Every store is in some look, however the two meet."""
        guest.write(0, 1, 2048)
        with guest.machine.dirty.watch() as watch:
            seen: set[int] = set()
            guest.begin("w", 0, 2048, 2)
            while not guest.answers_within(0):
                seen |= in_area(watch.look().written)
            guest.finish()
            seen |= in_area(watch.look().written)
            assert seen == set(range(2048))


class TestGivingWay:
    """Live saves and lazy restores, which need guest RAM for themselves."""

    def test_during_a_live_save_writes_are_guarded(self, guest: Touching) -> None:
        guest.write(0, 1, 256)
        with guest.machine.dirty.watch() as watch:
            before = guest.machine.dirty.means
            guest.write(1, 2)
            snapshot = guest.snapshot()
            assert "guards" in guest.machine.dirty.means
            guest.write(100, 2)
            assert {1, 100} <= in_area(watch.look().written) <= grain_of(guest, {1, 100})
            guest.instant(snapshot)
            guest.write(200, 2)
            snapshot.end()
            assert {200} <= in_area(watch.look().written) <= grain_of(guest, {200})
            guest.write(201, 2)
            assert 201 in in_area(watch.look().written)
            guest.wait_for(lambda: guest.machine.dirty.means == before)
            guest.write(202, 2)
            assert 202 in in_area(watch.look().written)

    def test_guest_ram_changes_hands_in_slices(
        self, toucher: Path, time_scale: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The kernel notes the lower half of the area, and guards are on the upper one, for as long as one likes."""
        monkeypatch.setattr(noting, "SLICE_PAGES", FIRST + 1024)
        monkeypatch.setattr(noting, "_GUEST_SHARE", 1e6)
        with start(toucher, "noted", time_scale) as guest, guest.machine.dirty.watch() as watch:
            guest.write(0, 1, 2048)
            with monkeypatch.context() as patch:
                patch.setattr(noting, "_GUEST_SHARE", 0)
                snapshot = guest.snapshot()
            snapshot.end()
            watch.look()
            guest.wait_for(lambda: guest.machine.dirty._noting._frontier == FIRST + 1024)
            guest.write(0, 2)  # and its own stack
            watch.look()
            guest.write(0, 2)
            faults = guest.engine.faults
            guest.write(1000, 2, 20)
            assert guest.engine.faults == faults
            guest.write(1030, 2)
            assert guest.engine.faults == faults + 1
            guest.madvise(1023, 2)
            look = watch.look()
            assert in_area(look.written) == {0, *range(1000, 1020), 1030}
            assert in_area(look.punched) == {1023, 1024}
            guest.write(1010, 3)
            guest.write(1040, 3)
            with monkeypatch.context() as patch:
                patch.setattr(noting, "_GUEST_SHARE", 0)
                snapshot = guest.snapshot()  # takes it back from there
            guest.write(1011, 3)
            assert in_area(watch.look().written) == {1010, 1011, 1040}
            snapshot.end()

    def test_a_watch_from_an_instant(self, toucher: Path, time_scale: float) -> None:
        with start(toucher, "noted", time_scale) as guest:
            guest.write(0, 1, 1024)
            watch = guest.machine.dirty.watch_from_instant()
            assert watch is not None
            with watch:
                snapshot = guest.snapshot()
                guest.write(10, 2)
                guest.machine.frozen(lambda: watch.begin(snapshot.instant()))
                guest.write(300, 2)
                snapshot.take([PageRun(FIRST, 1024)], memoryview(bytearray(1024 * PAGE_SIZE)))
                guest.write(600, 2)
                snapshot.end()
                guest.write(900, 2)
                guest.machine.dirty.settle()
                guest.wait_for(lambda: guest.machine.dirty._noting.by_kernel)
                guest.write(1000, 2)
                written = in_area(watch.look().written)
                assert {300, 600, 900, 1000} <= written
                assert 10 not in written
                assert written <= {*range(256, 512), *range(512, 768), 900, 1000}

    @pytest.mark.parametrize("way", ["guards", "mprotect"])
    def test_no_watch_from_an_instant_that_would_cost_something(
        self, way: str, toucher: Path, time_scale: float
    ) -> None:
        with start(toucher, way, time_scale) as guest:
            assert guest.machine.dirty.watch_from_instant() is None
            assert guest.machine.ram.observer is None

    def test_a_guest_that_ends_while_its_ram_changes_hands(
        self, toucher: Path, time_scale: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(noting, "_GUEST_SHARE", 1e6)
        with start(toucher, "noted", time_scale) as guest:
            watch = guest.machine.dirty.watch()
            with monkeypatch.context() as patch:
                patch.setattr(noting, "_GUEST_SHARE", 0)
                guest.snapshot().end()
            guest.machine.dirty.settle()
            guest.wait_for(lambda: guest.machine.dirty._noting._frontier > 0)
            guest.machine.end(ExitStatus(0, None, "the test is over"))
            guest.ended()
            with pytest.raises(GuestStateError):
                watch.look()

    def test_taking_a_page_does_not_lose_sight_of_it(self, guest: Touching) -> None:
        guest.write(0, 1, 64)
        with guest.machine.dirty.watch() as watch:
            snapshot = guest.snapshot()
            guest.instant(snapshot)
            snapshot.take([PageRun(FIRST, 64)], memoryview(bytearray(64 * PAGE_SIZE)))
            guest.write(7, 2)
            assert 7 in in_area(watch.look().written)
            snapshot.end()

    def test_a_watch_that_begins_during_a_save(self, guest: Touching) -> None:
        guest.write(0, 1, 64)
        snapshot = guest.snapshot()
        with guest.machine.dirty.watch() as watch:
            guest.write(3, 2)
            assert 3 in in_area(watch.look().written)
        guest.write(4, 2)
        guest.instant(snapshot)
        snapshot.end()

    @pytest.mark.parametrize("way", WAYS)
    def test_deferred_pages_are_written_when_they_are_there(self, way: str, toucher: Path, time_scale: float) -> None:
        pages = [FIRST + page for page in range(64)]
        with start(toucher, way, time_scale, FakeSource(pages)) as guest, guest.machine.dirty.watch() as watch:
            assert not in_area(watch.look().written)
            guest.write(9, 1)
            assert 9 in in_area(watch.look().written)
            guest.write(9, 2)
            assert 9 in in_area(watch.look().written)
            assert guest.read(40) == saved_value(FIRST + 40)
            watch.look()
            assert guest.ram.loader is not None
            guest.ram.loader.bring(0, guest.ram.page_count)
            watch.look()
            guest.write(41, 1)
            assert in_area(watch.look().written) <= grain_of(guest, {41})

    def test_saves_and_looks_in_threads(self, guest: Touching) -> None:
        """The guest writes; one thread saves without end, another looks: none is missed, and nobody waits for ever."""
        guest.write(0, 1, 1024)
        with guest.machine.dirty.watch() as watch:
            over = threading.Event()

            def save() -> None:
                while not over.is_set():
                    snapshot = guest.snapshot()
                    guest.instant(snapshot)
                    snapshot.end()

            saver = threading.Thread(target=save)
            saver.start()
            try:
                for value in range(2, 8):
                    seen: set[int] = set()
                    guest.begin("w", 0, 1024, value)
                    while not guest.answers_within(0.002):
                        seen |= in_area(watch.look().written)
                    guest.finish()
                    assert seen | in_area(watch.look().written) >= set(range(1024))
            finally:
                over.set()
                saver.join()


PAGES = 40
some_page = st.integers(0, PAGES - 1)
some_pages = st.integers(1, 12)
some_value = st.integers(1, 1 << 60)


class DirtyModel(RuleBasedStateMachine):
    """What two watches report against what was done, with live saves in between."""

    toucher: Path
    way: str
    time_scale: float
    from_instant: DirtyWatch | None = None
    """A watch that begins at a save's instant."""

    @initialize(there=st.sets(some_page))
    def begin(self, there: set[int]) -> None:
        self.guest = start(self.toucher, self.way, self.time_scale)
        self.contents: dict[int, int] = {}
        self.snapshot: Snapshot | None = None
        self.then: dict[int, int] | None = None
        for page in there:
            self.guest.fill(page, 7)
            self.contents[page] = 7
        self.watches = [self.guest.machine.dirty.watch(), self.guest.machine.dirty.watch()]
        self.changed: list[set[int]] = [set(), set()]
        self.touched: list[set[int]] = [set(), set()]
        self.since_instant: set[int] = set()

    def teardown(self) -> None:
        if hasattr(self, "guest"):
            if self.snapshot is not None:
                self.snapshot.end()
            self.guest.__exit__(None, None, None)

    def _changed(self, first: int, count: int = 1) -> None:
        for changed in (*self.changed, self.since_instant):
            changed.update(range(first, first + count))

    @rule(page=some_page, count=some_pages, value=some_value)
    def guest_writes(self, page: int, count: int, value: int) -> None:
        count = min(count, PAGES - page)
        self.guest.fill(page, value, count)
        self.contents.update(dict.fromkeys(range(page, page + count), value))
        self._changed(page, count)

    @rule(page=some_page)
    def guest_reads(self, page: int) -> None:
        assert self.guest.read(page) == self.contents.get(page, 0)
        if page not in self.contents:
            self.contents[page] = 0
            for touched in self.touched:
                touched.add(page)

    @rule(page=some_page, value=some_value)
    def manager_writes(self, page: int, value: int) -> None:
        self.guest.machine.write_memory(self.guest.ram.base + (FIRST + page) * PAGE_SIZE, page_of(value))
        self.contents[page] = value
        self._changed(page)

    @rule(page=some_page, value=some_value)
    def manager_answers(self, page: int, value: int) -> None:
        self.guest.read_call(page, value)
        self.contents[page] = value
        self._changed(page)

    @rule(page=some_page, count=some_pages, unmap=st.booleans())
    def guest_discards(self, page: int, count: int, unmap: bool) -> None:
        count = min(count, PAGES - page)
        (self.guest.remap if unmap else self.guest.madvise)(page, count)
        for gone in range(page, page + count):
            self.contents.pop(gone, None)
        self._changed(page, count)

    @rule(number=st.integers(0, 1))
    def look(self, number: int) -> None:
        look = self.watches[number].look()
        changed, touched = self.changed[number], self.touched[number]
        written, punched = in_area(look.written, PAGES), in_area(look.punched, PAGES)
        there = set(self.contents)
        assert changed & there <= written
        assert written <= grain_of(self.guest, changed | touched | self._ahead(changed)) & there
        assert punched == changed - there
        changed.clear()
        touched.clear()

    def _ahead(self, changed: set[int]) -> set[int]:
        """Pages that may be let go of ahead of a sequence of faults."""
        return {page + i for page in changed for i in range(1, PAGES // 8 + 1)} if self.way != "noted" else set()

    @invariant()
    def what_holds_memory_is_what_the_model_has(self) -> None:
        if hasattr(self, "guest"):
            assert in_area(list(self.guest.ram.touched(FIRST, PAGES))) == set(self.contents)

    @rule()
    def hand_over_a_slice(self) -> None:
        tracker = self.guest.machine.dirty
        with tracker._lock:
            tracker._noting.hand_over()

    @precondition(lambda self: self.snapshot is None)
    @rule(watch=st.booleans())
    def prepare(self, watch: bool) -> None:
        if watch and self.from_instant is None:
            self.from_instant = self.guest.machine.dirty.watch_from_instant()
            self.begun = False
        self.snapshot, self.then = self.guest.snapshot(), None

    @precondition(lambda self: self.from_instant is not None and self.begun)
    @rule()
    def look_since_the_instant(self) -> None:
        assert self.from_instant is not None
        look = self.from_instant.look()
        there = set(self.contents)
        assert self.since_instant & there <= in_area(look.written, PAGES)
        assert in_area(look.punched, PAGES) == self.since_instant - there
        self.from_instant.close()
        self.from_instant = None

    @precondition(lambda self: self.snapshot is not None and self.then is None)
    @rule()
    def instant(self) -> None:
        assert self.snapshot is not None
        touched = self.guest.machine.frozen(partial(self._instant, self.snapshot))
        self.left = [run for run in touched if run.first < FIRST + PAGES and run.end > FIRST]
        self.then = dict(self.contents)

    def _instant(self, snapshot: Snapshot) -> list[PageRun]:
        touched = snapshot.instant()
        if self.from_instant is not None and not self.begun:
            self.from_instant.begin(touched)
            self.since_instant.clear()
            self.begun = True
        return touched

    @precondition(lambda self: self.then is not None)
    @rule()
    def take_all(self) -> None:
        assert self.snapshot is not None
        assert self.then is not None
        saved: dict[int, bytes] = {}
        for run in self.left:
            buffer = bytearray(run.count * PAGE_SIZE)
            for part, offset in self.snapshot.take([run], memoryview(buffer)):
                self._save(saved, part, buffer[offset:])
        for slab in self.snapshot.drain():
            for part, offset in slab.parts:
                self._save(saved, part, bytes(slab.memory[offset:]))
        for page, value in self.then.items():
            assert saved[page] == page_of(value)
        self.left = []
        self._end()

    @staticmethod
    def _save(saved: dict[int, bytes], part: PageRun, data: bytes | bytearray) -> None:
        for index in range(part.count):
            saved[part.first - FIRST + index] = bytes(data[index * PAGE_SIZE : (index + 1) * PAGE_SIZE])

    @precondition(lambda self: self.snapshot is not None)
    @rule()
    def give_the_save_up(self) -> None:
        self._end()

    def _end(self) -> None:
        assert self.snapshot is not None
        self.snapshot.end()
        self.snapshot = self.then = None


@pytest.mark.parametrize("way", WAYS)
def test_model(way: str, toucher: Path, time_scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noting, "SLICE_PAGES", FIRST + PAGES // 2)  # the area is in two of them
    monkeypatch.setattr(noting.HandOver, "begin", lambda _hand_over: None)  # the model does it, step by step
    DirtyModel.toucher, DirtyModel.way, DirtyModel.time_scale = toucher, way, time_scale
    run_state_machine_as_test(
        DirtyModel,
        settings=settings(
            max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
