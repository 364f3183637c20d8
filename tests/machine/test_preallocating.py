"""Memory is preallocated for a guest that goes through new memory page by page, and for no other."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memvm.errors import HostError
from memvm.linux.own_threads import Thread
from memvm.machine import preallocating
from memvm.machine.answering import INTERNAL_ERROR
from memvm.machine.config import EngineChoice, GuestConfig, RunOptions
from memvm.machine.layout import RAM_BASE
from memvm.machine.machine import Machine
from memvm.machine.placement import Placement
from memvm.machine.preallocating import Preallocating, Sequence
from memvm.machine.space import AddressSpace, Region, RegionKind
from memvm.memory.pages import PageRun, common, pages_in
from memvm.memory.protection import Prot
from memvm.memory.ram import GuestRam
from memvm.memory.snapshot import Snapshot
from memvm.memory.traces import Access, TraceEvent
from memvm.units import MIB, PAGE_SIZE
from tests.machine.conftest import CProgram
from tests.machine.test_placement import needs_two_cpus

ENGINES = [EngineChoice.USERFAULTFD, EngineChoice.MPROTECT]
FIRST, PAGES = 100, 20_000
READ_WRITE = Prot.READ | Prot.WRITE
MOST = 8192
"""The pages that may be wasted."""


def wait_until(condition: Callable[[], bool], limit: float) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


# The decisions.

moves = st.one_of(st.just(0), st.integers(0, 300), st.integers(0, PAGES // 4))


@given(st.integers(0, PAGES), st.lists(st.tuples(moves, st.integers(0, 40)), max_size=60))
def test_no_more_is_wanted_than_was_touched_and_nothing_twice(filled: int, looks: list[tuple[int, int]]) -> None:
    """`filled` pages are there before the first look; then the guest moves on, and some of what is wanted is done."""
    sequence = Sequence(PageRun(FIRST, PAGES), 0.0)
    origin = frontier = min(FIRST + filled, FIRST + PAGES)
    done = [PageRun(FIRST, 0)]
    for moved, most in looks:
        frontier = min(frontier + moved, FIRST + PAGES)
        sequence.look(frontier)
        for _ in range(most):
            run = sequence.wanted()
            if run is None:
                break
            assert max(done[-1].end, frontier + 1) <= run.first < run.end <= FIRST + PAGES
            assert run.end - frontier <= min(frontier - origin, MOST)
            assert run.count * PAGE_SIZE <= MIB
            done.append(run)
            sequence.done(run)
            sequence.look(frontier)
        sequence.rest(0.0)
        if frontier - origin < MIB // PAGE_SIZE:
            assert len(done) == 1, "a megabyte is no sequence"


def test_a_guest_that_goes_on_is_preceded_to_the_end() -> None:
    sequence, frontier, ahead = Sequence(PageRun(FIRST, PAGES), 0.0), FIRST, list[int]()
    while not sequence.is_over:
        sequence.look(frontier)
        while (run := sequence.wanted()) is not None:
            sequence.done(run)
            ahead.append(run.end - frontier)
        sequence.rest(0.0)
        frontier = min(frontier + 300, FIRST + PAGES)
    assert run is None
    assert max(ahead) == MOST
    assert ahead[0] < 300
    assert frontier + MOST >= FIRST + PAGES


def test_a_guest_that_has_caught_up_is_left_the_pages_that_it_is_at() -> None:
    sequence = Sequence(PageRun(FIRST, PAGES), 0.0)
    for frontier in (FIRST, FIRST + 1000, FIRST + 2500):
        sequence.look(frontier)
    first = sequence.wanted()
    assert first is not None
    assert first.first > FIRST + 2500 + 100
    sequence.done(first)
    sequence.look(first.end + 500)
    second = sequence.wanted()
    assert second is not None
    assert second.first > first.end + 600


def test_pauses_grow_until_the_range_is_given_up() -> None:
    sequence, pauses = Sequence(PageRun(FIRST, PAGES), 0.0), list[float]()
    while not sequence.is_over:
        sequence.look(FIRST + 255)
        assert sequence.wanted() is None
        sequence.rest(7.0)
        pauses.append(sequence.due - 7.0)
    assert pauses == sorted(pauses)
    assert pauses[0] < 0.001
    assert pauses[-1] == pytest.approx(0.1)
    assert 3 < sum(pauses) < 4


# The ranges.


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[Preallocating]:
    """One whose thread never looks, in RAM of 256 MiB."""
    monkeypatch.setattr(preallocating, "_SHORTEST", 1e6)
    ram = GuestRam(RAM_BASE, 256 * MIB)
    one = Preallocating(ram, Placement(None), lambda: True, lambda error: None)
    yield one
    one.stop()
    ram.close()


def new(start: int, size: int, rights: Prot = READ_WRITE, kind: RegionKind = RegionKind.ANONYMOUS) -> Region:
    """A region by its place in RAM, in MiB."""
    return Region(RAM_BASE + start * MIB, RAM_BASE + (start + size) * MIB, rights, kind)


def test_large_new_anonymous_memory_is_watched(quiet: Preallocating) -> None:
    for region in (
        new(0, 7),
        new(10, 8, Prot.NONE),
        new(20, 8, READ_WRITE | Prot.EXEC),
        new(30, 8, kind=RegionKind.FILE),
        new(40, 8, kind=RegionKind.STACK),
    ):
        quiet.changed(*region[:2], region)
    assert quiet.watched == []
    for region in (new(100, 8), new(150, 20, kind=RegionKind.HEAP)):
        quiet.changed(*region[:2], region)
    assert quiet.watched == [PageRun(25600, 2048), PageRun(38400, 5120)]


def test_without_a_thread_nothing_is_watched(quiet: Preallocating, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: Thread) -> None:
        raise HostError("too many threads")

    monkeypatch.setattr(Thread, "start", refuse)
    for start in (100, 120):
        quiet.changed(*new(start, 8)[:2], new(start, 8))
        assert quiet.watched == []


@pytest.mark.parametrize(
    ("start", "size", "left"), [(99, 1, 2), (108, 1, 2), (99, 2, 1), (107, 100, 0), (50, 200, 0), (103, 1, 1)]
)
@pytest.mark.parametrize("again", [False, True])
def test_a_range_is_dropped_when_some_of_it_changes(
    quiet: Preallocating, start: int, size: int, left: int, again: bool
) -> None:
    for region in (new(100, 8), new(150, 20)):
        quiet.changed(*region[:2], region)
    region = new(start, size, Prot.READ)
    quiet.changed(*region[:2], region if again else None)
    assert len(quiet.watched) == left


def test_a_guest_that_only_maps_and_unmaps_is_looked_at_ever_more_rarely(
    quiet: Preallocating, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preallocating, "_LONGEST", 8e6)
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    region, dues = new(100, 8), list[float]()
    for _ in range(6):
        quiet.changed(*region[:2], region)
        dues.append(quiet._sequences[0].due)
        quiet.changed(*region[:2], None)
    assert dues == [1e6, 2e6, 4e6, 8e6, 8e6, 8e6]
    quiet.changed(*region[:2], region)
    [sequence] = quiet._sequences
    for frontier in (0, 1000):
        sequence.look(sequence.pages.first + frontier)
    quiet.changed(*region[:2], region)
    assert quiet._sequences[0].due == 1e6, "it went through that one"


def test_of_many_ranges_the_newest_are_watched(quiet: Preallocating) -> None:
    for start in range(0, 256, 8):
        quiet.changed(*new(start, 8)[:2], new(start, 8))
    assert [run.first * PAGE_SIZE // MIB for run in quiet.watched] == list(range(128, 256, 8))


@pytest.mark.parametrize("share", [0.09, 0.11])
def test_the_machine_has_to_have_memory_left(
    share: float, quiet: Preallocating, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preallocating, "available_share", lambda: share)
    assert quiet._is_memory_left() == (share > 0.1)


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_stays_in_memory_that_is_freed_meanwhile(seed: int) -> None:
    chance, pages, over = random.Random(seed), 256, threading.Event()
    ram = GuestRam(RAM_BASE, pages * PAGE_SIZE)
    space = AddressSpace(ram, lambda start, size, protection: None)
    done = [0]

    def preallocate() -> None:
        while not over.is_set():
            done[0] += ram.preallocate(PageRun(chance.randrange(pages - 4), 4))

    thread = threading.Thread(target=preallocate)
    thread.start()
    space.map(Region(ram.base, ram.end, READ_WRITE, RegionKind.ANONYMOUS))
    while done[0] < 50:
        first, last = sorted(chance.sample(range(pages + 1), 2))
        start, end = ram.base + first * PAGE_SIZE, ram.base + last * PAGE_SIZE
        space.unmap(start, end)
        space.replace(Region(start, end, READ_WRITE, RegionKind.ANONYMOUS))
    space.unmap(ram.base, ram.end)
    over.set()
    thread.join()
    assert ram.touched_bytes() == 0
    ram.close()


# Guests.


class Filling:
    """A guest that is told to go through new memory, step by step."""

    def __init__(self, machine: Machine, told: IO[bytes], tells: int, limit: float) -> None:
        self.machine, self._told, self._tells, self._limit = machine, told, tells, limit

    @property
    def sequence(self) -> Sequence:
        assert self.machine.preallocating is not None
        [sequence] = self.machine.preallocating._sequences
        return sequence

    def step(self) -> None:
        self._told.write(b".")
        assert os.read(self._tells, 1) == b".", "the guest ended"

    def seen_step(self) -> None:
        """A step, and a look that finds nothing more to do."""
        self.step()
        rests = self.sequence._rests
        wait_until(lambda: self.sequence._rests != rests, self._limit)

    def ahead(self) -> int:
        """Pages that have memory though they were not touched."""
        ram = self.machine.ram
        return ram.touched_bytes() // PAGE_SIZE - pages_in(ram.touched())

    def end(self) -> int:
        self._told.close()
        ending = self.machine.wait(self._limit)
        assert ending is not None, "it goes on"
        return ending.code


@contextmanager
def launched(program: Path, engine: EngineChoice, *arguments: str) -> Iterator[tuple[Machine, IO[bytes], int]]:
    """A guest that was started, and our ends of the pipes that are its standard input and output."""
    with ExitStack() as undo:
        ends = [*os.pipe(), *os.pipe()]
        undo.callback(os.close, ends[2])
        told = undo.enter_context(open(ends[1], "wb", buffering=0))
        own = [os.dup(0), os.dup(1)]
        for fd in own:
            undo.callback(os.close, fd)
        config = GuestConfig(str(program), (program.name, *arguments), ram_size=128 * MIB)
        os.dup2(ends[0], 0)
        os.dup2(ends[3], 1)
        try:
            machine = Machine.launch(config, RunOptions("filling", engine=engine))
        finally:
            os.dup2(own[0], 0)
            os.dup2(own[1], 1)
            os.close(ends[0])  # the machine has them open itself
            os.close(ends[3])
        undo.callback(machine.close)
        machine.start()
        yield machine, told, ends[2]


@contextmanager
def filling(program: Path, engine: EngineChoice, count: int, stride: int, limit: float) -> Iterator[Filling]:
    """A guest with 32 MiB to go through."""
    with launched(program, engine, "pages", "32", str(count), str(stride)) as (machine, told, tells):
        guest = Filling(machine, told, tells, limit)
        wait_until(lambda: machine.preallocating is not None and machine.preallocating.watched != [], limit)
        yield guest


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> EngineChoice:
    chosen: EngineChoice = request.param
    return chosen


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No range is given up, and looks do not become rare."""
    monkeypatch.setattr(preallocating, "_PATIENCE", 1 << 40)
    monkeypatch.setattr(preallocating, "_LONGEST", 0.001)
    monkeypatch.setattr(preallocating, "available_share", lambda: 1.0)


