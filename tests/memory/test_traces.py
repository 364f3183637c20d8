"""Traces on both fault engines: who hears of what, once or again, beside saves, lazy restores and other traces."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memvm.errors import HostError
from memvm.machine.exits import symbol_at
from memvm.memory.engine import GuestGone
from memvm.memory.pages import TRACED, PageRun, count_flag
from memvm.memory.protection import Prot
from memvm.memory.traces import Access, Ring, Trace, TraceEvent
from tests.memory.sources import FakeSource, page_of
from tests.memory.test_engines import address, area, collect, disturb, joined, of_area, saved
from tests.memory.touching import FIRST, PAGES, GuestEnded, Touching

R, W, RW = Access.READ, Access.WRITE, Access.READ | Access.WRITE
PATIENCE = 20.0


@pytest.fixture(params=["userfaultfd", "mprotect"])
def engine(request: pytest.FixtureRequest) -> str:
    """The name of a fault engine."""
    return str(request.param)


@pytest.fixture
def guest(toucher: Path, engine: str, time_scale: float) -> Iterator[Touching]:
    """The guest, not yet started."""
    try:
        touching = Touching(toucher, engine, PATIENCE * time_scale)
    except HostError as error:
        pytest.skip(str(error))
    with touching:
        yield touching


def trace(guest: Touching, first: int, count: int, access: Access, **options: object) -> Trace:
    """A trace of pages of the area."""
    return guest.machine.traces.add([PageRun(FIRST + first, count)], access, **options)  # type: ignore[arg-type]


def heard(trace: Trace) -> list[tuple[int, int]]:
    """Pages of the area and accesses, since the last call."""
    assert trace.ring is not None
    events, dropped = trace.ring.take()
    assert not dropped
    return [(event.page - FIRST, event.access) for event in events]


def stores(guest: Touching, *pages: int) -> list[tuple[int, int]]:
    """What a trace of reads and writes hears when these pages are written first."""
    if guest.engine.name == "userfaultfd":
        return [(page, W) for page in pages]
    return [(page, access) for page in pages for access in (R, W)]


class TestOnce:
    """One-shot traces."""

    def test_the_first_access_to_a_page_is_heard_of(self, guest: Touching) -> None:
        guest.start()
        guest.fill(0, 1, count=16)
        with trace(guest, 0, 16, R) as reads:
            for page in (3, 5, 3):
                assert guest.read(page) == 1
            assert heard(reads) == [(3, R), (5, R)]
            guest.fill(5, 2)
            assert heard(reads) == []
            assert reads.heard == 2
            assert reads.armed_pages() == 14

    def test_a_write_is_an_access(self, guest: Touching) -> None:
        guest.start()
        guest.fill(0, 1, count=16)
        with trace(guest, 0, 16, R) as reads:
            guest.write(7, 2)
            assert [page for page, _ in heard(reads)] == [7]
            assert guest.read_word(7) == 2

    def test_reads_are_not_writes(self, guest: Touching) -> None:
        guest.start()
        guest.fill(0, 1, count=16)
        with trace(guest, 0, 16, W) as writes:
            assert guest.read(3) == 1
            assert heard(writes) == []
            guest.fill(3, 2)
            guest.fill(3, 3)
            guest.fill(9, 4)
            assert heard(writes) == [(3, W), (9, W)]
            assert [guest.read(page) for page in (2, 3, 9)] == [1, 3, 4]

    def test_first_access_and_first_write_are_heard_of_each(self, guest: Touching) -> None:
        guest.start()
        guest.fill(0, 1, count=16)
        with trace(guest, 0, 16, RW) as both:
            guest.read(3)
            guest.fill(3, 2)
            guest.read(3)
            guest.fill(4, 2)
            assert heard(both) == [(3, R), (3, W), *stores(guest, 4)]

    def test_pages_that_hold_no_memory(self, guest: Touching) -> None:
        guest.start()
        with trace(guest, 100, 64, R) as reads, trace(guest, 132, 64, W) as writes:
            assert [guest.read(page) for page in (101, 102, 133)] == [0, 0, 0]
            guest.fill(134, 1)
            guest.fill(101, 1)
            guest.fill(133, 2)
            assert [page for page, _ in heard(reads)] == [101, 102, 133, 134]
            assert heard(writes) == [(134, W), (133, W)]
            assert [guest.read(page) for page in (101, 102, 103, 133, 134)] == [1, 0, 0, 2, 1]

    def test_untraced_neighbours_are_not_heard_of(self, guest: Touching) -> None:
        guest.start()
        guest.fill(0, 1, count=16)
        with trace(guest, 4, 2, RW) as both:
            guest.fill(0, 2, count=4)
            assert guest.read(6) == 1
            guest.fill(200, 3)
            assert heard(both) == []

    def test_an_event_says_when_who_and_where(self, guest: Touching) -> None:
        guest.start()
        guest.fill(0, 1, count=4)
        with trace(guest, 0, 4, RW, instruction=True) as both, trace(guest, 0, 4, R) as plain:
            before = time.monotonic_ns()
            guest.read(1)
            guest.fill(1, 2)
            after = time.monotonic_ns()
            assert both.ring is not None and plain.ring is not None
            read, write = both.ring.take()[0]
            assert before < read.time < write.time < after
            assert {read.vcpu, write.vcpu} == {guest.machine.tracer.stub.pid}
            names = [symbol_at(guest.machine.guest, event.instruction) for event in (read, write)]
            assert None not in names
            assert read.instruction != write.instruction
            assert plain.ring.take()[0][0].instruction == 0

    def test_nothing_is_heard_of_a_trace_that_was_closed(self, guest: Touching) -> None:
        guest.start()
        guest.fill(0, 1, count=8)
        closed = trace(guest, 0, 8, RW)
        closed.close()
        closed.close()
        faults = guest.engine.faults
        guest.fill(3, 2)
        assert heard(closed) == []
        assert not count_flag(guest.ram.flags, TRACED)
        assert guest.ram.traces is None
        assert guest.engine.faults == faults

    def test_calls_of_the_guest_are_accesses_by_the_manager(self, guest: Touching) -> None:
        guest.start()
        guest.fill(0, 1, count=8)
        with trace(guest, 0, 8, RW) as both:
            guest.read_call(2, 5)
            guest.write_call(3)
            assert both.ring is not None
            assert [(e.page - FIRST, e.access, e.vcpu) for e in both.ring.take()[0]] == [(2, W, 0), (3, R, 0)]
            assert [guest.read(2), guest.read(3)] == [5, 1]
            assert heard(both) == []

    @pytest.mark.parametrize("way", ["madvise", "remap"])
    def test_pages_that_are_thrown_away_stay_traced(self, guest: Touching, way: str) -> None:
        guest.start()
        guest.fill(0, 1, count=8)
        with trace(guest, 0, 8, R) as reads, trace(guest, 0, 8, W) as writes:
            getattr(guest, way)(2, 3)
            assert [guest.read(2), guest.read(3)] == [0, 0]
            guest.fill(2, 7)
            guest.fill(4, 7)
            assert [page for page, _ in heard(reads)] == [2, 3, 4]
            assert heard(writes) == [(2, W), (4, W)]
            assert [guest.read(page) for page in range(6)] == [1, 1, 7, 0, 7, 1]

    def test_rights_that_change_leave_traces_alone(self, guest: Touching) -> None:
        guest.start()
        guest.fill(0, 1, count=8)
        with trace(guest, 0, 8, RW) as both:
            guest.mprotect(2, 4, Prot.READ)
            assert guest.read(3) == 1
            guest.mprotect(2, 4, Prot.READ | Prot.WRITE)
            guest.fill(3, 2)
            guest.read(4)
            assert heard(both) == [(3, R), (3, W), (4, R)]

    def test_no_right_to_a_traced_page_is_no_right(self, guest: Touching) -> None:
        guest.start()
        guest.fill(0, 1, count=8)
        guest.mprotect(2, 2, Prot.READ)
        with trace(guest, 0, 8, RW):
            guest.begin("w", 2)
            with pytest.raises(GuestEnded):
                guest.finish()
            assert guest.ended().code == 128 + signal.SIGSEGV

    def test_pages_that_there_are_not_are_refused(self, guest: Touching) -> None:
        for run in (PageRun(-1, 2), PageRun(guest.ram.page_count - 1, 2)):
            with pytest.raises(ValueError, match="guest RAM has"):
                guest.machine.traces.add([run], R)
        with pytest.raises(ValueError, match="armed again"):
            guest.machine.traces.add([PageRun(0, 1)], R, rearm=0.0)
        assert guest.ram.traces is None


class TestAgain:
    """Traces that arm pages again."""

    @pytest.mark.parametrize("access", [R, W])
    def test_a_page_is_heard_of_again_and_again(self, guest: Touching, access: Access, time_scale: float) -> None:
        guest.start()
        guest.fill(0, 1, count=8)
        touch = guest.read if access == R else lambda page: guest.fill(page, 2)
        with trace(guest, 0, 8, access, rearm=0.005) as again:
            give_up = time.monotonic() + PATIENCE * time_scale
            while again.heard < 5:
                touch(3)
                assert time.monotonic() < give_up
            assert {page for page, _ in heard(again)} == {3}

    def test_within_the_interval_it_is_not(self, guest: Touching) -> None:
        guest.start()
        guest.fill(0, 1, count=8)
        with trace(guest, 0, 8, RW, rearm=1000.0) as again:
            for _ in range(3):
                guest.read(3)
            assert heard(again) == [(3, R)]


class TestRingsAndHandlers:
    """Where events go."""

    def test_a_ring_that_is_full_drops_the_oldest_and_says_so(self) -> None:
        ring = Ring(3)
        events = [TraceEvent(page, 1, 2, 3, 4) for page in range(10)]
        ring.put(events[:2])
        assert ring.take() == (events[:2], 0)
        for event in events:
            ring.put([event])
        assert ring.take() == (events[7:], 7)
        ring.put(events)
        assert ring.take() == (events[7:], 7)
        assert ring.take() == ([], 0)

    def test_a_handler_holds_no_lock(self, guest: Touching, time_scale: float) -> None:
        guest.start()
        guest.fill(0, 1, count=8)
        held: list[bool] = []

        def handler(events: list[TraceEvent]) -> None:
            def look() -> None:  # others have the lock for a moment; who calls the handler waits for this thread
                held.append(not guest.ram.lock.acquire(timeout=PATIENCE / 2 * time_scale))
                if not held[-1]:
                    guest.ram.lock.release()

            with joined(threading.Thread(target=look)):  # the lock may be taken twice by one thread
                pass

        with trace(guest, 0, 8, RW, handler=handler):
            guest.read(1)
            guest.fill(2, 2)
            guest.read_call(3, 5)
            guest.read(4)
            guest.wait_for(lambda: len(held) >= 4)
        assert not any(held)

    def test_an_error_in_a_handler_ends_the_guest_and_says_why(self, guest: Touching) -> None:
        guest.start()

        def handler(events: list[TraceEvent]) -> None:
            raise RuntimeError("a handler's own error")

        with trace(guest, 0, 8, R, handler=handler):
            guest.begin("r", 1)
            with pytest.raises(GuestEnded):
                while True:
                    guest.finish()
                    guest.begin("r", 2)
        assert "a handler's own error" in guest.ended().reason

    def test_sequential_accesses_take_more_and_more_along(self, guest: Touching) -> None:
        guest.start()
        guest.fill(0, 1, count=200)
        with trace(guest, 0, 200, R, around=True) as around, trace(guest, 0, 200, W) as writes:
            before = guest.engine.faults
            assert [guest.read(page) for page in range(200)] == [1] * 200
            assert guest.engine.faults - before < 12
            assert heard(around) == [(page, R) for page in range(200)]
            guest.write(10, 5, count=3)
            assert heard(writes) == [(10, W), (11, W), (12, W)]

    def test_who_used_half_of_a_block_is_taken_to_use_all_of_it(self, guest: Touching) -> None:
        guest.start()
        guest.fill(0, 1, count=192)
        order = random.Random(1).sample(range(64), 64)
        assert not any(order[i] + 1 == order[i + 1] for i in range(32)), "no sequence"
        with trace(guest, 0, 192, R, around=True) as around, trace(guest, 0, 192, R) as exact:
            for page in order[:31]:
                guest.read(page)
            assert [page for page, _ in heard(around)] == order[:31]
            before = guest.engine.faults
            for page in order[31:]:
                guest.read(page)
            assert {page for page, _ in heard(around)} >= set(order[31:])
            assert [page for page, _ in heard(exact)] == order
            guest.read(100)
            assert [page for page, _ in heard(around)] == [100]
        with trace(guest, 0, 192, R, around=True):
            for page in order[:32]:
                guest.read(page)
            before = guest.engine.faults
            for page in order:
                guest.read(page)
            most = 0 if guest.engine.name == "userfaultfd" else 32  # that gives rights back where it is asked
            assert guest.engine.faults <= before + most, "the rest is revealed too"

    def test_pages_that_are_taken_along_stay_traced_for_others(self, guest: Touching) -> None:
        guest.start()
        guest.fill(0, 1, count=64)
        with trace(guest, 0, 64, R, around=True) as around, trace(guest, 0, 64, R) as exact:
            for page in (0, 1, 3):
                guest.read(page)
            assert [page for page, _ in heard(exact)] == [0, 1, 3]
            assert [page for page, _ in heard(around)] == [0, 1, 2, 3, 4, 5, 6]


@pytest.fixture(params=["as the kernel can", "before Linux 6.7"])
def polling(guest: Touching, request: pytest.FixtureRequest) -> Touching:
    """The guest, whose engine can be asked what was accessed, if it can at all, or not."""
    if request.param != "as the kernel can":
        guest.engine.mapped = None
    return guest


def looked(guest: Touching, trace: Trace) -> list[int]:
    """Pages of the area that a polled trace has heard of since the last call."""
    guest.machine.traces.look(trace)
    return [page for page, _ in heard(trace)]


class TestPolled:
    """Traces that hear of the guest's accesses when somebody looks: the same pages, in whichever way it is done."""

    def test_each_page_is_heard_of_once(self, polling: Touching) -> None:
        guest = polling
        guest.start()
        guest.fill(0, 1, count=64)
        with trace(guest, 0, 64, R, polled=True) as polled:
            assert looked(guest, polled) == []
            for page in (9, 30, 31):
                assert guest.read(page) == 1
            guest.fill(40, 2)
            assert sorted(looked(guest, polled)) == [9, 30, 31, 40]
            assert guest.read(9) == 1
            assert guest.read(10) == 1
            assert looked(guest, polled) == [10]
            assert (polled.heard, polled.armed_pages()) == (5, 59)
        assert looked(guest, polled) == []

    def test_it_costs_no_fault_that_is_answered(self, guest: Touching) -> None:
        if guest.engine.mapped is None:
            pytest.skip("this kernel, or this engine, cannot be asked")
        guest.start()
        guest.fill(0, 1, count=64)
        with trace(guest, 0, 64, R, polled=True) as polled:
            before = guest.engine.faults
            for page in range(0, 64, 3):
                guest.read(page)
            assert guest.engine.faults == before
            assert looked(guest, polled) == list(range(0, 64, 3))

    def test_beside_others_each_hears_of_its_own(self, polling: Touching) -> None:
        guest = polling
        guest.start()
        guest.fill(0, 1, count=64)
        with trace(guest, 0, 48, R, polled=True) as polled:
            for page in (1, 2):
                guest.read(page)
            with trace(guest, 0, 64, RW) as exact, trace(guest, 16, 48, R, polled=True) as other:
                for page in (2, 3, 20, 50):
                    guest.read(page)
                guest.fill(3, 2)
                assert heard(exact) == [(2, R), (3, R), (20, R), (50, R), (3, W)]
                assert looked(guest, other) == [20, 50]
            guest.read(4)
            assert sorted(looked(guest, polled)) == [1, 2, 3, 4, 20]

    def test_what_the_manager_does_for_the_guest_counts(self, polling: Touching) -> None:
        guest = polling
        guest.start()
        guest.fill(0, 1, count=16)
        with trace(guest, 0, 16, R, polled=True) as polled:
            guest.machine.ram.read(address(5), 8)
            assert looked(guest, polled) == [5]

    def test_beside_a_save_a_write_is_heard_of_at_once(self, polling: Touching) -> None:
        guest = polling
        guest.start()
        guest.fill(0, 1, count=64)
        with trace(guest, 0, 64, R, polled=True) as polled:
            snapshot = guest.snapshot()
            pages = guest.instant(snapshot)
            guest.fill(5, 2)
            # The mprotect engine hears of a page's first access as one of any kind, and lets go of 16 pages at once.
            assert 5 in {page for page, _ in heard(polled)}
            assert guest.read(60) == 1
            assert of_area(collect(guest, snapshot, pages), 64) == [page_of(1)] * 64
            assert 60 in looked(guest, polled)

    def test_pages_that_are_still_to_be_loaded_are_right(self, polling: Touching) -> None:
        guest = polling
        deferred = guest.defer(FakeSource(area(0, 64), chunk_pages=5))
        guest.start()
        with trace(guest, 0, 64, R, polled=True) as polled:
            assert [guest.read(page) for page in (0, 7, 40)] == [saved(page) for page in (0, 7, 40)]
            assert {0, 7, 40} <= set(looked(guest, polled))
            deferred.finish()
            assert [guest.read(page) for page in range(64)] == list(map(saved, range(64)))
            looked(guest, polled)
            assert polled.armed_pages() == 0

    def test_only_what_can_be_polled(self, guest: Touching) -> None:
        guest.start()
        for options in ({"access": W}, {"access": RW}, {"rearm": 0.1}, {"instruction": True}):
            with pytest.raises(ValueError, match="polled"):
                trace(guest, 0, 8, **{"access": R, **options}, polled=True)  # type: ignore[arg-type]