@needs_two_cpus
def test_a_guest_that_touches_one_page_after_the_other(
    patient: None, engine: EngineChoice, c_program: CProgram, time_scale: float
) -> None:
    """Memory is there before it comes to it, no more than it has touched, and all is right in the end."""
    limit = 30 * time_scale
    with filling(c_program("filling"), engine, 512, 1, limit) as guest:
        guest.seen_step()
        guest.step()
        wait_until(lambda: guest.ahead() > 0, limit)
        assert guest.ahead() <= 1024
        for _ in range(4):
            guest.step()
            assert guest.ahead() <= 8 * 512
        for _ in range(10):
            guest.step()
        wait_until(lambda: guest.machine.preallocating is not None and not guest.machine.preallocating.watched, limit)
        assert guest.ahead() == 0, "all was touched"
        assert guest.end() == 0


@needs_two_cpus
@pytest.mark.parametrize(("count", "stride"), [(10, 100), (500, 7)])
def test_a_guest_that_leaves_pages_out(
    patient: None, count: int, stride: int, engine: EngineChoice, c_program: CProgram, time_scale: float
) -> None:
    with filling(c_program("filling"), engine, count, stride, 30 * time_scale) as guest:
        for _ in range(8):
            guest.seen_step()
        assert guest.ahead() == 0
        assert guest.end() == 0