class TestManyReasons:
    """Traces beside each other, a save, and a lazy restore."""

    def test_each_trace_hears_of_its_own(self, guest: Touching) -> None:
        guest.start()
        guest.fill(0, 1, count=32)
        first, second, third = trace(guest, 0, 16, R), trace(guest, 8, 16, W), trace(guest, 8, 4, RW)
        guest.read(9)
        guest.fill(9, 2)
        guest.fill(20, 3)
        assert heard(first) == [(9, R)]
        assert heard(second) == [(9, W), (20, W)]
        assert heard(third) == [(9, R), (9, W)]
        third.close()
        guest.read(10)
        second.close()
        guest.fill(10, 4)
        assert heard(first) == [(10, R)]
        first.close()
        assert not count_flag(guest.ram.flags, TRACED)

    @pytest.mark.parametrize("access", [R, W, RW])
    def test_a_trace_does_not_disturb_a_lazy_restore(self, guest: Touching, access: Access) -> None:
        source = FakeSource(area(0, 64))
        deferred = guest.defer(source)
        guest.start()
        with trace(guest, 0, 64, access) as traced:
            assert guest.read(5) == saved(5)
            assert guest.read(6) == saved(6)
            guest.fill(9, 1)
            assert guest.machine.read_memory(address(20), 4096) == page_of(saved(20))
            deferred.finish()
            assert [guest.read(page) for page in range(64)] == [1 if page == 9 else saved(page) for page in range(64)]
            events = heard(traced)
        pages = [page for page, what in events if what == R or access == R]
        if access & R:
            assert sorted(set(pages) | {page for page, what in events if what == W}) == list(range(64))
        if access & W:
            assert [page for page, what in events if what == W] == [9]
        assert max(source.loads.values()) == 1

    @pytest.mark.parametrize("access", [R, W, RW])
    def test_a_trace_does_not_disturb_a_save(self, guest: Touching, access: Access) -> None:
        guest.start()
        for page in range(64):
            guest.fill(page, page + 1)
        early = trace(guest, 0, 64, access)
        snapshot = guest.snapshot()
        guest.fill(3, 100)
        pages = guest.instant(snapshot)
        late = trace(guest, 0, 64, access)
        guest.fill(3, 200)
        guest.fill(9, 200)
        guest.fill(90, 200)
        guest.read(20)
        contents = of_area(collect(guest, snapshot, pages), 64)
        assert contents == [page_of(100 if page == 3 else page + 1) for page in range(64)]
        guest.fill(40, 200)
        assert {page for page, _ in heard(early)} == ({3, 9, 40} if access == W else {3, 9, 20, 40})
        assert {page for page, _ in heard(late)} == ({3, 9, 40} if access == W else {3, 9, 20, 40})
        for each in (early, late):
            each.close()
        assert [guest.read(page) for page in (3, 9, 20, 40)] == [200, 200, 21, 200]

    def test_a_save_that_begins_and_ends_leaves_traces_on(self, guest: Touching) -> None:
        guest.start()
        guest.fill(0, 1, count=64)
        with trace(guest, 0, 64, W) as writes:
            snapshot = guest.snapshot()
            collect(guest, snapshot, guest.instant(snapshot))
            guest.fill(5, 2)
            guest.snapshot().end()
            guest.fill(6, 2)
            assert heard(writes) == [(5, W), (6, W)]

    @pytest.mark.parametrize("seed", range(3))
    def test_everything_at_once(self, guest: Touching, seed: int) -> None:
        """Traces come and go and arm again, pages are loaded and saved, and the guest finds what it should."""
        chance = random.Random(seed)
        count = 200
        source = FakeSource(area(0, count), chunk_pages=5)
        source.stalls = random.Random(seed)
        deferred = guest.defer(source)
        guest.start()
        model = [saved(page) for page in range(count)]
        over = threading.Event()
        unexpected: list[BaseException] = []

        def come_and_go() -> None:
            mine = random.Random(seed + 1)
            there: list[Trace] = []
            try:
                while not over.is_set():
                    first = mine.randrange(count)
                    size = mine.randrange(1, count - first + 1)
                    rearm = mine.choice([None, 0.001, 0.01])
                    access = mine.choice([R, W, RW])
                    polled = access == R and rearm is None and mine.random() < 0.5
                    around = mine.random() < 0.5
                    there.append(trace(guest, first, size, access, rearm=rearm, around=around, polled=polled))
                    guest.machine.traces.look(mine.choice(there))
                    if len(there) > 3:
                        there.pop(mine.randrange(4)).close()
                for each in there:
                    each.close()
            except BaseException as error:  # noqa: BLE001  # looked at below
                unexpected.append(error)

        def load() -> None:
            for chunk in chance.sample(range(len(source.chunks)), len(source.chunks)):
                deferred.demand(chunk)

        tracing = threading.Thread(target=come_and_go)
        with joined(tracing):
            try:
                with joined(threading.Thread(target=load)):
                    disturb(guest, model, random.Random(seed + 2), 60)
                deferred.finish()
                for _ in range(2):
                    snapshot = guest.snapshot()
                    disturb(guest, model, chance, 20)
                    pages = guest.instant(snapshot)
                    then = list(model)
                    contents: dict[int, bytes] = {}
                    with joined(
                        threading.Thread(target=lambda s=snapshot, p=pages, c=contents: c.update(collect(guest, s, p)))
                    ):
                        disturb(guest, model, chance, 40)
                    assert of_area(contents, count) == [page_of(value) for value in then]
            finally:
                over.set()
        assert not unexpected
        assert [guest.read(page) for page in range(count)] == model
        assert not count_flag(guest.ram.flags, TRACED)