@needs_two_cpus
@pytest.mark.parametrize("attending", ["a trace", "a watch", "a save"])
def test_nothing_is_preallocated_while_somebody_attends_to_pages(
    patient: None, attending: str, engine: EngineChoice, c_program: CProgram, time_scale: float
) -> None:
    limit = 30 * time_scale
    with filling(c_program("filling"), engine, 512, 1, limit) as guest:
        machine = guest.machine

        def attend() -> AbstractContextManager[object]:
            if attending == "a trace":
                return machine.traces.add([PageRun(0, 16)], Access.READ)
            return machine.watch_writes() if attending == "a watch" else machine.saving

        with attend():
            for _ in range(5):
                guest.seen_step()
            assert guest.ahead() == 0
        guest.step()
        wait_until(lambda: guest.ahead() > 0, limit)
        assert guest.end() == 0


@needs_two_cpus
@pytest.mark.parametrize("attending", ["accesses", "writes", "a watch", "a snapshot"])
def test_to_who_comes_later_the_pages_are_untouched(
    patient: None, attending: str, engine: EngineChoice, c_program: CProgram, time_scale: float
) -> None:
    """What the guest does to preallocated pages is heard of, as of any, and a save's instant has none of them."""
    limit = 30 * time_scale
    with filling(c_program("filling"), engine, 512, 1, limit) as guest:
        machine, before = guest.machine, guest.sequence.pages.first
        for _ in range(4):
            guest.seen_step()
        wait_until(lambda: guest.ahead() >= 512, limit)
        start, heard = before + 4 * 512, set[int]()
        if attending == "a watch":
            with machine.watch_writes() as watch:
                guest.step()
                heard = {page for run in watch.look().written for page in range(run.first, run.end)}
        elif attending == "a snapshot":
            snapshot = Snapshot(machine.ram, machine.engine)
            try:
                snapshot.prepare()
                instant = machine.frozen(snapshot.instant)
                guest.step()
                assert pages_in(common(instant, [PageRun(start, 8192 - 4 * 512)])) == 0
                heard = set(range(start, start + 512))
            finally:
                snapshot.end()
        else:
            access = Access.READ if attending == "accesses" else Access.WRITE
            events: list[TraceEvent] = []
            with machine.traces.add([PageRun(start, 512)], access, handler=events.extend):
                guest.step()
            heard = {event.page for event in events}
        assert heard >= set(range(start, start + 512))
        for _ in range(11):
            guest.step()
        assert guest.ahead() == 0
        assert guest.end() == 0