class TestTheGuestsProcess:
    """What the service thread must not change."""

    def tasks(self, guest: Touching) -> list[Path]:
        return list(Path(f"/proc/{guest.machine.tracer.stub.pid}/task").iterdir())

    def test_there_is_one_thread_more_only_once_it_is_needed(self, guest: Touching) -> None:
        guest.start()
        assert len(self.tasks(guest)) == 1
        for _ in range(3):
            trace(guest, 0, PAGES, R).close()
        assert len(self.tasks(guest)) == (2 if guest.engine.name == "userfaultfd" else 1)

    def test_signals_and_stops_are_the_guests(self, guest: Touching) -> None:
        guest.start()
        pid = guest.machine.tracer.stub.pid
        with trace(guest, 0, 64, R) as reads:
            for _ in range(20):
                guest.machine.registers()
                os.kill(pid, signal.SIGURG)
            guest.machine.pause()
            with trace(guest, 0, PAGES, W):
                guest.machine.resume()
                guest.read(2)
            assert heard(reads) == [(2, R)]
            os.kill(pid, signal.SIGTERM)
            assert guest.ended().code == 128 + signal.SIGTERM

    def test_a_process_that_is_stopped_and_continued_from_outside_goes_on(self, guest: Touching) -> None:
        guest.start()
        guest.fill(0, 1, count=64)
        pid = guest.machine.tracer.stub.pid
        with trace(guest, 0, 64, R) as reads:
            for page in range(5):
                os.kill(pid, signal.SIGSTOP)
                os.kill(pid, signal.SIGCONT)
                with trace(guest, 0, PAGES, R):
                    guest.read(page)
            assert heard(reads) == [(page, R) for page in range(5)]

    def test_its_cpu_time_is_not_the_guests(self, guest: Touching) -> None:
        guest.start()
        guest.fill(0, 1, count=PAGES)
        clocks = guest.machine.guest.clocks
        trace(guest, 0, PAGES, R).close()
        before = clocks.cpu_time()
        for _ in range(20):
            trace(guest, 0, PAGES, R).close()
        after = clocks.cpu_time()
        assert before <= after
        if guest.engine.name == "userfaultfd":
            assert clocks.not_the_guests > 0

    def test_a_guest_that_ends_while_traces_are_placed(self, guest: Touching) -> None:
        guest.start()
        guest.fill(0, 1, count=PAGES)
        pid = guest.machine.tracer.stub.pid
        over = threading.Event()

        def kill() -> None:
            guest.machine.wait(0.02)
            guest.machine.kill()
            over.set()

        with joined(threading.Thread(target=kill)):
            try:
                while not over.is_set():
                    trace(guest, 0, PAGES, RW).close()
            except GuestGone:
                pass
        assert guest.ended().code == 128 + signal.SIGKILL
        guest.machine.close()
        assert not Path(f"/proc/{pid}").exists()


def test_where_too_many_pages_are_traced_blocks_are_heard_of_together(
    guest: Touching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mprotect engine may not cut the guest's mappings as finely as pages."""
    monkeypatch.setattr(guest.engine, "exact_pages", 64)
    grain = guest.engine.grain
    guest.start()
    guest.fill(0, 1, count=PAGES)
    with trace(guest, 0, 64, W) as exact, trace(guest, 0, PAGES, R) as coarse:
        assert guest.read(grain + 3) == 1
        assert heard(coarse) == [
            (page, R) for page in range(PAGES) if (FIRST + page) // grain == (FIRST + grain + 3) // grain
        ]
        assert guest.read(grain + 4) == 1
        guest.fill(grain + 3, 2, count=2)
        assert heard(exact) == [(grain + 3, W), (grain + 4, W)]
        for page in range(0, PAGES, 2):
            assert guest.read(page) in (1, 2)
        assert len(set(heard(coarse))) == (PAGES if grain > 1 else PAGES // 2 + grain) - grain