def test_only_a_guest_that_runs_is_preceded(c_program: CProgram) -> None:
    with launched(c_program("filling"), EngineChoice.USERFAULTFD, "pages", "32", "1", "1") as (machine, _, _):
        assert machine._may_preallocate()
        machine.pause()
        assert not machine._may_preallocate()
        machine.resume()
        assert machine._may_preallocate()
        machine.engine.defer()
        assert not machine._may_preallocate(), "as in a lazy restore"
        machine.engine.defer_no_more()
        assert machine._may_preallocate()


@needs_two_cpus
@pytest.mark.parametrize("seed", [1, 2])
def test_contents_are_right_while_the_guest_replaces_its_memory(
    seed: int, engine: EngineChoice, c_program: CProgram, time_scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preallocating, "_SHORTEST", 0.00001)
    monkeypatch.setattr(preallocating, "_LEAST_PROGRESS", 16)
    monkeypatch.setattr(preallocating, "_STEP", 32)
    arguments = ("replaced", "32", str(seed), "60")
    with launched(c_program("filling"), engine, *arguments) as (machine, _, tells):
        ending = machine.wait(60 * time_scale)
        assert ending is not None
        assert ending.code == 0, ending.reason
        assert os.read(tells, 100) == b"all right\n"


@needs_two_cpus
def test_an_error_ends_the_guest_and_is_told(
    c_program: CProgram, time_scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(sequence: Sequence) -> PageRun:
        raise ValueError(f"nothing of {sequence.pages.count} pages")

    monkeypatch.setattr(Sequence, "wanted", fail)
    with launched(c_program("filling"), EngineChoice.USERFAULTFD, "pages", "32", "1", "1") as (machine, _, _):
        ending = machine.wait(30 * time_scale)
        assert ending is not None
        assert ending.code == INTERNAL_ERROR
        assert "ValueError: nothing of 8192 pages" in ending.reason
